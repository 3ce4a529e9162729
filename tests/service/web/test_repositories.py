"""Repositories with the states of their polls."""

import asyncio
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from service.clock import now
from tests.service.api.test_audit import entries
from tests.service.asgi import ADMIN, READER, WRITER, push_event, settings_for
from tests.service.web.browser import Browser, opened, text_of
from tests.service.web.support import XSS, is_escaped


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"last_good_poll_at": timedelta()}, "polled"),
        ({}, "polled"),
        ({"created_at": timedelta(hours=-1)}, "waiting"),
        ({"last_good_poll_at": timedelta(hours=-1)}, "waiting"),
        ({"poll_failures": 3, "poll_error": "hg answers 500", "last_good_poll_at": timedelta()}, "failing"),
        ({"enabled": False, "poll_failures": 3}, "paused"),
    ],
)
async def test_a_word_says_how_the_poll_is(admin: Browser, values: dict[str, Any], word: str) -> None:
    await admin.api.add()
    times = {name: now() + value for name, value in values.items() if isinstance(value, timedelta)}
    await admin.api.change_repository(**{**values, **times})
    page = await admin.page("/repositories")
    assert f">{word}</span>" in page
    assert values.get("poll_error", "") in text_of(page)


async def test_what_strangers_wrote_is_escaped(admin: Browser) -> None:
    assert "None is monitored" in text_of(await admin.page("/repositories"))
    await admin.api.add()
    await admin.api.change_repository(poll_error=XSS, reset_suspected_at=now())
    page = await admin.page("/repositories")
    assert is_escaped(page)
    assert "&lt;script&gt;" in page


async def repository_form(admin: Browser, alias: str = "mc") -> dict[str, str]:
    """Return the fields that the form of a repository has, as a browser sends them."""
    page = await admin.page(f"/repositories/{alias}")
    form = re.search(r"<h2>Change</h2>(.*?)</form>", page, re.S)
    assert form is not None
    inputs = dict(re.findall(r'<input[^>]* name="(\w+)" value="([^"]*)"', form[1]))
    areas = dict(re.findall(r'<textarea name="(\w+)"[^>]*>\n?(.*?)</textarea>', form[1], re.S))
    chosen = re.findall(r'<select name="(\w+)">.*?<option selected>([^<]*)<', form[1], re.S)
    return {name: unescape(value) for name, value in {**inputs, **areas, **dict(chosen)}.items()}


async def test_one_is_added_and_shown(admin: Browser) -> None:
    token = await admin.form_token("/repositories")
    body = {"alias": "try", "url": "https://hg.mozilla.org/try", "level": "1", "last_push_id": "7", "graph": "no"}
    answer = await admin.post("/repositories", form_token=token, **body)
    assert (answer.status_code, answer.headers["location"]) == (303, "/repositories/try")
    page = text_of(await admin.page("/repositories/try"))
    assert "polled https://hg.mozilla.org/try" in page
    assert "push 7 of generation 0" in page
    assert "assume:repo:hg.mozilla.org/try:branch:default" in page
    again = await admin.post("/repositories", form_token=token, **body)
    assert again.status_code == 409
    assert "is taken by repository try" in text_of(again.text)
    assert (await admin.get("/repositories/other")).status_code == 404


async def test_one_is_changed_by_the_form_as_it_is_shown(admin: Browser) -> None:
    await admin.api.add(contains=XSS[:50], scopes=["a:b", "c:d"], environments=["tc-treeherder"])
    form = await repository_form(admin)
    assert (form["contains"], form["scopes"], form["environments"]) == (XSS[:50], "a:b\nc:d", "tc-treeherder")
    unchanged = await admin.post("/repositories/mc", do="change", **form)
    assert "change something first" in text_of(unchanged.text)
    form |= {"contains": "", "scopes": "e:f", "enabled": "no"}
    assert (await admin.post("/repositories/mc", do="change", **form)).status_code == 303
    stored = await admin.api.repository()
    assert (stored.contains, stored.scopes, stored.enabled) == (None, ["e:f"], False)
    assert (stored.environments, stored.level) == (["tc-treeherder"], "1")
    late = await admin.post("/repositories/mc", do="change", **{**form, "contains": "CI"})
    assert late.status_code == 409
    assert "was changed since you loaded this form" in text_of(late.text)
    entry = (await entries(admin.api))[-1]
    assert (entry.event, entry.origin) == ("repository-changed", "page")
    assert set(entry.details["changes"]) == {"contains", "scopes", "enabled"}


async def test_of_two_forms_at_once_one_is_refused(postgres_url: str) -> None:
    async with opened(settings_for(postgres_url)) as browser:
        assert (await browser.sign_in(ADMIN)).status_code == 303
        for number in range(5):
            await browser.api.add(f"r{number}")
            form = await repository_form(browser, f"r{number}")
            both = [{**form, "contains": "CI"}, {**form, "enabled": "no"}]
            answers = await asyncio.gather(
                *(browser.post(f"/repositories/r{number}", do="change", **one) for one in both)
            )
            assert sorted(answer.status_code for answer in answers) == [303, 409]


async def test_one_is_paused_resumed_polled_and_reset(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.change_repository(due_at=now() + timedelta(hours=1), poll_failures=3)
    token = await admin.form_token("/repositories/mc")

    async def do(what: str, **more: str) -> int:
        return (await admin.post("/repositories/mc", form_token=token, do=what, **more)).status_code

    before = await admin.api.repository()
    assert await do("poll") == 303
    polled = await admin.api.repository()
    assert polled.turn <= now()
    assert polled.shift == before.shift + 1
    assert await do("pause") == 303
    assert "Poll now" not in await admin.page("/repositories/mc")
    assert await do("poll") == 409
    assert await do("resume") == 303
    assert (await admin.api.repository()).enabled
    assert 'name="generation" value="0"' in await admin.page("/repositories/mc")
    assert await do("reset", generation="0") == 422
    assert await do("reset", generation="²", sure="yes") == 422
    assert await do("reset", generation="0", sure="yes", last_push_id="") == 303
    assert await do("reset", generation="0", sure="yes", last_push_id="") == 409  # pressed twice
    reset = await admin.api.repository()
    assert (reset.generation, reset.last_push_id) == (1, 41)
    assert await do("burn") == 422


async def test_who_may_not_change_it_is_told_the_scope(admin: Browser) -> None:
    await admin.api.add()
    await admin.post("/sign-out", form_token=await admin.form_token("/"))
    await admin.sign_in(READER)
    for path in ("/repositories", "/repositories/mc"):
        page = await admin.page(path)
        assert "needs the scope tc-treeherder:repositories:write" in text_of(page)
        assert page.count("<form") == 1  # to sign out
    token = await admin.form_token("/")
    for path, fields in (("/repositories", {"alias": "x"}), ("/repositories/mc", {"do": "pause"})):
        assert (await admin.post(path, form_token=token, **fields)).status_code == 403
    await admin.post("/sign-out", form_token=token)
    await admin.sign_in(WRITER)
    assert (await admin.post("/repositories/mc", form_token="x", do="pause")).status_code == 403
    assert (await admin.api.repository()).enabled


async def test_what_strangers_wrote_is_escaped_on_the_page_of_one(admin: Browser) -> None:
    await admin.api.add()
    texts = ("poll_error", "contains", "level", "trust_domain", "route_project")
    lists = ("scopes", "environments", "pulse_actions")
    values: dict[str, Any] = {**dict.fromkeys(texts, XSS), **{name: [XSS] for name in lists}}
    await admin.api.change_repository(**values, poll_failures=2, reset_suspected_at=now())
    page = await admin.page("/repositories/mc")
    assert page.count("&lt;script&gt;") > 8
    assert is_escaped(page)


async def removal_form(admin: Browser) -> dict[str, str]:
    """Return the fields of the form that removes a repository."""
    page = await admin.page("/repositories/mc/remove")
    form = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.partition("<main")[2])
    return dict(form)


async def test_one_is_removed_after_a_page_that_says_what_is_lost(admin: Browser) -> None:
    await admin.api.add()
    assert 'href="/repositories/mc/remove"' in await admin.page("/repositories/mc")
    assert "no push after 100 becomes a resultset" in text_of(await admin.page("/repositories/mc/remove"))
    form = await removal_form(admin)
    await admin.api.patch("/repositories/mc", {"graph": False})
    assert (await admin.post("/repositories/mc/remove", **form)).status_code == 409
    answer = await admin.post("/repositories/mc/remove", **await removal_form(admin))
    assert (answer.status_code, answer.headers["location"]) == (303, "/repositories")
    assert "None is monitored" in text_of(await admin.page("/repositories"))
    assert (await admin.get("/repositories/mc/remove")).status_code == 404
    assert (await entries(admin.api))[-1].event == "repository-deleted"


async def test_unfinished_work_is_named_before_it_is_buried(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    form = await removal_form(admin)
    asked = await admin.post("/repositories/mc/remove", **form)
    assert asked.status_code == 409
    assert "3 steps of mc's pushes and 0 actions on its tasks are unfinished" in text_of(asked.text)
    assert 'name="force" value="yes"' in asked.text
    assert await admin.api.letters() == []
    assert (await admin.post("/repositories/mc/remove", **form, force="yes")).status_code == 303
    assert len(await admin.api.letters()) == 3


async def test_who_may_not_write_removes_nothing(admin: Browser) -> None:
    await admin.api.add()
    form = await removal_form(admin)
    await admin.post("/sign-out", form_token=form["form_token"])
    await admin.sign_in(READER)
    assert (await admin.get("/repositories/mc/remove")).status_code == 403
    assert "/remove" not in await admin.page("/repositories/mc")
    token = await admin.form_token("/")
    assert (await admin.post("/repositories/mc/remove", **{**form, "form_token": token})).status_code == 403
    assert (await admin.api.get("/repositories/mc")).status_code == 200
