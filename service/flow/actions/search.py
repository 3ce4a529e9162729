"""Look for everything that a retrigger copies: what depends on the task, and the task group of the copies."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import aliased
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Page, Status, validate_definition, validate_status
from service.errors import PermanentUpstreamError
from service.flow.actions.copies import BAD_ENDS, Draft, choose_copies, read_originals
from service.flow.actions.dependents import WALK_CALLS, Found, cycle_error, dependents
from service.flow.actions.kinds import Copy
from service.flow.actions.subject import ActionFailedError, Subject, run_of
from service.flow.tasks.definition import (
    SLUGID,
    CycleError,
    parse_expiries,
    sort_by_dependencies,
)
from service.flow.tasks.ids import DeriveId
from service.services import Services
from service.slugids import find_ids
from service.store.models import PlannedTask

MAX_LEFT_OUT = 1_000
"""Tasks that are left out and listed one by one."""


FIRST_PAGE = 50
"""Dependents of the target that are asked for at first, to find one that is copied for sure. Of more than `WALK_CALLS`
the group is read, so that a full page would be fetched twice."""


@contextmanager
def explaining_refusals(task_id: str) -> Iterator[None]:
    """Raise what Taskcluster refuses to tell as FailedError."""
    try:
        yield
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(
            f"Taskcluster does not answer what depends on task {task_id} ({refusal.status}): {refusal}"
        ) from None


class Search:
    """Looks for what a retrigger of a task's run copies."""

    def __init__(self, services: Services, subject: Subject, run_id: int | None, new_id: DeriveId, share: str) -> None:
        self._services, self._queue, self._status, self._run_id = services, services.queue, subject.status, run_id
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
        with explaining_refusals(self._target):
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
        mode = self._services.settings.retrigger_group
        if mode != "auto":
            return "" if mode == "new" else self._group
        some = {
            validate_status(status)["taskId"]: validate_definition(each)
            for status, each in page.tasks
            if each.get("taskGroupId") == self._group
        }
        for task_id in await read_originals(self._services, some):
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
            self._statuses |= {task_id: validate_status(status) for task_id, status in statuses.items()}

    async def _decides(self) -> bool:
        """Return True if the target names its task group, as a decision task does."""
        return bool(self._target == self._group) and not await _leads_copies(self._services, self._target)

    async def draft(self, first: Definition | None = None) -> "Draft":
        """Return what is copied. Raises RejectedError, FailedError and Unavailable.

        `first` is the copy of the target if that was stored before: the others go into its group.
        """
        with explaining_refusals(self._target):
            return await self._search(first)

    async def _search(self, first: Definition | None) -> "Draft":
        services, found, target, notes = self._services, self._found, self._target, self._notes
        whole = copies_dependents(self._status, self._run_id)
        decides = await self._decides()
        if decides:
            why = "names its task group, as a decision task does"
            notes.append(f"{target} {why}: it is copied alone, without what depends on it")
            page = await self._queue.dependents(target)
            for status, definition in page.tasks:
                found.leave_out(validate_status(status)["taskId"], definition, "a decision task is copied alone")
            if page.token is not None:
                notes.append(f"more than {len(page.tasks):,} tasks depend on it; the first are listed as left out")
        elif whole and not await dependents(self._queue, found, self._page):
            notes.append(
                f"other groups were not searched for dependents: more than {WALK_CALLS} calls would have been needed"
            )
        try:
            order = sort_by_dependencies(found.definitions)
        except CycleError as error:
            raise cycle_error(found.definitions, error) from None
        ancestors = await read_originals(services, order)
        await self._ask_statuses(
            {d for task_id in order for d in found.definitions[task_id]["dependencies"]} - found.definitions.keys()
        )
        # in a thread: for thousands of tasks it takes seconds, and other requests go on meanwhile
        chosen = await services.compute(self._share, choose_copies, found, order, ancestors, self._statuses, notes)
        new_ids = {task_id: self._new_id(task_id) for task_id in chosen}
        if first is not None:
            group = first["taskGroupId"]
        else:
            group = (None if decides else await _group(services, found, len(chosen), notes)) or new_ids[target]
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
        expire = parse_expiries(definitions | self._statuses)
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
    return run is not None and run["state"] in BAD_ENDS and run is status["runs"][-1]


async def _leads_copies(services: Services, task_id: str) -> bool:
    """Whether it is the first of several copies: then their group has its id, although it is no decision task."""
    first, other = aliased(PlannedTask), aliased(PlannedTask)
    together = (col(other.action_id) == first.action_id) & (col(other.plan_attempt) == first.plan_attempt)
    async with services.database.reading() as session:
        others = await session.exec(
            select(other.task_id)
            .join(first, together)
            .where(first.task_id == task_id, other.task_id != task_id, col(first.copy_of).is_not(None))
            .limit(1)
        )
        return others.first() is not None


async def _group(services: Services, found: "Found", copies: int, notes: list[str]) -> str | None:
    """The task group of the copies; None: a new one."""
    mode = services.settings.retrigger_group
    if mode == "new" or (mode == "auto" and copies > 1):
        return None
    if mode == "auto" and await services.queue.group_sealed(found.group):
        notes.append(f"task group {found.group} is sealed: the copy gets a group of its own")
        return None
    return found.group
