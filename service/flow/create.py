"""A stored plan becomes tasks in Taskcluster: each exactly once, whatever breaks on the way.

The queue takes a repeated `createTask` with the same body as the same request, until the body's `created` is 15
minutes old: then it is 400, although the task exists. After any 400 or 409 the plan and the task are therefore read
again, and what stands there is judged.
"""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import structlog
from sqlmodel import col, select, update

from service.clients.taskcluster import Queue, Status
from service.database import Session, now
from service.errors import Refusal, Unavailable
from service.flow.definition import date, differences, move
from service.models import PlannedTask
from service.parts import Parts
from service.work import Hold

log = structlog.get_logger()

LATE = timedelta(minutes=10)
"""A body older than this is not sent before the queue was asked whether it has the task: it refuses it at 15."""

MINUTES = timedelta(minutes=1)


class RefusedError(Exception):
    """Taskcluster will never take this plan; the message names the task, and says why in the queue's words."""


async def create_tasks(parts: Parts, hold: Hold[Any], tasks: list[PlannedTask], scopes: list[str]) -> list[PlannedTask]:
    """Create those of `tasks` (in dependency order) that are not there yet.

    Returns the last ones made; the caller puts them on `record` in the transaction that ends its work. Raises
    RefusedError, and Unavailable when it should go on later; what was created by then is on record.
    """
    made: list[PlannedTask] = []
    for level in _levels([task for task in tasks if not task.created]):
        if made:
            async with hold.writing() as session:
                await record(session, made)
        outcomes = await _create_level(parts, hold, level, scopes)
        made = [task for task, error in outcomes if error is None]
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            async with hold.writing() as session:
                await record(session, made)
            # one that is refused for good decides, whatever else went wrong meanwhile
            raise next((error for error in errors if isinstance(error, RefusedError)), errors[0])
    return made


async def record(session: Session, made: list[PlannedTask]) -> None:
    """Write down that these tasks stand in Taskcluster."""
    ids = [task.task_id for task in made]
    await session.exec(update(PlannedTask).where(col(PlannedTask.task_id).in_(ids)).values(created=True))


def _levels(tasks: Iterable[PlannedTask]) -> list[list[PlannedTask]]:
    """`tasks` by the longest way down to one without dependencies: those of a level do not need each other."""
    depth: dict[str, int] = {}
    levels: list[list[PlannedTask]] = []
    for task in tasks:
        below = [depth[d] for d in (task.definition or {}).get("dependencies", []) if d in depth]
        depth[task.task_id] = 1 + max(below, default=-1)
        if depth[task.task_id] == len(levels):
            levels.append([])
        levels[depth[task.task_id]].append(task)
    return levels


async def _create_level(
    parts: Parts, hold: Hold[Any], level: list[PlannedTask], scopes: list[str]
) -> list[tuple[PlannedTask, Exception | None]]:
    connections = asyncio.Semaphore(parts.settings.taskcluster.connections)
    stop = False

    async def one(task: PlannedTask) -> tuple[PlannedTask, Exception | None]:
        nonlocal stop
        async with connections:
            if stop:
                return task, Unavailable("taskcluster", "not tried: another task of the plan failed")
            try:
                await _create(parts, hold, task, scopes)
            except (RefusedError, Unavailable) as error:
                stop = True
                return task, error
            return task, None

    return await asyncio.gather(*(one(task) for task in level))


async def _create(parts: Parts, hold: Hold[Any], task: PlannedTask, scopes: list[str]) -> None:
    assert task.definition is not None, "retention keeps the definitions of unfinished plans"
    queue = parts.queue
    if now() - date(task.definition["created"]) > LATE:
        if await _is_there(queue, task):
            return
        await _stamp_anew(parts, hold, task)
    for repeat in (False, True):
        try:
            status = await queue.create_task(task.task_id, task.definition, scopes)
        except Refusal as refusal:
            if refusal.status not in {400, 409}:
                raise RefusedError(_readable(task, refusal)) from None
            await _read_again(parts, task)
            if await _is_there(queue, task):
                return
            if repeat or now() - date(task.definition["created"]) < MINUTES:
                raise RefusedError(_readable(task, refusal)) from None
            await _stamp_anew(parts, hold, task)  # not there, and stale
        else:
            if hold.item.attempts > 1 or repeat:
                await _schedule_if_forgotten(queue, task, status)
            return


async def _is_there(queue: Queue, task: PlannedTask) -> bool:
    """Whether the task stands in Taskcluster as planned. Raises RefusedError when something else stands there."""
    there = await queue.task(task.task_id)
    if there is None:
        return False
    differing = differences(task.definition or {}, there)
    if differing:
        raise RefusedError(f"task {task.task_id} ({task.name}) exists and is not ours: {', '.join(differing)} differ")
    status = await queue.status(task.task_id)
    if status is not None:
        await _schedule_if_forgotten(queue, task, status)
    return True


async def _schedule_if_forgotten(queue: Queue, task: PlannedTask, status: Status) -> None:
    """Heal what a crash inside `createTask` leaves: a task that waits for nothing and was never scheduled."""
    if status["state"] != "unscheduled" or not await _dependencies_met(queue, task.definition or {}):
        return
    await queue.schedule_task(task.task_id, exact_scope("schedule-task", status))
    log.info("task-scheduled", task_id=task.task_id, why="it was created but never scheduled")


def exact_scope(what: str, status: Status) -> str:
    """The one scope for the one task."""
    return f"queue:{what}:{status['schedulerId']}/{status['taskGroupId']}/{status['taskId']}"


async def _dependencies_met(queue: Queue, definition: dict[str, Any]) -> bool:
    resolved = {"completed"} if definition["requires"] == "all-completed" else {"completed", "failed", "exception"}
    for dependency in definition["dependencies"]:
        status = await queue.status(dependency)
        if status is None or status["state"] not in resolved:
            return False
    return True


async def _read_again(parts: Parts, task: PlannedTask) -> None:
    """The plan as it stands: an earlier holder may have stamped it anew."""
    async with parts.database.reading() as session:
        stored = (await session.exec(select(PlannedTask).where(PlannedTask.task_id == task.task_id))).one()
    task.definition = stored.definition


async def _stamp_anew(parts: Parts, hold: Hold[Any], task: PlannedTask) -> None:
    """Move the task's dates to the present, and commit that before it is sent."""
    assert task.definition is not None
    task.definition = move(task.definition, now() - date(task.definition["created"]))
    async with hold.writing() as session:
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task.task_id).values(definition=task.definition)
        )
    log.info("task-stamped-anew", task_id=task.task_id)


def _readable(task: PlannedTask, refusal: Refusal) -> str:
    return f"Taskcluster refuses task {task.name} ({task.task_id}) with {refusal.status}: {refusal}"


async def cancel_tasks(parts: Parts, tasks: list[PlannedTask]) -> None:
    """Cancel what was made of a plan that was given up. One that has ended, or is gone, is left as it is."""
    for task in reversed(tasks):
        status = await parts.queue.status(task.task_id)
        if status is None or status["state"] in {"completed", "failed", "exception"}:
            continue
        there = await parts.queue.task(task.task_id)
        if there is None or differences(task.definition or {}, there):
            continue  # not ours
        try:
            await parts.queue.cancel_task(task.task_id, exact_scope("cancel-task", status))
        except Refusal as refusal:
            log.warning("cancel-refused", task_id=task.task_id, why=str(refusal))
