"""In-tree actions: their list, their forms, and the preview that a form leads to."""

import json
import re
from typing import Any

import pytest

from service.api.schemas.actions import ActionPlan, ActionState, MissingScope, PlannedInTree
from service.api.schemas.offers import OfferedAction, OfferedActions
from service.web import asking, offers
from tests.service.asgi import READER
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped

TASK = "fN1SbArXTPSVFNUvaOlinQ"
SCHEMA = {
    "type": "object",
    "title": XSS,
    "properties": {
        XSS: {"type": "string", "title": XSS, "description": XSS, "default": XSS},
        "depth": {"type": "integer", "default": 9},
        "mode": {"enum": [XSS, "b"], "default": "b"},
        "other": {"description": XSS, "default": {"a": XSS}},
    },
}


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer actions full of strangers' texts, for any task and push."""

    def answer(task_id: str | None, push: int | None) -> OfferedActions:
        common = {"title": XSS, "description": XSS, "allowed": True, "missing_scope": None, "broken": None}
        items = [
            OfferedAction(name="backfill", input=SCHEMA, **common),
            OfferedAction(name="plain", input=None, **common),
            OfferedAction(name="broken", input=None, **{**common, "broken": XSS}),
            OfferedAction(name="forbidden", input=None, **{**common, "missing_scope": "tc-treeherder:action:x:mc"}),
        ]
        return OfferedActions(project="mc", task_id=task_id, push=push, decision_task=TASK, reason=XSS, items=items)

    async def of_task(task_id: str, *_: Any) -> OfferedActions:
        return answer(task_id, None)

    async def of_push(_: str, push: int, *__: Any) -> OfferedActions:
        return answer(None, push)

    monkeypatch.setattr(offers, "read_task_offers", of_task)
    monkeypatch.setattr(offers, "read_push_offers", of_push)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answer each preview; return what was asked for."""
    asked: list[Any] = []

    async def plan_action(body: Any, *_: Any) -> ActionPlan:
        asked.append(body)
        missing = [MissingScope(scope=XSS, holder=XSS)]
        tree = PlannedInTree(
            decision_task=TASK, hook="g/h", input=body.input, rendered={XSS: XSS}, missing_scopes=missing
        )
        lists: dict[str, Any] = {name: [] for name in ("notes", "tasks", "cancels", "left_out")}
        wanted = body.model_dump(exclude={"requester"})
        return ActionPlan(**wanted, state=ActionState.PLANNED, reason=None, in_tree=tree, **lists)

    monkeypatch.setattr(asking, "plan_of", plan_action)
    return asked


@pytest.mark.usefixtures("offering")
async def test_what_is_offered_is_listed_with_what_keeps_one_from_it(admin: Browser) -> None:
    for path in (f"/tasks/{TASK}/offers", "/pushes/mc/7/offers"):
        page = await admin.page(path)
        assert is_escaped(page)
        assert f'href="{path}/backfill"' in page
        assert f'href="{path}/broken"' not in page
        assert "It cannot be used" in page
        assert "<code>tc-treeherder:action:x:mc</code>" in page
    missing = await admin.get(f"/tasks/{TASK}/offers/none")
    assert missing.status_code == 404
    assert "it offers backfill, plain" in text_of(missing.text)


@pytest.mark.usefixtures("offering")
async def test_the_form_leads_to_a_preview_with_the_payload_and_then_to_the_action(
    admin: Browser, planned: list[Any]
) -> None:
    page = await admin.page(f"/tasks/{TASK}/offers/backfill")
    assert is_escaped(page)
    main = page.partition("<main")[2]
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', main))
    assert 'name="in.1" value="9"' in main
    preview = await admin.post("/actions/plan", **fields, **{"in.0": "x", "in.1": "5", "in.2": "0", "in.3": "- 1"})
    assert preview.status_code == 200, preview.text
    assert is_escaped(preview.text)
    assert planned[0].input == {XSS: "x", "depth": 5, "mode": XSS, "other": [1]}
    assert (planned[0].action, planned[0].task_id) == ("backfill", TASK)
    assert "which has the hook g/h" in text_of(preview.text)
    assert "is missing to" in text_of(preview.text)
    told = re.search(r'name="input" value="([^"]*)"', preview.text)
    assert told is not None
    await admin.api.add()
    answer = await admin.post("/actions", **{**fields, "key": "k", "input": json.dumps(planned[0].input)})
    assert answer.status_code == 303, answer.text
    stored = (await admin.api.get("/actions")).json()["items"][0]
    assert (stored["action"], stored["input"]) == ("backfill", planned[0].input)


@pytest.mark.usefixtures("offering")
async def test_a_push_has_forms_too_and_nonsense_names_the_field(admin: Browser, planned: list[Any]) -> None:
    page = await admin.page("/pushes/mc/7/offers/backfill")
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.partition("<main")[2]))
    refused = await admin.post("/actions/plan", **fields, **{"in.1": "many"})
    assert refused.status_code == 422
    assert "depth: 'many' is no integer" in text_of(refused.text)
    assert planned == []
    for text in ("[1", "{"):
        answer = await admin.post("/actions", **{**fields, "key": "k", "input": text})
        assert answer.status_code == 422, text


@pytest.mark.usefixtures("offering")
async def test_an_action_that_one_may_not_ask_for_has_no_form(admin: Browser) -> None:
    assert "Preview</button>" in await admin.page(f"/tasks/{TASK}/offers/plain")
    for name in ("broken", "forbidden"):
        page = await admin.page(f"/tasks/{TASK}/offers/{name}")
        assert is_escaped(page)
        assert "Preview</button>" not in page


async def test_a_task_that_taskcluster_does_not_tell_of_is_a_problem(stranger: Browser) -> None:
    await stranger.sign_in(READER)
    answer = await stranger.get(f"/tasks/{TASK}/offers")
    assert answer.status_code == 502
    assert "Taskcluster answers 503" in text_of(answer.text)
