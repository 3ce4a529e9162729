"""Search for what a retrigger copies, and choose the task group of the copies.

    copies_dependents   the task alone, or with what depends on it
    dependents          which tasks depend on it
    copies              which of these are left out, and why
    choose_group        the task group of the copies, the original's or a new one, by the setting `retrigger_group`;
                        the copy of a decision task begins its own group

If a group is sealed after a copy was planned into it, `_replan_if_sealed` in `retrigger` plans the copy anew.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import aliased
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Page, Status, validate_definition, validate_status
from service.errors import PermanentUpstreamError
from service.flow.actions.copies import BAD_ENDS, CopyDraft, choose_copies, read_originals
from service.flow.actions.dependents import WALK_CALLS, DependencySearch, cycle_error, find_dependents
from service.flow.tasks.action_kinds import Copy
from service.flow.tasks.definition import SLUGID, CycleError, parse_expiries, sort_by_dependencies
from service.flow.tasks.ids import DeriveId
from service.flow.tasks.subject import ActionFailedError, Subject, find_run
from service.services import Services
from service.slugids import find_ids
from service.store.models import PlannedTask

MAX_LEFT_OUT = 1_000
"""Tasks that are left out and listed one by one; of more only their number is noted."""

FIRST_PAGE = 50
"""Dependents of the target that are requested first, to find one that is certainly copied.

If there are more than `WALK_CALLS`, the group is read, and a full page would have been fetched twice.
"""


@contextmanager
def explain_refusals(task_id: str) -> Iterator[None]:
    """Raise ActionFailedError if Taskcluster refuses to answer what a retrigger asks about a task."""
    try:
        yield
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(
            f"Taskcluster refuses what a retrigger of task {task_id} has to read ({refusal.status}): {refusal}"
        ) from None


class CopySearch:
    """The search for what a retrigger of a task's run copies."""

    def __init__(self, services: Services, subject: Subject, run_id: int | None, new_id: DeriveId, share: str) -> None:
        self._services, self._queue, self._status, self._run_id = services, services.queue, subject.status, run_id
        self._target, self._group = subject.status["taskId"], subject.status["taskGroupId"]
        self._dependents = DependencySearch(self._target, self._group, subject.definition)
        self._new_id, self._share = new_id, share
        self._notes: list[str] = []
        self._page: Page | None = None  # the first page of dependents of the target
        self._statuses: dict[str, Status] = {}

    async def first_copy(self) -> Copy | None:
        """Return the copy of the target if it is already certain, because a dependent of it is certainly copied."""
        if not copies_dependents(self._status, self._run_id) or await self._names_own_group():
            return None
        with explain_refusals(self._target):
            self._page = await self._queue.dependents(self._target, limit=FIRST_PAGE)
            group = await self._decided_group(self._page)
            if group is None:
                return None
            await self._fetch_statuses(self._dependents.definition["dependencies"])
        new_ids = {self._target: self._new_id(self._target)}
        return next(self._draft(new_ids, group or new_ids[self._target]).build())

    async def _decided_group(self, page: Page) -> str | None:
        """Return the task group of the copies ("": a new one), None unless it and the target's copy are certain."""
        definition = self._dependents.definition
        certain = {self._target, *definition["dependencies"]}
        text = json.dumps({**definition, "taskGroupId": None, "schedulerId": None})
        if not page.tasks or find_ids(text, _IdsExcept(certain)):
            return None  # a task that it names may be copied too
        mode = self._services.settings.retrigger_group
        if mode != "auto":
            return "" if mode == "new" else self._group
        candidates = {
            validate_status(status)["taskId"]: validate_definition(dependent)
            for status, dependent in page.tasks
            if dependent.get("taskGroupId") == self._group
        }
        for task_id in await read_originals(self._services, candidates):
            del candidates[task_id]
        others = {task_id: {*task["dependencies"]} - {self._target} for task_id, task in candidates.items()}
        await self._fetch_statuses({dependency for dependencies in others.values() for dependency in dependencies})
        completed = {task_id for task_id, status in self._statuses.items() if status["state"] == "completed"}
        certain_dependent = any(
            task["requires"] != "all-completed" or others[task_id] <= completed for task_id, task in candidates.items()
        )
        return "" if certain_dependent else None

    async def _fetch_statuses(self, task_ids: Iterable[str]) -> None:
        unknown = set(task_ids) - self._statuses.keys()
        if unknown:
            statuses = await self._queue.statuses(sorted(unknown))
            self._statuses |= {task_id: validate_status(status) for task_id, status in statuses.items()}

    async def _names_own_group(self) -> bool:
        """Return True if the target names its task group, as a decision task does."""
        return bool(self._target == self._group) and not await _is_first_copy(self._services, self._target)

    async def draft(self, first: Definition | None = None) -> CopyDraft:
        """Return what is copied. Raises ActionRejectedError, ActionFailedError and Unavailable.

        `first` is the copy of the target if it was stored before: the others go into its group.
        """
        with explain_refusals(self._target):
            return await self._search(first)

    async def _search(self, first: Definition | None) -> CopyDraft:
        services, dependents, target, notes = self._services, self._dependents, self._target, self._notes
        whole = copies_dependents(self._status, self._run_id)
        names_group = await self._names_own_group()
        if names_group:
            why = "names its task group, as a decision task does"
            notes.append(f"{target} {why}: it is copied alone, without its dependents")
            page = await self._queue.dependents(target)
            for status, definition in page.tasks:
                dependents.leave_out(validate_status(status)["taskId"], definition, "a decision task is copied alone")
            if page.token is not None:
                notes.append(f"more than {len(page.tasks):,} tasks depend on it; the first are listed as left out")
        elif whole and not await find_dependents(self._queue, dependents, self._page):
            notes.append(
                f"other task groups were not searched for dependents: this would take more than {WALK_CALLS} calls"
            )
        try:
            order = sort_by_dependencies(dependents.definitions)
        except CycleError as error:
            raise cycle_error(dependents.definitions, error) from None
        ancestors = await read_originals(services, order)
        needed = {task_id for definition in dependents.definitions.values() for task_id in definition["dependencies"]}
        await self._fetch_statuses(needed - dependents.definitions.keys())
        # in a thread: for thousands of tasks it takes seconds
        chosen = await services.compute(
            self._share, choose_copies, dependents, {target}, order, ancestors, self._statuses, notes
        )
        new_ids = {task_id: self._new_id(task_id) for task_id in chosen}
        if first is not None:
            group = first["taskGroupId"]
        elif names_group:
            group = new_ids[target]
        else:
            group = await choose_group(services, dependents, len(chosen), notes) or new_ids[target]
        draft = self._draft(new_ids, group)
        draft.left_out = [*dependents.skipped.values()][:MAX_LEFT_OUT]
        if len(dependents.skipped) > MAX_LEFT_OUT:
            notes.append(f"{len(dependents.skipped)} tasks are left out; the first {MAX_LEFT_OUT} are listed")
        if first is not None:
            draft.skip_stored(target, first)
        return draft

    def _draft(self, new_ids: dict[str, str], group: str) -> CopyDraft:
        definitions = self._dependents.definitions
        existing = definitions.keys() | self._statuses.keys()
        expire = parse_expiries(definitions | self._statuses)
        return CopyDraft(new_ids, definitions, existing, expire, group, [], self._notes)


class _IdsExcept:
    """A set of all texts in the form of a task id, without certain ones."""

    def __init__(self, certain: set[str]) -> None:
        self._certain = certain

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text not in self._certain and re.fullmatch(SLUGID, text) is not None


def copies_dependents(status: Status, run_id: int | None) -> bool:
    """Return True if dependents are copied too: the run that the action names has failed, and is the latest.

    Raises ActionRejectedError if there is no such run.
    """
    run = find_run(status, run_id)
    return run is not None and run["state"] in BAD_ENDS and run is status["runs"][-1]


async def _is_first_copy(services: Services, task_id: str) -> bool:
    """Return True if the task is the first of several copies: their group has its id, but it is no decision task."""
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


async def choose_group(services: Services, dependents: DependencySearch, copies: int, notes: list[str]) -> str | None:
    """Return the task group of the copies, None for a new one.

    By the setting `retrigger_group`: "new" always makes a new group; "auto" does for several copies, and for a single
    copy if the group of the original is sealed, because Taskcluster adds no task to a sealed group. Any other value
    keeps the group of the original.
    """
    mode = services.settings.retrigger_group
    if mode == "new" or (mode == "auto" and copies > 1):
        return None
    if mode == "auto" and await services.queue.group_sealed(dependents.group):
        notes.append(f"task group {dependents.group} is sealed: the copy gets a group of its own")
        return None
    return dependents.group
