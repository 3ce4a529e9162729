"""Find the tasks that depend on a task: ask each task for its dependents, or read the whole task group."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.clients.taskcluster import Definition, Page, Queue, Status, validate_definition, validate_status
from service.flow.tasks.definition import CycleError, name_of
from service.flow.tasks.subject import ActionFailedError, ActionRejectedError
from service.sanitize import escape_unstorable

WALK_CALLS = 20
"""Calls of `listDependentTasks` after which the whole group is read instead: most retriggers are of leaves."""

MAX_VALUES = 4_000_000
"""Values of all definitions that one retrigger holds in memory; each takes up to some hundred bytes."""


@dataclass
class DependencySearch:
    """The task that is retriggered, and its dependents: those of its group, and those that are left out."""

    target: str
    group: str
    definition: Definition
    definitions: dict[str, Definition] = field(init=False)
    states: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.definitions = {self.target: self.definition}
        self._values = 0

    def count_values(self, definition: Definition) -> None:
        """Count the values of a definition that is to be held. Raises ActionFailedError beyond `MAX_VALUES`."""
        waiting: list[Any] = [definition]
        while waiting and self._values <= MAX_VALUES:
            value = waiting.pop()
            self._values += 1
            waiting.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        if self._values > MAX_VALUES:
            raise ActionFailedError(
                f"the definitions of the tasks that depend on task {self.target} have more than {MAX_VALUES:,} values, "
                "too many to copy. Retrigger tasks with fewer dependents"
            )

    def leave_out(self, task_id: str, definition: Definition, reason: str) -> None:
        """Record that a task is not copied, and why."""
        self.skipped[task_id] = {"task_id": task_id, "name": escape_unstorable(name_of(definition)), "reason": reason}

    def add(self, status: Status, definition: Definition) -> bool:
        """Add a dependent; return True if it is a new one of the group. Raises Unavailable if it is invalid."""
        task_id: str = validate_status(status)["taskId"]
        if validate_definition(definition)["taskGroupId"] != self.group:
            self.leave_out(task_id, definition, f"it is in another task group, {definition['taskGroupId']}")
            return False
        if task_id in self.definitions:
            return False
        self.count_values(definition)
        self.definitions[task_id], self.states[task_id] = definition, status["state"]
        return True


async def find_dependents(queue: Queue, search: DependencySearch, first: Page | None = None) -> bool:
    """Find the direct and indirect dependents of the target; return True if other groups were searched too.

    `first` is the first page of the target's direct dependents, if it was requested already.
    """
    walked = await _walk(queue, search, first)
    if not walked:
        await _read_group(queue, search)
    return walked


async def _walk(queue: Queue, search: DependencySearch, start: Page | None) -> bool:
    """Request the dependents of each task, level by level; return False if that takes more than `WALK_CALLS`."""
    calls = 0
    level = [search.target]
    while level:
        calls += len(level)
        if calls > WALK_CALLS:
            return False
        if start is not None and level == [search.target]:
            pages = [start]
        else:
            pages = await asyncio.gather(*(queue.dependents(task_id) for task_id in level))
        following = []
        for task_id, first in zip(level, pages, strict=True):
            page = first
            while True:
                following += [status["taskId"] for status, definition in page.tasks if search.add(status, definition)]
                if page.token is None:
                    break
                calls += 1
                if calls + len(following) > WALK_CALLS:
                    return False
                page = await queue.dependents(task_id, page.token)
        level = following
    return True


async def _read_group(queue: Queue, search: DependencySearch) -> None:
    """Compute the dependents from the whole group; definitions are only kept of tasks that are certainly dependents."""
    needs: dict[str, list[str]] = {}
    async for page in queue.group(search.group):
        for status, definition in page:
            dependencies = validate_definition(definition)["dependencies"]
            needs[validate_status(status)["taskId"]] = dependencies
            if any(dependency in search.definitions for dependency in dependencies):
                search.add(status, definition)
            search.states[status["taskId"]] = status["state"]
    needed_by: dict[str, list[str]] = defaultdict(list)
    for task_id, dependencies in needs.items():
        for dependency in dependencies:
            needed_by[dependency].append(task_id)
    reached = dict.fromkeys([search.target])
    level = [search.target]
    while level:
        following = [task for task_id in level for task in needed_by.get(task_id, ()) if task not in reached]
        level = list(dict.fromkeys(following))
        reached.update(dict.fromkeys(level))
    missing = [task_id for task_id in reached if task_id not in search.definitions]
    definitions = await queue.tasks(missing) if missing else {}
    for definition in definitions.values():
        search.count_values(definition)
    search.definitions |= definitions


def cycle_error(definitions: Mapping[str, Definition], error: CycleError) -> ActionRejectedError:
    """Return the error for tasks that depend on each other in a cycle, with their names."""
    tasks = [f"{task_id} ({escape_unstorable(name_of(definitions[task_id]))})" for task_id in error.cycle[:10]]
    if len(error.cycle) == 1:
        return ActionRejectedError(f"task {tasks[0]} depends on itself: no copy of it could ever run")
    return ActionRejectedError(f"{error}: {', '.join(tasks)}")
