"""The actions.json of a decision task, and the hooks behind it."""

from collections.abc import AsyncIterator
from typing import Any

import jsone
import jsonschema
import pytest
from taskcluster import slugId

from sandbox import credentials
from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.actions import is_decision
from tests.sandbox.taskcluster.support import ROOT, Api, refused
from tests.sandbox.taskcluster.tree import ROLE, URL, USER, Tree

HOOK_KEYS = {"name", "title", "description", "context", "kind", "hookGroupId", "hookId", "hookPayload", "extra"}


@pytest.fixture
def tc() -> Taskcluster:
    return Taskcluster([ROOT, credentials.SERVICE], credentials.ROLES, worker=True)


@pytest.fixture
async def tree(api: Api) -> AsyncIterator[Tree]:
    async with api.tc.running():
        yield Tree(api)


async def test_an_actions_json_has_the_form_that_taskgraph_gives_it(tree: Tree) -> None:
    decision = (await tree.push(7))["decision"]
    offered = await tree.offered(decision)
    assert (offered["version"], offered["variables"]) == (1, {})
    for action in offered["actions"]:
        if action["kind"] == "hook":
            assert action.keys() - {"schema"} == HOOK_KEYS
            assert action["hookPayload"]["decision"]["action"]["taskGroupId"] == decision
            assert action["hookId"].startswith(f"in-tree-action-3-{action['extra']['actionPerm']}/")
        else:
            assert action.keys() == {"name", "title", "description", "context", "kind", "schema", "task", "extra"}
        if "schema" in action:
            jsonschema.Draft7Validator.check_schema(action["schema"])
    (backfill,) = (action for action in offered["actions"] if action["name"] == "backfill")
    assert backfill["hookGroupId"] == "project-sandbox"
    assert backfill["hookPayload"] == {
        "decision": {
            "action": {
                "name": "backfill",
                "title": "Backfill",
                "description": backfill["description"],
                "taskGroupId": decision,
                "cb_name": "backfill",
                "symbol": "Bk",
            },
            "repository": {"url": URL, "project": "autoland", "level": "3"},
            "push": {"owner": USER, "revision": f"{7:040x}", "base_revision": "0" * 40, "pushlog_id": "7"},
        },
        "user": {"input": {"$eval": "input"}, "taskId": {"$eval": "taskId"}, "taskGroupId": {"$eval": "taskGroupId"}},
    }


@pytest.mark.parametrize(
    ("label", "name", "callback"),
    [
        ("decision", "retrigger", "retrigger-decision"),
        ("build", "retrigger", "retrigger-disabled"),
        ("test", "retrigger", "retrigger"),
        ("test", "backfill", "backfill"),
        ("build", "cancel", "cancel"),
        ("build", "rerun", "rerun"),
        (None, "retrigger-multiple", "retrigger-multiple"),
        (None, "cancel-all", "cancel-all"),
        (None, "add-new-jobs", "add-new-jobs"),
    ],
)
async def test_tags_of_a_task_choose_among_actions_of_one_name(
    tree: Tree, label: str | None, name: str, callback: str
) -> None:
    ids = await tree.push(7, "build", "test")
    action = await tree.find(ids["decision"], name, ids[label] if label else None)
    assert action["hookPayload"]["decision"]["action"]["cb_name"] == callback


async def test_a_decision_task_may_trigger_its_hooks_and_the_service_may_too(tree: Tree) -> None:
    decision = (await tree.push(7))["decision"]
    scopes = tree.api.tc.auth.expand((await tree.api("task", decision))["scopes"])
    ours = tree.api.tc.auth.expand(credentials.SERVICE.scopes)
    for action in (await tree.offered(decision))["actions"]:
        if action["kind"] == "hook":
            hook = f"{action['hookGroupId']}/{action['hookId']}"
            assert scopes.satisfies(f"in-tree:hook-action:{hook}")
            assert ours.satisfies(f"hooks:trigger-hook:{hook}")
            assert ours.satisfies(f"hooks:list-last-fires:{hook}")


async def test_an_action_task_says_what_it_was_triggered_for(tree: Tree) -> None:
    ids = await tree.push(7, "test")
    action_id = await tree.act(ids["decision"], "retrigger", ids["test"], {"times": 2})
    task = await tree.api("task", action_id)
    assert (task["taskGroupId"], task["tags"]["kind"]) == (ids["decision"], "action-callback")
    assert task["routes"][0] == f"tc-treeherder.v2.autoland.{7:040x}.7"
    assert task["payload"]["env"] == {
        "ACTION_TASK_GROUP_ID": ids["decision"],
        "ACTION_TASK_ID": f'"{ids["test"]}"',
        "ACTION_INPUT": '{"times":2}',
        "ACTION_CALLBACK": "retrigger",
    }
    assert task["extra"]["parent"] == ids["decision"]
    assert task["extra"]["action"]["context"] == {
        "taskGroupId": ids["decision"],
        "taskId": ids["test"],
        "input": {"times": 2},
        "clientId": credentials.SERVICE.client_id,
    }
    assert task["extra"]["treeherder"]["groupSymbol"] == "AC"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"user": {"input": None, "taskId": 5, "taskGroupId": ""}}, "data/user/taskId must match a schema in anyOf"),
        ({"user": {"taskId": None, "taskGroupId": ""}}, "data/user must have required property 'input'"),
        ({"taskId": "VGQ1aNKBRaGLWb_o_S9cQA"}, "data must NOT have additional properties"),
        ({"decision": {}}, "data/decision must have required property 'action'"),
    ],
)
async def test_the_hook_refuses_other_payloads_and_a_task_id_of_the_callers(
    tree: Tree, change: dict[str, Any], error: str
) -> None:
    ids = await tree.push(7)
    action = await tree.find(ids["decision"], "cancel-all", None)
    payload = jsone.render(action["hookPayload"], {"input": None, "taskId": None, "taskGroupId": ids["decision"]})
    call = tree.api("triggerHook", action["hookGroupId"], action["hookId"], body={**payload, **change}, service="hooks")
    await refused(call, 400, "InputError", error)


async def test_a_task_of_kind_task_is_created_with_the_scopes_of_the_decision_task(tree: Tree) -> None:
    ids = await tree.push(7, "test")
    action = await tree.find(ids["decision"], "create-interactive", ids["test"])
    given = {"notify": "me@x.example", "features": ["interactive"], "priority": "low", "hours": 0.5, "keep": False}
    given["environment"] = {"A": "b"}
    jsonschema.validate(given, action["schema"])
    own = str(slugId())
    task = await tree.api("task", ids["test"])
    context = {"taskGroupId": ids["decision"], "taskId": ids["test"], "task": task, "ownTaskId": own, "input": given}
    tree.api.client, tree.api.ext = credentials.SERVICE, {"authorizedScopes": [ROLE]}
    await tree.api("createTask", own, body=jsone.render(action["task"], {**context, "now": task["created"]}))
    created = await tree.api("task", own)
    assert (created["taskGroupId"], created["metadata"]["owner"]) == (ids["decision"], "me@x.example")
    assert created["payload"]["maxRunTime"] == 1800


async def test_hooks_keep_their_fires_when_another_push_comes(tree: Tree) -> None:
    first = await tree.push(7)
    action_id = await tree.act(first["decision"], "cancel-all")
    await tree.push(8)
    fires = [fire["taskId"] for hook in tree.api.tc.hooks.describe() for fire in hook["lastFires"]]
    assert fires == [action_id]


REPOSITORY = {"url": URL, "project": "autoland", "level": 3}
PUSH = {"owner": USER, "revision": "a", "base_revision": "b", "pushlog_id": 1}


@pytest.mark.parametrize(
    ("decision", "verdict"),
    [
        ({"repository": REPOSITORY, "push": PUSH}, True),
        ({"repository": {**REPOSITORY, "type": "hg"}, "push": {**PUSH, "comment": " "}}, True),
        ({"repository": REPOSITORY}, False),
        ({"repository": REPOSITORY, "push": {"owner": USER}}, False),
        ({"repository": [], "push": PUSH}, False),
        (True, False),
        (None, False),
    ],
)
def test_what_a_decision_is(decision: Any, verdict: bool) -> None:
    assert is_decision(decision) is verdict
