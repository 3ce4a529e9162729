"""The task of an in-tree action is followed until it ends, and shown if it fails."""

import json
from typing import Any

import pytest
from sqlmodel import select

from sandbox.taskcluster.tasks import Task
from service.clients.pulse import ACTIONS
from service.clock import now
from service.engine.registry import WORK
from service.flow.actions import notice
from service.flow.actions.action_task import MOST, SECONDS, follow_action_tasks
from service.store.models import NEVER, Action, JobReport, Notice, NoticeKind, Stage, State
from service.store.wakeups import Topic
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    DECISION,
    add_decision,
    add_hook,
    add_push,
    add_task,
    file_of,
)
from tests.service.flow.graph_factory import WORKER, carry_out, claim_work, read_notices, reload_action, slug
from tests.service.harness import ENVIRONMENT, FlowHarness, node


@pytest.fixture
async def triggered(monitored: FlowHarness) -> tuple[FlowHarness, Action, Task]:
    """Carry out an action whose task waits for a worker."""
    add_decision(monitored, file_of(ACTION))
    add_task(monitored)
    add_hook(monitored)
    await add_push(monitored, DECISION)
    action = await carry_out(monitored, slug("test"), "backfill", in_tree=True)
    assert action.state == State.DONE
    return monitored, action, monitored.tc.queue.find(action.action_task or "")


async def make_quiet(harness: FlowHarness, action: Action) -> None:
    """Let the action task be unheard of for as long as it takes to be looked up."""
    async with harness.database.writing() as session:
        stored = await session.get_one(Action, action.id)
        stored.action_task_seen_at = now() - harness.settings.reports.quiet


async def seen(harness: FlowHarness, action: Action) -> tuple[str | None, bool]:
    """Follow once; return the state of the action task, and True if it is still followed."""
    assert await follow_action_tasks(harness.services) == SECONDS
    action = await reload_action(harness, action)
    return action.action_task_state, action.action_task_seen_at is not None


async def test_it_is_looked_up_at_once_and_then_when_it_was_quiet(triggered: Any) -> None:
    harness, action, task = triggered
    assert (action.action_task_state, action.action_task_seen_at) == (None, NEVER)
    assert await seen(harness, action) == ("pending", True)
    harness.tc.queue.claim_task(task.task_id, 0, WORKER)
    assert await seen(harness, action) == ("pending", True), "it is not asked after again and again"
    await make_quiet(harness, action)
    assert await seen(harness, action) == ("running", True)
    harness.tc.queue.report_completed(task.task_id, 0)
    await make_quiet(harness, action)
    assert await seen(harness, action) == ("completed", False)
    asked = harness.tc.journal.calls["statuses"]
    assert await seen(harness, action) == ("completed", False)
    assert harness.tc.journal.calls["statuses"] == asked
    assert await read_notices(harness) == []


async def test_what_events_have_told_needs_no_look_up(triggered: Any) -> None:
    harness, action, task = triggered
    await seen(harness, action)
    asked = harness.tc.journal.calls["statuses"]
    for stage, run_id, run, expected in (
        (Stage.RUNNING, 0, {"state": "running"}, ("running", True)),
        (Stage.FOLLOWED, 0, {"state": "exception"}, ("running", True)),
        (Stage.PENDING, 1, {"state": "pending"}, ("pending", True)),
        (Stage.RESOLVED, 1, {"state": "completed"}, ("completed", False)),
    ):
        await report(harness, task.task_id, run_id, stage, run)
        assert await seen(harness, action) == expected
    assert harness.tc.journal.calls["statuses"] == asked


async def report(harness: FlowHarness, task_id: str, run_id: int, stage: Stage, run: dict[str, Any]) -> None:
    """Store what a task event told."""
    async with harness.database.writing() as session:
        key = (JobReport.task_id == task_id, JobReport.run_id == run_id)
        row = (await session.exec(select(JobReport).where(*key))).first()
        if row is None:
            row = JobReport(
                lane="job", task_id=task_id, run_id=run_id, environment=ENVIRONMENT, project="mc",
                task_group_id=slug(DECISION), stage=stage, run=run,
            )  # fmt: skip
        row.stage, row.run = stage, run
        session.add(row)


@pytest.mark.parametrize("end", ["failed", "exception"])
async def test_a_failed_action_task_is_shown_once_as_a_failed_retrigger_is(triggered: Any, end: str) -> None:
    harness, action, task = triggered
    revision = node("mc 7")
    harness.tc.queue.claim_task(task.task_id, 0, WORKER)
    if end == "failed":
        harness.tc.queue.report_failed(task.task_id, 0)
    else:
        harness.tc.queue.report_exception(task.task_id, 0, {"reason": "malformed-payload"})
    woken = harness.database.wakeups.subscribe(Topic.WORK)
    assert await seen(harness, action) == (end, False)
    assert woken.is_set(), "the notice is work"
    await seen(harness, action)
    (shown,) = await read_notices(harness)
    assert (shown.kind, shown.target, shown.key) == (NoticeKind.JOB, ENVIRONMENT, "mc")
    assert shown.body["revision"] == revision
    failure = await notice._load_failure(harness.services, shown)
    assert failure is not None
    assert failure.reason == f"its action task {task.task_id} has ended as {end}"
    assert (failure.what, failure.details["task"]) == ("backfill", slug("test"))


async def test_a_task_that_is_gone_is_not_followed_any_more(triggered: Any) -> None:
    harness, action, task = triggered
    del harness.tc.queue.tasks[task.task_id]
    assert await seen(harness, action) == ("expired", False)


async def test_while_taskcluster_is_away_it_is_asked_later(triggered: Any) -> None:
    harness, action, _ = triggered
    fault = harness.tc.faults.add("before", "statuses", status=500)
    assert await seen(harness, action) == (None, True)
    harness.tc.faults.remove(fault.fault_id)
    await make_quiet(harness, action)
    assert await seen(harness, action) == ("pending", True)


async def test_more_than_one_step_looks_at_are_looked_at_in_several(
    triggered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, action, _ = triggered
    second = await carry_out(harness, slug("test"), "backfill", in_tree=True)
    monkeypatch.setattr("service.flow.actions.action_task.MOST", 1)
    assert await follow_action_tasks(harness.services) == 0
    assert await follow_action_tasks(harness.services) == 0
    assert await follow_action_tasks(harness.services) == SECONDS
    states = [(await reload_action(harness, each)).action_task_state for each in (action, second)]
    assert states == ["pending", "pending"]
    assert MOST > 1


def test_it_is_a_step_that_is_done_now_and_then() -> None:
    assert follow_action_tasks in WORK.steps


async def test_it_is_announced_on_pulse(triggered: Any) -> None:
    harness, action, _ = triggered
    announced = notice.action_notice(action, action.action_task or "")
    assert (announced.kind, announced.target, announced.key) == (NoticeKind.PULSE, ACTIONS, action.action_task)
    assert announced.body == {
        "requester": "sheriff@example.com",
        "action": "backfill",
        "project": "mc",
        "taskGroupId": slug(DECISION),
        "taskId": slug("test"),
        "pushId": None,
        "actionTaskId": action.action_task,
    }
    published: list[Any] = []

    class Publisher:
        async def publish(self, *message: Any) -> None:
            published.append(json.loads(json.dumps(message)))

    harness.services.publisher = Publisher()
    again = await carry_out(harness, slug("test"), "backfill", in_tree=True)
    lease = await claim_work(harness, Notice)
    await WORK.run_of(lease.item)(harness.services, lease)
    assert published == [[ACTIONS, again.action_task, {**announced.body, "actionTaskId": again.action_task}]]
