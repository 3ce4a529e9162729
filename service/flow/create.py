"""A stored plan becomes tasks in Taskcluster: each exactly once, whatever breaks on the way.

The queue takes a repeated `createTask` with the same body as the same request, until the body's `created` is 15
minutes old: then it is 400, although the task exists. After any 400 or 409 the plan and the task are therefore read
again. A task that exists under a planned id is adopted if it has the plan's authority: an earlier attempt made it, of
which the answer was lost, or the database was restored from a backup since. Any other is left alone, and the plan is
refused.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from sqlmodel import col, select, update

from service.clients.taskcluster import Queue, ScopesRefusal, Status, known_definition, named
from service.database import now
from service.errors import Refusal, Unavailable, UpstreamError
from service.flow.definition import MAX_BODY, authority_differences, date, expiries, move, shortened
from service.flow.plan import RECORD_TASKS, Plan, record
from service.flow.status import RESOLVED, exact_scope, schedule_if_forgotten, was_cancelled
from service.models import PlannedTask
from service.parts import Parts
from service.work import Hold

log = structlog.get_logger()

LATE = timedelta(minutes=10)
"""A body older than this is not sent before the queue was asked whether it has the task: it refuses it at 15."""

MINUTES = timedelta(minutes=1)

MAX_REASON = 8_000
"""Characters that are kept of why a plan was given up."""

RECORD_SECONDS = 1.0
"""How long a crash may leave tasks unrecorded: they are asked for again, which changes nothing."""


class RefusedError(Exception):
    """Taskcluster will never take this plan; the message names the task, and says why.

    `missing`: the scopes that the project lacks, if that is why.
    """

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = missing


async def create_tasks(parts: Parts, hold: Hold[Any], tasks: list[PlannedTask], scopes: list[str]) -> list[PlannedTask]:
    """Create those of `tasks` (in dependency order) that are not there yet.

    Returns the last ones made; the caller puts them on `record` in the transaction that ends its work. Raises
    RefusedError, and Unavailable when it should go on later; what was created by then is on record.
    """
    plan = Plan(tasks) if len(tasks) < RECORD_TASKS else await asyncio.to_thread(Plan, tasks)
    made: list[PlannedTask] = []
    progress, recorded_at = False, time.monotonic()
    for batch in plan.batches():
        if len(made) >= RECORD_TASKS or (made and time.monotonic() - recorded_at >= RECORD_SECONDS):
            await hold.commit(partial(record, made=made), len(made))
            made, recorded_at = [], time.monotonic()
            hold.give_way()
        outcomes = await _create_batch(parts, hold, batch, scopes, plan)
        made += [task for task, error in outcomes if error is None]
        progress = progress or bool(made)
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            # after progress the waits between attempts begin anew: a long plan meets many a 429
            attempts = {"attempts": 1} if progress else {}
            await hold.commit(partial(record, made=made), len(made), **attempts)
            hold.item.attempts = attempts.get("attempts", hold.item.attempts)
            # one that is refused for good decides, whatever else went wrong meanwhile
            error = next((error for error in errors if isinstance(error, RefusedError)), errors[0])
            error.args = tuple(plan.hide_ids(text) if isinstance(text, str) else text for text in error.args)
            raise error
    return made


async def _create_batch(
    parts: Parts, hold: Hold[Any], batch: list[PlannedTask], scopes: list[str], plan: Plan
) -> list[tuple[PlannedTask, Exception | None]]:
    share = f"{hold.item.lane} {hold.item.share}"
    stop = False

    async def one(task: PlannedTask) -> tuple[PlannedTask, Exception | None]:
        nonlocal stop
        async with parts.connections.use(share):
            if stop:
                return task, Unavailable("taskcluster", "not tried: another task of the plan failed")
            try:
                await _create(parts, hold, task, scopes, plan)
            except Exception as error:  # noqa: BLE001 - raised by the caller, once the others are through
                stop = True
                return task, error
            return task, None

    return await asyncio.gather(*(one(task) for task in batch))


async def _create(parts: Parts, hold: Hold[Any], task: PlannedTask, scopes: list[str], plan: Plan) -> None:
    assert task.definition is not None, "retention keeps the definitions of unfinished plans"
    queue = parts.queue
    if now() - date(task.definition["created"]) > LATE:
        if await _adopt(queue, task, plan):
            return
        await _stamp_anew(parts, hold, task)
    for repeat in (False, True):
        try:
            status = await queue.create_task(task.task_id, task.definition, scopes)
        except Refusal as refusal:
            if refusal.status not in {400, 409}:
                lacking = refusal.missing if isinstance(refusal, ScopesRefusal) and refusal.status == 403 else []
                raise RefusedError(_readable(task, refusal), lacking) from None
            await _read_again(parts, task)
            if await _adopt(queue, task, plan):
                return
            if repeat or now() - date(task.definition["created"]) < MINUTES:
                raise RefusedError(_readable(task, refusal)) from None
            await _stamp_anew(parts, hold, task)  # not there, and stale
        except Unavailable:
            size = len(json.dumps(task.definition, separators=(",", ":")))
            if size > MAX_BODY:  # then it is 500 each time; and what is no ASCII takes more room as it is sent
                why = f"it is {size:,} bytes as it is sent, and {MAX_BODY:,} bytes at most are taken"
                raise RefusedError(f"Taskcluster refuses task {task.name}: {why}") from None
            raise
        else:
            _refuse_cancelled(task, status)
            if hold.item.lease > 1 or repeat:  # somebody may have tried before
                await schedule_if_forgotten(queue, status, task.definition)
            return


async def _adopt(queue: Queue, task: PlannedTask, plan: Plan) -> bool:
    """Take the task that exists under the planned id for the plan's; return False if none exists.

    Raises RefusedError for a task that is not the plan's, which is not touched, and for one that has been cancelled
    or has expired.
    """
    existing = await queue.task(task.task_id)
    status = await queue.status(task.task_id) if existing is not None else None
    if existing is None or status is None:
        return False
    known_definition(existing)
    if differing := authority_differences(task.definition or {}, existing):
        raise RefusedError(f"{_foreign(task)}: its {', '.join(differing)} are not the plan's. {_ANEW}")
    if task.task_id in await plan.revealed():
        raise RefusedError(
            f"{_foreign(task)}, which an earlier task of the plan names: anybody can have made it. {_ANEW}"
        )
    _refuse_cancelled(task, status)
    with suppress(ValueError):  # no date that a calendar has
        if date(existing["expires"]) <= now():
            raise RefusedError(f"task {task.name} was created before, and expired on {existing['expires']}. {_ANEW}")
    await schedule_if_forgotten(queue, status, existing)
    task.adopted = True
    return True


_ANEW = "A retry plans the tasks anew, with other ids"


def _foreign(task: PlannedTask) -> str:
    return f"a task that this service did not make has the id that was planned for {task.name}"


def _refuse_cancelled(task: PlannedTask, status: Status) -> None:
    if was_cancelled(status):
        raise RefusedError(f"task {task.name} was created before, and somebody has cancelled it. {_ANEW}")


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
    where = f"Taskcluster refuses task {task.name} with {refusal.status}: "
    if not isinstance(refusal, ScopesRefusal) or refusal.status != 403:
        return where + str(refusal)
    wanted = named([f"{scope} (for {_reason_for(scope)})" for scope in refusal.missing]) or "some that it does not name"
    return where + f"the project's scopes lack {wanted}. Add them to its role in Taskcluster or to the repository"


_FOR = {
    "queue:route:": "its route",
    "queue:scheduler-id:": "its schedulerId",
    "queue:create-task:project:": "its projectId",
    "queue:create-task:": "its priority and task queue",
}


def _reason_for(scope: str) -> str:
    """Return what of a task's definition asks for a scope."""
    return next((why for start, why in _FOR.items() if scope.startswith(start)), "the task's own scopes")


MAX_CANCEL_ATTEMPTS = 5
"""Attempts at a step after which it is given up although Taskcluster does not answer whether tasks were cancelled."""


async def cancel_created(
    parts: Parts, hold: Hold[Any], tasks: list[PlannedTask]
) -> tuple[list[PlannedTask], list[str]]:
    """Cancel what this plan's own `createTask` created; a task that it found is not touched, whoever made it.

    Return the tasks that were created without our having had the answer, to be recorded, and what could not be
    cancelled and why. Raises Unavailable while it is worth to try again.
    """
    final = hold.item.attempts >= MAX_CANCEL_ATTEMPTS

    async def cancel(task: PlannedTask, status: Status) -> str | None:
        async with parts.connections.use(f"{hold.item.lane} {hold.item.share}"):
            try:
                await parts.queue.cancel_task(task.task_id, exact_scope("cancel-task", status))
            except UpstreamError as error:
                if isinstance(error, Unavailable) and not final:
                    raise
                log.warning("cancel-refused", task_id=task.task_id, why=str(error))
                return f"task {task.name} ({task.task_id}) could not be cancelled: {error}"
            return None

    try:
        statuses = await parts.queue.statuses([task.task_id for task in tasks if not task.adopted])
        unrecorded = await _created_without_answer(parts, [t for t in tasks if not t.created and t.task_id in statuses])
    except UpstreamError as error:
        if isinstance(error, Unavailable) and not final:
            raise
        return [], [f"what was created could not be cancelled: {error}"]
    created = [task for task in tasks if task.created and task.task_id in statuses]
    running = [task for task in [*created, *unrecorded] if statuses[task.task_id]["state"] not in RESOLVED]
    outcomes = await asyncio.gather(*(cancel(task, statuses[task.task_id]) for task in reversed(running)))
    return unrecorded, [why for why in outcomes if why is not None]


async def _created_without_answer(parts: Parts, tasks: list[PlannedTask]) -> list[PlannedTask]:
    """Return those of the existing `tasks` that are to the letter what we sent.

    The queue too takes that for the proof that a `createTask` is the same: it answers a repeated one with success.
    """
    if not tasks:
        return []
    ids = [task.task_id for task in tasks]
    existing = await parts.queue.tasks(ids)
    async with parts.database.reading() as session:
        rows = await session.exec(
            select(PlannedTask.task_id, PlannedTask.definition).where(col(PlannedTask.task_id).in_(ids))
        )
        sent = dict(rows.all())
    return [task for task in tasks if existing.get(task.task_id) == sent[task.task_id]]
