"""The methods of the queue that workers call: claim a run, reclaim it, and report how it ended."""

import heapq

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require_scopes
from sandbox.taskcluster.clock import MINUTE, iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scheduler import Scheduler
from sandbox.taskcluster.tasks import Json, Task

QUEUE_CLIENT = "static/taskcluster/queue"
"""The client that signs the credentials of claimed tasks."""

CLAIM_TIME = 20 * MINUTE


class Claims(Scheduler):
    """The claiming and reporting methods, with their scopes."""

    def claim_work(self, queue_id: str, body: Json, caller: Caller | None = None) -> Json:
        """`claimWork`, without its wait: the most urgent pending tasks, the oldest first."""
        checks.CLAIM_WORK.check(body)
        group, worker = body["workerGroup"], body["workerId"]
        require_scopes(caller, {"AllOf": [f"queue:claim-work:{queue_id}", f"queue:worker-id:{group}/{worker}"]})
        self.tick()
        line = self._pending.get(queue_id, [])
        claims: list[Json] = []
        while line and len(claims) < body.get("tasks", 1):
            _, ticket, task = heapq.heappop(line)
            if ticket == task.ticket:
                claims.append(self._claim(task, group, worker))
        return {"tasks": claims}

    def claim_task(self, task_id: str, run_id: int, body: Json, caller: Caller | None = None) -> Json:
        """`claimTask`: one certain run; again by the same worker it is the same claim."""
        checks.CLAIM_TASK.check(body)
        group, worker = body["workerGroup"], body["workerId"]
        task = self.find(task_id)
        queue_id = task.definition["taskQueueId"]
        require_scopes(caller, {"AllOf": [f"queue:claim-task:{queue_id}", f"queue:worker-id:{group}/{worker}"]})
        run = self._run(task, run_id)
        if run["state"] == "running" and (run["workerGroup"], run["workerId"]) == (group, worker):
            return {**self._hold(task, run), "task": task.definition}
        if run["state"] != "pending" or task.deadline < self.clock.now():
            raise ApiError(
                "RequestConflict", f"Run {run_id} of task `{task_id}` cannot be claimed: it is {run['state']}."
            )
        return self._claim(task, group, worker)

    def _claim(self, task: Task, group: str, worker: str) -> Json:
        now = self.clock.now()
        run = task.runs[-1]
        self.dequeue(task)
        self.claimed_counts[task.definition["taskQueueId"]] += 1
        run.update(state="running", workerGroup=group, workerId=worker, takenUntil="", started=iso(now))
        self._take(task, run, now)
        self.publish_run("task-running", task, run, takenUntil=run["takenUntil"].replace("Z", "+00:00"))
        return {**self._hold(task, run), "task": task.definition}

    def reclaim_task(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """`reclaimTask`: hold on to a run for another 20 minutes."""
        require_scopes(caller, f"queue:reclaim-task:{task_id}/{run_id}")
        task, run = self._running(task_id, run_id)
        self._take(task, run, self.clock.now())
        return self._hold(task, run)

    def _take(self, task: Task, run: Json, now: int) -> None:
        task.taken_until = now + CLAIM_TIME
        run["takenUntil"] = iso(task.taken_until)
        self.set_timer(task.taken_until, "claim", task)

    def _hold(self, task: Task, run: Json) -> Json:
        """The answer to a claim: with credentials for this run and for what the task's scopes allow."""
        run_name = f"{task.task_id}/{run['runId']}"
        group, worker = run["workerGroup"], run["workerId"]
        credentials = self.auth.temporary_credentials(
            QUEUE_CLIENT,
            f"task-client/{run_name}/on/{group}/{worker}/until/{task.taken_until // 1000}",
            [
                f"queue:reclaim-task:{run_name}",
                f"queue:resolve-task:{run_name}",
                f"queue:create-artifact:{run_name}",
                *task.definition["scopes"],
            ],
            self.clock.now() - 5 * MINUTE,
            task.taken_until + 15 * MINUTE,
        )
        return {
            "status": task.status(),
            "runId": run["runId"],
            "workerGroup": group,
            "workerId": worker,
            "takenUntil": run["takenUntil"],
            "credentials": credentials,
        }

    def report_completed(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """`reportCompleted`"""
        return self._report(task_id, run_id, "completed", "completed", caller)

    def report_failed(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """`reportFailed`"""
        return self._report(task_id, run_id, "failed", "failed", caller)

    def report_exception(self, task_id: str, run_id: int, body: Json, caller: Caller | None = None) -> Json:
        """`reportException`: `worker-shutdown` and `intermittent-task` are retried while retries are left."""
        checks.EXCEPTION.check(body)
        return self._report(task_id, run_id, "exception", body["reason"], caller)

    def _report(self, task_id: str, run_id: int, state: str, reason: str, caller: Caller | None) -> Json:
        require_scopes(caller, f"queue:resolve-task:{task_id}/{run_id}")
        task = self.find(task_id)
        run = self._run(task, run_id)
        if (run["state"], run.get("reasonResolved")) != (state, reason):
            self._running(task_id, run_id)
            self.end_run(task, state, reason)
        return {"status": task.status()}

    def _run(self, task: Task, run_id: int) -> Json:
        if run_id >= len(task.runs):
            raise ApiError("ResourceNotFound", f"Run {run_id} not found on task `{task.task_id}`.")
        return task.runs[run_id]

    def _running(self, task_id: str, run_id: int) -> tuple[Task, Json]:
        """The task and its run, which must be the last, running, and before the deadline: 409 otherwise."""
        task = self.find(task_id)
        run = self._run(task, run_id)
        if run["state"] != "running":
            raise ApiError("RequestConflict", f"Run {run_id} on task `{task_id}` is resolved or not running.")
        if task.deadline < self.clock.now():
            raise ApiError("RequestConflict", f"Run {run_id} on task `{task_id}` is past its deadline.")
        return task, run
