"""A stored plan becomes tasks in Taskcluster: each exactly once, whatever breaks on the way.

The queue takes a repeated `createTask` with the same body as the same request, until the body's `created` is 15
minutes old: then it is 400, although the task exists. After any 400 or 409 the plan and the task are therefore read
again, and what stands there is judged.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import structlog
from sqlmodel import col, select, update

from service.clients.taskcluster import Queue, Status
from service.database import Session, now
from service.errors import Refusal, Unavailable
from service.flow.definition import MAX_BODY, date, differences, expiries, move, shortened
from service.models import PlannedTask
from service.parts import Parts
from service.work import Hold

log = structlog.get_logger()

LATE = timedelta(minutes=10)
"""A body older than this is not sent before the queue was asked whether it has the task: it refuses it at 15."""

MINUTES = timedelta(minutes=1)

RESOLVED = frozenset({"completed", "failed", "exception"})

RECORD_TASKS, RECORD_SECONDS = 500, 1.0
"""How many tasks, and how long, a crash may leave unrecorded: they are asked for again, which changes nothing."""


class RefusedError(Exception):
    """Taskcluster will never take this plan; the message names the task, and says why in the queue's words."""


async def create_tasks(parts: Parts, hold: Hold[Any], tasks: list[PlannedTask], scopes: list[str]) -> list[PlannedTask]:
    """Create those of `tasks` (in dependency order) that are not there yet.

    Returns the last ones made; the caller puts them on `record` in the transaction that ends its work. Raises
    RefusedError, and Unavailable when it should go on later; what was created by then is on record.
    """
    made: list[PlannedTask] = []
    progress, recorded_at = False, time.monotonic()
    for batch in _batches([task for task in tasks if not task.created]):
        if len(made) >= RECORD_TASKS or (made and time.monotonic() - recorded_at >= RECORD_SECONDS):
            async with hold.writing() as session:
                await record(session, made)
            made, recorded_at = [], time.monotonic()
        outcomes = await _create_batch(parts, hold, batch, scopes)
        made += [task for task, error in outcomes if error is None]
        progress = progress or bool(made)
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            # after progress the waits between attempts begin anew: a long plan meets many a 429
            attempts = {"attempts": 1} if progress else {}
            async with hold.writing(**attempts) as session:
                await record(session, made)
            hold.item.attempts = attempts.get("attempts", hold.item.attempts)
            # one that is refused for good decides, whatever else went wrong meanwhile
            raise next((error for error in errors if isinstance(error, RefusedError)), errors[0])
    return made


async def record(session: Session, made: list[PlannedTask]) -> None:
    """Write down that these tasks stand in Taskcluster."""
    ids = [task.task_id for task in made]
    await session.exec(update(PlannedTask).where(col(PlannedTask.task_id).in_(ids)).values(created=True))


def _batches(tasks: Iterable[PlannedTask]) -> Iterator[list[PlannedTask]]:
    """The levels, cut so that what was made is on record while a wide one is still being made."""
    for level in _levels(tasks):
        for start in range(0, len(level), RECORD_TASKS):
            yield level[start : start + RECORD_TASKS]


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


async def _create_batch(
    parts: Parts, hold: Hold[Any], batch: list[PlannedTask], scopes: list[str]
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
            except Exception as error:  # noqa: BLE001 - raised by the caller, once the others are through
                stop = True
                return task, error
            return task, None

    return await asyncio.gather(*(one(task) for task in batch))


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
        except Unavailable:
            size = len(json.dumps(task.definition, separators=(",", ":")))
            if size > MAX_BODY:  # then it is 500 each time; and what is no ASCII takes more room as it is sent
                why = f"it is {size:,} bytes as it is sent, and {MAX_BODY:,} bytes at most are taken"
                raise RefusedError(f"Taskcluster refuses task {task.name} ({task.task_id}): {why}") from None
            raise
        else:
            if hold.item.lease > 1 or repeat:  # somebody may have tried before
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
    resolved = {"completed"} if definition["requires"] == "all-completed" else RESOLVED
    dependencies = definition["dependencies"]
    statuses = await queue.statuses(dependencies) if dependencies else {}
    return all(statuses.get(dependency, {}).get("state") in resolved for dependency in dependencies)


async def _read_again(parts: Parts, task: PlannedTask) -> None:
    """The plan as it stands: an earlier holder may have stamped it anew."""
    async with parts.database.reading() as session:
        stored = (await session.exec(select(PlannedTask).where(PlannedTask.task_id == task.task_id))).one()
    task.definition = stored.definition


async def _stamp_anew(parts: Parts, hold: Hold[Any], task: PlannedTask) -> None:
    """Move the task's dates to the present, and commit that before it is sent."""
    assert task.definition is not None
    needed = task.definition["dependencies"]
    statuses = await parts.queue.statuses(needed) if needed else {}
    try:
        moved = move(task.definition, now() - date(task.definition["created"]))
        task.definition, _ = shortened(moved, expiries(statuses), now())
    except ValueError as error:
        raise RefusedError(f"task {task.name} ({task.task_id}) {error}") from None
    async with hold.writing() as session:
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task.task_id).values(definition=task.definition)
        )
    log.info("task-stamped-anew", task_id=task.task_id)


def _readable(task: PlannedTask, refusal: Refusal) -> str:
    where = f"Taskcluster refuses task {task.name} ({task.task_id}) with {refusal.status}: "
    missing = missing_scopes(str(refusal)) if refusal.status == 403 else []
    if not missing:
        return where + str(refusal)
    wanted = "; ".join(_wanted(scope) for scope in missing)
    return where + f"the project's scopes lack {wanted}. Add them to its role in Taskcluster or to the repository"


def missing_scopes(message: str) -> list[str]:
    """The scopes that the message of a 403 InsufficientScopes says are missing; of alternatives the last.

    These are the priorities that allow the task's, from the highest down to the task's own, which allows the least.
    """
    found = re.search(r"missing the following scopes:\s*```\s*(.*?)\s*```", message, re.DOTALL)
    if found is None:
        return []
    try:
        expression = json.loads(found[1])
    except ValueError:
        expression = found[1]
    return _flat(expression)


def _flat(expression: Any) -> list[str]:
    if isinstance(expression, dict):
        if "AnyOf" in expression:
            return [scope for each in expression["AnyOf"][-1:] for scope in _flat(each)]
        return [scope for each in expression.get("AllOf", []) for scope in _flat(each)]
    return [str(expression)]


_FOR = {
    "queue:route:": "its route",
    "queue:scheduler-id:": "its schedulerId",
    "queue:create-task:project:": "its projectId",
    "queue:create-task:": "its priority and task queue",
}


def _wanted(scope: str) -> str:
    """A scope, and what of a task's definition asks for it."""
    why = next((why for start, why in _FOR.items() if scope.startswith(start)), "the task's own scopes")
    return f"{scope} (for {why})"


async def cancel_tasks(parts: Parts, tasks: list[PlannedTask]) -> list[PlannedTask]:
    """Cancel what was made of a plan that was given up. One that has ended, or is gone, is left as it is.

    Returns those that stood there: of some we may have had no answer, so the caller puts them on record.
    """
    statuses = await parts.queue.statuses([task.task_id for task in tasks])
    running = [
        task for task in reversed(tasks) if statuses.get(task.task_id, {"state": "failed"})["state"] not in RESOLVED
    ]
    there = await parts.queue.tasks([task.task_id for task in running])
    connections = asyncio.Semaphore(parts.settings.taskcluster.connections)

    async def cancel(task: PlannedTask) -> None:
        async with connections:
            try:
                await parts.queue.cancel_task(task.task_id, exact_scope("cancel-task", statuses[task.task_id]))
            except Refusal as refusal:
                log.warning("cancel-refused", task_id=task.task_id, why=str(refusal))

    ours = [t for t in running if t.task_id in there and not differences(t.definition or {}, there[t.task_id])]
    await asyncio.gather(*(cancel(task) for task in ours))
    return ours
