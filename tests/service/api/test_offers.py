"""The in-tree actions over the API: in order, with their input, and whether the caller may use them."""

from typing import Any

import pytest

from tests.service.asgi import ADMIN, READER, Api, is_problem, running, settings_for
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    CANCEL_ALL,
    DECISION,
    RETRIGGER,
    add_decision,
    add_push,
    add_task,
    file_of,
)
from tests.service.flow.graph_factory import slug
from tests.service.harness import FlowHarness

MAY = "backfiller-0123456789abcdef"


@pytest.fixture
async def offering(harness: FlowHarness, sqlite_url: str) -> Any:
    """Return the API beside a Taskcluster with a decision task, its task and its push."""
    await harness.add_repository()
    broken = {**RETRIGGER, "name": "broken", "hookId": None}
    add_decision(harness, file_of(ACTION, CANCEL_ALL, RETRIGGER, broken))
    await add_push(harness, DECISION)
    tokens = [
        {"name": "admin", "value": ADMIN, "scopes": ["*"]},
        {"name": "reader", "value": READER},
        {"name": "backfiller", "value": MAY, "scopes": ["tc-treeherder:action:backfill:mc"]},
    ]
    taskcluster = harness.settings.taskcluster.model_dump()
    async with running(settings_for(sqlite_url, taskcluster=taskcluster, tokens=tokens)) as api:
        yield harness, api


async def test_the_actions_of_a_task_with_what_the_caller_may(offering: tuple[FlowHarness, Api]) -> None:
    harness, api = offering
    answer = await api.get(f"/tasks/{add_task(harness)}/actions", token=MAY)
    assert answer.status_code == 200, answer.text
    offered = answer.json()
    assert {name: offered[name] for name in ("project", "task_id", "push", "decision_task", "reason")} == {
        "project": "mc",
        "task_id": slug("test"),
        "push": None,
        "decision_task": slug(DECISION),
        "reason": None,
    }
    backfill, retrigger, broken = offered["items"]
    assert backfill == {
        "name": "backfill",
        "title": "Backfill",
        "description": "Run it on earlier pushes.",
        "input": ACTION["schema"],
        "allowed": True,
        "missing_scope": None,
        "broken": None,
    }
    scope = "tc-treeherder:action:retrigger:mc"
    assert (retrigger["input"], retrigger["allowed"], retrigger["missing_scope"]) == (None, False, scope)
    assert "its hookId is 'None'" in broken["broken"]


async def test_the_actions_of_a_push(offering: tuple[FlowHarness, Api]) -> None:
    _, api = offering
    offered = (await api.get("/pushes/mc/7/actions")).json()
    assert (offered["push"], offered["task_id"], offered["decision_task"]) == (7, None, slug(DECISION))
    assert [(action["name"], action["allowed"]) for action in offered["items"]] == [("cancel-all", True)]


async def test_without_actions_the_reason_is_told(offering: tuple[FlowHarness, Api]) -> None:
    harness, api = offering
    await add_push(harness, push_id=8)
    offered = (await api.get("/pushes/mc/8/actions")).json()
    assert (offered["items"], offered["decision_task"]) == ([], None)
    assert offered["reason"] == "no decision task of push 8 of mc is known, or none has succeeded"
    add_decision(harness, b"{}", "nonsense")
    offered = (await api.get(f"/tasks/{add_task(harness, group='nonsense')}/actions")).json()
    assert "has the version None" in offered["reason"]


async def test_unknown_tasks_and_projects_are_not_found(offering: tuple[FlowHarness, Api]) -> None:
    harness, api = offering
    is_problem(await api.get(f"/tasks/{slug('missing')}/actions"), 404, "it may have expired")
    is_problem(await api.get("/tasks/x/actions"), 404, "it may have expired")
    is_problem(await api.get("/pushes/mc/99/actions"), 404, "no push 99")
    task_id = add_task(harness)
    is_problem(await api.get(f"/tasks/{task_id}/actions?project=try"), 404, "no repository 'try' is monitored")
    add_task(harness, "theirs", routes=["tc-treeherder.v2.theirs." + "0" * 40])
    is_problem(await api.get(f"/tasks/{slug('theirs')}/actions"), 404, "names a repository that is monitored here")


async def test_who_may_not_read_is_told_so_before_anything_is_fetched(offering: tuple[FlowHarness, Api]) -> None:
    harness, api = offering
    task_id = add_task(harness)
    harness.tc.journal.clear()
    assert (await api.get(f"/tasks/{task_id}/actions", token=None)).status_code == 401
    assert (await api.get("/pushes/mc/7/actions", token=None)).status_code == 401
    assert not harness.tc.journal.calls


async def test_while_taskcluster_is_away_it_is_a_502(offering: tuple[FlowHarness, Api]) -> None:
    harness, api = offering
    task_id = add_task(harness)
    harness.tc.faults.add("before", status=500)
    is_problem(await api.get(f"/tasks/{task_id}/actions"), 502, "try again later")
    is_problem(await api.get("/pushes/mc/7/actions"), 502, "try again later")
