"""Answer the methods of Taskcluster's queue, in memory, with the queue's own refusals.

Follows the reference `queue/v1/api.json` and recordings of the real queue. All methods are synchronous and must be
called on one thread. `caller` is who calls; None is the program itself, which may do anything.
"""

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require_scopes
from sandbox.taskcluster.claims import Claims
from sandbox.taskcluster.creation import Creation
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.reads import Reads
from sandbox.taskcluster.tasks import Json, Task, cc_keys, routing_key

MAX_RUNS = 50


class Queue(Reads, Creation, Claims):
    """All methods of the queue; those defined here change tasks and groups that exist."""

    def schedule_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """Answer `scheduleTask`: schedule a task in spite of its dependencies; a task that has a run stays as it is."""
        task = self._find_for(task_id, "schedule", caller)
        if not task.runs:
            task.abandoned = False
            self.add_run(task, "scheduled")
        return {"status": task.status()}

    def rerun_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """Answer `rerunTask`: add a run to a resolved task."""
        task = self._find_for(task_id, "rerun", caller)
        if task.state in ("pending", "running"):
            return {"status": task.status()}
        if len(task.runs) >= MAX_RUNS:
            raise ApiError("RequestConflict", f"Maximum number of runs reached: task {task_id} has {MAX_RUNS} runs.")
        if task.runs:
            self.groups[task.definition["taskGroupId"]].unresolved += 1
        task.abandoned = False
        task.retries_left = min(task.definition["retries"], MAX_RUNS - len(task.runs) - 1)
        self.add_run(task, "rerun")
        return {"status": task.status()}

    def cancel_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """Answer `cancelTask`; a resolved task stays as it is."""
        task = self._find_for(task_id, "cancel", caller)
        self._cancel(task)
        return {"status": task.status()}

    def _find_for(self, task_id: str, verb: str, caller: Caller | None) -> Task:
        """Return the task to schedule, rerun or cancel; raise the 409 past its deadline, resolved or not."""
        task = self.find(task_id)
        definition = task.definition
        scheduler = f"{definition['schedulerId']}/{definition['taskGroupId']}"
        require_scopes(
            caller,
            {
                "AnyOf": [
                    f"queue:{verb}-task:{scheduler}/{task_id}",
                    f"queue:{verb}-task-in-project:{definition['projectId']}",
                    {"AllOf": [f"queue:{verb}-task", f"assume:scheduler-id:{scheduler}"]},
                ]
            },
        )
        if task.deadline < self.clock.now():
            done = {"schedule": "scheduled", "rerun": "rerun", "cancel": "canceled"}[verb]
            raise ApiError(
                "RequestConflict",
                f"Task `{task_id}` can't be {done} past its deadline at {definition['deadline']}.",
            )
        return task

    def _cancel(self, task: Task) -> bool:
        if task.resolved:
            return False
        self.end_run(task, "exception", "canceled")
        return True

    def seal_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """Answer `sealTaskGroup`: the group stays sealed, and a repeated call changes nothing."""
        group = self.group(group_id)
        require_scopes(caller, f"queue:seal-task-group:{group.scheduler_id}/{group_id}")
        if group.sealed is None:
            group.sealed = self.clock.now()
            self.publish_group("task-group-sealed", group)
        return group.describe()

    def cancel_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """Answer `cancelTaskGroup`: cancel all unresolved tasks; raise the 409 unless the group is sealed."""
        group = self.group(group_id)
        require_scopes(caller, f"queue:cancel-task-group:{group.scheduler_id}/{group_id}")
        if group.sealed is None:
            raise ApiError("RequestConflict", f"Task group {group_id} must be sealed before it can be cancelled")
        cancelled = [task_id for task_id in tuple(group.task_ids) if self._cancel(self.tasks[task_id])]
        return {
            "taskGroupId": group_id,
            "taskGroupSize": len(group.task_ids),
            "cancelledCount": len(cancelled),
            "taskIds": cancelled,
        }

    def change_task_priority(self, task_id: str, body: Json, caller: Caller | None = None) -> Json:
        """Answer `changeTaskPriority`: change the definition, too, so that a repeated createTask is a conflict."""
        checks.CHANGE_PRIORITY.check(body)
        task = self.find(task_id)
        require_scopes(
            caller,
            {
                "AnyOf": [
                    f"queue:change-task-priority:{task_id}",
                    f"queue:change-task-priority-in-queue:{task.definition['taskQueueId']}",
                ]
            },
        )
        self._change_priority(task, body["newPriority"])
        return {"status": task.status()}

    def change_task_group_priority(self, group_id: str, body: Json, caller: Caller | None = None) -> Json:
        """Answer `changeTaskGroupPriority`: change all unresolved tasks."""
        checks.CHANGE_PRIORITY.check(body)
        group = self.group(group_id)
        require_scopes(caller, f"queue:change-task-group-priority:{group.scheduler_id}/{group_id}")
        priority = body["newPriority"]
        changed = []
        for task_id in group.task_ids:
            if not self.tasks[task_id].resolved and self._change_priority(self.tasks[task_id], priority):
                changed.append(task_id)
        summary = {"taskGroupId": group_id, "schedulerId": group.scheduler_id, "newPriority": priority}
        summary["tasksAffected"] = len(changed)
        self._emit(
            "task-group-priority-changed", f"primary.{group_id}.{group.scheduler_id}._", (), {**summary, "version": 1}
        )
        return {**summary, "taskIds": changed}

    def _change_priority(self, task: Task, priority: str) -> bool:
        old = task.definition["priority"]
        if old == priority:
            return False
        task.definition = {**task.definition, "priority": priority}
        if task.state == "pending":
            self.enqueue(task)
        if self.listeners:
            payload = {"status": task.status(), "oldPriority": old, "newPriority": priority, "version": 1}
            self._emit("task-priority-changed", routing_key(task, None), cc_keys(task), payload)
        return True
