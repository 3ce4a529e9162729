"""Create tasks: idempotency, groups, dependencies and scopes of `createTask`."""

from bisect import insort

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require_scopes
from sandbox.taskcluster.clock import HOUR, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scheduler import Scheduler
from sandbox.taskcluster.scopes import Expression
from sandbox.taskcluster.tasks import Group, Json, Task


def creation_scopes(task: Json) -> Expression:
    """Return the scopes that `createTask` requires for a completed definition."""
    rank = checks.PRIORITIES.index(task["priority"])
    return {
        "AllOf": [
            *task["scopes"],
            *(f"queue:route:{route}" for route in task["routes"]),
            f"queue:create-task:project:{task['projectId']}",
            f"queue:scheduler-id:{task['schedulerId']}",
            {
                "AnyOf": [
                    f"queue:create-task:{priority}:{task['provisionerId']}/{task['workerType']}"
                    for priority in checks.PRIORITIES[: rank + 1]
                ]
            },
        ]
    }


class Creation(Scheduler):
    """Creation of tasks, with its scopes."""

    def create_task(self, task_id: str, definition: Json, caller: Caller | None = None, *, crash: bool = False) -> Json:
        """Answer `createTask`.

        With `crash` the task is stored and nothing more is done, as if the queue ended in the middle. The task stays
        unscheduled until `scheduleTask`, and no message is published.
        """
        checks.CREATE_TASK.check(definition)
        now = self.clock.now()
        completed = checks.complete(task_id, definition, now)
        require_scopes(caller, creation_scopes(completed))
        task = Task(task_id, completed, _moment(completed["deadline"]), _moment(completed["expires"]))
        group = self._enter_group(task)
        existing = self.tasks.get(task_id)
        if existing is not None:
            return self._repeat(existing, completed)
        checks.check_storable(completed)
        self._track_dependencies(task)
        self.tasks[task_id] = task
        insort(group.task_ids, task_id)
        group.unresolved += 1
        self.set_timer(task.deadline, "deadline", task)
        self.set_timer(task.expires, "expires", task)
        if crash:
            task.abandoned = True
            return {"status": task.status()}
        self.publish_defined(task)
        if not task.unsatisfied:
            self.add_run(task, "scheduled")
        return {"status": task.status()}

    def _enter_group(self, task: Task) -> Group:
        """Return the group of a new task, and create it if needed; raise the 409 if it does not accept the task."""
        group_id, scheduler_id = task.definition["taskGroupId"], task.definition["schedulerId"]
        group = self.groups.get(group_id)
        if group is None:
            group = self.groups[group_id] = Group(group_id, scheduler_id)
        elif group.scheduler_id != scheduler_id:
            raise ApiError(
                "RequestConflict",
                f"Task group {group_id} contains tasks with schedulerId {group.scheduler_id}. You are attempting to "
                f"include tasks from schedulerId {scheduler_id}, which is not permitted.\n"
                "All tasks in the same task-group must have the same schedulerId.",
            )
        if group.sealed is not None:
            raise ApiError(
                "RequestConflict",
                f"Task group {group_id} was sealed on {iso(group.sealed)} and does not accept new tasks.",
            )
        group.expires = max(group.expires, task.expires + HOUR)
        return group

    def _repeat(self, existing: Task, completed: Json) -> Json:
        """Answer a repeated request as the first one and publish its messages again; raise the 409 for another body."""
        if existing.definition != completed:
            differing = sorted(
                key
                for key in existing.definition.keys() | completed.keys()
                if existing.definition.get(key) != completed.get(key)
            )
            raise ApiError(
                "RequestConflict",
                f"taskId {existing.task_id} already used by another task. "
                "This could be the result of faulty idempotency!\n"
                f"The definitions differ in: {', '.join(differing)}",
            )
        if not existing.abandoned:
            self.publish_defined(existing)
            if existing.state == "pending" and len(existing.runs) == 1:
                self.publish_run("task-pending", existing, existing.runs[0])
        return {"status": existing.status()}

    def _track_dependencies(self, task: Task) -> None:
        """Record unsatisfied dependencies; raise the 400 if one is missing, or expires before the deadline."""
        missing, expiring = [], []
        any_end = task.definition["requires"] == "all-resolved"
        for task_id in task.definition["dependencies"]:
            if task_id == task.task_id:
                task.unsatisfied.add(task_id)  # it waits for itself, until scheduleTask
                continue
            dependency = self.tasks.get(task_id)
            if dependency is None:
                missing.append(task_id)
            elif dependency.expires < task.deadline:
                expiring.append(task_id)
            elif not (dependency.state == "completed" or (any_end and dependency.resolved)):
                task.unsatisfied.add(task_id)
        problems = []
        if missing:
            problems.append(f"`task.dependencies` references non-existing tasks: {missing}")
        if expiring:
            problems.append(
                f"`task.dependencies` references tasks that expire before `deadline` of this task: {expiring}"
            )
        if problems:
            raise ApiError("InputError", "\n".join(problems))
        for task_id in task.definition["dependencies"]:
            insort((task if task_id == task.task_id else self.tasks[task_id]).dependents, task.task_id)


def _moment(text: str) -> int:
    moment = parse(text)
    assert moment is not None  # `complete` wrote it
    return moment
