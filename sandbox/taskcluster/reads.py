"""Answer the queue's reading methods: one task, many tasks, groups, dependents and counts."""

from collections.abc import Iterable

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require_scopes
from sandbox.taskcluster.pages import paged
from sandbox.taskcluster.scheduler import Scheduler
from sandbox.taskcluster.tasks import Json, Task


class Reads(Scheduler):
    """Methods that read, with their scopes."""

    def task(self, task_id: str, caller: Caller | None = None) -> Json:
        """Answer `task` with the completed definition."""
        require_scopes(caller, f"queue:get-task:{task_id}")
        return dict(self.find(task_id).definition)

    def status(self, task_id: str, caller: Caller | None = None) -> Json:
        """Answer `status`."""
        require_scopes(caller, f"queue:status:{task_id}")
        return {"status": self.find(task_id).status()}

    def get_tasks(
        self, body: Json, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """Answer `tasks` with the definitions of many tasks; ids without a task are left out."""
        tasks, continuation = self._many(body, "queue:get-task", caller, token, limit)
        return {"tasks": [{"taskId": task.task_id, "task": task.definition} for task in tasks], **continuation}

    def statuses(
        self, body: Json, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """Answer `statuses` with those of many tasks; ids without a task are left out."""
        tasks, continuation = self._many(body, "queue:status", caller, token, limit)
        return {"statuses": [{"taskId": task.task_id, "status": task.status()} for task in tasks], **continuation}

    def _many(
        self, body: Json, scope: str, caller: Caller | None, token: str | None, limit: str | None
    ) -> tuple[list[Task], Json]:
        checks.TASKS.check(body)
        task_ids = sorted(set(body.get("taskIds", ())))
        require_scopes(caller, {"AllOf": [f"{scope}:{task_id}" for task_id in task_ids]})
        page, continuation = paged(task_ids, token, limit)
        return [self.tasks[task_id] for task_id in page if task_id in self.tasks], continuation

    def list_task_group(
        self, group_id: str, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """Answer `listTaskGroup` with one page."""
        require_scopes(caller, f"queue:list-task-group:{group_id}")
        group = self.group(group_id)
        page, continuation = paged(group.task_ids, token, limit)
        return {**group.describe(), "tasks": self._with_status(page), **continuation}

    def list_dependent_tasks(
        self, task_id: str, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """Answer `listDependentTasks` with one page; dependents of every group are included."""
        require_scopes(caller, f"queue:list-dependent-tasks:{task_id}")
        page, continuation = paged(self.find(task_id).dependents, token, limit)
        return {"taskId": task_id, "tasks": self._with_status(page), **continuation}

    def _with_status(self, task_ids: Iterable[str]) -> list[Json]:
        tasks = (self.tasks[task_id] for task_id in task_ids)
        return [{"status": task.status(), "task": task.definition} for task in tasks]

    def get_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """Answer `getTaskGroup`."""
        require_scopes(caller, f"queue:list-task-group:{group_id}")
        return self.group(group_id).describe()

    def task_queue_counts(self, queue_id: str, caller: Caller | None = None) -> Json:
        """Answer `taskQueueCounts`."""
        require_scopes(caller, {"AllOf": [f"queue:pending-count:{queue_id}", f"queue:claimed-count:{queue_id}"]})
        provisioner, worker_type = queue_id.split("/")
        return {
            "provisionerId": provisioner,
            "workerType": worker_type,
            "taskQueueId": queue_id,
            "pendingTasks": self.pending_counts.get(queue_id, 0),
            "claimedTasks": self.claimed_counts.get(queue_id, 0),
        }

    def pending_tasks(self, queue_id: str, caller: Caller | None = None) -> Json:
        """Answer `pendingTasks`."""
        require_scopes(caller, f"queue:pending-count:{queue_id}")
        counts = self.task_queue_counts(queue_id)
        del counts["claimedTasks"]
        return counts
