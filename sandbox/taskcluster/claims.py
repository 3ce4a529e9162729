"""Answer the queue's methods for workers: claim a run, reclaim it, and report its end."""

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
    """Methods that claim runs and report on them, with their scopes."""

    def claim_work(self, queue_id: str, body: Json, caller: Caller | None = None) -> Json:
        """Answer `claimWork` without its wait: claim pending tasks, the highest priority first, then the oldest."""
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
        """Answer `claimTask`: claim one run; a repeated call of the same worker returns the same claim."""
        checks.CLAIM_TASK.check(body)
        group, worker = body["workerGroup"], body["workerId"]
        task = self.find(task_id)
        queue_id = task.definition["taskQueueId"]
        require_scopes(caller, {"AllOf": [f"queue:claim-task:{queue_id}", f"queue:worker-id:{group}/{worker}"]})
        run = self._run(task, run_id)
        if run["state"] == "running" and (run["workerGroup"], run["workerId"]) == (group, worker):
            return {**self._claim_answer(task, run), "task": task.definition}
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
        self._extend_claim(task, run, now)
        self.publish_run("task-running", task, run, takenUntil=run["takenUntil"].replace("Z", "+00:00"))
        return {**self._claim_answer(task, run), "task": task.definition}

    def reclaim_task(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """Answer `reclaimTask`: extend the claim of a run by 20 minutes."""
        require_scopes(caller, f"queue:reclaim-task:{task_id}/{run_id}")
        task, run = self._running(task_id, run_id)
        self._extend_claim(task, run, self.clock.now())
        return self._claim_answer(task, run)

    def _extend_claim(self, task: Task, run: Json, now: int) -> None:
        task.taken_until = now + CLAIM_TIME
        run["takenUntil"] = iso(task.taken_until)
        self.set_timer(task.taken_until, "claim", task)

    def _claim_answer(self, task: Task, run: Json) -> Json:
        """Return the answer to a claim, with credentials for this run and for the task's scopes."""
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
        """Answer `reportCompleted`."""
        return self._report(task_id, run_id, "completed", "completed", caller)

    def report_failed(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """Answer `reportFailed`."""
        return self._report(task_id, run_id, "failed", "failed", caller)

    def report_exception(self, task_id: str, run_id: int, body: Json, caller: Caller | None = None) -> Json:
        """Answer `reportException`: `worker-shutdown` and `intermittent-task` are retried while retries are left."""
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
        """Return the task and its run; raise the 409 unless the run is running and the deadline is ahead."""
        task = self.find(task_id)
        run = self._run(task, run_id)
        if run["state"] != "running":
            raise ApiError("RequestConflict", f"Run {run_id} on task `{task_id}` is resolved or not running.")
        if task.deadline < self.clock.now():
            raise ApiError("RequestConflict", f"Run {run_id} on task `{task_id}` is past its deadline.")
        return task, run
