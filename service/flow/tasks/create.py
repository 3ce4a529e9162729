"""A stored plan becomes tasks in Taskcluster: each exactly once, whatever breaks on the way.

The queue takes a repeated `createTask` with the same body as the same request, until the body's `created` is 15
minutes old: then it is 400, although the task exists. After any 400 or 409 the plan and the task are therefore read
again. A task that exists under a planned id is adopted if it has the plan's authority: an earlier attempt made it, of
which the answer was lost, or the database was restored from a backup since. Any other is left alone, and the plan is
refused.
"""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
from sqlmodel import col, select, update

from service.clients.taskcluster import Queue, ScopesRefusal, Status, named, validate_definition
from service.clock import now
from service.engine.leases import Lease, YieldedError
from service.errors import PermanentUpstreamError, Unavailable, UpstreamError
from service.flow.tasks.definition import (
    MAX_BODY,
    authority_differences,
    date,
    expiries,
    move,
    needed_first,
    shortened,
)
from service.flow.tasks.plan import Plan, record
from service.flow.tasks.status import RESOLVED, exact_scope, schedule_if_forgotten, was_cancelled
from service.services import Services
from service.store.models import PlannedTask

log = structlog.get_logger()

LATE = timedelta(minutes=10)
"""A body older than this is not sent before the queue was asked whether it has the task: it refuses it at 15."""

MINUTES = timedelta(minutes=1)

MAX_REASON = 8_000
"""Characters that are kept of why a plan was given up."""

RECORD_TASKS = 500
"""Created tasks that a crash may leave unrecorded: they are asked for again, which changes nothing."""

RECORD_SECONDS = 1.0
"""How long they may be unrecorded."""

AT_ONCE = 5_000
"""Tasks and their dependencies that are looked at before the event loop goes on with other work."""


class PlanRefusedError(Exception):
    """Taskcluster will never take this plan; the message names the task, and says why.

    `missing`: the scopes that the project lacks, if that is why.
    """

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = missing


async def create_tasks(
    services: Services, lease: Lease[Any], tasks: list[PlannedTask], scopes: list[str]
) -> list[PlannedTask]:
    """Create those of `tasks` (in dependency order, and stored) that are not there yet.

    Returns the last ones made; the caller puts them on `record` in the transaction that ends its work. Raises
    RefusedError, and Unavailable when it should go on later; what was created by then is on record.
    """
    return await create_as_planned(services, lease, _whole(tasks), scopes)


async def create_as_planned(
    services: Services, lease: Lease[Any], plan: AsyncIterator[list[PlannedTask]], scopes: list[str]
) -> list[PlannedTask]:
    """Create, as `create_tasks` does, what `plan` yields part by part, while it makes and stores what follows.

    Raises what `plan` raises, too, once what is under way is through and on record. Of a plan that fails before
    Taskcluster does no more is asked for; of one that Taskcluster fails, one part at most.
    """
    return await _Creation(services, lease, scopes).run(plan)


async def _whole(tasks: list[PlannedTask]) -> AsyncIterator[list[PlannedTask]]:
    yield tasks


class _Creation:
    """Creates the tasks of a plan, each as soon as those that it needs exist, and records them meanwhile.

    At most `RECORD_TASKS` are under way or created and not recorded: a crash leaves no more than these unrecorded.
    """

    def __init__(self, services: Services, lease: Lease[Any], scopes: list[str]) -> None:
        self._services, self._hold, self._scopes, self._plan = services, lease, scopes, Plan()
        self._share = f"{lease.item.lane} {lease.item.share}"
        self._ready: deque[PlannedTask] = deque()
        self._waits: dict[str, int] = {}  # for each task that is not created: how many it needs that are not, either
        self._needed_by: defaultdict[str, list[PlannedTask]] = defaultdict(list)
        self._under_way = 0
        self._created: list[PlannedTask] = []  # and not recorded
        self._recording = 0
        self._progress = False
        self._planned = False  # the whole plan is here
        self._errors: list[Exception] = []
        self._ended = False
        self._to_record, self._idle = asyncio.Event(), asyncio.Event()

    async def run(self, plan: AsyncIterator[list[PlannedTask]]) -> list[PlannedTask]:
        """Create what `plan` yields; see `create_as_planned`."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._record())
            try:
                await self._take(plan)
                await self._idle.wait()
            finally:
                self._ended = True  # nothing begins in a group that is being cancelled
            self._to_record.set()
        if self._errors:
            await self._fail()
        return self._created

    async def _take(self, plan: AsyncIterator[list[PlannedTask]]) -> None:
        try:
            async for part in plan:
                await self._add(part)
                if self._errors:
                    break
            else:
                self._planned = True
        except Exception as error:  # noqa: BLE001 - raised by `run`, once what is under way is through
            self._errors.append(error)
        self._begin()

    async def _add(self, part: list[PlannedTask]) -> None:
        """Take a part of the plan, which comes after all that it needs."""
        self._plan.add(part)
        looked_at = 0
        for task in part:
            if task.created or task.definition is None:
                continue
            needed = {each for each in needed_first(task.definition) if each in self._waits}
            self._waits[task.task_id] = len(needed)
            for each in needed:
                self._needed_by[each].append(task)
            if not needed:
                self._ready.append(task)
            looked_at += len(task.definition["dependencies"]) + 1
            if looked_at > AT_ONCE:  # a plan can be large: others go on meanwhile
                looked_at = 0
                self._begin()
                await asyncio.sleep(0)
        self._begin()

    def _begin(self) -> None:
        """Begin to create what is ready, as far as there is room."""
        while (
            self._ready
            and not (self._errors or self._ended)
            and self._under_way < 2 * self._services.connections.slots  # half of them wait, so that more slots find use
            and self._under_way + len(self._created) + self._recording < RECORD_TASKS
        ):
            self._under_way += 1
            self._group.create_task(self._create_one(self._ready.popleft()))
        if not self._under_way and (self._errors or (self._planned and not self._ready)):
            self._idle.set()

    async def _create_one(self, task: PlannedTask) -> None:
        try:
            async with self._services.connections.use(self._share):
                if self._errors:
                    return
                await _create(self._services, self._hold, task, self._scopes, self._plan)
            self._exists(task)
        except Exception as error:  # noqa: BLE001 - raised by `run`, once the others are through
            self._errors.append(error)
        finally:
            self._under_way -= 1
            self._begin()

    def _exists(self, task: PlannedTask) -> None:
        self._progress = True
        self._created.append(task)
        if len(self._created) >= max(1, RECORD_TASKS // 2):
            self._to_record.set()
        del self._waits[task.task_id]
        for following in self._needed_by.pop(task.task_id, ()):
            self._waits[following.task_id] -= 1
            if not self._waits[following.task_id]:
                self._ready.append(following)

    async def _record(self) -> None:
        """Record what was created while the creation goes on, and give way to others between two parts of that."""
        while not self._errors:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._to_record.wait(), RECORD_SECONDS)
            if self._ended:
                return
            self._to_record.clear()
            if not self._created:
                continue
            created, self._created = self._created, []
            self._recording = len(created)
            try:
                await self._hold.commit(record(created), len(created))
                self._recording = 0
                if self._planned:
                    self._hold.give_way()
            except Exception as error:  # noqa: BLE001 - raised by `run`, once what is under way is through
                if self._recording:
                    self._created = [*created, *self._created]
                self._errors.append(error)
            self._recording = 0
            self._begin()

    async def _fail(self) -> None:
        """Record what was created, and raise the error that decides."""
        if self._progress:
            # the waits between attempts begin anew: a long plan meets many a 429
            await self._hold.commit(record(self._created), len(self._created), attempts=1)
            self._hold.item.attempts = 1
        error = min(self._errors, key=_weight)
        error.args = tuple(self._plan.hide_ids(text) if isinstance(text, str) else text for text in error.args)
        raise error


def _weight(error: Exception) -> int:
    """Of several errors the lowest decides: one that is refused for good does, whatever else went wrong meanwhile."""
    return 0 if isinstance(error, PlanRefusedError) else 2 if isinstance(error, YieldedError) else 1


async def _create(services: Services, lease: Lease[Any], task: PlannedTask, scopes: list[str], plan: Plan) -> None:
    assert task.definition is not None, "retention keeps the definitions of unfinished plans"
    queue = services.queue
    if now() - date(task.definition["created"]) > LATE:
        if await _adopt(queue, task, plan):
            return
        await _stamp_anew(services, lease, task)
    for repeat in (False, True):
        try:
            with services.connections.watch():
                status = await queue.create_task(task.task_id, task.definition, scopes)
        except PermanentUpstreamError as refusal:
            if refusal.status not in {400, 409}:
                lacking = refusal.missing if isinstance(refusal, ScopesRefusal) and refusal.status == 403 else []
                raise PlanRefusedError(_readable(task, refusal), lacking) from None
            await _read_again(services, task)
            if await _adopt(queue, task, plan):
                return
            if repeat or now() - date(task.definition["created"]) < MINUTES:
                raise PlanRefusedError(_readable(task, refusal)) from None
            await _stamp_anew(services, lease, task)  # not there, and stale
        except Unavailable:
            size = len(json.dumps(task.definition, separators=(",", ":")))
            if size > MAX_BODY:  # then it is 500 each time; and what is no ASCII takes more room as it is sent
                why = f"it is {size:,} bytes as it is sent, and {MAX_BODY:,} bytes at most are taken"
                raise PlanRefusedError(f"Taskcluster refuses task {task.name}: {why}") from None
            raise
        else:
            _refuse_cancelled(task, status)
            if lease.item.fencing_token > 1 or repeat:  # somebody may have tried before
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
    validate_definition(existing)
    if differing := authority_differences(task.definition or {}, existing):
        raise PlanRefusedError(f"{_foreign(task)}: its {', '.join(differing)} are not the plan's. {_ANEW}")
    if task.task_id in await plan.revealed():
        raise PlanRefusedError(
            f"{_foreign(task)}, which an earlier task of the plan names: anybody can have made it. {_ANEW}"
        )
    _refuse_cancelled(task, status)
    with suppress(ValueError):  # no date that a calendar has
        if date(existing["expires"]) <= now():
            raise PlanRefusedError(
                f"task {task.name} was created before, and expired on {existing['expires']}. {_ANEW}"
            )
    await schedule_if_forgotten(queue, status, existing)
    task.adopted = True
    return True


_ANEW = "A retry plans the tasks anew, with other ids"


def _foreign(task: PlannedTask) -> str:
    return f"a task that this service did not make has the id that was planned for {task.name}"


def _refuse_cancelled(task: PlannedTask, status: Status) -> None:
    if was_cancelled(status):
        raise PlanRefusedError(f"task {task.name} was created before, and somebody has cancelled it. {_ANEW}")


async def _read_again(services: Services, task: PlannedTask) -> None:
    """The plan as it stands: an earlier holder may have stamped it anew."""
    async with services.database.reading() as session:
        stored = (await session.exec(select(PlannedTask).where(PlannedTask.task_id == task.task_id))).one()
    task.definition = stored.definition


async def _stamp_anew(services: Services, lease: Lease[Any], task: PlannedTask) -> None:
    """Move the task's dates to the present, and commit that before it is sent."""
    assert task.definition is not None
    needed = task.definition["dependencies"]
    statuses = await services.queue.statuses(needed) if needed else {}
    try:
        moved = move(task.definition, now() - date(task.definition["created"]))
        task.definition, _ = shortened(moved, expiries(statuses), now())
    except ValueError as error:
        raise PlanRefusedError(f"task {task.name} ({task.task_id}) {error}") from None
    async with lease.writing() as session:
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task.task_id).values(definition=task.definition)
        )
    log.info("task-stamped-anew", task_id=task.task_id)


def _readable(task: PlannedTask, refusal: PermanentUpstreamError) -> str:
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
    services: Services, lease: Lease[Any], tasks: list[PlannedTask]
) -> tuple[list[PlannedTask], list[str]]:
    """Cancel what this plan's own `createTask` created; a task that it found is not touched, whoever made it.

    Return the tasks that were created without our having had the answer, to be recorded, and what could not be
    cancelled and why. Raises Unavailable while it is worth to try again.
    """
    final = lease.item.attempts >= MAX_CANCEL_ATTEMPTS

    async def cancel(task: PlannedTask, status: Status) -> str | None:
        async with services.connections.use(f"{lease.item.lane} {lease.item.share}"):
            try:
                await services.queue.cancel_task(task.task_id, exact_scope("cancel-task", status))
            except UpstreamError as error:
                if isinstance(error, Unavailable) and not final:
                    raise
                log.warning("cancel-refused", task_id=task.task_id, why=str(error))
                return f"task {task.name} ({task.task_id}) could not be cancelled: {error}"
            return None

    try:
        statuses = await services.queue.statuses([task.task_id for task in tasks if not task.adopted])
        unrecorded = await _created_without_answer(
            services, [t for t in tasks if not t.created and t.task_id in statuses]
        )
    except UpstreamError as error:
        if isinstance(error, Unavailable) and not final:
            raise
        return [], [f"what was created could not be cancelled: {error}"]
    created = [task for task in tasks if task.created and task.task_id in statuses]
    running = [task for task in [*created, *unrecorded] if statuses[task.task_id]["state"] not in RESOLVED]
    outcomes = await asyncio.gather(*(cancel(task, statuses[task.task_id]) for task in reversed(running)))
    return unrecorded, [why for why in outcomes if why is not None]


async def _created_without_answer(services: Services, tasks: list[PlannedTask]) -> list[PlannedTask]:
    """Return those of the existing `tasks` that are to the letter what we sent.

    The queue too takes that for the proof that a `createTask` is the same: it answers a repeated one with success.
    """
    if not tasks:
        return []
    ids = [task.task_id for task in tasks]
    existing = await services.queue.tasks(ids)
    async with services.database.reading() as session:
        rows = await session.exec(
            select(PlannedTask.task_id, PlannedTask.definition).where(col(PlannedTask.task_id).in_(ids))
        )
        sent = dict(rows.all())
    return [task for task in tasks if existing.get(task.task_id) == sent[task.task_id]]
