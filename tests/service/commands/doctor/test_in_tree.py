"""The hooks of a repository's last decision task, and whether the service may trigger them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox.credentials import HOOKS
from service.clock import now
from service.commands.doctor.finding import Examination, Finding, Report
from service.commands.doctor.in_tree import hooks
from service.store.models import PlannedTask, Push, PushStep, State, StepKind, TreeActions
from tests.service.commands.doctor.conftest import Doctor, store
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    DECISION,
    HOOK,
    HOOK_GROUP,
    RETRIGGER,
    TASK_ACTION,
    add_decision,
    add_push,
    allow,
    file_of,
    show_in_treeherder,
)
from tests.service.flow.graph_factory import slug
from tests.service.harness import FlowHarness
from tests.system.conftest import System

CHECK = "in-tree actions of try"


@pytest.fixture
def decided(system: System, variables: dict[str, str]) -> str:
    """Store a push whose decision task offers actions in Taskcluster; return the id of that task."""
    task_id = slug("decision of doctor")
    known = [task["status"]["taskId"] for task in system.taskcluster.get("/tasks").json()["tasks"]]
    url = system.stack.sandbox["repositories"]["try"]
    if task_id not in known:
        system.taskcluster.post("/tasks", json={"tasks": [{"taskId": task_id, "task": definition(task_id, url)}]})
    system.wait(lambda: state_of(system, task_id) == "completed")
    push = Push(
        id=1, repository_id=1, generation=0, push_id=7, user="me", date=now(), revision="a" * 40,
        revision_hash="b" * 40, changesets=[], nodes=[],
    )  # fmt: skip
    step = PushStep(id=1, push_id=1, kind=StepKind.GRAPH, lane="graph hg", state=State.DONE)
    task = PlannedTask(task_id=task_id, step_id=1, position=0, label="task", name="decision", definition=None)
    task.created = True
    store(variables["DATABASE_URL"], push)
    store(variables["DATABASE_URL"], step)
    store(variables["DATABASE_URL"], task)
    return task_id


def definition(task_id: str, url: str) -> dict[str, Any]:
    at = datetime.now(UTC)
    repository = {"url": url, "project": "try", "level": "3"}
    push = {"owner": "me@example.com", "revision": "a" * 40, "base_revision": "b" * 40, "pushlog_id": 7}
    return {
        "taskQueueId": "sandbox/decision",
        "schedulerId": "sandbox-level-3",
        "taskGroupId": task_id,
        "created": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "deadline": (at + timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "payload": {"sandbox": {"seconds": 0, "decision": {"repository": repository, "push": push}}},
        "tags": {"kind": "decision-task"},
        "metadata": {"name": "decision", "description": "d", "owner": "me@example.com", "source": "https://x.org/"},
    }


def state_of(system: System, task_id: str) -> str:
    (task,) = system.taskcluster.get("/tasks", params={"taskId": task_id}).json()["tasks"]
    return str(task["status"]["state"])


def test_the_hooks_that_may_be_triggered_are_listed(doctor: Doctor, decided: str) -> None:
    finding = doctor().finding("taskcluster", CHECK)
    assert finding["status"] == "ok"
    assert f"of the hooks of decision task {decided}, the service may trigger {HOOKS}generic/" in finding["detail"]


def test_without_a_push_there_is_nothing_to_list(doctor: Doctor) -> None:
    finding = doctor().finding("taskcluster", CHECK)
    assert finding["status"] == "ok"
    assert finding["detail"] == "none of its last 5 pushes has a decision task with actions"


async def examined(harness: FlowHarness, *, shown: bool = False, **repository: Any) -> Finding:
    """Examine a repository whose decision task offers two hooks, of which the service may trigger one.

    The decision task is that of our graph, or one that is `shown` by Treeherder.
    """
    monitored = await harness.add_repository(**repository)
    other = {**ACTION, "name": "release", "hookId": "in-tree-action-3-release/abc"}
    add_decision(harness, file_of(ACTION, RETRIGGER, other, TASK_ACTION))
    await (add_push(harness) if shown else add_push(harness, DECISION))
    nothing: Any = None
    report = Report("taskcluster")
    await hooks(report, Examination(harness.settings, None, "http://unused", 10, nothing, [monitored]))
    (finding,) = report.findings
    return finding


async def test_a_hook_that_may_not_be_triggered_is_named_with_the_scopes(harness: FlowHarness) -> None:
    allow(harness)
    finding = await examined(harness, actions=TreeActions.AUTO)
    other = f"{HOOK_GROUP}/in-tree-action-3-release/abc"
    assert (finding.status, finding.check) == ("warning", "in-tree actions of mc")
    named = f"the service may trigger {HOOK_GROUP}/{HOOK}, and not {other}"
    assert finding.detail == f"of the hooks of decision task {slug(DECISION)}, {named}"
    scopes = f"hooks:trigger-hook:{other}, hooks:list-last-fires:{other}"
    assert finding.remedy == f"give client tc-treeherder the scopes {scopes}"


async def test_a_decision_task_that_somebody_else_created_is_examined_too(harness: FlowHarness) -> None:
    allow(harness)
    show_in_treeherder(harness, slug(DECISION))
    finding = await examined(harness, shown=True, graph=False)
    assert finding.detail.startswith(f"of the hooks of decision task {slug(DECISION)}, the service may trigger")


@pytest.mark.parametrize(("actions", "status"), [(TreeActions.COPIES, "ok"), (TreeActions.IN_TREE, "warning")])
async def test_where_copies_are_made_no_hook_has_to_be_triggered(
    harness: FlowHarness, actions: TreeActions, status: str
) -> None:
    allow(harness, trigger=False, fires=False)
    finding = await examined(harness, actions=actions)
    assert finding.status == status
    assert "the service may trigger none, and not" in finding.detail


async def test_without_the_scope_to_look_a_hook_is_not_counted(harness: FlowHarness) -> None:
    allow(harness, fires=False)
    finding = await examined(harness, actions=TreeActions.IN_TREE)
    assert f"hooks:list-last-fires:{HOOK_GROUP}/{HOOK}" in finding.remedy


async def test_while_taskcluster_is_away_nothing_is_said_of_hooks(harness: FlowHarness) -> None:
    harness.tc.faults.add("before", status=500)
    finding = await examined(harness)
    assert (finding.status, finding.check) == ("warning", "in-tree actions")
    assert finding.detail.startswith("not checked: ")
