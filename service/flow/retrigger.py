"""A retrigger: copies of a task, and of what waits in vain for it, planned, stored, and then created.

A task that failed is copied with everything in its group that depends on it, as a new graph. Any other is copied alone.

    dependents    walks from the task upwards, or reads the whole group, to find what is to be copied
    _choose       leaves out what could not run, or is a copy itself
    _build        new ids, new dates, and old ids replaced by new ones wherever they stand
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Queue, Status, known_definition, known_status
from service.database import Session, insert_rows, now
from service.door import problems_of, visible
from service.errors import Refusal
from service.flow import notice
from service.flow.action import FailedError, RejectedError, Subject, repository_of, run_of, subject_of
from service.flow.create import MAX_REASON, RefusedError, cancel_created, create_tasks
from service.flow.definition import (
    CircleError,
    complete,
    date,
    expiries,
    in_order,
    is_complete,
    move,
    name_of,
    shortened,
)
from service.flow.ids import DeriveId, copy_ids
from service.flow.plan import read_plan, record, store_plan
from service.flow.status import RESOLVED
from service.models import Action, PlannedTask, Repository, State
from service.parts import Parts
from service.slugids import replace_ids
from service.work import Hold

log = structlog.get_logger()

WALK_CALLS = 20
"""Calls of `listDependentTasks` before the whole group is read instead: most retriggers are of leaves."""

MAX_LEFT_OUT = 1_000
"""Tasks that are left out and listed one by one."""

MAX_VALUES = 4_000_000
"""Values of all definitions that are held for one retrigger; each takes up to some hundred bytes."""

MAX_NOTES = 20
_KEYS_AT_A_TIME = 10_000
_BAD_ENDS = frozenset({"failed", "exception"})


@dataclass
class Copy:
    """A task that is to be made, and the one that it is a copy of."""

    old_id: str
    new_id: str
    name: str
    definition: Definition


@dataclass
class Plan:
    """What a retrigger makes, in dependency order, what it leaves out and why, and what else there is to say."""

    copies: list[Copy]
    left_out: list[dict[str, str]]
    notes: list[str]


async def run(parts: Parts, hold: Hold[Action]) -> None:
    """Plan the copies unless there is a plan, then create what is not there yet."""
    action = hold.item
    try:
        while action.refused is None:
            planned = await _stored(parts, action) or await _make_plan(parts, hold)
            try:
                await _carry_out(parts, hold, planned)
                return
            except RefusedError as error:
                if not await _sealed_meanwhile(parts, hold, planned):
                    action.refused = str(error)
        await hold.commit(refused=action.refused)
    except RejectedError as error:
        await hold.finish(State.REJECTED, str(error), failure_jobs=action.failure_jobs)
    except FailedError as error:
        await hold.finish(State.FAILED, str(error), failure_jobs=action.failure_jobs)
    else:
        log.warning("retrigger-refused", action=action.id, task_id=action.task_id, why=action.refused)
        unrecorded, not_cancelled = await cancel_created(parts, hold, await _stored(parts, action))
        reason = "; ".join([action.refused or "", *not_cancelled])[:MAX_REASON]
        await hold.finish(State.FAILED, reason, partial(record, made=unrecorded))


async def _stored(parts: Parts, action: Action) -> list[PlannedTask]:
    return await read_plan(
        parts.database, PlannedTask.action_id == action.id, PlannedTask.plan_attempt == action.plan_attempt
    )


async def _make_plan(parts: Parts, hold: Hold[Action]) -> list[PlannedTask]:
    """Plan, and store the plan: what is stored is carried out, whatever happens to the group meanwhile."""
    action = hold.item
    subject = await subject_of(parts, action.project, action.task_id)
    action.failure_jobs = notice.failure_jobs(parts, action, subject)
    made = await plan(parts, subject, action.run_id, copy_ids(parts.secret, action, action.plan_attempt))
    copies = [
        PlannedTask(
            task_id=copy.new_id,
            action_id=action.id,
            copy_of=copy.old_id,
            plan_attempt=action.plan_attempt,
            position=position,
            label="copy",
            name=copy.name,
            definition=copy.definition,
        )
        for position, copy in enumerate(made.copies)
    ]
    extra = {"left_out": made.left_out, "notes": made.notes, "failure_jobs": action.failure_jobs}
    await store_plan(hold, copies, planned_at=now(), **extra)
    log.info("retrigger-planned", action=action.id, task_id=action.task_id, copies=len(copies))
    return copies


async def _carry_out(parts: Parts, hold: Hold[Action], planned: list[PlannedTask]) -> None:
    action = hold.item
    try:
        repository = await repository_of(parts, action.project)
    except RejectedError as error:  # since it was planned
        raise RefusedError(str(error)) from None
    made = await create_tasks(parts, hold, planned, scopes_of(repository))
    notices = []
    if parts.publisher is not None:
        first = planned[0]
        group = (first.definition or {})["taskGroupId"]
        notices.append(notice.retriggered(action, action.task_id, first.task_id, group))

    def also(connection: Connection) -> None:
        record(connection, made)
        insert_rows(connection, notices)

    await hold.finish(State.DONE, also=also, rows=len(made))
    log.info("retriggered", action=action.id, task_id=action.task_id, copies=len(planned), requester=action.requester)


async def _sealed_meanwhile(parts: Parts, hold: Hold[Action], planned: list[PlannedTask]) -> bool:
    """Whether the group of a single copy was sealed after it was planned: then it is planned anew, for a new group."""
    action, first = hold.item, planned[0]
    group = (first.definition or {})["taskGroupId"]
    unmade = len(planned) == 1 and not first.created and group != first.task_id
    if not unmade or parts.settings.retrigger_group != "auto":
        return False
    try:
        if not await parts.queue.group_sealed(group):
            return False
    except Refusal:
        return False  # then the reason stands that the copy was refused for
    await hold.commit(plan_attempt=action.plan_attempt + 1, planned_at=None)
    action.plan_attempt += 1
    return True


def scopes_of(repository: Repository) -> list[str]:
    """`authorizedScopes` of the project, and that a copy may notify as its original did. Nothing of our own."""
    return [*repository.scopes, "queue:route:notify.*"]


# --- the plan ----------------------------------------------------------------------------------------------------


async def plan(parts: Parts, subject: Subject, run_id: int | None, new_id: DeriveId) -> Plan:
    """What to make for a retrigger of this task's run. Raises RejectedError, FailedError and Unavailable."""
    try:
        return await _plan(parts, subject, run_id, new_id)
    except Refusal as refusal:
        task_id = subject.status["taskId"]
        raise FailedError(
            f"Taskcluster does not answer what depends on task {task_id} ({refusal.status}): {refusal}"
        ) from None


async def _plan(parts: Parts, subject: Subject, run_id: int | None, new_id: DeriveId) -> Plan:
    target, group = subject.status["taskId"], subject.status["taskGroupId"]
    found = Found(target, group, subject.definition)
    made = Plan([], [], [])
    whole = copies_dependents(subject.status, run_id)
    decides = target == group and not await _leads_copies(parts, target)
    if decides:
        why = "names its task group, as a decision task does"
        made.notes.append(f"{target} {why}: it is copied alone, without what depends on it")
        page = await parts.queue.dependents(target)
        for status, definition in page.tasks:
            found.leave_out(known_status(status)["taskId"], definition, "a decision task is copied alone")
        if page.token is not None:
            made.notes.append(f"more than {len(page.tasks):,} tasks depend on it; the first are listed as left out")
    elif whole:
        everywhere = await dependents(parts.queue, found)
        if not everywhere:
            made.notes.append(
                f"other groups were not searched for dependents: more than {WALK_CALLS} calls would have been needed"
            )
    try:
        order = in_order(found.definitions)
    except CircleError as error:
        raise _circle(found.definitions, error) from None
    ancestors = await _ancestors(parts, order)
    outside = {d for task_id in order for d in found.definitions[task_id]["dependencies"]} - found.definitions.keys()
    statuses = await parts.queue.statuses(sorted(outside)) if outside else {}
    for status in statuses.values():
        known_status(status)
    # in threads: for thousands of tasks it takes seconds, and other requests go on meanwhile
    chosen = await asyncio.to_thread(_choose, found, order, ancestors, statuses, made)
    new_group = None if decides else await _group(parts, found, len(chosen), made)
    await asyncio.to_thread(_build, found, chosen, statuses, new_id, new_group, made)
    made.left_out = [*found.skipped.values()][:MAX_LEFT_OUT]
    if len(found.skipped) > MAX_LEFT_OUT:
        made.notes.append(f"{len(found.skipped)} tasks are left out; the first {MAX_LEFT_OUT} are listed")
    return made


def copies_dependents(status: Status, run_id: int | None) -> bool:
    """Whether the run that the action names failed for good: then what depends on the task is copied with it.

    Raises RejectedError.
    """
    run = run_of(status, run_id)
    return run is not None and run["state"] in _BAD_ENDS and run is status["runs"][-1]


async def _leads_copies(parts: Parts, task_id: str) -> bool:
    """Whether it is the first of several copies: then their group has its id, although it is no decision task."""
    first, other = aliased(PlannedTask), aliased(PlannedTask)
    together = (col(other.action_id) == first.action_id) & (col(other.plan_attempt) == first.plan_attempt)
    async with parts.database.reading() as session:
        others = await session.exec(
            select(other.task_id)
            .join(first, together)
            .where(first.task_id == task_id, other.task_id != task_id, col(first.copy_of).is_not(None))
            .limit(1)
        )
        return others.first() is not None


async def _group(parts: Parts, found: "Found", copies: int, made: Plan) -> str | None:
    """The task group of the copies; None: a new one."""
    mode = parts.settings.retrigger_group
    if mode == "new" or (mode == "auto" and copies > 1):
        return None
    if mode == "auto" and await parts.queue.group_sealed(found.group):
        made.notes.append(f"task group {found.group} is sealed: the copy gets a group of its own")
        return None
    return found.group


# --- what depends on it ------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The task that is retriggered, and what was found to depend on it: in its group, and what is left out."""

    target: str
    group: str
    definition: Definition
    definitions: dict[str, Definition] = field(init=False)
    states: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.definitions = {self.target: self.definition}
        self._values = 0

    def weigh(self, definition: Definition) -> None:
        """Count the values of a definition that is about to be held. Raises FailedError if they are too many."""
        waiting: list[Any] = [definition]
        while waiting and self._values <= MAX_VALUES:
            value = waiting.pop()
            self._values += 1
            waiting.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        if self._values > MAX_VALUES:
            raise FailedError(
                f"the definitions of what depends on task {self.target} have more than {MAX_VALUES:,} values: copies "
                "of so much are not made. Retrigger tasks that less depends on"
            )

    def leave_out(self, task_id: str, definition: Definition, reason: str) -> None:
        self.skipped[task_id] = {"task_id": task_id, "name": visible(name_of(definition)), "reason": reason}

    def add(self, status: Status, definition: Definition) -> bool:
        """Note a dependent; whether it is a new one of the group. Raises Unavailable for what is no task."""
        task_id: str = known_status(status)["taskId"]
        if known_definition(definition)["taskGroupId"] != self.group:
            self.leave_out(task_id, definition, f"it is in another task group, {definition['taskGroupId']}")
            return False
        if task_id in self.definitions:
            return False
        self.weigh(definition)
        self.definitions[task_id], self.states[task_id] = definition, status["state"]
        return True


async def dependents(queue: Queue, found: Found) -> bool:
    """Find what depends on the target, through any number of steps; whether other groups were searched, too."""
    walked = await _walk(queue, found)
    if not walked:
        await _read_group(queue, found)
    return walked


async def _walk(queue: Queue, found: Found) -> bool:
    """Ask each task what depends on it, level by level; False when that takes more than `WALK_CALLS`."""
    calls = 0
    level = [found.target]
    while level:
        calls += len(level)
        if calls > WALK_CALLS:
            return False
        pages = await asyncio.gather(*(queue.dependents(task_id) for task_id in level))
        following = []
        for task_id, first in zip(level, pages, strict=True):
            page = first
            while True:
                following += [status["taskId"] for status, definition in page.tasks if found.add(status, definition)]
                if page.token is None:
                    break
                calls += 1
                if calls + len(following) > WALK_CALLS:
                    return False
                page = await queue.dependents(task_id, page.token)
        level = following
    return True


async def _read_group(queue: Queue, found: Found) -> None:
    """Compute it from the whole group, of which only what depends on what is kept, and what is known to be copied."""
    needs: dict[str, list[str]] = {}
    async for page in queue.group(found.group):
        for status, definition in page:
            dependencies = known_definition(definition)["dependencies"]
            needs[known_status(status)["taskId"]] = dependencies
            if any(dependency in found.definitions for dependency in dependencies):
                found.add(status, definition)
            found.states[status["taskId"]] = status["state"]
    needed_by: dict[str, list[str]] = defaultdict(list)
    for task_id, dependencies in needs.items():
        for dependency in dependencies:
            needed_by[dependency].append(task_id)
    reached = dict.fromkeys([found.target])
    level = [found.target]
    while level:
        following = [each for task_id in level for each in needed_by.get(task_id, ()) if each not in reached]
        level = list(dict.fromkeys(following))
        reached.update(dict.fromkeys(level))
    missing = [task_id for task_id in reached if task_id not in found.definitions]
    definitions = await queue.tasks(missing) if missing else {}
    for definition in definitions.values():
        found.weigh(definition)
    found.definitions |= definitions


def _circle(definitions: Mapping[str, Definition], error: CircleError) -> RejectedError:
    named = [f"{each} ({visible(name_of(definitions[each]))})" for each in error.circle[:10]]
    if len(error.circle) == 1:
        return RejectedError(f"task {named[0]} depends on itself: no copy of it could ever run")
    return RejectedError(f"{error}: {', '.join(named)}")


async def _ancestors(parts: Parts, task_ids: Iterable[str]) -> dict[str, str]:
    """What each is a copy of, and what that is a copy of, as our own records have it."""
    copies: dict[str, str] = {}
    async with parts.database.reading() as session:
        unknown = set(task_ids)
        while unknown:
            fresh = await _copies_of(session, sorted(unknown))
            copies |= fresh
            unknown = set(fresh.values()) - copies.keys()
    return copies


async def _copies_of(session: Session, task_ids: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(task_ids), _KEYS_AT_A_TIME):
        some = task_ids[start : start + _KEYS_AT_A_TIME]
        rows = await session.exec(
            select(PlannedTask.task_id, PlannedTask.copy_of).where(
                col(PlannedTask.task_id).in_(some), col(PlannedTask.copy_of).is_not(None)
            )
        )
        found |= {task_id: copy_of for task_id, copy_of in rows if copy_of is not None}
    return found


def _choose(
    found: Found,
    order: list[str],
    ancestors: Mapping[str, str],
    statuses: Mapping[str, Status],
    made: Plan,
) -> dict[str, None]:
    """Those of `order` that are copied; why not goes into `found.skipped`. The target always is."""
    chosen = {found.target: None}
    for dependency in found.definition["dependencies"]:
        state = statuses.get(dependency, {}).get("state")
        if state in _BAD_ENDS and found.definition["requires"] == "all-completed" and len(made.notes) < MAX_NOTES:
            made.notes.append(f"the copy waits for {dependency}, which is {state}: retrigger or rerun that too")
    for task_id in _originals_first(found, order, ancestors)[1:]:
        reason = _why_not(found, task_id, chosen, ancestors, statuses)
        if reason is None:
            chosen[task_id] = None
        else:
            found.leave_out(task_id, found.definitions[task_id], reason)
    return chosen


def _originals(task_id: str, ancestors: Mapping[str, str]) -> Iterator[str]:
    """What it is a copy of, and what that is a copy of."""
    original = ancestors.get(task_id)
    while original is not None:
        yield original
        original = ancestors.get(original)


def _originals_first(found: Found, order: list[str], ancestors: Mapping[str, str]) -> list[str]:
    """`order`, and copies behind what they are copies of: whether that is in the plan decides on them."""
    if not any(each in found.definitions for task_id in order for each in _originals(task_id, ancestors)):
        return order
    behind = {
        task_id: {"dependencies": [*found.definitions[task_id]["dependencies"], *_originals(task_id, ancestors)]}
        for task_id in order
    }
    try:
        return in_order(behind)
    except CircleError:
        return order  # an original that waits for its own copy: nobody knows which is to be first


def _why_not(
    found: Found,
    task_id: str,
    chosen: Mapping[str, None],
    ancestors: Mapping[str, str],
    statuses: Mapping[str, Status],
) -> str | None:
    """Why a dependent is not copied."""
    if original := next((each for each in _originals(task_id, ancestors) if each in chosen), None):
        return f"it is an earlier copy of {original}"
    definition = found.definitions[task_id]
    if not any(dependency in chosen for dependency in definition["dependencies"]):
        return "it depends on tasks that are left out only"
    if definition["requires"] != "all-completed":
        return None
    for dependency in definition["dependencies"]:
        if dependency in chosen:
            continue
        state = statuses[dependency]["state"] if dependency in statuses else found.states.get(dependency)
        if state in _BAD_ENDS:
            return f"it needs {dependency}, which is {state} and not copied"
        if dependency in found.definitions and state not in RESOLVED:
            return f"it needs {dependency}, which is left out and {state}"
    return None


# --- the copies --------------------------------------------------------------------------------------------------


def _build(
    found: Found,
    chosen: Iterable[str],
    statuses: Mapping[str, Status],
    new_id: DeriveId,
    group: str | None,
    made: Plan,
) -> None:
    """Make the copies; `group` None: one named by the first copy's id."""
    new_ids = {task_id: new_id(task_id) for task_id in chosen}
    group = group or new_ids[found.target]
    at = now()
    expire = expiries(found.definitions | dict(statuses))
    names = {}
    for task_id, copy_id in new_ids.items():
        old = found.definitions[task_id]
        names[copy_id] = name = visible(name_of(old))
        _refuse_missing(old, new_ids, found, statuses)
        definition, decided_by = _copy(old, copy_id, group, new_ids, expire, at)
        if decided_by is not None and len(made.notes) < MAX_NOTES:
            # by name: nobody is to know the id of a task that is not created yet
            needed = f"the copy of {names[decided_by]}" if decided_by in names else decided_by
            made.notes.append(
                f"the deadline of the copy of {name} is only {definition['deadline']}, for {needed} expires then"
            )
        expire[copy_id] = date(definition["expires"])
        made.copies.append(Copy(task_id, copy_id, name, definition))


def _refuse_missing(old: Definition, new_ids: Mapping[str, str], found: Found, statuses: Mapping[str, Status]) -> None:
    gone = [d for d in old["dependencies"] if d not in new_ids and d not in statuses and d not in found.definitions]
    if gone:
        raise FailedError(
            f"{visible(name_of(old))} depends on {', '.join(gone[:10])}, which expired: Taskcluster takes no copy of it"
        )


def _copy(
    old: Definition,
    new_id: str,
    group: str,
    new_ids: Mapping[str, str],
    expire: Mapping[str, datetime],
    at: datetime,
) -> tuple[Definition, str | None]:
    """The definition of a copy, and the dependency that its deadline was shortened for."""
    kept: Definition = {name: old[name] for name in ("taskGroupId", "schedulerId") if name in old}
    try:
        replaced: Definition = {**replace_ids(old, new_ids), **kept, "taskGroupId": group}
        moved = move(replaced, at - date(replaced["created"]))
        definition, decided_by = shortened(moved, expire, at)
        return definition if is_complete(definition) else complete(new_id, definition), decided_by
    except ValidationError as error:
        why = f"the copy of {visible(name_of(old))} would be no task definition: {problems_of(error)}"
        raise FailedError(why) from None
    except ValueError as error:
        raise FailedError(f"{visible(name_of(old))} {error}") from None
    except RecursionError:
        raise FailedError(f"the definition of {visible(name_of(old))} is nested too deeply to be copied") from None
