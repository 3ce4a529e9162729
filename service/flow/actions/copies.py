"""Choose which tasks a retrigger copies, and build the definitions of the copies.

`choose_copies` decides on each dependent; `_reason_to_leave_out` has the rules. `CopyDraft` builds the definitions.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from pydantic import ValidationError
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Status
from service.clock import now
from service.contract.validation import problems_of
from service.flow.actions.dependents import DependencySearch
from service.flow.tasks.action_kinds import Copy
from service.flow.tasks.definition import (
    CycleError,
    TaskDefinition,
    complete,
    is_complete,
    move_dates,
    name_of,
    parse_date,
    shorten_deadline,
    sort_by_dependencies,
)
from service.flow.tasks.status import RESOLVED
from service.flow.tasks.subject import ActionFailedError
from service.sanitize import escape_unstorable
from service.services import Services
from service.slugids import replace_ids
from service.store.database import Session
from service.store.models import PlannedTask

MAX_NOTES = 20
"""Notes of one kind that an action shows at most."""

BAD_ENDS = frozenset({"failed", "exception"})
"""States of a task or a run that has ended without success."""

_KEYS_PER_QUERY = 10_000


async def read_originals(services: Services, task_ids: Iterable[str]) -> dict[str, str]:
    """Return the recorded originals of tasks, and the originals of these, by the ids of the copies."""
    copies: dict[str, str] = {}
    async with services.database.reading() as session:
        unknown = set(task_ids)
        while unknown:
            originals = await _read_copies(session, sorted(unknown))
            copies |= originals
            unknown = set(originals.values()) - copies.keys()
    return copies


async def _read_copies(session: Session, task_ids: list[str]) -> dict[str, str]:
    originals: dict[str, str] = {}
    for start in range(0, len(task_ids), _KEYS_PER_QUERY):
        keys = task_ids[start : start + _KEYS_PER_QUERY]
        rows = await session.exec(
            select(PlannedTask.task_id, PlannedTask.copy_of).where(
                col(PlannedTask.task_id).in_(keys), col(PlannedTask.copy_of).is_not(None)
            )
        )
        originals |= {task_id: copy_of for task_id, copy_of in rows if copy_of is not None}
    return originals


def choose_copies(
    search: DependencySearch,
    targets: Collection[str],
    order: list[str],
    ancestors: Mapping[str, str],
    statuses: Mapping[str, Status],
    notes: list[str],
) -> dict[str, None]:
    """Return the tasks of `order` that are copied; leave the others out with a reason. `targets` are always copied."""
    chosen: dict[str, None] = {}
    for target in targets:
        for dependency in search.definitions[target]["dependencies"]:
            state = statuses.get(dependency, {}).get("state")
            needed = search.definitions[target]["requires"] == "all-completed"
            if state in BAD_ENDS and needed and len(notes) < MAX_NOTES:
                notes.append(f"the copy waits for {dependency}, which is {state}: retrigger or rerun that too")
    for task_id in _sort_originals_first(search, order, ancestors):
        reason = None if task_id in targets else _reason_to_leave_out(search, task_id, chosen, ancestors, statuses)
        if reason is None:
            chosen[task_id] = None
        else:
            search.leave_out(task_id, search.definitions[task_id], reason)
    return chosen


def _ancestors_of(task_id: str, ancestors: Mapping[str, str]) -> Iterator[str]:
    """Yield the original of a task, the original of that, and so on."""
    original = ancestors.get(task_id)
    while original is not None:
        yield original
        original = ancestors.get(original)


def _sort_originals_first(search: DependencySearch, order: list[str], ancestors: Mapping[str, str]) -> list[str]:
    """Return `order` with copies after their originals, because a copy is left out if its original is copied."""
    originals = {original for task_id in order for original in _ancestors_of(task_id, ancestors)}
    if originals.isdisjoint(search.definitions):
        return order
    constraints = {
        task_id: {"dependencies": [*search.definitions[task_id]["dependencies"], *_ancestors_of(task_id, ancestors)]}
        for task_id in order
    }
    try:
        return sort_by_dependencies(constraints)
    except CycleError:
        return order  # an original depends on its own copy, so no order is right


def _reason_to_leave_out(
    search: DependencySearch,
    task_id: str,
    chosen: Mapping[str, None],
    ancestors: Mapping[str, str],
    statuses: Mapping[str, Status],
) -> str | None:
    """Return the reason why a dependent is not copied, None if it is copied."""
    if original := next((task for task in _ancestors_of(task_id, ancestors) if task in chosen), None):
        return f"it is an earlier copy of {original}"
    definition = search.definitions[task_id]
    if not any(dependency in chosen for dependency in definition["dependencies"]):
        return "it depends only on tasks that are left out"
    if definition["requires"] != "all-completed":
        return None
    for dependency in definition["dependencies"]:
        if dependency in chosen:
            continue
        state = statuses[dependency]["state"] if dependency in statuses else search.states.get(dependency)
        if state in BAD_ENDS:
            return f"it needs {dependency}, which is {state} and not copied"
        if dependency in search.definitions and state not in RESOLVED:
            return f"it needs {dependency}, which is left out and {state}"
    return None


@dataclass
class CopyDraft:
    """The tasks that are copied, in dependency order, and everything that the copies are built from."""

    new_ids: dict[str, str]  # ids of the copies by the ids of the originals
    definitions: Mapping[str, Definition]  # of originals whose copies are still to be built
    existing: Collection[str]  # ids of tasks that exist
    expire: dict[str, datetime]
    group: str
    left_out: list[dict[str, str]]
    notes: list[str]
    done: set[str] = field(default_factory=set)  # originals whose copies are stored

    @cached_property
    def names(self) -> dict[str, str]:
        """Return the names of the copies by their ids."""
        return {
            new_id: escape_unstorable(name_of(self.definitions[old_id]))
            for old_id, new_id in self.new_ids.items()
            if old_id in self.definitions
        }

    def skip_stored(self, old_id: str, copy: Definition) -> None:
        """Do not build a copy that is stored already."""
        self.done.add(old_id)
        self.expire[self.new_ids[old_id]] = parse_date(copy["expires"])

    def build(self) -> Iterator[Copy]:
        """Build the copies, one after the other. Raises ActionFailedError."""
        at = now()
        for old_id, new_id in self.new_ids.items():
            if old_id in self.done or old_id not in self.definitions:
                continue
            old = self.definitions[old_id]
            self._refuse_missing(old)
            definition, decided_by = _build_copy(old, new_id, self.group, self.new_ids, self.expire, at)
            if decided_by is not None and len(self.notes) < MAX_NOTES:
                # by name, because the id of a task that is not created yet is secret
                needed = f"the copy of {self.names[decided_by]}" if decided_by in self.names else decided_by
                self.notes.append(
                    f"the deadline of the copy of {self.names[new_id]} is only {definition['deadline']}, "
                    f"because {needed} expires then"
                )
            self.expire[new_id] = parse_date(definition["expires"])
            yield Copy(old_id, new_id, self.names[new_id], definition)

    def _refuse_missing(self, old: Definition) -> None:
        missing = [task for task in old["dependencies"] if task not in self.new_ids and task not in self.existing]
        if missing:
            raise ActionFailedError(
                f"{escape_unstorable(name_of(old))} depends on {', '.join(missing[:10])}, which expired: "
                "Taskcluster takes no copy of it"
            )


def _build_copy(
    old: Definition,
    new_id: str,
    group: str,
    new_ids: Mapping[str, str],
    expire: Mapping[str, datetime],
    at: datetime,
) -> tuple[Definition, str | None]:
    """Return the definition of a copy, and the dependency for which its deadline was shortened."""
    unchanged: Definition = {name: old[name] for name in ("taskGroupId", "schedulerId") if name in old}
    try:
        replaced: Definition = {**replace_ids(old, new_ids), **unchanged, "taskGroupId": group}
        moved = move_dates(replaced, at - parse_date(replaced["created"]))
        definition, decided_by = shorten_deadline(moved, expire, at)
        return definition if is_complete(definition) else complete(new_id, definition), decided_by
    except ValidationError as error:
        reason = f"the copy of {escape_unstorable(name_of(old))} would be invalid: {problems_of(error, TaskDefinition)}"
        raise ActionFailedError(reason) from None
    except ValueError as error:
        raise ActionFailedError(f"{escape_unstorable(name_of(old))} {error}") from None
    except RecursionError:
        raise ActionFailedError(
            f"the definition of {escape_unstorable(name_of(old))} is nested too deeply to be copied"
        ) from None
