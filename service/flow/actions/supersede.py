"""The action `supersede`: cancel what has not run yet of a push that a newer push supersedes.

The step that has created a graph stores it, unless the repository's setting `supersede` is off. Graphs may be created
in any order, so it looks to both sides of its push:

    the nearest earlier push with a graph    is superseded by this one
    the nearest newer push with a graph      supersedes this one, if its graph was asked for later

Of two neighbours, the one whose graph is created last finds the other, so no pair is missed. Copies are left alone,
because somebody has asked for them.
"""

import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from sqlmodel import col, select

from service.clock import now
from service.engine.leases import Lease
from service.errors import Unavailable
from service.flow.actions import notice
from service.flow.actions.cancels import cancel_tasks
from service.flow.actions.push_tasks import PushTask, PushTasks, collect_tasks
from service.flow.actions.search import MAX_LEFT_OUT
from service.flow.tasks.action_kinds import register_internal
from service.flow.tasks.create import MAX_REASON
from service.flow.tasks.subject import NothingToDoError, PushSubject, find_push
from service.services import Services
from service.store.models import Action, Push, PushStep, Repository, State, StepKind, Supersede

log = structlog.get_logger()

LOOK_AGAIN = timedelta(seconds=30)
"""Time after which a decision task is looked at again that still runs, and may create tasks."""


@dataclass
class CreatedGraph:
    """A push whose graph was created."""

    push: Push
    step: PushStep


@dataclass
class _Result:
    """Tasks that were cancelled, and those that could not be, with the reasons."""

    cancelled: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    creating: list[int] = field(default_factory=list)
    """Ids of pushes whose decision task still runs."""


async def run(services: Services, lease: Lease[Action]) -> None:
    """Cancel what waits of the push that is superseded, unless there is none."""
    action = lease.item
    subject = await find_push(services, action)
    if subject.repository.supersede == Supersede.OFF:
        raise NothingToDoError(f"superseding is off for {subject.repository.alias} by now")
    if action.planned_at is None:
        action.failure_jobs = notice.push_failure_jobs(services, action, subject)
        await lease.commit(planned_at=now(), failure_jobs=action.failure_jobs)
    pairs = await find_pairs(services, subject)
    result = _Result()
    for earlier, newer in pairs:
        await _supersede(services, lease, subject.repository, earlier, newer, result)
    if result.creating:
        numbers = ", ".join(map(str, result.creating))
        raise Unavailable(
            "taskcluster",
            f"the decision task of push {numbers} still runs: what it creates is cancelled once it has ended",
            LOOK_AGAIN,
        )
    values: dict[str, Any] = {
        "cancels": result.cancelled,
        "left_out": result.left_out[:MAX_LEFT_OUT],
        "notes": result.notes,
    }
    if result.left_out:
        first = result.left_out[0]
        reason = f"{len(result.left_out)} waiting tasks could not be cancelled; the first is {first['name']}: "
        await lease.finish(State.FAILED, f"{reason}{first['reason']}"[:MAX_REASON], **values)
    elif result.cancelled:
        await lease.finish(State.DONE, **values)
    else:
        await lease.finish(State.NOTHING_TO_DO, "nothing of an earlier push waits to run", **values)


async def find_pairs(services: Services, subject: PushSubject) -> list[tuple[CreatedGraph, CreatedGraph]]:
    """Return the pairs of neighbours of which the earlier is superseded and was not by another push."""
    push, repository = subject.push, subject.repository
    graph = select(Push, PushStep).join(PushStep, col(PushStep.push_id) == Push.id)
    graph = graph.where(
        Push.repository_id == push.repository_id,
        Push.generation == push.generation,
        PushStep.kind == StepKind.GRAPH,
        PushStep.state == State.DONE,
    )
    if repository.supersede == Supersede.PUSHER:
        graph = graph.where(Push.user == push.user)
    earlier = graph.where(Push.push_id < push.push_id).order_by(col(Push.push_id).desc()).limit(1)
    newer = graph.where(Push.push_id > push.push_id).order_by(col(Push.push_id)).limit(1)
    async with services.database.reading() as session:
        own = (await session.exec(graph.where(Push.push_id == push.push_id))).first()
        before = (await session.exec(earlier)).first()
        after = (await session.exec(newer)).first()
    graphs = [CreatedGraph(*row) for row in (before, own, after) if row is not None]
    return [
        (one, other)
        for one, other in itertools.pairwise(graphs)
        # a graph that somebody asked for again after the newer push is wanted in spite of that
        if own is not None
        and one.step.since <= other.step.since
        and one.step.superseded_by in {None, other.push.push_id}
    ]


async def _supersede(
    services: Services,
    lease: Lease[Action],
    repository: Repository,
    earlier: CreatedGraph,
    newer: CreatedGraph,
    result: _Result,
) -> None:
    """Cancel what has not run yet of the earlier push, after recording that."""
    action = lease.item
    collected = await collect_tasks(services, PushSubject(repository, earlier.push), dependencies=False)
    copies = {copy.task_id for copy in collected.copies}
    own = [task for task in collected.tasks.values() if copies.isdisjoint({task.task_id, task.group})]
    waiting = [task for task in own if task.authorised and task.state in {"unscheduled", "pending"}]
    if waiting:
        recorded = {entry["task_id"] for entry in action.cancels}
        action.cancels = [*action.cancels, *(task.entry() for task in waiting if task.task_id not in recorded)]
        async with lease.writing(cancels=action.cancels) as session:
            step = await session.get_one(PushStep, earlier.step.id)
            step.superseded_by = earlier.step.superseded_by = newer.push.push_id
    # those that wait for others first, so that none of them is scheduled meanwhile
    waiting.sort(key=lambda task: task.state != "unscheduled")
    refused = await cancel_tasks(services, lease, waiting)
    result.left_out += [{**collected.tasks[task_id].entry(), "reason": reason} for task_id, reason in refused.items()]
    if any(task.state == "running" and task.task_id == task.group for task in own):
        result.creating.append(earlier.push.push_id)
    if earlier.step.superseded_by is None:
        return
    cancelled = _recorded_and_cancelled(action, collected)
    result.cancelled += cancelled
    result.notes.append(
        f"push {earlier.push.push_id} is superseded by push {newer.push.push_id}: {len(cancelled)} tasks are cancelled"
    )
    log.info(
        "push-superseded",
        repository=repository.alias,
        push=earlier.push.push_id,
        by=newer.push.push_id,
        tasks=len(cancelled),
    )


def _recorded_and_cancelled(action: Action, collected: PushTasks) -> list[dict[str, str]]:
    def cancelled(task: PushTask | None) -> bool:
        return task is not None and task.cancelled

    return [entry for entry in action.cancels if cancelled(collected.tasks.get(entry["task_id"]))]


register_internal("supersede", run)
