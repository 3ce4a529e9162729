"""Do what action tasks are for: copy, rerun and cancel tasks of a group, and run a task on earlier pushes.

An action task names its callback, its target and its input in `payload.env`, as those of taskgraph do. It acts with its
own scopes, and fails where they do not suffice, where the input is not understood, and where taskgraph's would fail.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from sandbox.taskcluster.actions import CALLBACK, CALLBACK_KIND
from sandbox.taskcluster.auth import Caller
from sandbox.taskcluster.clock import HOUR, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Json, Task, new_slugid

TREEHERDER = "tc-treeherder"
MAX_TIMES = 100


class CallbackError(Exception):
    """An error that makes the action task fail; the text is for its log."""


def is_action(task: Json) -> bool:
    """Return True if this is the definition of an action task."""
    environment = task["payload"].get("env")
    return task["tags"].get("kind") == CALLBACK_KIND and isinstance(environment, dict) and CALLBACK in environment


class Callbacks:
    """The callbacks of actions, by their `cb_name`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def run(self, action_id: str, task: Json) -> None:
        """Carry out an action task. Raises CallbackError."""
        environment = task["payload"]["env"]
        caller = Caller(
            f"task-client/{action_id}",
            self._queue.auth.expand([*task["scopes"], "assume:anonymous"]),
            self._queue.clock.now() + HOUR,
        )
        try:
            target = json.loads(environment["ACTION_TASK_ID"])
            given = json.loads(environment["ACTION_INPUT"]) or {}
            action = _Action(
                self._queue, caller, action_id, environment["ACTION_TASK_GROUP_ID"], target, given, task["routes"]
            )
            callbacks: dict[str, Callable[[], None]] = {
                "retrigger": action.retrigger,
                "retrigger-disabled": action.retrigger,
                "retrigger-decision": action.retrigger_decision,
                "retrigger-multiple": action.retrigger_multiple,
                "add-new-jobs": action.add_new_jobs,
                "backfill": action.backfill,
                "rerun": action.rerun,
                "cancel": action.cancel,
                "cancel-all": action.cancel_all,
            }
            callbacks[environment[CALLBACK]]()
        except ApiError as error:
            raise CallbackError(str(error)) from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CallbackError(f"the action is not understood: {type(error).__name__}: {error}") from error


class _Action:
    """One action: who acts, on which group and task, with which input; `routes` are the action task's own."""

    def __init__(
        self,
        queue: Queue,
        caller: Caller,
        action_id: str,
        group_id: str,
        task_id: str | None,
        given: Json,
        routes: list[str],
    ) -> None:
        self._queue, self._caller, self._action_id = queue, caller, action_id
        self._group_id, self._task_id, self._input, self._routes = group_id, task_id, given, routes

    # --- copies in the same group ---

    def retrigger(self) -> None:
        task = self._target()
        if task.definition["tags"].get("retrigger") != "true" and not self._input.get("force"):
            raise CallbackError(f"{_label(task)} should not be retriggered, and force is not set")
        chosen = self._with_dependents(task) if self._input.get("downstream") else [task]
        for _ in range(_times(self._input)):
            self._copy(chosen)

    def retrigger_decision(self) -> None:
        self._create(self._renewed(self._target().definition))

    def retrigger_multiple(self) -> None:
        """Copy tasks by their labels; those that should not be retriggered are run again instead."""
        labelled = self._labelled()
        for request in self._input.get("requests", []):
            tasks = [labelled[label] for label in request.get("tasks", [])]
            retriggered = [task for task in tasks if task.definition["tags"].get("retrigger") == "true"]
            for task in tasks:
                if task not in retriggered:
                    self._rerun(task)
            for _ in range(_times(request)):
                self._copy(retriggered)

    def add_new_jobs(self) -> None:
        labelled = self._labelled()
        for label in self._input["tasks"]:
            if label not in labelled:
                raise CallbackError(f"{label} was not found in the task-graph")
        for _ in range(_times(self._input)):
            self._copy([labelled[label] for label in self._input["tasks"]])

    def _copy(self, tasks: Iterable[Task]) -> None:
        """Create copies of the tasks in this order; a dependency on one of them becomes one on its copy."""
        copies: dict[str, str] = {}
        for task in tasks:
            definition = self._renewed(task.definition)
            needed = [copies.get(task_id, task_id) for task_id in definition["dependencies"]]
            definition["dependencies"] = sorted({*needed, self._action_id})
            copies[task.task_id] = self._create(definition)

    def _with_dependents(self, task: Task) -> list[Task]:
        """Return the task and what depends on it in the group, each task after what it depends on."""
        chosen: dict[str, Task] = {}

        def visit(visited: Task) -> None:
            for task_id in visited.dependents:
                dependent = self._queue.tasks[task_id]
                if task_id not in chosen and dependent.definition["taskGroupId"] == self._group_id:
                    visit(dependent)
            chosen[visited.task_id] = visited

        visit(task)
        return list(chosen.values())[::-1]

    # --- tasks that exist ---

    def rerun(self) -> None:
        self._rerun(self._target())

    def _rerun(self, task: Task) -> None:
        if task.state in ("failed", "exception"):
            self._queue.rerun_task(task.task_id, self._caller)

    def cancel(self) -> None:
        self._cancel(self._target())

    def cancel_all(self) -> None:
        for task_id in tuple(self._queue.group(self._group_id).task_ids):
            task = self._queue.tasks[task_id]
            if task_id != self._action_id and not task.resolved:
                self._cancel(task)

    def _cancel(self, task: Task) -> None:
        """Cancel a task; one past its deadline has ended, so a conflict is none."""
        try:
            self._queue.cancel_task(task.task_id, self._caller)
        except ApiError as error:
            if error.code != "RequestConflict":
                raise

    # --- earlier pushes ---

    def backfill(self) -> None:
        """Run the task on earlier pushes that have no task of its label, the newest of them first."""
        target = self._target()
        label, (project, revision, own) = _label(target), self._own_push()
        pushes = [push for push in self._pushes(project) if push[0] < own]
        for _, decision in sorted(pushes, key=lambda push: push[0], reverse=True)[: self._input.get("depth", 9)]:
            existing = self._labelled(decision.task_id)
            if label in existing:
                continue
            definition = self._renewed(target.definition)
            definition["taskGroupId"] = decision.task_id
            definition["routes"] = [route for route in decision.definition["routes"] if route.startswith(TREEHERDER)]
            needed = [_label(self._queue.tasks[task_id]) for task_id in target.definition["dependencies"]]
            definition["dependencies"] = sorted(
                {self._action_id, *(existing[name].task_id for name in needed if name in existing)}
            )
            treeherder = dict(definition["extra"].get("treeherder", {}))
            symbol = treeherder.get("groupSymbol", treeherder.get("symbol", "?"))
            treeherder["groupSymbol"] = f"{symbol}-{revision[:11]}-bk"[-25:]
            definition["extra"] = {**definition["extra"], "treeherder": treeherder}
            for _ in range(_times(self._input)):
                self._create(definition)
        if self._input.get("inclusive"):
            self._copy([target])

    def _own_push(self) -> tuple[str, str, int]:
        for route in self._routes:
            if push := _push_of(route):
                return push
        raise CallbackError(f"no route of the action task names its push: {self._routes}")

    def _pushes(self, project: str) -> list[tuple[int, Task]]:
        """Return the decision tasks of a project with the ids of their pushes."""
        pushes = []
        for task in self._queue.tasks.values():
            if task.definition["tags"].get("kind") != "decision-task":
                continue
            for route in task.definition["routes"]:
                if (push := _push_of(route)) and push[0] == project and task.task_id == task.definition["taskGroupId"]:
                    pushes.append((push[2], task))
                    break
        return pushes

    # --- both ---

    def _target(self) -> Task:
        if self._task_id is None:
            raise CallbackError("the action is about a task, and none was named")
        return self._queue.find(self._task_id)

    def _labelled(self, group_id: str | None = None) -> dict[str, Task]:
        """Return the newest task of each label in the group."""
        tasks = [self._queue.tasks[task_id] for task_id in self._queue.group(group_id or self._group_id).task_ids]
        return {_label(task): task for task in sorted(tasks, key=lambda task: task.definition["created"])}

    def _renewed(self, definition: Json) -> Json:
        """Return the definition with dates as far from now as they were from its creation."""
        now, created = self._queue.clock.now(), parse(definition["created"]) or 0
        moved = {
            name: iso(now + (parse(definition[name]) or created) - created)
            for name in ("created", "deadline", "expires")
        }
        return {**definition, **moved, "extra": {**definition["extra"], "parent": self._action_id}}

    def _create(self, definition: Json) -> str:
        task_id = new_slugid()
        self._queue.create_task(task_id, definition, self._caller)
        return task_id


def _times(given: Json) -> int:
    times: Any = given.get("times", 1)
    if not 1 <= times <= MAX_TIMES:
        raise CallbackError(f"times is {times}: use 1 to {MAX_TIMES}")
    return int(times)


def _label(task: Task) -> str:
    name: Any = task.definition["metadata"]["name"]
    return str(name)


def _push_of(route: str) -> tuple[str, str, int] | None:
    """Return project, revision and push id of a Treeherder route that names all of them."""
    match route.split("."):
        case [prefix, "v2", project, revision, push_id] if prefix.startswith(TREEHERDER) and push_id.isdecimal():
            return project, revision, int(push_id)
    return None
