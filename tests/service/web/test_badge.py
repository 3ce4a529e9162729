"""The badge of a repository."""

from typing import Any

import pytest

from service.api.push_tasks import TaskState
from service.store.models import State
from service.web import badge
from service.web.badge import state_of
from tests.service.api.test_pushes import plan
from tests.service.asgi import push_event, settings_for
from tests.service.web.browser import Browser, opened
from tests.service.web.test_picture import push


async def test_it_shows_the_last_push_on_pages_elsewhere(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(badge, "KEPT", 0.0)
    async with opened(settings_for(sqlite_url, public_reads=True)) as browser:
        await browser.api.add()
        answer = await browser.get("/badge/mc.svg")
        assert "mc: no pushes" in answer.text
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "set-cookie" not in answer.headers
        await browser.api.push(push_event(101), push_event(102))
        assert "mc: running" in (await browser.get("/badge/mc.svg")).text
        await plan(browser.api, "build")
        await browser.api.end_steps(State.DONE)
        assert "mc: pushed" in (await browser.get("/badge/mc.svg")).text
        assert (await browser.get("/badge/none.svg")).status_code == 404


async def test_it_is_kept_for_some_seconds(sqlite_url: str) -> None:
    async with opened(settings_for(sqlite_url, public_reads=True)) as browser:
        await browser.api.add()
        await browser.get("/badge/mc.svg")
        await browser.api.push(push_event(101))
        assert "mc: no pushes" in (await browser.get("/badge/mc.svg")).text


async def test_there_is_none_where_reads_are_not_public(stranger: Browser, admin: Browser) -> None:
    await admin.api.add()
    answer = await admin.get("/badge/mc.svg")
    assert answer.status_code == 404
    assert "public_reads" in answer.text


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([], "pushed"),
        (["completed"], "passed"),
        (["completed", "running"], "running"),
        (["running", "failed"], "failed"),
    ],
)
def test_the_worst_of_its_tasks_counts(states: list[str], word: str) -> None:
    of_tasks: dict[str, Any] = {str(n): TaskState(0, state, None, None, "g") for n, state in enumerate(states)}
    assert state_of(push(), of_tasks).word == word
