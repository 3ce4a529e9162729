"""The action `cancel-push`: cancel all unfinished tasks of a push's graph, and of copies made of them.

stop the graph     if its tasks are still being created
collect_tasks      what there is now; see `push_tasks`
record             which tasks are to be cancelled
cancel_tasks       in parallel, each with its one scope
collect again      until nothing is new: a decision task may have created more before it was cancelled
"""

from datetime import timedelta
from typing import Any

import structlog

from service.clock import now
from service.engine import leases
from service.engine.leases import Lease
from service.errors import Unavailable
from service.flow.actions import notice
from service.flow.actions.cancels import cancel_tasks
from service.flow.actions.push_tasks import NO_ROUTE, PushTasks, collect_tasks, graph_step
from service.flow.actions.search import MAX_LEFT_OUT
from service.flow.tasks.action_kinds import ActionKind, Cancel, Plan, register
from service.flow.tasks.create import MAX_REASON, RECORD_SECONDS
from service.flow.tasks.plan import mark_created
from service.flow.tasks.subject import PushSubject, find_push
from service.services import Services
from service.store.models import Action, PushStep, State

log = structlog.get_logger()

LOOK_AGAIN = timedelta(seconds=5)
"""Time after which an action looks again for copies that another action is still creating."""


async def run(services: Services, lease: Lease[Action]) -> None:
    """Cancel what is unfinished, unless all has ended already."""
    action = lease.item
    subject = await find_push(services, action)
    if action.planned_at is None:
        action.failure_jobs = notice.push_failure_jobs(services, action, subject)
        await _stop_graph(lease, subject)
    refused: dict[str, str] = {}
    planned = {entry["task_id"] for entry in action.cancels}
    again = False
    while True:
        collected = await collect_tasks(services, subject, dependencies=False)
        waiting = [
            task
            for task in collected.tasks.values()
            if task.unfinished and task.authorised and task.task_id not in refused
        ]
        if not waiting:
            break
        if again:
            lease.give_way()  # somebody may create tasks as fast as they are cancelled
        # running ones first: a decision task creates others
        waiting.sort(key=lambda task: (task.state != "running", task.state != "unscheduled"))
        new = [task.entry() for task in waiting if task.task_id not in planned]
        planned |= {entry["task_id"] for entry in new}
        action.cancels = [*action.cancels, *new]
        await lease.commit(cancels=action.cancels)
        refused |= await cancel_tasks(services, lease, waiting)
        again = True
    step = await _await_creations(services, subject, collected)
    await _end(lease, subject, collected, refused, step)


async def _stop_graph(lease: Lease[Action], subject: PushSubject) -> None:
    """Store that the push is being cancelled, and take the graph from whoever is creating its tasks."""
    action = lease.item
    reason = _reason_to_stop(action)
    values: dict[str, Any] = {"planned_at": now(), "failure_jobs": action.failure_jobs}
    async with lease.writing(**values) as session:
        step = await graph_step(session, subject.push.id or 0, lock=True)
        if step is not None and step.due_at is not None:
            leases.stop(step, reason)
            step.refused = reason
            log.info("graph-stopped", repository=subject.repository.alias, push=subject.push.push_id, why=reason)
    action.planned_at = values["planned_at"]


def _reason_to_stop(action: Action) -> str:
    return f"cancelled by {action.requester} before all of its tasks were created (action {action.id})"


async def _await_creations(services: Services, subject: PushSubject, collected: PushTasks) -> PushStep | None:
    """Return the step of the graph. Raises Unavailable if a task may still be created, which is to be looked for."""
    async with services.database.reading() as session:
        step = await graph_step(session, subject.push.id or 0)
    if step is not None and step.state == State.FAILED and step.done_at is not None:
        # whoever created the tasks notices with its next record that it lost the lease; its last calls take a while
        last_call = timedelta(seconds=RECORD_SECONDS) + services.settings.taskcluster.timeout
        remaining = step.done_at + last_call - now()
        if remaining > timedelta(0):
            raise Unavailable("taskcluster", "a task of the stopped graph may just be being created", remaining)
    creating = sorted({copy.action_id for copy in collected.copies if copy.pending and not copy.created})
    if creating:
        raise Unavailable("taskcluster", f"action {creating[0]} still creates copies of its tasks", LOOK_AGAIN)
    return step


async def _end(
    lease: Lease[Action],
    subject: PushSubject,
    collected: PushTasks,
    refused: dict[str, str],
    step: PushStep | None,
) -> None:
    """End the action, with the tasks that it cancelled, and those that it could not cancel with the reasons."""
    action, tasks = lease.item, collected.tasks
    cancelled = [entry for entry in action.cancels if (task := tasks.get(entry["task_id"])) and task.cancelled]
    left_out = [{**tasks[task_id].entry(), "reason": reason} for task_id, reason in refused.items()]
    left_out += _without_route(collected)
    ended = len(action.cancels) - len(cancelled) - len(refused)
    notes = [f"{ended} tasks ended before they could be cancelled"] if ended else []
    if len(left_out) > MAX_LEFT_OUT:
        notes.append(f"{len(left_out)} tasks could not be cancelled; the first {MAX_LEFT_OUT} are listed")
    also = []
    stopped = step is not None and step.refused == _reason_to_stop(action)
    if stopped:
        notes.append("the task graph was stopped before all of its tasks were created")
        also = mark_created(collected.unrecorded)
    values: dict[str, Any] = {"cancels": cancelled, "left_out": left_out[:MAX_LEFT_OUT], "notes": notes}
    if left_out:
        first = left_out[0]
        reason = f"{len(left_out)} of {len(left_out) + len(cancelled)} unfinished tasks could not be cancelled; the "
        reason += f"first is {first['name']} ({first['task_id']}): {first['reason']}"
        await lease.finish(State.FAILED, reason[:MAX_REASON], also, **values)
    elif cancelled or stopped:
        await lease.finish(State.DONE, None, also, **values)
    else:
        await lease.finish(State.NOTHING_TO_DO, _nothing_to_do(subject, collected), **values)
    log.info(
        "push-cancelled",
        repository=subject.repository.alias,
        push=subject.push.push_id,
        tasks=len(cancelled),
        not_cancelled=len(left_out),
        requester=action.requester,
    )


def _without_route(collected: PushTasks) -> list[dict[str, str]]:
    """Return the unfinished tasks that may not be cancelled, as an action lists what it leaves out."""
    tasks = [task for task in collected.tasks.values() if task.unfinished and not task.authorised]
    return [{**task.entry(), "reason": NO_ROUTE} for task in tasks]


def _nothing_to_do(subject: PushSubject, collected: PushTasks) -> str:
    if not collected.tasks:
        about = f"{subject.repository.alias}/{subject.push.push_id}"
        offered = f"`tc-treeherder actions offered --push {about}` lists what its tree offers"
        return f"{subject.name} has no tasks that this service created: {offered}"
    return f"all {len(collected.tasks)} tasks of {subject.name} have ended already"


async def plan(services: Services, action: Action) -> Plan:
    """Return the tasks that would be cancelled now, and those that may not be."""
    subject = await find_push(services, action)
    collected = await collect_tasks(services, subject, dependencies=False)
    async with services.database.reading() as session:
        step = await graph_step(session, subject.push.id or 0)
    creating = step is not None and step.due_at is not None
    plan = Plan(
        cancels=[
            Cancel(task.task_id, task.name, task.state)
            for task in collected.tasks.values()
            if task.unfinished and task.authorised
        ],
        left_out=_without_route(collected)[:MAX_LEFT_OUT],
        notes=["the task graph is still being created: it would be stopped"] if creating else [],
    )
    if not (plan.cancels or plan.left_out or creating):
        plan.nothing_to_do = _nothing_to_do(subject, collected)
    return plan


register(
    ActionKind(
        "cancel-push",
        "Cancel all unfinished tasks of a push, and of copies of them.",
        run,
        plan,
        subjects=frozenset({"push"}),
    )
)
