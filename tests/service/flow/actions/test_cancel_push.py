"""A push is cancelled: all that has not ended, with one scope for each task, and copies too."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from service.clock import now
from service.engine.leases import YieldedError
from service.engine.registry import WORK
from service.errors import Unavailable
from service.flow.actions import cancel_push
from service.flow.actions.push_tasks import NO_ROUTE
from service.flow.tasks.action_kinds import Plan
from service.flow.tasks.definition import format_date
from service.store.models import Action, Notice, PlannedTask, PushStep, Source, State, StepKind
from tests.service.flow.actions.support import (
    carry_out_on_push,
    push_with_graph,
    record_copies,
    run_task,
    state_of,
)
from tests.service.flow.graph_factory import (
    GROUP,
    action_on,
    build,
    claim_work,
    definition_of,
    end,
    read_notices,
    reload_action,
    slug,
)
from tests.service.harness import ENVIRONMENT, FlowHarness, node, push_event

GRAPH = {"group": [], "done": [], "failed": [], "running": [], "pending": [], "waiting": ["pending"]}


@pytest.fixture
async def pushed(monitored: FlowHarness) -> FlowHarness:
    """Prepare a push with a task in each state."""
    await push_with_graph(monitored, GRAPH)
    end(monitored.tc.queue, "group", "completed")
    end(monitored.tc.queue, "done", "completed")
    end(monitored.tc.queue, "failed")
    run_task(monitored, "running")
    return monitored


def names_of(entries: Any) -> set[str]:
    return {entry["name"] for entry in entries}


async def plan_of(harness: FlowHarness) -> Plan:
    about: dict[str, Any] = {"kind": "cancel-push", "project": "mc", "requester": "me", "source": Source.API}
    return await cancel_push.plan(harness.services, Action(**about, lane="x", push_id=7, generation=0))


async def test_what_has_not_ended_is_cancelled_and_the_rest_left_alone(pushed: FlowHarness) -> None:
    planned = await plan_of(pushed)
    assert {(task.name, task.state) for task in planned.cancels} == {
        ("running", "running"),
        ("pending", "pending"),
        ("waiting", "unscheduled"),
    }
    action = await carry_out_on_push(pushed, "cancel-push")
    assert (action.state, action.error, action.left_out) == ("done", None, [])
    assert names_of(action.cancels) == {"running", "pending", "waiting"}
    assert {name: state_of(pushed, name) for name in GRAPH} == {
        "group": "completed",
        "done": "completed",
        "failed": "failed",
        "running": "canceled",
        "pending": "canceled",
        "waiting": "canceled",
    }
    assert pushed.tc.journal.calls["cancelTask"] == 3
    again = await carry_out_on_push(pushed, "cancel-push")
    assert (again.state, again.error) == ("nothing-to-do", "all 6 tasks of push 7 of mc have ended already")
    assert (await plan_of(pushed)).nothing_to_do == again.error
    assert pushed.tc.journal.calls["cancelTask"] == 3


async def test_copies_of_its_tasks_are_cancelled_too_and_other_pushes_are_not(pushed: FlowHarness) -> None:
    build(pushed.tc.queue, {"copy": [], "made by the copy": []}, taskGroupId=slug("copy"))
    build(pushed.tc.queue, {"copy of the copy": []}, taskGroupId=slug("copy of the copy"))
    build(pushed.tc.queue, {"theirs": []}, taskGroupId=slug("theirs"))
    await record_copies(pushed, {"copy": "failed"})
    await record_copies(pushed, {"copy of the copy": "copy"})
    action = await carry_out_on_push(pushed, "cancel-push")
    assert action.state == "done"
    assert names_of(action.cancels) >= {"copy", "made by the copy", "copy of the copy"}
    assert state_of(pushed, "theirs") == "pending"


async def test_a_push_without_tasks_is_nothing_to_do_and_an_unknown_one_is_rejected(monitored: FlowHarness) -> None:
    step = await push_with_graph(monitored, {}, planned=[])
    action = await carry_out_on_push(monitored, "cancel-push")
    offered = "`tc-treeherder actions offered --push mc/7` lists what its tree offers"
    expected = f"push 7 of mc has no tasks that this service created: {offered}"
    assert (action.state, action.error) == ("nothing-to-do", expected)
    unknown = await carry_out_on_push(monitored, "cancel-push", 8, generation=None)
    assert unknown.state == "rejected"
    assert "no push 8 of mc is known here" in str(unknown.error)
    assert step.state == State.DONE


async def test_each_cancel_has_the_one_scope_for_its_task(pushed: FlowHarness) -> None:
    reads = ["queue:get-task:*", "queue:status:*", "queue:list-task-group:*"]
    own = [f"queue:cancel-task:test/{GROUP}/{slug(name)}" for name in ("running", "waiting")]
    pushed.tc.auth.add_client("tc-treeherder", "service-secret", [*reads, *own, "x:secret"])
    action = await carry_out_on_push(pushed, "cancel-push")
    assert action.state == "failed"
    assert str(action.error).startswith("1 of 3 unfinished tasks could not be cancelled; the first is pending")
    (left,) = action.left_out
    assert (left["task_id"], left["name"]) == (slug("pending"), "pending")
    assert left["reason"].endswith(f"its client needs the scope queue:cancel-task:test/{GROUP}/{slug('pending')}")
    assert "x:secret" not in str((action.error, action.left_out))
    assert names_of(action.cancels) == {"running", "waiting"}
    assert state_of(pushed, "pending") == "pending"


async def test_a_task_of_another_project_is_listed_and_not_touched(pushed: FlowHarness) -> None:
    route = f"tc-treeherder.v2.someone/mc.{'a1' * 20}.7"
    pushed.tc.queue.create_task(slug("theirs"), definition_of("theirs", routes=[route]))
    assert names_of((await plan_of(pushed)).left_out) == {"theirs"}
    action = await carry_out_on_push(pushed, "cancel-push")
    assert (action.state, names_of(action.left_out)) == ("failed", {"theirs"})
    assert action.left_out[0]["reason"] == NO_ROUTE
    assert (state_of(pushed, "theirs"), state_of(pushed, "pending")) == ("pending", "canceled")


async def test_what_could_not_be_cancelled_is_shown_on_the_push(pushed: FlowHarness) -> None:
    late = definition_of("late", deadline=format_date(now() + timedelta(minutes=1)))
    pushed.tc.queue.create_task(slug("late"), late)
    pushed.tc.queue.clock.advance(120)  # nobody has looked at deadlines yet
    action = await carry_out_on_push(pushed, "cancel-push")
    assert (action.state, names_of(action.left_out)) == ("failed", {"late"})
    assert "is past its deadline" in str(action.error)
    (notice,) = await read_notices(pushed)
    assert (notice.target, notice.key, notice.action_id) == (ENVIRONMENT, "mc", action.id)
    assert notice.body["revision"] == node("mc 7")
    assert (notice.body["job"]["name"], notice.body["job"]["job_symbol"]) == ("cancel-push", "D")
    resultset = await pushed.lease(StepKind.RESULTSET)  # the push is to be known there
    await WORK.run_of(resultset.item)(pushed.services, resultset)
    lease = await claim_work(pushed, Notice)
    await WORK.run_of(lease.item)(pushed.services, lease)
    (job,) = pushed.th.store.jobs.values()
    assert job.push.revision == node("mc 7")
    assert "is past its deadline" in job.body["artifacts"][0]["blob"]


async def test_what_a_decision_task_creates_meanwhile_is_cancelled_too(
    pushed: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_task = pushed.services.queue.cancel_task

    async def create_then_cancel(task_id: str, scope: str) -> Any:
        if task_id == slug("running"):
            build(pushed.tc.queue, {"late": ["pending"]})
        return await cancel_task(task_id, scope)

    monkeypatch.setattr(pushed.services.queue, "cancel_task", create_then_cancel)
    action = await carry_out_on_push(pushed, "cancel-push")
    assert action.state == "done"
    assert names_of(action.cancels) == {"running", "pending", "waiting", "late"}
    assert state_of(pushed, "late") == "canceled"


async def test_whoever_creates_tasks_as_fast_as_they_are_cancelled_makes_nobody_wait(
    pushed: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_task, created = pushed.services.queue.cancel_task, 0

    async def cancel_then_create(task_id: str, scope: str) -> Any:
        nonlocal created
        answer = await cancel_task(task_id, scope)
        created += 1
        build(pushed.tc.queue, {f"late {created}": []})
        return answer

    monkeypatch.setattr(pushed.services.queue, "cancel_task", cancel_then_create)
    action = await action_on(pushed, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(pushed)
    lease.wanted = True
    with pytest.raises(YieldedError):
        await asyncio.wait_for(WORK.run_of(lease.item)(pushed.services, lease), 30)
    assert created == 3  # of one round
    assert names_of((await reload_action(pushed, action)).cancels) == {"running", "pending", "waiting"}


async def test_what_cannot_be_cancelled_keeps_nobody_from_the_end(pushed: FlowHarness) -> None:
    pushed.tc.faults.add("before", "cancelTask", status=403)
    action = await action_on(pushed, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(pushed)
    lease.wanted = True
    await WORK.run_of(lease.item)(pushed.services, lease)
    assert (await reload_action(pushed, action)).state == State.FAILED


async def test_what_ends_before_its_cancel_arrives_is_not_listed_as_cancelled(
    pushed: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_task = pushed.services.queue.cancel_task

    async def end_then_cancel(task_id: str, scope: str) -> Any:
        if task_id == slug("pending"):
            end(pushed.tc.queue, "pending", "completed")
        return await cancel_task(task_id, scope)

    monkeypatch.setattr(pushed.services.queue, "cancel_task", end_then_cancel)
    action = await carry_out_on_push(pushed, "cancel-push")
    assert (action.state, action.notes) == ("done", ["1 tasks ended before they could be cancelled"])
    assert names_of(action.cancels) == {"running", "waiting"}


@pytest.mark.parametrize("kind", ["throttle", "before", "after", "hang"])
async def test_a_call_that_fails_is_made_again_and_what_was_cancelled_is_listed(pushed: FlowHarness, kind: str) -> None:
    pushed.tc.faults.add(kind, "cancelTask", times=1)
    pushed.settings.taskcluster.timeout = timedelta(seconds=0.3)
    action = await action_on(pushed, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(pushed)
    with pytest.raises(Unavailable):
        await cancel_push.run(pushed.services, lease)
    stored = await reload_action(pushed, action)
    assert (stored.state, names_of(stored.cancels)) == ("pending", {"running", "pending", "waiting"})
    lease.item = stored  # as the next holder reads it
    await cancel_push.run(pushed.services, lease)
    ended = await reload_action(pushed, action)
    assert (ended.state, names_of(ended.cancels)) == ("done", {"running", "pending", "waiting"})


# --- a graph that is still being created -------------------------------------------------------------------------


async def unfinished_graph(harness: FlowHarness) -> dict[str, Any]:
    """Store a push of whose graph one task is created and recorded, one created and not recorded, and one not.

    Return the stored definitions; none has a route, so the plan is the only proof that they are ours.
    """
    names = ["group", "unrecorded", "not created"]
    build(harness.tc.queue, {name: [] for name in names}, routes=[])
    definitions = {name: harness.tc.queue.task(slug(name)) for name in names}
    harness.tc.queue.clear()
    for name in names[:2]:
        harness.tc.queue.create_task(slug(name), definitions[name])
    await harness.store(push_event(7))
    async with harness.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
        step.holder, step.fencing_token = "somebody", 3
        for position, (name, definition) in enumerate(definitions.items()):
            task = PlannedTask(
                task_id=slug(name), step_id=step.id, position=position, label="t", name=name, definition=definition
            )
            task.created = name == "group"
            session.add(task)
    return definitions


async def test_a_graph_that_is_being_created_is_stopped_and_what_exists_is_cancelled(monitored: FlowHarness) -> None:
    monitored.settings.taskcluster.timeout = timedelta(seconds=0.4)
    definitions = await unfinished_graph(monitored)
    assert (await plan_of(monitored)).notes == ["the task graph is still being created: it would be stopped"]
    action = await action_on(monitored, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(monitored)
    with pytest.raises(Unavailable, match="may just be being created") as raised:
        await cancel_push.run(monitored.services, lease)
    async with monitored.database.reading() as session:
        stopped = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
    assert (stopped.state, stopped.due_at, stopped.holder, stopped.fencing_token) == ("failed", None, None, 4)
    assert (
        stopped.error
        == stopped.refused
        == (f"cancelled by sheriff@example.com before all of its tasks were created (action {action.id})")
    )
    assert {state_of(monitored, name) for name in ("group", "unrecorded")} == {"canceled"}
    # the last call of the previous holder comes late
    monitored.tc.queue.create_task(slug("not created"), definitions["not created"])
    assert raised.value.retry_after is not None
    await asyncio.sleep(raised.value.retry_after.total_seconds())
    lease.item = await reload_action(monitored, action)
    await cancel_push.run(monitored.services, lease)
    ended = await reload_action(monitored, action)
    assert (ended.state, names_of(ended.cancels)) == ("done", {"group", "unrecorded", "not created"})
    assert ended.notes == ["the task graph was stopped before all of its tasks were created"]
    assert [(task.created, task.adopted) for task in await monitored.planned()] == [(True, False)] * 3


async def test_a_task_under_a_planned_id_that_differs_from_the_plan_is_not_ours(monitored: FlowHarness) -> None:
    monitored.settings.taskcluster.timeout = timedelta(0)
    definitions = await unfinished_graph(monitored)
    monitored.tc.queue.create_task(slug("not created"), {**definitions["not created"], "payload": {"theirs": True}})
    await action_on(monitored, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(monitored)
    with pytest.raises(Unavailable):
        await cancel_push.run(monitored.services, lease)
    assert (state_of(monitored, "unrecorded"), state_of(monitored, "not created")) == ("canceled", "pending")
    (left,) = (await plan_of(monitored)).left_out
    assert (left["name"], left["reason"]) == ("not created", NO_ROUTE)


async def test_copies_that_another_action_still_creates_are_waited_for(pushed: FlowHarness) -> None:
    creating = await record_copies(pushed, {"late copy": "failed"}, created=False, state=State.PENDING)
    action = await action_on(pushed, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(pushed)
    with pytest.raises(Unavailable, match=f"action {creating.id} still creates copies"):
        await cancel_push.run(pushed.services, lease)
    assert state_of(pushed, "pending") == "canceled"
    build(pushed.tc.queue, {"late copy": []}, taskGroupId=slug("late copy"))
    async with pushed.database.writing() as session:
        (await session.get_one(Action, creating.id)).state = State.DONE
        (await session.get_one(PlannedTask, slug("late copy"))).created = True
    lease.item = await reload_action(pushed, action)
    await cancel_push.run(pushed.services, lease)
    assert (await reload_action(pushed, action)).state == "done"
    assert state_of(pushed, "late copy") == "canceled"
