"""Keep the tasks and groups of the queue, and move their runs from state to state.

The real queue handles dependencies, deadlines and claims by messages to itself; this one acts at once, or in `tick`.
Scopes and requests are checked elsewhere.
"""

import asyncio
import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Auth
from sandbox.taskcluster.clock import Clock, iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.tasks import EXCHANGES, Group, Json, Message, Task, cc_keys, routing_key


class Scheduler:
    """All tasks, groups and pending work. `listeners` receive each message at once, in order."""

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

    def find(self, task_id: str) -> Task:
        """Return the task, or raise the 404."""
        task = self.tasks.get(task_id)
        if task is None:
            raise ApiError(
                "ResourceNotFound", f"`{task_id}` does not correspond to a task that exists.\nAre you sure this exists?"
            )
        return task

    def group(self, group_id: str) -> Group:
        """Return the group, or raise the 404."""
        group = self.groups.get(group_id)
        if group is None:
            raise ApiError("ResourceNotFound", f"No task-group with taskGroupId: `{group_id}`")
        return group

    async def arrival(self, seconds: float) -> bool:
        """Wait until a task becomes pending; return False if none has after that time."""
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 can lose the waiter's cancellation
                await self._arrival.wait()
        except TimeoutError:
            return False
        return True

    def queues_with_work(self) -> list[str]:
        """Return the ids of the task queues that have pending tasks."""
        return [queue_id for queue_id, count in self.pending_counts.items() if count]

    def tick(self) -> None:
        """Resolve tasks past their deadline, retry runs whose claim has expired, delete expired tasks."""
        now = self.clock.now()
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, task = heapq.heappop(self._timers)
            if kind == "expires":
                self._forget(task)
            elif kind == "deadline" and not task.resolved:
                self.end_run(task, "exception", "deadline-exceeded")
            elif kind == "claim" and task.state == "running" and task.taken_until <= now:
                self.end_run(task, "exception", "claim-expired")

    def set_timer(self, moment: int, kind: str, task: Task) -> None:
        """Add a timer of the kind `claim`, `deadline` or `expires`."""
        self._serial += 1
        heapq.heappush(self._timers, (moment, self._serial, kind, task))

    def _forget(self, task: Task) -> None:
        del self.tasks[task.task_id]
        self.dequeue(task)
        for dependency in {*task.definition["dependencies"]} & self.tasks.keys():
            _discard(self.tasks[dependency].dependents, task.task_id)
        group = self.groups[task.definition["taskGroupId"]]
        _discard(group.task_ids, task.task_id)
        if not task.resolved:
            group.unresolved -= 1
        if not group.task_ids:
            del self.groups[group.group_id]

    def add_run(self, task: Task, reason: str) -> None:
        """Add a pending run, enqueue the task and publish the message."""
        now = iso(self.clock.now())
        run = {"runId": len(task.runs), "state": "pending", "reasonCreated": reason, "scheduled": now}
        task.runs.append(run)
        self.enqueue(task)
        self.publish_run("task-pending", task, run)

    def enqueue(self, task: Task) -> None:
        """Put a pending task into its task queue, again after its priority changed."""
        queue_id = task.definition["taskQueueId"]
        if not task.ticket:
            self.pending_counts[queue_id] += 1
        self._serial += 1
        task.ticket = self._serial
        rank = checks.PRIORITIES.index(task.definition["priority"])
        heapq.heappush(self._pending[queue_id], (rank, task.ticket, task))
        self._arrival.set()
        self._arrival = asyncio.Event()

    def dequeue(self, task: Task) -> None:
        """Invalidate the task's entry in its task queue: claims skip an entry without the task's current ticket."""
        if task.ticket:
            task.ticket = 0
            self.pending_counts[task.definition["taskQueueId"]] -= 1

    def end_run(self, task: Task, state: str, reason: str) -> None:
        """Resolve the latest run, creating one if there is none; retry if the reason allows it and retries are left."""
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
        self.dequeue(task)
        run.update(state=state, reasonResolved=reason, resolved=now)
        if reason in checks.RETRIED_REASONS and task.retries_left > 0:
            self._retry(task, run, checks.RETRIED_REASONS[reason], now)
            return
        self.publish_run(f"task-{state}", task, run)
        self._satisfy_dependents(task)
        group = self.groups[task.definition["taskGroupId"]]
        group.unresolved -= 1
        if not group.unresolved:
            self.publish_group("task-group-resolved", group)

    def _retry(self, task: Task, ended: Json, reason: str, now: str) -> None:
        """Add the next run; the message of the exception contains it already, as recorded of the real queue."""
        task.retries_left -= 1
        run = {"runId": len(task.runs), "state": "pending", "reasonCreated": reason, "scheduled": now}
        task.runs.append(run)
        self.publish_run("task-exception", task, ended)
        self.enqueue(task)
        self.publish_run("task-pending", task, run)

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
                self.add_run(dependent, "scheduled")

    def publish_defined(self, task: Task) -> None:
        """Publish `task-defined`, with the status before any run."""
        if self.listeners:
            status = {**task.status(), "state": "unscheduled", "runs": []}
            payload = {"status": status, "task": {"tags": task.definition["tags"]}, "version": 1}
            self._emit("task-defined", routing_key(task, None), cc_keys(task), payload)

    def publish_run(self, exchange: str, task: Task, run: Json, **more: str) -> None:
        """Publish a message about a run."""
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
        self._emit(exchange, routing_key(task, run), cc_keys(task), payload)

    def publish_group(self, exchange: str, group: Group) -> None:
        """Publish a message about a task group."""
        key = f"primary.{group.group_id}.{group.scheduler_id}._"
        self._emit(exchange, key, (), {**group.describe(), "version": 1})

    def _emit(self, exchange: str, routing_key: str, cc: tuple[str, ...], payload: Json) -> None:
        message = Message(EXCHANGES + exchange, routing_key, cc, payload)
        for listener in self.listeners:
            listener(message)


def _discard(ids: list[str], task_id: str) -> None:
    index = bisect_left(ids, task_id)
    if index < len(ids) and ids[index] == task_id:
        del ids[index]
