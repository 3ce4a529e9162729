"""Choose which tasks a retrigger copies, and build the definitions of the copies."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from pydantic import ValidationError
from sqlmodel import col, select

from service.clients.taskcluster import Definition, Status
from service.clock import now
from service.flow.actions.dependents import Found
from service.flow.actions.kinds import Copy
from service.flow.actions.subject import ActionFailedError
from service.flow.tasks.definition import (
    CycleError,
    complete,
    is_complete,
    move_dates,
    name_of,
    parse_date,
    shorten_deadline,
    sort_by_dependencies,
)
from service.flow.tasks.status import RESOLVED
from service.sanitize import escape_unstorable, problems_of
from service.services import Services
from service.slugids import replace_ids
from service.store.database import Session
from service.store.models import PlannedTask

MAX_NOTES = 20


_KEYS_AT_A_TIME = 10_000


BAD_ENDS = frozenset({"failed", "exception"})


async def read_originals(services: Services, task_ids: Iterable[str]) -> dict[str, str]:
    """What each is a copy of, and what that is a copy of, as our own records have it."""
    copies: dict[str, str] = {}
    async with services.database.reading() as session:
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


def choose_copies(
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
        if state in BAD_ENDS and found.definition["requires"] == "all-completed" and len(notes) < MAX_NOTES:
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
        return sort_by_dependencies(behind)
    except CycleError:
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
        if state in BAD_ENDS:
            return f"it needs {dependency}, which is {state} and not copied"
        if dependency in found.definitions and state not in RESOLVED:
            return f"it needs {dependency}, which is left out and {state}"
    return None


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
            new_id: escape_unstorable(name_of(self.definitions[old_id]))
            for old_id, new_id in self.new_ids.items()
            if old_id in self.definitions
        }

    def stored(self, old_id: str, copy: Definition) -> None:
        """Leave out a copy that is stored already."""
        self.done.add(old_id)
        self.expire[self.new_ids[old_id]] = parse_date(copy["expires"])

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
            self.expire[new_id] = parse_date(definition["expires"])
            yield Copy(old_id, new_id, self.names[new_id], definition)

    def _refuse_missing(self, old: Definition) -> None:
        gone = [each for each in old["dependencies"] if each not in self.new_ids and each not in self.known]
        if gone:
            raise ActionFailedError(
                f"{escape_unstorable(name_of(old))} depends on {', '.join(gone[:10])}, which expired: "
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
        moved = move_dates(replaced, at - parse_date(replaced["created"]))
        definition, decided_by = shorten_deadline(moved, expire, at)
        return definition if is_complete(definition) else complete(new_id, definition), decided_by
    except ValidationError as error:
        why = f"the copy of {escape_unstorable(name_of(old))} would be no task definition: {problems_of(error)}"
        raise ActionFailedError(why) from None
    except ValueError as error:
        raise ActionFailedError(f"{escape_unstorable(name_of(old))} {error}") from None
    except RecursionError:
        raise ActionFailedError(
            f"the definition of {escape_unstorable(name_of(old))} is nested too deeply to be copied"
        ) from None
