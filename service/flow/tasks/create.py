"""Create the tasks of a stored plan in Taskcluster, each exactly once, whatever breaks on the way.

The queue takes a repeated `createTask` with the same body as the same request, until the body's `created` is 15
minutes old: then it is 400, although the task exists. After any 400 or 409 the plan and the task are therefore read
again. If there is no task and the body is more than a minute old, its dates are moved and it is sent once more. A
task that exists under a planned id is adopted if it has the plan's authority: then an earlier attempt created
it and lost the answer, or the database was restored from a backup since. Any other task is left alone, and the plan is
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
    move_dates,
    parse_date,
    parse_expiries,
    prerequisites_of,
    shorten_deadline,
)
from service.flow.tasks.plan import PlannedIds, mark_created
from service.flow.tasks.status import RESOLVED, exact_scope, schedule_if_forgotten, was_cancelled
from service.services import Services
from service.store.models import PlannedTask

log = structlog.get_logger()

LATE = timedelta(minutes=10)
"""Age of a body from which on it is only sent if the queue does not have the task: the queue refuses it at 15."""

MINUTES = timedelta(minutes=1)

MAX_REASON = 8_000
"""Characters that are kept of the reason why a plan was given up."""

RECORD_TASKS = 500
"""Most created tasks that a crash may leave unrecorded: they are requested again, which changes nothing."""

RECORD_SECONDS = 1.0
"""Seconds for which created tasks may be unrecorded."""

AT_ONCE = 5_000
"""Tasks and their dependencies that are queued before the event loop does other work."""


class PlanRefusedError(Exception):
    """Taskcluster will never take this plan; the message names the task, and says why.

    `missing` are the scopes that the project lacks, if that is the reason.
    """

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = missing


async def create_tasks(
    services: Services, lease: Lease[Any], tasks: list[PlannedTask], scopes: list[str]
) -> list[PlannedTask]:
    """Create those of the stored `tasks`, which are in dependency order, that do not exist yet.

    Returns the last created ones; the caller records them (`mark_created`) in the transaction that ends its work.
    Raises PlanRefusedError, and Unavailable if it is to be continued later; what was created until then is recorded.
    """
    return await create_as_planned(services, lease, _as_one_part(tasks), scopes)


async def create_as_planned(
    services: Services, lease: Lease[Any], plan: AsyncIterator[list[PlannedTask]], scopes: list[str]
) -> list[PlannedTask]:
    """Create the tasks that `plan` yields part by part, while it makes and stores the following parts.

    Otherwise this is `create_tasks`. It also raises what `plan` raises, after calls under way have ended and are
    recorded. No task is created any more once `plan` fails; if Taskcluster fails, `plan` is read one part further at
    most.
    """
    return await _Creation(services, lease, scopes).run(plan)


async def _as_one_part(tasks: list[PlannedTask]) -> AsyncIterator[list[PlannedTask]]:
    yield tasks


class _Creation:
    """Creates the tasks of a plan, each as soon as those that it needs exist, and records them meanwhile.

    At most `RECORD_TASKS` tasks are under way, or created and not recorded: a crash leaves no more unrecorded.
    """

    def __init__(self, services: Services, lease: Lease[Any], scopes: list[str]) -> None:
        self._services, self._lease, self._scopes, self._plan = services, lease, scopes, PlannedIds()
        self._share = f"{lease.item.lane} {lease.item.share}"
        self._ready: deque[PlannedTask] = deque()
        self._unmet: dict[str, int] = {}  # for each missing task, the number of missing tasks that it needs
        self._needed_by: defaultdict[str, list[PlannedTask]] = defaultdict(list)
        self._under_way = 0
        self._created: list[PlannedTask] = []  # created and not recorded
        self._recording = 0
        self._progress = False
        self._plan_complete = False
        self._errors: list[Exception] = []
        self._ended = False
        self._to_record, self._idle = asyncio.Event(), asyncio.Event()

    async def run(self, plan: AsyncIterator[list[PlannedTask]]) -> list[PlannedTask]:
        """Create the tasks that `plan` yields; see `create_as_planned`."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._record())
            try:
                await self._receive_parts(plan)
                await self._idle.wait()
            finally:
                self._ended = True  # no task starts in a group that is being cancelled
            self._to_record.set()
        if self._errors:
            await self._fail()
        return self._created

    async def _receive_parts(self, plan: AsyncIterator[list[PlannedTask]]) -> None:
        try:
            async for part in plan:
                await self._queue_part(part)
                if self._errors:
                    break
            else:
                self._plan_complete = True
        except Exception as error:  # noqa: BLE001 - raised by `run`, after the calls under way
            self._errors.append(error)
        self._start_ready()

    async def _queue_part(self, part: list[PlannedTask]) -> None:
        """Queue a part of the plan, which comes after everything that it needs."""
        self._plan.add(part)
        count = 0
        for task in part:
            if task.created or task.definition is None:
                continue
            needed = {task_id for task_id in prerequisites_of(task.definition) if task_id in self._unmet}
            self._unmet[task.task_id] = len(needed)
            for task_id in needed:
                self._needed_by[task_id].append(task)
            if not needed:
                self._ready.append(task)
            count += len(task.definition["dependencies"]) + 1
            if count > AT_ONCE:
                count = 0
                self._start_ready()
                await asyncio.sleep(0)
        self._start_ready()

    def _start_ready(self) -> None:
        """Start to create tasks that are ready, within the limits."""
        while (
            self._ready
            and not (self._errors or self._ended)
            and self._under_way < 2 * self._services.connections.slots  # half of them wait, to use slots that are added
            and self._under_way + len(self._created) + self._recording < RECORD_TASKS
        ):
            self._under_way += 1
            self._group.create_task(self._create_one(self._ready.popleft()))
        if not self._under_way and (self._errors or (self._plan_complete and not self._ready)):
            self._idle.set()

    async def _create_one(self, task: PlannedTask) -> None:
        try:
            async with self._services.connections.use(self._share):
                if self._errors:
                    return
                await _create(self._services, self._lease, task, self._scopes, self._plan)
            self._release_dependents(task)
        except Exception as error:  # noqa: BLE001 - raised by `run`, after the calls under way
            self._errors.append(error)
        finally:
            self._under_way -= 1
            self._start_ready()

    def _release_dependents(self, task: PlannedTask) -> None:
        self._progress = True
        self._created.append(task)
        if len(self._created) >= max(1, RECORD_TASKS // 2):
            self._to_record.set()
        del self._unmet[task.task_id]
        for following in self._needed_by.pop(task.task_id, ()):
            self._unmet[following.task_id] -= 1
            if not self._unmet[following.task_id]:
                self._ready.append(following)

    async def _record(self) -> None:
        """Record created tasks meanwhile, and let others who wait have their turn between two records."""
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
                await self._lease.commit(mark_created(created), len(created))
                self._recording = 0
                if self._plan_complete:
                    self._lease.give_way()
            except Exception as error:  # noqa: BLE001 - raised by `run`, after the calls under way
                if self._recording:
                    self._created = [*created, *self._created]
                self._errors.append(error)
            self._recording = 0
            self._start_ready()

    async def _fail(self) -> None:
        """Record created tasks, and raise the error that decides."""
        if self._progress:
            # the backoff begins anew: a long plan gets many answers of 429
            await self._lease.commit(mark_created(self._created), len(self._created), attempts=1)
            self._lease.item.attempts = 1
        error = min(self._errors, key=_error_rank)
        error.args = tuple(self._plan.hide_ids(text) if isinstance(text, str) else text for text in error.args)
        raise error


def _error_rank(error: Exception) -> int:
    """Return the rank of an error: of several the lowest is raised, so a permanent refusal comes before all others."""
    return 0 if isinstance(error, PlanRefusedError) else 2 if isinstance(error, YieldedError) else 1


async def _create(
    services: Services, lease: Lease[Any], task: PlannedTask, scopes: list[str], plan: PlannedIds
) -> None:
    assert task.definition is not None, "retention keeps the definitions of unfinished plans"
    queue = services.queue
    if now() - parse_date(task.definition["created"]) > LATE:
        if await _adopt(queue, task, plan):
            return
        await _restamp(services, lease, task)
    for repeat in (False, True):
        try:
            with services.connections.watch():
                status = await queue.create_task(task.task_id, task.definition, scopes)
        except PermanentUpstreamError as refusal:
            if refusal.status not in {400, 409}:
                lacking = refusal.missing if isinstance(refusal, ScopesRefusal) and refusal.status == 403 else []
                raise PlanRefusedError(_refusal_text(task, refusal), lacking) from None
            await _reload_definition(services, task)
            if await _adopt(queue, task, plan):
                return
            if repeat or now() - parse_date(task.definition["created"]) < MINUTES:
                raise PlanRefusedError(_refusal_text(task, refusal)) from None
            await _restamp(services, lease, task)  # it does not exist, and the body is too old
        except Unavailable:
            size = len(json.dumps(task.definition, separators=(",", ":")))
            if size > MAX_BODY:  # then the answer is 500 each time; escapes of what is no ASCII count too
                why = f"it is {size:,} bytes as it is sent, and {MAX_BODY:,} bytes at most are taken"
                raise PlanRefusedError(f"Taskcluster refuses task {task.name}: {why}") from None
            raise
        else:
            _refuse_cancelled(task, status)
            if lease.item.fencing_token > 1 or repeat:  # an earlier attempt may have created it
                await schedule_if_forgotten(queue, status, task.definition)
            return


async def _adopt(queue: Queue, task: PlannedTask, plan: PlannedIds) -> bool:
    """Adopt the task that exists under the planned id; return False if none exists.

    Raises PlanRefusedError for a task with another authority than the plan's, which is not touched, and for one that
    was cancelled or has expired.
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
    with suppress(ValueError):  # it has no valid date
        if parse_date(existing["expires"]) <= now():
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


async def _reload_definition(services: Services, task: PlannedTask) -> None:
    """Read the stored definition again: an earlier holder of the lease may have moved its dates."""
    async with services.database.reading() as session:
        stored = (await session.exec(select(PlannedTask).where(PlannedTask.task_id == task.task_id))).one()
    task.definition = stored.definition


async def _restamp(services: Services, lease: Lease[Any], task: PlannedTask) -> None:
    """Move the task's dates to the present, and commit that before it is sent."""
    assert task.definition is not None
    needed = task.definition["dependencies"]
    statuses = await services.queue.statuses(needed) if needed else {}
    try:
        moved = move_dates(task.definition, now() - parse_date(task.definition["created"]))
        task.definition, _ = shorten_deadline(moved, parse_expiries(statuses), now())
    except ValueError as error:
        raise PlanRefusedError(f"task {task.name} ({task.task_id}) {error}") from None
    async with lease.writing() as session:
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task.task_id).values(definition=task.definition)
        )
    log.info("task-stamped-anew", task_id=task.task_id)


def _refusal_text(task: PlannedTask, refusal: PermanentUpstreamError) -> str:
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
    """Return the part of a task's definition that needs a scope."""
    return next((why for start, why in _FOR.items() if scope.startswith(start)), "the task's own scopes")


MAX_CANCEL_ATTEMPTS = 5
"""Attempts at a step after which it is given up, even if Taskcluster does not answer requests to cancel tasks."""


async def cancel_created(
    services: Services, lease: Lease[Any], tasks: list[PlannedTask]
) -> tuple[list[PlannedTask], list[str]]:
    """Cancel the tasks that this plan's own `createTask` created; an adopted task is not touched.

    Return the tasks of which the answer to `createTask` was lost, to be recorded, and a sentence for each that could
    not be cancelled. Raises Unavailable until `MAX_CANCEL_ATTEMPTS`.
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
        unrecorded = await created_without_answer(
            services, [task for task in tasks if not task.created and task.task_id in statuses]
        )
    except UpstreamError as error:
        if isinstance(error, Unavailable) and not final:
            raise
        return [], [f"what was created could not be cancelled: {error}"]
    created = [task for task in tasks if task.created and task.task_id in statuses]
    running = [task for task in [*created, *unrecorded] if statuses[task.task_id]["state"] not in RESOLVED]
    outcomes = await asyncio.gather(*(cancel(task, statuses[task.task_id]) for task in reversed(running)))
    return unrecorded, [why for why in outcomes if why is not None]


async def created_without_answer(services: Services, tasks: list[PlannedTask]) -> list[PlannedTask]:
    """Return those of the existing `tasks` whose definition is exactly the one that we sent.

    The queue uses the same proof: it answers a repeated `createTask` with success if the body is equal.
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
