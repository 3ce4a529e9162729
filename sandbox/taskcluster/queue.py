"""Taskcluster's queue in memory: what createTask, claimWork and the others do, and what they refuse.

Follows the reference `queue/v1/api.json` and recordings of the real queue. All methods are plain and must be called on
one thread. `caller` is who asks; None is the program itself, which may do anything.

Where the real queue works through messages of its own (dependencies, deadlines, claims), this one acts at once, or in
`tick`.
"""

import asyncio
import heapq
import re
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Auth, Caller, require
from sandbox.taskcluster.clock import HOUR, MINUTE, Clock, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scopes import Expression

QUEUE_CLIENT = "static/taskcluster/queue"
"""The client that signs the credentials of claimed tasks."""

CLAIM_TIME = 20 * MINUTE
MAX_RUNS = 50
EXCHANGES = "exchange/taskcluster-queue/v1/"

Json = dict[str, Any]


class Message(NamedTuple):
    """A Pulse message: `cc` are the further routing keys of the CC header."""

    exchange: str
    routing_key: str
    cc: tuple[str, ...]
    payload: Json


class Task:
    """A task and its runs. `unsatisfied` are the dependencies that it still waits for."""

    __slots__ = (
        "abandoned",
        "artifacts",
        "deadline",
        "definition",
        "dependents",
        "expires",
        "retries_left",
        "runs",
        "taken_until",
        "task_id",
        "ticket",
        "unsatisfied",
    )

    def __init__(self, task_id: str, definition: Json, deadline: int, expires: int) -> None:
        self.task_id = task_id
        self.definition = definition
        self.deadline = deadline
        self.expires = expires
        self.retries_left: int = definition["retries"]
        self.runs: list[Json] = []
        self.unsatisfied: set[str] = set()
        self.dependents: list[str] = []
        self.artifacts: dict[int, dict[str, Any]] = {}
        self.taken_until = 0
        self.ticket = 0
        self.abandoned = False

    @property
    def state(self) -> str:
        """The state of the latest run, or `unscheduled`."""
        return self.runs[-1]["state"] if self.runs else "unscheduled"

    @property
    def resolved(self) -> bool:
        """Whether the task has come to an end (a rerun can still begin it anew)."""
        return self.state in ("completed", "failed", "exception")

    def status(self) -> Json:
        """The task status structure (`task-status.json`): a copy that stays as it is."""
        task = self.definition
        return {
            "taskId": self.task_id,
            "provisionerId": task["provisionerId"],
            "workerType": task["workerType"],
            "taskQueueId": task["taskQueueId"],
            "schedulerId": task["schedulerId"],
            "projectId": task["projectId"],
            "taskGroupId": task["taskGroupId"],
            "priority": task["priority"],
            "deadline": task["deadline"],
            "expires": task["expires"],
            "retriesLeft": self.retries_left,
            "state": self.state,
            "runs": [run.copy() for run in self.runs],
        }


class Group:
    """A task group; `task_ids` is sorted, so that pages come in an order that has nothing to do with creation."""

    __slots__ = ("expires", "group_id", "scheduler_id", "sealed", "task_ids", "unresolved")

    def __init__(self, group_id: str, scheduler_id: str) -> None:
        self.group_id = group_id
        self.scheduler_id = scheduler_id
        self.expires = 0
        self.sealed: int | None = None
        self.task_ids: list[str] = []
        self.unresolved = 0

    def describe(self) -> Json:
        """As `task-group-response.json` has it."""
        described = {"taskGroupId": self.group_id, "schedulerId": self.scheduler_id, "expires": iso(self.expires)}
        if self.sealed is not None:
            described["sealed"] = iso(self.sealed)
        return described


def creation_scopes(task: Json) -> Expression:
    """What `createTask` asks of its caller for a completed definition."""
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


class Queue:
    """All tasks, groups and pending work. `listeners` hear each message at once, in order."""

    def __init__(self, clock: Clock, auth: Auth) -> None:
        self.clock = clock
        self.auth = auth
        self.listeners: list[Callable[[Message], None]] = []
        self.tasks: dict[str, Task] = {}
        self.groups: dict[str, Group] = {}
        self.pending_counts: dict[str, int] = defaultdict(int)
        self.claimed_counts: dict[str, int] = defaultdict(int)
        self._pending: dict[str, list[tuple[int, int, Task]]] = defaultdict(list)
        self._timers: list[tuple[int, int, str, Task]] = []
        self._serial = 0
        self._arrival = asyncio.Event()

    def clear(self) -> None:
        """Forget everything."""
        self.tasks.clear()
        self.groups.clear()
        self.pending_counts.clear()
        self.claimed_counts.clear()
        self._pending.clear()
        self._timers.clear()

    # --- reading ---

    def find(self, task_id: str) -> Task:
        """The task, or the 404 for it."""
        task = self.tasks.get(task_id)
        if task is None:
            raise ApiError(
                "ResourceNotFound", f"`{task_id}` does not correspond to a task that exists.\nAre you sure this exists?"
            )
        return task

    def group(self, group_id: str) -> Group:
        """The group, or the 404 for it."""
        group = self.groups.get(group_id)
        if group is None:
            raise ApiError("ResourceNotFound", f"No task-group with taskGroupId: `{group_id}`")
        return group

    def task(self, task_id: str, caller: Caller | None = None) -> Json:
        """`task`: the definition, completed."""
        _require(caller, f"queue:get-task:{task_id}")
        return dict(self.find(task_id).definition)

    def status(self, task_id: str, caller: Caller | None = None) -> Json:
        """`status`"""
        _require(caller, f"queue:status:{task_id}")
        return {"status": self.find(task_id).status()}

    def get_tasks(
        self, body: Json, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """`tasks`: the definitions of many; ids without a task are left out."""
        found, rest = self._many(body, "queue:get-task", caller, token, limit)
        return {"tasks": [{"taskId": task.task_id, "task": task.definition} for task in found], **rest}

    def statuses(
        self, body: Json, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """`statuses`: those of many; ids without a task are left out."""
        found, rest = self._many(body, "queue:status", caller, token, limit)
        return {"statuses": [{"taskId": task.task_id, "status": task.status()} for task in found], **rest}

    def _many(
        self, body: Json, scope: str, caller: Caller | None, token: str | None, limit: str | None
    ) -> tuple[list[Task], Json]:
        checks.TASKS.check(body)
        task_ids = sorted(set(body.get("taskIds", ())))
        _require(caller, {"AllOf": [f"{scope}:{task_id}" for task_id in task_ids]})
        page, rest = paged(task_ids, token, limit)
        return [self.tasks[task_id] for task_id in page if task_id in self.tasks], rest

    def list_task_group(
        self, group_id: str, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """`listTaskGroup`, a page."""
        _require(caller, f"queue:list-task-group:{group_id}")
        group = self.group(group_id)
        page, rest = paged(group.task_ids, token, limit)
        return {**group.describe(), "tasks": self._with_status(page), **rest}

    def list_dependent_tasks(
        self, task_id: str, caller: Caller | None = None, token: str | None = None, limit: str | None = None
    ) -> Json:
        """`listDependentTasks`, a page; dependents of every group."""
        _require(caller, f"queue:list-dependent-tasks:{task_id}")
        page, rest = paged(self.find(task_id).dependents, token, limit)
        return {"taskId": task_id, "tasks": self._with_status(page), **rest}

    def _with_status(self, task_ids: Iterable[str]) -> list[Json]:
        tasks = (self.tasks[task_id] for task_id in task_ids)
        return [{"status": task.status(), "task": task.definition} for task in tasks]

    def get_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """`getTaskGroup`"""
        _require(caller, f"queue:list-task-group:{group_id}")
        return self.group(group_id).describe()

    def task_queue_counts(self, queue_id: str, caller: Caller | None = None) -> Json:
        """`taskQueueCounts`"""
        _require(caller, {"AllOf": [f"queue:pending-count:{queue_id}", f"queue:claimed-count:{queue_id}"]})
        provisioner, worker_type = queue_id.split("/")
        return {
            "provisionerId": provisioner,
            "workerType": worker_type,
            "taskQueueId": queue_id,
            "pendingTasks": self.pending_counts.get(queue_id, 0),
            "claimedTasks": self.claimed_counts.get(queue_id, 0),
        }

    def pending_tasks(self, queue_id: str, caller: Caller | None = None) -> Json:
        """`pendingTasks`"""
        _require(caller, f"queue:pending-count:{queue_id}")
        counts = self.task_queue_counts(queue_id)
        del counts["claimedTasks"]
        return counts

    # --- creating ---

    def create_task(self, task_id: str, definition: Json, caller: Caller | None = None, *, crash: bool = False) -> Json:
        """`createTask`.

        With `crash` the task is stored and nothing more, as when the queue dies in the middle: it stays unscheduled
        until `scheduleTask`, and no message tells of it.
        """
        checks.CREATE_TASK.check(definition)
        now = self.clock.now()
        wanted = checks.complete(task_id, definition, now)
        _require(caller, creation_scopes(wanted))
        task = Task(task_id, wanted, _moment(wanted["deadline"]), _moment(wanted["expires"]))
        group = self._enter_group(task)
        existing = self.tasks.get(task_id)
        if existing is not None:
            return self._repeat(existing, wanted)
        checks.check_storable(wanted)
        self._track_dependencies(task)
        self.tasks[task_id] = task
        insort(group.task_ids, task_id)
        group.unresolved += 1
        self._timer(task.deadline, "deadline", task)
        self._timer(task.expires, "expires", task)
        if crash:
            task.abandoned = True
            return {"status": task.status()}
        self._publish_defined(task)
        if not task.unsatisfied:
            self._add_run(task, "scheduled")
        return {"status": task.status()}

    def _enter_group(self, task: Task) -> Group:
        """The group of a new task, which it may have to begin; 409 when it is closed to the task."""
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

    def _repeat(self, existing: Task, wanted: Json) -> Json:
        """The same request again is the same answer, and its messages again; any other body is a conflict."""
        if existing.definition != wanted:
            differing = sorted(
                key
                for key in existing.definition.keys() | wanted.keys()
                if existing.definition.get(key) != wanted.get(key)
            )
            raise ApiError(
                "RequestConflict",
                f"taskId {existing.task_id} already used by another task. "
                "This could be the result of faulty idempotency!\n"
                f"The definitions differ in: {', '.join(differing)}",
            )
        if not existing.abandoned:
            self._publish_defined(existing)
            if existing.state == "pending" and len(existing.runs) == 1:
                self._publish("task-pending", existing, existing.runs[0])
        return {"status": existing.status()}

    def _track_dependencies(self, task: Task) -> None:
        """Wait for the dependencies that are not satisfied; 400 when one is missing, or expires before the deadline."""
        missing, expiring = [], []
        any_end = task.definition["requires"] == "all-resolved"
        for task_id in task.definition["dependencies"]:
            if task_id == task.task_id:
                task.unsatisfied.add(task_id)  # waits for itself, until it is scheduled by hand
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

    # --- changing ---

    def schedule_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """`scheduleTask`: whatever its dependencies; nothing changes for a task that has a run."""
        task = self._find_for(task_id, "schedule", caller)
        if not task.runs:
            task.abandoned = False
            self._add_run(task, "scheduled")
        return {"status": task.status()}

    def rerun_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """`rerunTask`: a new run of a resolved task."""
        task = self._find_for(task_id, "rerun", caller)
        if task.state in ("pending", "running"):
            return {"status": task.status()}
        if len(task.runs) >= MAX_RUNS:
            raise ApiError("RequestConflict", f"Maximum number of runs reached: task {task_id} has {MAX_RUNS} runs.")
        if task.runs:
            self.groups[task.definition["taskGroupId"]].unresolved += 1
        task.abandoned = False
        task.retries_left = min(task.definition["retries"], MAX_RUNS - len(task.runs) - 1)
        self._add_run(task, "rerun")
        return {"status": task.status()}

    def cancel_task(self, task_id: str, caller: Caller | None = None) -> Json:
        """`cancelTask`: nothing changes for a resolved task."""
        task = self._find_for(task_id, "cancel", caller)
        self._cancel(task)
        return {"status": task.status()}

    def _find_for(self, task_id: str, verb: str, caller: Caller | None) -> Task:
        """The task that somebody may schedule, rerun or cancel; 409 past its deadline, resolved or not."""
        task = self.find(task_id)
        definition = task.definition
        scheduler = f"{definition['schedulerId']}/{definition['taskGroupId']}"
        _require(
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
        self._end(task, "exception", "canceled")
        return True

    def seal_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """`sealTaskGroup`: for good; again, nothing changes."""
        group = self.group(group_id)
        _require(caller, f"queue:seal-task-group:{group.scheduler_id}/{group_id}")
        if group.sealed is None:
            group.sealed = self.clock.now()
            self._publish_group("task-group-sealed", group)
        return group.describe()

    def cancel_task_group(self, group_id: str, caller: Caller | None = None) -> Json:
        """`cancelTaskGroup`: all that is not resolved; 409 unless the group is sealed."""
        group = self.group(group_id)
        _require(caller, f"queue:cancel-task-group:{group.scheduler_id}/{group_id}")
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
        """`changeTaskPriority`: in the definition too, so that a repeated createTask is a conflict afterwards."""
        checks.CHANGE_PRIORITY.check(body)
        task = self.find(task_id)
        _require(
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
        """`changeTaskGroupPriority`: of all that is not resolved."""
        checks.CHANGE_PRIORITY.check(body)
        group = self.group(group_id)
        _require(caller, f"queue:change-task-group-priority:{group.scheduler_id}/{group_id}")
        priority = body["newPriority"]
        changed = []
        for task_id in group.task_ids:
            if not self.tasks[task_id].resolved and self._change_priority(self.tasks[task_id], priority):
                changed.append(task_id)
        summary = {"taskGroupId": group_id, "schedulerId": group.scheduler_id, "newPriority": priority}
        summary["tasksAffected"] = len(changed)
        self._tell(
            "task-group-priority-changed", f"primary.{group_id}.{group.scheduler_id}._", (), {**summary, "version": 1}
        )
        return {**summary, "taskIds": changed}

    def _change_priority(self, task: Task, priority: str) -> bool:
        old = task.definition["priority"]
        if old == priority:
            return False
        task.definition = {**task.definition, "priority": priority}
        if task.state == "pending":
            self._line_up(task)
        if self.listeners:
            payload = {"status": task.status(), "oldPriority": old, "newPriority": priority, "version": 1}
            self._tell("task-priority-changed", _routing_key(task, None), _cc(task), payload)
        return True

    # --- working ---

    async def arrival(self, seconds: float) -> bool:
        """Wait until some task becomes pending; False when none has after that time."""
        try:
            await asyncio.wait_for(self._arrival.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def queues_with_work(self) -> list[str]:
        """Ids of the task queues that have pending tasks."""
        return [queue_id for queue_id, count in self.pending_counts.items() if count]

    def claim_work(self, queue_id: str, body: Json, caller: Caller | None = None) -> Json:
        """`claimWork`, without its wait: the most urgent pending tasks, the oldest first."""
        checks.CLAIM_WORK.check(body)
        group, worker = body["workerGroup"], body["workerId"]
        _require(caller, {"AllOf": [f"queue:claim-work:{queue_id}", f"queue:worker-id:{group}/{worker}"]})
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
        _require(caller, {"AllOf": [f"queue:claim-task:{queue_id}", f"queue:worker-id:{group}/{worker}"]})
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
        self._leave_line(task)
        self.claimed_counts[task.definition["taskQueueId"]] += 1
        run.update(state="running", workerGroup=group, workerId=worker, takenUntil="", started=iso(now))
        self._take(task, run, now)
        self._publish("task-running", task, run, takenUntil=run["takenUntil"].replace("Z", "+00:00"))
        return {**self._hold(task, run), "task": task.definition}

    def reclaim_task(self, task_id: str, run_id: int, caller: Caller | None = None) -> Json:
        """`reclaimTask`: hold on to a run for another 20 minutes."""
        _require(caller, f"queue:reclaim-task:{task_id}/{run_id}")
        task, run = self._running(task_id, run_id)
        self._take(task, run, self.clock.now())
        return self._hold(task, run)

    def _take(self, task: Task, run: Json, now: int) -> None:
        task.taken_until = now + CLAIM_TIME
        run["takenUntil"] = iso(task.taken_until)
        self._timer(task.taken_until, "claim", task)

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
        _require(caller, f"queue:resolve-task:{task_id}/{run_id}")
        task = self.find(task_id)
        run = self._run(task, run_id)
        if (run["state"], run.get("reasonResolved")) != (state, reason):
            self._running(task_id, run_id)
            self._end(task, state, reason)
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

    # --- time ---

    def tick(self) -> None:
        """Resolve what is past its deadline, retry what a worker has let go of, forget what has expired."""
        now = self.clock.now()
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, task = heapq.heappop(self._timers)
            if kind == "expires":
                self._forget(task)
            elif kind == "deadline" and not task.resolved:
                self._end(task, "exception", "deadline-exceeded")
            elif kind == "claim" and task.state == "running" and task.taken_until <= now:
                self._end(task, "exception", "claim-expired")

    def _timer(self, moment: int, kind: str, task: Task) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (moment, self._serial, kind, task))

    def _forget(self, task: Task) -> None:
        del self.tasks[task.task_id]
        self._leave_line(task)
        for dependency in {*task.definition["dependencies"]} & self.tasks.keys():
            _discard(self.tasks[dependency].dependents, task.task_id)
        group = self.groups[task.definition["taskGroupId"]]
        _discard(group.task_ids, task.task_id)
        if not task.resolved:
            group.unresolved -= 1
        if not group.task_ids:
            del self.groups[group.group_id]

    # --- runs ---

    def _add_run(self, task: Task, reason: str) -> None:
        now = iso(self.clock.now())
        run = {"runId": len(task.runs), "state": "pending", "reasonCreated": reason, "scheduled": now}
        task.runs.append(run)
        self._line_up(task)
        self._publish("task-pending", task, run)

    def _line_up(self, task: Task) -> None:
        """Put a pending task in the line of its queue, anew when its priority changed."""
        queue_id = task.definition["taskQueueId"]
        if not task.ticket:
            self.pending_counts[queue_id] += 1
        self._serial += 1
        task.ticket = self._serial
        rank = checks.PRIORITIES.index(task.definition["priority"])
        heapq.heappush(self._pending[queue_id], (rank, task.ticket, task))
        self._arrival.set()
        self._arrival = asyncio.Event()

    def _leave_line(self, task: Task) -> None:
        """The entry in the line stays behind; without its ticket nobody claims it."""
        if task.ticket:
            task.ticket = 0
            self.pending_counts[task.definition["taskQueueId"]] -= 1

    def _end(self, task: Task, state: str, reason: str) -> None:
        """Resolve the latest run, making one if there is none; retry if the reason asks for it and retries are left."""
        now = iso(self.clock.now())
        if not task.runs:
            task.runs.append(
                {"runId": 0, "state": "exception", "reasonCreated": "exception", "reasonResolved": reason}
                | {"scheduled": now, "resolved": now}
            )
            task.abandoned = False
        run = task.runs[-1]
        if run["state"] == "running":
            self.claimed_counts[task.definition["taskQueueId"]] -= 1
        self._leave_line(task)
        run.update(state=state, reasonResolved=reason, resolved=now)
        if reason in checks.RETRIED_REASONS and task.retries_left > 0:
            self._retry(task, run, checks.RETRIED_REASONS[reason], now)
            return
        self._publish(f"task-{state}", task, run)
        self._satisfy_dependents(task)
        group = self.groups[task.definition["taskGroupId"]]
        group.unresolved -= 1
        if not group.unresolved:
            self._publish_group("task-group-resolved", group)

    def _retry(self, task: Task, ended: Json, reason: str, now: str) -> None:
        """The message of the exception shows the next run already, as recorded of the real queue."""
        task.retries_left -= 1
        run = {"runId": len(task.runs), "state": "pending", "reasonCreated": reason, "scheduled": now}
        task.runs.append(run)
        self._publish("task-exception", task, ended)
        self._line_up(task)
        self._publish("task-pending", task, run)

    def _satisfy_dependents(self, task: Task) -> None:
        completed = task.state == "completed"
        now = self.clock.now()
        for task_id in tuple(task.dependents):
            dependent = self.tasks[task_id]
            if not completed and dependent.definition["requires"] != "all-resolved":
                continue
            dependent.unsatisfied.discard(task.task_id)
            waits = dependent.unsatisfied or dependent.runs or dependent.abandoned
            if not waits and dependent.deadline >= now:
                self._add_run(dependent, "scheduled")

    # --- messages ---

    def _publish_defined(self, task: Task) -> None:
        if self.listeners:
            status = {**task.status(), "state": "unscheduled", "runs": []}
            payload = {"status": status, "task": {"tags": task.definition["tags"]}, "version": 1}
            self._tell("task-defined", _routing_key(task, None), _cc(task), payload)

    def _publish(self, exchange: str, task: Task, run: Json, **more: str) -> None:
        if not self.listeners:
            return
        payload = {
            "status": task.status(),
            "runId": run["runId"],
            "task": {"tags": task.definition["tags"]},
            **more,
            "version": 1,
        }
        if "workerId" in run:
            payload.update(workerGroup=run["workerGroup"], workerId=run["workerId"])
        self._tell(exchange, _routing_key(task, run), _cc(task), payload)

    def _publish_group(self, exchange: str, group: Group) -> None:
        key = f"primary.{group.group_id}.{group.scheduler_id}._"
        self._tell(exchange, key, (), {**group.describe(), "version": 1})

    def _tell(self, exchange: str, routing_key: str, cc: tuple[str, ...], payload: Json) -> None:
        message = Message(EXCHANGES + exchange, routing_key, cc, payload)
        for listener in self.listeners:
            listener(message)


def paged(ids: list[str], token: str | None, limit: str | None) -> tuple[list[str], Json]:
    """The page of sorted ids that follows the token, and `{continuationToken}` when there may be more."""
    size = checks.page_size(limit)
    start = 0 if token is None else bisect_right(ids, _untoken(token))
    page = ids[start : start + size]
    more = start + size < len(ids)
    return page, {"continuationToken": _TOKEN + page[-1].encode().hex()} if more else {}


_TOKEN = "v1-"
_TOKEN_FORM = re.compile(r"v1-((?:[0-9a-f]{2})+)")


def _untoken(token: str) -> str:
    found = _TOKEN_FORM.fullmatch(token)
    if found is None:
        raise ApiError(
            "InvalidRequestArguments",
            f'Query-string parameter: "continuationToken" given as "{token}" must match regular expression: '
            f'"/{_TOKEN_FORM.pattern}/"',
        )
    return bytes.fromhex(found[1]).decode("utf-8", "replace")


def _require(caller: Caller | None, expression: Expression) -> None:
    if caller is not None:
        require(caller, expression)


def _moment(text: str) -> int:
    moment = parse(text)
    assert moment is not None  # complete() wrote it
    return moment


def _discard(ids: list[str], task_id: str) -> None:
    index = bisect_left(ids, task_id)
    if index < len(ids) and ids[index] == task_id:
        del ids[index]


def _cc(task: Task) -> tuple[str, ...]:
    return tuple(f"route.{route}" for route in task.definition["routes"])


def _routing_key(task: Task, run: Json | None) -> str:
    """`primary.` and the parts of the key; `_` stands for what there is not."""
    definition = task.definition
    run_id = "_" if run is None else run["runId"]
    worker = "_._" if run is None or "workerId" not in run else f"{run['workerGroup']}.{run['workerId']}"
    return (
        f"primary.{task.task_id}.{run_id}.{worker}.{definition['provisionerId']}.{definition['workerType']}"
        f".{definition['schedulerId']}.{definition['taskGroupId']}._"
    )
