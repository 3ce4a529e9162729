"""A retrigger: copies of a task, and of what waits in vain for it, planned, stored, and then created.

A task that failed is copied with everything in its group that depends on it, as a new graph. Any other is copied alone.

    dependents    walks from the task upwards, or reads the whole group, to find what is to be copied
    _choose       leaves out what could not run, or is a copy itself
    Draft.build   new ids, new dates, and old ids replaced by new ones wherever they stand

What was stored of the plan is created while the rest is still being made. It is stored in this order:

    the first copy      as soon as it is sure that others follow, while these are still being looked for
    the outline         which tasks are copied, and the definitions of the first of them; from here on nothing that
                        happens to the group changes the plan
    the definitions     of the others, part by part: after a crash they are made anew from the tasks of the outline
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Page, Queue, Status, known_definition, known_status
from service.engine.leases import Hold
from service.errors import Refusal
from service.flow.actions import notice
from service.flow.actions.receive import FailedError, RejectedError, Subject, repository_of, run_of, subject_of
from service.flow.tasks.create import MAX_REASON, RefusedError, cancel_created, create_as_planned
from service.flow.tasks.definition import (
    SLUGID,
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
from service.flow.tasks.ids import DeriveId, copy_ids
from service.flow.tasks.plan import read_plan, record, store_definitions, store_plan
from service.flow.tasks.status import RESOLVED
from service.sanitize import problems_of, visible
from service.services import Parts
from service.slugids import find_ids, replace_ids
from service.store.database import Session, now
from service.store.models import Action, PlannedTask, Repository, State

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


FIRST_PART, PART = 50, 200
"""Copies whose definitions are made before the outline is stored, and at a time from then on."""

FIRST_PAGE = 50
"""Dependents of the target that are asked for at first, to find one that is copied for sure. Of more than `WALK_CALLS`
the group is read, so that a full page would be fetched twice."""


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
    """Plan the copies, as far as they are not planned, and create what is not there yet."""
    action = hold.item
    try:
        while action.refused is None:
            planning = Planning(parts, hold, await _stored(parts, action))
            try:
                await _carry_out(parts, hold, planning)
                return
            except RefusedError as error:
                if not await _sealed_meanwhile(parts, hold, planning.tasks):
                    action.refused = str(error)
            except (RejectedError, FailedError) as error:
                if not planning.tasks:
                    raise
                action.refused = str(error)  # and what was created of the plan is cancelled
        await hold.commit(refused=action.refused)
    except RejectedError as error:
        await hold.finish(State.REJECTED, str(error), failure_jobs=action.failure_jobs)
    except FailedError as error:
        await hold.finish(State.FAILED, str(error), failure_jobs=action.failure_jobs)
    else:
        log.warning("retrigger-refused", action=action.id, task_id=action.task_id, why=action.refused)
        unrecorded, not_cancelled = await cancel_created(parts, hold, await _stored(parts, action))
        reason = "; ".join([action.refused or "", *not_cancelled])[:MAX_REASON]
        await hold.finish(State.FAILED, reason, record(unrecorded))


async def _stored(parts: Parts, action: Action) -> list[PlannedTask]:
    return await read_plan(
        parts.database, PlannedTask.action_id == action.id, PlannedTask.plan_attempt == action.plan_attempt
    )


async def _carry_out(parts: Parts, hold: Hold[Action], planning: "Planning") -> None:
    action = hold.item
    repository = await repository_of(parts, action.project)  # as it is now, whatever it was when this was planned
    async with aclosing(planning.stored_parts()) as plan:
        made = await create_as_planned(parts, hold, plan, scopes_of(repository))
    first, copies = planning.tasks[0], len(planning.tasks)
    notices = []
    if parts.publisher is not None:
        group = (first.definition or {})["taskGroupId"]
        notices.append(notice.retriggered(action, action.task_id, first.task_id, group))
    await hold.finish(State.DONE, also=record(made), notices=notices, rows=len(made))
    log.info("retriggered", action=action.id, task_id=action.task_id, copies=copies, requester=action.requester)


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
    action.plan_attempt, action.planned_at = action.plan_attempt + 1, None
    return True


def scopes_of(repository: Repository) -> list[str]:
    """`authorizedScopes` of the project, and that a copy may notify as its original did. Nothing of our own."""
    return [*repository.scopes, "queue:route:notify.*"]


# --- the stored plan ---------------------------------------------------------------------------------------------


class Planning:
    """Makes and stores the plan of an action; `tasks` are those that are stored, in dependency order."""

    def __init__(self, parts: Parts, hold: Hold[Action], stored: list[PlannedTask]) -> None:
        self.tasks = stored
        self._parts, self._hold, self._action = parts, hold, hold.item
        self._new_id = copy_ids(parts.secret, hold.item, hold.item.plan_attempt)

    async def stored_parts(self) -> AsyncGenerator[list[PlannedTask], None]:
        """Yield the plan, part by part, each once it is stored.

        A task whose definition is still to be made is yielded without, and once more with it.
        """
        if self.tasks:
            yield list(self.tasks)
        if self._action.planned_at is not None:
            missing = [task for task in self.tasks if task.definition is None]
            if not missing:
                return
            copies = (await self._draft_anew(missing)).build()
        else:
            subject = await subject_of(self._parts, self._action.project, self._action.task_id)
            self._action.failure_jobs = notice.failure_jobs(self._parts, self._action, subject)
            search = Search(self._parts, subject, self._action.run_id, self._new_id, self._action.share)
            if not self.tasks and (first := await search.first_copy()) is not None:
                self.tasks = self._rows([(first.old_id, first.new_id, first.name)])
                self.tasks[0].definition = first.definition
                await store_plan(self._hold, self.tasks, failure_jobs=self._action.failure_jobs)
                yield list(self.tasks)
            draft = await search.draft(self.tasks[0].definition if self.tasks else None)
            copies = draft.build()
            yield await self._store_outline(draft, await self._next(copies, FIRST_PART))
        while part := await self._next(copies, PART):
            yield await self._store_definitions(part)

    async def _next(self, copies: Iterator[Copy], count: int) -> list[Copy]:
        """Return the next copies; they are made in a thread, for thousands take seconds."""
        return await self._parts.compute(self._action.share, list, islice(copies, count))

    def _rows(self, copies: Iterable[tuple[str, str, str]], first: int = 0) -> list[PlannedTask]:
        """Return rows without definitions of these (old id, new id, name)."""
        return [
            PlannedTask(
                task_id=new_id,
                action_id=self._action.id,
                copy_of=old_id,
                plan_attempt=self._action.plan_attempt,
                position=position,
                label="copy",
                name=name,
                definition=None,
            )
            for position, (old_id, new_id, name) in enumerate(copies, first)
        ]

    async def _store_outline(self, draft: "Draft", copies: list[Copy]) -> list[PlannedTask]:
        """Store what is copied, and the first definitions: from now on, this is the plan."""
        known = len(self.tasks)
        names = [(old_id, new_id, draft.names[new_id]) for old_id, new_id in draft.new_ids.items()]
        rows = self._rows(names[known:], known)
        definitions = {copy.new_id: copy.definition for copy in copies}
        for row in rows:
            row.definition = definitions.get(row.task_id)
        values = {
            "left_out": draft.left_out,
            "notes": list(draft.notes),
            "failure_jobs": self._action.failure_jobs,
            "planned_at": now(),
        }
        await store_plan(self._hold, rows, **values)
        for name, value in values.items():
            setattr(self._action, name, value)
        self._action.notes = draft.notes  # which grows while definitions are made
        self.tasks = [*self.tasks, *rows]
        action = self._action
        log.info("retrigger-planned", action=action.id, task_id=action.task_id, copies=len(self.tasks))
        return rows

    async def _store_definitions(self, copies: list[Copy]) -> list[PlannedTask]:
        definitions = {copy.new_id: copy.definition for copy in copies}
        rows = [task for task in self.tasks if task.task_id in definitions]
        for row in rows:
            row.definition = definitions[row.task_id]
        await store_definitions(self._hold, rows, notes=list(self._action.notes))
        return rows

    async def _draft_anew(self, missing: list[PlannedTask]) -> "Draft":
        """Return what the definitions of an outline are made from that a crash has left without. Raises FailedError."""
        new_ids = {task.copy_of: task.task_id for task in self.tasks if task.copy_of is not None}
        with _readable(self._action.task_id):
            old = await self._parts.queue.tasks([task.copy_of for task in missing if task.copy_of is not None])
            definitions = {task_id: known_definition(definition) for task_id, definition in old.items()}
            outside = {d for definition in old.values() for d in definition["dependencies"]} - new_ids.keys()
            statuses = await self._parts.queue.statuses(sorted(outside)) if outside else {}
        for task in missing:
            if task.copy_of not in definitions:
                raise FailedError(f"{task.name} ({task.copy_of}) has expired: Taskcluster has no definition to copy")
        stored = {task.task_id: task.definition for task in self.tasks if task.definition is not None}
        draft = Draft(new_ids, definitions, set(statuses), expiries(statuses | stored), "", [], self._action.notes)
        draft.group = (self.tasks[0].definition or {})["taskGroupId"]
        return draft


# --- the plan ----------------------------------------------------------------------------------------------------


async def plan(parts: Parts, subject: Subject, run_id: int | None, new_id: DeriveId, share: str) -> Plan:
    """Return what to make for a retrigger of this task's run, which is computed for `share`.

    Raises RejectedError, FailedError and Unavailable.
    """
    draft = await Search(parts, subject, run_id, new_id, share).draft()
    return Plan(await parts.compute(share, list, draft.build()), draft.left_out, draft.notes)


@contextmanager
def _readable(task_id: str) -> Iterator[None]:
    """Raise what Taskcluster refuses to tell as FailedError."""
    try:
        yield
    except Refusal as refusal:
        raise FailedError(
            f"Taskcluster does not answer what depends on task {task_id} ({refusal.status}): {refusal}"
        ) from None


class Search:
    """Looks for what a retrigger of a task's run copies."""

    def __init__(self, parts: Parts, subject: Subject, run_id: int | None, new_id: DeriveId, share: str) -> None:
        self._parts, self._queue, self._status, self._run_id = parts, parts.queue, subject.status, run_id
        self._target, self._group = subject.status["taskId"], subject.status["taskGroupId"]
        self._found = Found(self._target, self._group, subject.definition)
        self._new_id, self._share = new_id, share
        self._notes: list[str] = []
        self._page: Page | None = None  # the first of what depends on the target
        self._statuses: dict[str, Status] = {}

    async def first_copy(self) -> Copy | None:
        """Return the copy of the target, if it is sure already what it will be: others depend on it that are copied."""
        if not copies_dependents(self._status, self._run_id) or await self._decides():
            return None
        with _readable(self._target):
            self._page = await self._queue.dependents(self._target, limit=FIRST_PAGE)
            group = await self._sure_group(self._page)
            if group is None:
                return None
            await self._ask_statuses(self._found.definition["dependencies"])
        new_ids = {self._target: self._new_id(self._target)}
        return next(self._draft(new_ids, group or new_ids[self._target]).build())

    async def _sure_group(self, page: Page) -> str | None:
        """Return the task group of the copies ("": a new one), None unless that and the copy of the target are sure."""
        definition = self._found.definition
        certain = {self._target, *definition["dependencies"]}
        text = json.dumps({**definition, "taskGroupId": None, "schedulerId": None})
        if not page.tasks or find_ids(text, _IdsExcept(certain)):
            return None  # another task that it names may be copied, too
        mode = self._parts.settings.retrigger_group
        if mode != "auto":
            return "" if mode == "new" else self._group
        some = {
            known_status(status)["taskId"]: known_definition(each)
            for status, each in page.tasks
            if each.get("taskGroupId") == self._group
        }
        for task_id in await _ancestors(self._parts, some):
            del some[task_id]
        others = {task_id: {*each["dependencies"]} - {self._target} for task_id, each in some.items()}
        await self._ask_statuses({d for task_id in some for d in others[task_id]})
        completed = {task_id for task_id, status in self._statuses.items() if status["state"] == "completed"}
        sure = any(
            each["requires"] != "all-completed" or others[task_id] <= completed for task_id, each in some.items()
        )
        return "" if sure else None

    async def _ask_statuses(self, task_ids: Iterable[str]) -> None:
        unknown = set(task_ids) - self._statuses.keys()
        if unknown:
            statuses = await self._queue.statuses(sorted(unknown))
            self._statuses |= {task_id: known_status(status) for task_id, status in statuses.items()}

    async def _decides(self) -> bool:
        """Return True if the target names its task group, as a decision task does."""
        return bool(self._target == self._group) and not await _leads_copies(self._parts, self._target)

    async def draft(self, first: Definition | None = None) -> "Draft":
        """Return what is copied. Raises RejectedError, FailedError and Unavailable.

        `first` is the copy of the target if that was stored before: the others go into its group.
        """
        with _readable(self._target):
            return await self._search(first)

    async def _search(self, first: Definition | None) -> "Draft":
        parts, found, target, notes = self._parts, self._found, self._target, self._notes
        whole = copies_dependents(self._status, self._run_id)
        decides = await self._decides()
        if decides:
            why = "names its task group, as a decision task does"
            notes.append(f"{target} {why}: it is copied alone, without what depends on it")
            page = await self._queue.dependents(target)
            for status, definition in page.tasks:
                found.leave_out(known_status(status)["taskId"], definition, "a decision task is copied alone")
            if page.token is not None:
                notes.append(f"more than {len(page.tasks):,} tasks depend on it; the first are listed as left out")
        elif whole and not await dependents(self._queue, found, self._page):
            notes.append(
                f"other groups were not searched for dependents: more than {WALK_CALLS} calls would have been needed"
            )
        try:
            order = in_order(found.definitions)
        except CircleError as error:
            raise _circle(found.definitions, error) from None
        ancestors = await _ancestors(parts, order)
        await self._ask_statuses(
            {d for task_id in order for d in found.definitions[task_id]["dependencies"]} - found.definitions.keys()
        )
        # in a thread: for thousands of tasks it takes seconds, and other requests go on meanwhile
        chosen = await parts.compute(self._share, _choose, found, order, ancestors, self._statuses, notes)
        new_ids = {task_id: self._new_id(task_id) for task_id in chosen}
        if first is not None:
            group = first["taskGroupId"]
        else:
            group = (None if decides else await _group(parts, found, len(chosen), notes)) or new_ids[target]
        draft = self._draft(new_ids, group)
        draft.left_out = [*found.skipped.values()][:MAX_LEFT_OUT]
        if len(found.skipped) > MAX_LEFT_OUT:
            notes.append(f"{len(found.skipped)} tasks are left out; the first {MAX_LEFT_OUT} are listed")
        if first is not None:
            draft.stored(target, first)
        return draft

    def _draft(self, new_ids: dict[str, str], group: str) -> "Draft":
        definitions = self._found.definitions
        known = definitions.keys() | self._statuses.keys()
        expire = expiries(definitions | self._statuses)
        return Draft(new_ids, definitions, known, expire, group, [], self._notes)


class _IdsExcept:
    """All that has the form of a task id, but for certain ones."""

    def __init__(self, certain: set[str]) -> None:
        self._certain = certain

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text not in self._certain and re.fullmatch(SLUGID, text) is not None


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


async def _group(parts: Parts, found: "Found", copies: int, notes: list[str]) -> str | None:
    """The task group of the copies; None: a new one."""
    mode = parts.settings.retrigger_group
    if mode == "new" or (mode == "auto" and copies > 1):
        return None
    if mode == "auto" and await parts.queue.group_sealed(found.group):
        notes.append(f"task group {found.group} is sealed: the copy gets a group of its own")
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


async def dependents(queue: Queue, found: Found, first: Page | None = None) -> bool:
    """Find what depends on the target, through any number of steps; whether other groups were searched, too.

    `first` is the first page of what depends on the target itself, if it was asked for already.
    """
    walked = await _walk(queue, found, first)
    if not walked:
        await _read_group(queue, found)
    return walked


async def _walk(queue: Queue, found: Found, start: Page | None) -> bool:
    """Ask each task what depends on it, level by level; False when that takes more than `WALK_CALLS`."""
    calls = 0
    level = [found.target]
    while level:
        calls += len(level)
        if calls > WALK_CALLS:
            return False
        if start is not None and level == [found.target]:
            pages = [start]
        else:
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
    notes: list[str],
) -> dict[str, None]:
    """Those of `order` that are copied; why not goes into `found.skipped`. The target always is."""
    chosen = {found.target: None}
    for dependency in found.definition["dependencies"]:
        state = statuses.get(dependency, {}).get("state")
        if state in _BAD_ENDS and found.definition["requires"] == "all-completed" and len(notes) < MAX_NOTES:
            notes.append(f"the copy waits for {dependency}, which is {state}: retrigger or rerun that too")
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


@dataclass
class Draft:
    """What is copied, in dependency order, and what the copies are made from."""

    new_ids: dict[str, str]  # by the ids of the tasks that are copied
    definitions: Mapping[str, Definition]  # of those whose copies are still to be made
    known: Collection[str]  # ids of tasks that exist
    expire: dict[str, datetime]
    group: str
    left_out: list[dict[str, str]]
    notes: list[str]
    done: set[str] = field(default_factory=set)  # those whose copies are stored

    @cached_property
    def names(self) -> dict[str, str]:
        """Names of the copies by their ids."""
        return {
            new_id: visible(name_of(self.definitions[old_id]))
            for old_id, new_id in self.new_ids.items()
            if old_id in self.definitions
        }

    def stored(self, old_id: str, copy: Definition) -> None:
        """Leave out a copy that is stored already."""
        self.done.add(old_id)
        self.expire[self.new_ids[old_id]] = date(copy["expires"])

    def build(self) -> Iterator[Copy]:
        """Make the copies, one after the other. Raises FailedError."""
        at = now()
        for old_id, new_id in self.new_ids.items():
            if old_id in self.done or old_id not in self.definitions:
                continue
            old = self.definitions[old_id]
            self._refuse_missing(old)
            definition, decided_by = _copy(old, new_id, self.group, self.new_ids, self.expire, at)
            if decided_by is not None and len(self.notes) < MAX_NOTES:
                # by name: nobody is to know the id of a task that is not created yet
                needed = f"the copy of {self.names[decided_by]}" if decided_by in self.names else decided_by
                self.notes.append(
                    f"the deadline of the copy of {self.names[new_id]} is only {definition['deadline']}, "
                    f"for {needed} expires then"
                )
            self.expire[new_id] = date(definition["expires"])
            yield Copy(old_id, new_id, self.names[new_id], definition)

    def _refuse_missing(self, old: Definition) -> None:
        gone = [each for each in old["dependencies"] if each not in self.new_ids and each not in self.known]
        if gone:
            raise FailedError(
                f"{visible(name_of(old))} depends on {', '.join(gone[:10])}, which expired: "
                "Taskcluster takes no copy of it"
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
