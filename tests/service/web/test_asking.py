"""Actions by forms: a preview first, then the action, once."""

import re
from html import unescape
from typing import Any

import pytest

from service.api.schemas.actions import ActionPlan, ActionState, LeftOut, PlannedCancel, PlannedCopy
from service.settings import Settings
from service.web import asking
from service.web.asking import buttons_for
from tests.service.asgi import READER, settings_for
from tests.service.web.browser import Browser, opened, text_of
from tests.service.web.support import XSS, is_escaped

TASK = "fN1SbArXTPSVFNUvaOlinQ"
RETRIGGER = {"action": "retrigger", "project": "mc", "task_id": TASK, "push": "", "times": "2"}
CANCEL_PUSH = {"action": "cancel-push", "project": "mc", "task_id": "", "push": "7"}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answer each preview with a plan full of strangers' texts; return what was asked for."""
    asked: list[Any] = []

    async def plan_action(body: Any, *_: Any) -> ActionPlan:
        asked.append(body)
        copy = {"task_id": TASK, "name": XSS, "task_group_id": XSS, "dependencies": []}
        dates = dict.fromkeys(("created", "deadline", "expires"), "2026-01-15T12:30:01.000Z")
        return ActionPlan(
            **body.model_dump(exclude={"requester"}),
            state=ActionState.PLANNED,
            reason=XSS,
            notes=[XSS],
            tasks=[PlannedCopy(copy_of=XSS, **copy, **dates)],
            cancels=[PlannedCancel(task_id=XSS, name=XSS, state="running")],
            left_out=[LeftOut(task_id=XSS, name=XSS, reason=XSS)],
        )

    monkeypatch.setattr(asking, "plan_of", plan_action)
    return asked


async def test_a_preview_leads_to_one_action_however_often_its_form_is_sent(admin: Browser, planned: list[Any]) -> None:
    token = await admin.form_token("/")
    preview = await admin.post("/actions/plan", form_token=token, **RETRIGGER)
    assert preview.status_code == 200
    assert is_escaped(preview.text)
    assert planned[0].input == {"times": 2}
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', preview.text.partition("<main")[2]))
    assert unescape(fields["input"]) == '{"times": 2}'
    fields["input"] = unescape(fields["input"])
    first = await admin.post("/actions", **fields)
    assert first.status_code == 303
    again = await admin.post("/actions", **fields)
    assert again.headers["location"] == first.headers["location"]
    page = text_of(await admin.page(first.headers["location"]))
    assert "Asked by admin (api)" in page
    assert f"task {TASK}" in page
    assert (await admin.api.get("/actions")).json()["items"][0]["input"] == {"times": 2}


async def test_what_cannot_be_done_has_no_button(admin: Browser) -> None:
    async def refuse(*_: Any) -> Any:
        return ActionPlan(
            action="cancel-push",
            project="mc",
            task_id=None,
            run_id=None,
            push=7,
            input={},
            state=ActionState.REJECTED,
            reason="no push 7",
            notes=[],
            tasks=[],
            cancels=[],
            left_out=[],
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "plan_of", refuse)
        answer = await admin.post("/actions/plan", form_token=await admin.form_token("/"), **CANCEL_PUSH)
    assert "rejected no push 7" in text_of(answer.text)
    assert "Do it" not in answer.text


@pytest.mark.parametrize("path", ["/actions", "/actions/plan"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"times": "many"}, "times: 'many' is no number"),
        ({"times": "²"}, "is no number"),
        ({"push": "7"}, "task_id and push is given"),
        ({"task_id": XSS}, "task_id"),
        ({"times": "101"}, "times"),
        ({"project": XSS}, "project"),
    ],
)
async def test_nonsense_is_told(admin: Browser, path: str, change: dict[str, str], words: str) -> None:
    fields = {"form_token": await admin.form_token("/"), "key": "k", **RETRIGGER, **change}
    answer = await admin.post(path, **fields)
    assert answer.status_code == 422
    assert is_escaped(answer.text)
    assert words in text_of(answer.text)
    assert (await admin.api.get("/actions")).json()["items"] == []


async def test_an_action_without_a_preview_or_a_scope_is_refused(admin: Browser) -> None:
    token = await admin.form_token("/")
    assert (await admin.post("/actions", form_token=token, **RETRIGGER)).status_code == 422
    assert (await admin.post("/actions", key="k", form_token="x", **RETRIGGER)).status_code == 403
    assert (await admin.post("/sign-out", form_token=token)).status_code == 303
    await admin.sign_in(READER)
    token = await admin.form_token("/")
    for path in ("/actions", "/actions/plan"):
        # asked before what the tree offers is fetched, and before anything that was entered is read
        refused = await admin.post(path, {}, form_token=token, key="k", offered="yes", **RETRIGGER)
        assert refused.status_code == 403
        assert "reader needs the scope tc-treeherder:action:retrigger:mc" in text_of(refused.text)
    assert (await admin.api.get("/actions")).json()["items"] == []


async def test_where_reads_are_public_nobody_acts_without_signing_in(sqlite_url: str) -> None:
    async with opened(settings_for(sqlite_url, public_reads=True)) as browser:
        token = await browser.form_token("/sign-in")
        answer = await browser.post("/actions", form_token=token, key="k", **RETRIGGER)
        assert answer.status_code == 401
        assert 'href="/sign-in"' in answer.text


def test_a_button_that_one_may_not_press_says_which_scope_is_missing() -> None:
    from service.auth import Caller

    assert Settings().web
    may, may_not = buttons_for(Caller("a", ("tc-treeherder:action:retrigger:*",)), ("retrigger", "cancel"), "mc")
    assert (may.missing, may.times) == (None, True)
    assert may_not.missing == "tc-treeherder:action:cancel:mc"
