"""The default error task, rendered by JSON-e with the context that its module describes."""

from typing import Any

import jsone
import pytest

from service.error_task import DEFAULT_ERROR_TASK
from service.settings import Settings

REVISION = "0123456789abcdef0123456789abcdef01234567"


def render(trust_domain: str | None = None, notify: str | None = None) -> dict[str, Any]:
    repository = {"project": "try", "level": "1", "url": "https://hg.mozilla.org/try", "trust_domain": trust_domain}
    context = {
        "push": {"revision": REVISION, "pushlog_id": 101},
        "repository": repository,
        "error": "line 3: no colon",
        "environments": ["tc-treeherder", "stage"],
        "owner": "me@example.com",
        "notify": notify,
        "now": "2026-01-01T12:00:00.000Z",
        "taskcluster_root_url": "https://tc.example.com",
        "ownTaskId": "A" * 22,
    }
    rendered: dict[str, Any] = jsone.render(DEFAULT_ERROR_TASK, context)
    return rendered


def test_it_is_the_default_of_the_setting() -> None:
    assert Settings().error_task == DEFAULT_ERROR_TASK


def test_it_shows_the_error_on_the_push_in_each_environment() -> None:
    task = render()
    assert task["extra"]["error"] == "line 3: no colon"
    assert "line 3: no colon" in task["metadata"]["description"]
    assert task["routes"] == [f"{prefix}.v2.try.{REVISION}.101" for prefix in ("tc-treeherder", "stage")]
    assert task["metadata"]["source"] == f"https://hg.mozilla.org/try/file/{REVISION}/.taskcluster.yml"
    assert task["created"] == "2026-01-01T12:00:00.000Z"
    assert task["deadline"] == "2026-01-02T12:00:00.000Z"


@pytest.mark.parametrize(("trust_domain", "scheduler"), [(None, "tc-treeherder"), ("gecko", "gecko-level-1")])
def test_its_scheduler_is_that_of_the_project(trust_domain: str | None, scheduler: str) -> None:
    assert render(trust_domain)["schedulerId"] == scheduler


def test_it_notifies_the_pusher_if_there_is_an_address() -> None:
    assert render(notify="me@example.com")["routes"][-1] == "notify.email.me@example.com.on-failed"
