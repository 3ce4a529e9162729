"""What action tasks do, triggered through their hooks."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskcluster import slugId

from sandbox import credentials
from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.worker import LOG
from tests.sandbox.taskcluster.support import ROOT, Api
from tests.sandbox.taskcluster.tree import Tree


@pytest.fixture
def tc() -> Taskcluster:
    return Taskcluster([ROOT, credentials.SERVICE], credentials.ROLES, worker=True)


@pytest.fixture
async def tree(api: Api) -> AsyncIterator[Tree]:
    async with api.tc.running():
        yield Tree(api)


def by_label(tasks: list[dict[str, Any]]) -> list[str]:
    return sorted(task["metadata"]["name"] for task in tasks)


def waiting(tree: Tree, push_id: int, ids: dict[str, str], label: str = "wait") -> str:
    """Create a task of the group that does not end by itself, and return its id."""
    definition = tree.define(push_id, label, taskGroupId=ids["decision"], payload={"sandbox": {"result": "hang"}})
    task_id = str(slugId())
    tree.api.tc.queue.create_task(task_id, definition)
    return task_id


async def log(tree: Tree, task_id: str) -> str:
    url = (await tree.api("getLatestArtifact", task_id, LOG, client=None))["url"]
    return (await tree.api.http.get(url)).text


# --- copies ---


async def test_retrigger_copies_the_task_as_often_as_told(tree: Tree) -> None:
    ids = await tree.push(7, "build", "test", "report")
    action_id = await tree.act(ids["decision"], "retrigger", ids["test"], {"times": 3})
    copies = tree.copies(action_id)
    original = await tree.api("task", ids["test"])
    assert by_label(copies) == ["test"] * 3
    for copy in copies:
        assert copy["dependencies"] == sorted([ids["build"], action_id])
        same = ("taskGroupId", "schedulerId", "taskQueueId", "routes", "tags", "payload", "metadata")
        assert {key: copy[key] for key in same} == {key: original[key] for key in same}


async def test_retrigger_with_downstream_copies_the_dependents_on_the_copies(tree: Tree) -> None:
    ids = await tree.push(7, "build", "test", "report", "upload")
    action_id = await tree.act(ids["decision"], "retrigger", ids["test"], {"downstream": True})
    copies = {task["metadata"]["name"]: task for task in tree.copies(action_id)}
    assert copies.keys() == {"test", "report", "upload"}
    own = {
        task.definition["metadata"]["name"]: task.task_id
        for task in tree.api.tc.queue.tasks.values()
        if task.definition["extra"].get("parent") == action_id
    }
    assert copies["test"]["dependencies"] == sorted([ids["build"], action_id])
    assert copies["report"]["dependencies"] == sorted([own["test"], action_id])
    assert copies["upload"]["dependencies"] == sorted([own["report"], action_id])
    assert await tree.end(own["upload"]) == "completed"


async def test_a_task_that_should_not_be_retriggered_fails_the_action_unless_forced(tree: Tree) -> None:
    ids = await tree.push(7, "build")
    action_id = await tree.act(ids["decision"], "retrigger", ids["build"], {"times": 1})
    assert (await tree.end(action_id), tree.copies(action_id)) == ("failed", [])
    assert "build should not be retriggered" in await log(tree, action_id)
    forced = await tree.act(ids["decision"], "retrigger", ids["build"], {"force": True})
    assert by_label(tree.copies(forced)) == ["build"]


async def test_a_decision_task_is_copied_and_writes_its_actions_again(tree: Tree) -> None:
    ids = await tree.push(7)
    action_id = await tree.act(ids["decision"], "retrigger", ids["decision"])
    (copy,) = (t for t in tree.api.tc.queue.tasks.values() if t.definition["extra"].get("parent") == action_id)
    assert await tree.end(copy.task_id) == "completed"
    assert copy.definition["taskGroupId"] == ids["decision"]
    assert await tree.offered(copy.task_id) == await tree.offered(ids["decision"])


async def test_retrigger_multiple_copies_by_label_and_reruns_what_should_not_be_copied(tree: Tree) -> None:
    ids = await tree.push(7, "build", "test", "report")
    tree.api.tc.queue.tasks[ids["build"]].runs[-1]["state"] = "failed"
    requests = [{"tasks": ["test"], "times": 2}, {"tasks": ["report", "build"]}]
    action_id = await tree.act(ids["decision"], "retrigger-multiple", None, {"requests": requests})
    assert by_label(tree.copies(action_id)) == ["report", "test", "test"]
    assert [run["reasonCreated"] for run in tree.api.tc.queue.tasks[ids["build"]].runs] == ["scheduled", "rerun"]


async def test_new_jobs_are_added_by_label_and_an_unknown_one_adds_none(tree: Tree) -> None:
    ids = await tree.push(7, "build", "test")
    action_id = await tree.act(ids["decision"], "add-new-jobs", None, {"tasks": ["test", "build"], "times": 2})
    assert by_label(tree.copies(action_id)) == ["build", "build", "test", "test"]
    action_id = await tree.act(ids["decision"], "add-new-jobs", None, {"tasks": ["test", "other"]})
    assert (await tree.end(action_id), tree.copies(action_id)) == ("failed", [])
    assert "other was not found in the task-graph" in await log(tree, action_id)


# --- tasks that exist ---


async def test_rerun_runs_a_failed_task_again_and_no_other(tree: Tree) -> None:
    ids = await tree.push(7, "build")
    failed = tree.define(7, "flaky", taskGroupId=ids["decision"], payload={"sandbox": {"seconds": 0, "once": "failed"}})
    task_id = await tree.create(failed)
    for target, reasons in ((task_id, ["scheduled", "rerun"]), (ids["build"], ["scheduled"])):
        action_id = await tree.act(ids["decision"], "rerun", target, {})
        assert await tree.end(action_id) == "completed"
        assert [run["reasonCreated"] for run in tree.api.tc.queue.tasks[target].runs] == reasons


async def test_cancel_cancels_the_task(tree: Tree) -> None:
    ids = await tree.push(7)
    task_id = waiting(tree, 7, ids)
    action_id = await tree.act(ids["decision"], "cancel", task_id)
    assert (await tree.end(action_id), await tree.end(task_id)) == ("completed", "canceled")


async def test_cancel_all_cancels_what_has_not_ended_of_the_group_but_itself(tree: Tree) -> None:
    ids = await tree.push(7, "build")
    task_id = waiting(tree, 7, ids)
    other = await tree.push(8)
    elsewhere = waiting(tree, 8, other)
    action_id = await tree.act(ids["decision"], "cancel-all")
    assert (await tree.end(action_id), await tree.end(task_id)) == ("completed", "canceled")
    assert await tree.end(ids["build"]) == "completed"
    assert not tree.api.tc.queue.tasks[elsewhere].resolved


async def test_a_task_past_its_deadline_cannot_be_cancelled_and_is_none_the_worse(tree: Tree) -> None:
    ids = await tree.push(7, "build")
    tree.api.tc.advance(2 * 3600)
    action_id = await tree.act(ids["decision"], "cancel", ids["build"])
    assert await tree.end(action_id) == "completed"


async def test_an_action_acts_with_the_scopes_of_its_hook_only(tree: Tree) -> None:
    ids = await tree.push(7)
    foreign = tree.define(7, "foreign", schedulerId="other", payload={"sandbox": {"result": "hang"}})
    task_id = str(slugId())
    tree.api.tc.queue.create_task(task_id, foreign)
    action_id = await tree.act(ids["decision"], "cancel", task_id)
    assert await tree.end(action_id) == "failed"
    assert "queue:cancel-task:other/" in await log(tree, action_id)
    assert not tree.api.tc.queue.tasks[task_id].resolved


# --- earlier pushes ---


async def test_backfill_runs_the_task_on_earlier_pushes_that_did_not_run_it(tree: Tree) -> None:
    pushes = {
        5: await tree.push(5, "build"),
        6: await tree.push(6, "build", "test"),
        7: await tree.push(7, "build"),
        8: await tree.push(8, "build", "test"),
        9: await tree.push(9, "build"),
    }
    action_id = await tree.act(pushes[8]["decision"], "backfill", pushes[8]["test"], {"depth": 3})
    assert await tree.end(action_id) == "completed"
    copies = {task["taskGroupId"]: task for task in tree.copies(action_id)}
    assert copies.keys() == {pushes[5]["decision"], pushes[7]["decision"]}
    for push_id in (5, 7):
        copy = copies[pushes[push_id]["decision"]]
        assert copy["routes"] == [f"tc-treeherder.v2.autoland.{push_id:040x}.{push_id}"]
        assert copy["dependencies"] == sorted([pushes[push_id]["build"], action_id])
        assert copy["metadata"]["name"] == "test"
        assert copy["extra"]["treeherder"]["groupSymbol"] == "t-00000000000-bk"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"depth": 1}, [7]), ({"depth": 9, "inclusive": True}, [5, 6, 7, 8]), ({"depth": 1, "times": 2}, [7, 7])],
)
async def test_backfill_goes_as_far_and_as_often_as_told(
    tree: Tree, given: dict[str, Any], expected: list[int]
) -> None:
    for push_id in (5, 6, 7):
        await tree.push(push_id)
    ids = await tree.push(8, "test")
    action_id = await tree.act(ids["decision"], "backfill", ids["test"], given)
    groups = {decision: push_id for push_id, decision in tree.decisions.items()}
    assert sorted(groups[task["taskGroupId"]] for task in tree.copies(action_id)) == expected


# --- nonsense ---


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACTION_CALLBACK": "dance"}, "KeyError: 'dance'"),
        ({"ACTION_INPUT": "{"}, "not understood: JSONDecodeError"),
        ({"ACTION_TASK_ID": "null"}, "the action is about a task, and none was named"),
        ({"ACTION_TASK_ID": '"VGQ1aNKBRaGLWb_o_S9cQA"'}, "VGQ1aNKBRaGLWb_o_S9cQA"),
        ({"ACTION_INPUT": '{"times": "x"}'}, "not understood: TypeError"),
        ({"ACTION_INPUT": '{"times": 101}'}, "times is 101: use 1 to 100"),
        ({"ACTION_TASK_GROUP_ID": "VGQ1aNKBRaGLWb_o_S9cQA", "ACTION_CALLBACK": "cancel-all"}, "No task-group"),
    ],
)
async def test_an_action_task_that_is_not_understood_fails(
    tree: Tree, environment: dict[str, str], message: str
) -> None:
    ids = await tree.push(7, "test")
    env = {
        "ACTION_TASK_GROUP_ID": ids["decision"],
        "ACTION_TASK_ID": json.dumps(ids["test"]),
        "ACTION_INPUT": "{}",
        "ACTION_CALLBACK": "retrigger",
        **environment,
    }
    definition = tree.define(7, "action", taskGroupId=ids["decision"], payload={"env": env})
    definition["tags"]["kind"] = "action-callback"
    action_id = await tree.create(definition)
    assert await tree.end(action_id) == "failed"
    assert message in await log(tree, action_id)


async def test_a_task_with_another_tag_is_no_action(tree: Tree) -> None:
    ids = await tree.push(7)
    definition = tree.define(7, "x", taskGroupId=ids["decision"], payload={"env": {"ACTION_CALLBACK": "dance"}})
    assert await tree.end(await tree.create(definition)) == "completed"
