"""Find the tasks that depend on a task, from it upwards, or by reading the whole task group."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.clients.taskcluster import Definition, Page, Queue, Status, validate_definition, validate_status
from service.flow.actions.subject import ActionFailedError, ActionRejectedError
from service.flow.tasks.definition import (
    CycleError,
    name_of,
)
from service.sanitize import escape_unstorable

WALK_CALLS = 20
"""Calls of `listDependentTasks` before the whole group is read instead: most retriggers are of leaves."""


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
            raise ActionFailedError(
                f"the definitions of what depends on task {self.target} have more than {MAX_VALUES:,} values: copies "
                "of so much are not made. Retrigger tasks that less depends on"
            )

    def leave_out(self, task_id: str, definition: Definition, reason: str) -> None:
        self.skipped[task_id] = {"task_id": task_id, "name": escape_unstorable(name_of(definition)), "reason": reason}

    def add(self, status: Status, definition: Definition) -> bool:
        """Note a dependent; whether it is a new one of the group. Raises Unavailable for what is no task."""
        task_id: str = validate_status(status)["taskId"]
        if validate_definition(definition)["taskGroupId"] != self.group:
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
            dependencies = validate_definition(definition)["dependencies"]
            needs[validate_status(status)["taskId"]] = dependencies
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


def cycle_error(definitions: Mapping[str, Definition], error: CycleError) -> ActionRejectedError:
    named = [f"{each} ({escape_unstorable(name_of(definitions[each]))})" for each in error.cycle[:10]]
    if len(error.cycle) == 1:
        return ActionRejectedError(f"task {named[0]} depends on itself: no copy of it could ever run")
    return ActionRejectedError(f"{error}: {', '.join(named)}")


MAX_VALUES = 4_000_000
"""Values of all definitions that are held for one retrigger; each takes up to some hundred bytes."""
