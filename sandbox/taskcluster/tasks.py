"""Define the tasks, the task groups and the messages of the stand-in for the queue."""

import base64
import uuid
from typing import Any, NamedTuple

from sandbox.taskcluster.clock import iso

EXCHANGES = "exchange/taskcluster-queue/v1/"

Json = dict[str, Any]


def new_slugid() -> str:
    """Return a new id for a task, or for anything else that has one of this form."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


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
        """Return the state of the latest run, or `unscheduled`."""
        return self.runs[-1]["state"] if self.runs else "unscheduled"

    @property
    def resolved(self) -> bool:
        """Return True if the task has ended; a rerun can start it again."""
        return self.state in ("completed", "failed", "exception")

    def status(self) -> Json:
        """Return a copy of the task status structure (`task-status.json`)."""
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
    """A task group; `task_ids` is sorted, so that the order of pages does not depend on the order of creation."""

    __slots__ = ("expires", "group_id", "scheduler_id", "sealed", "task_ids", "unresolved")

    def __init__(self, group_id: str, scheduler_id: str) -> None:
        self.group_id = group_id
        self.scheduler_id = scheduler_id
        self.expires = 0
        self.sealed: int | None = None
        self.task_ids: list[str] = []
        self.unresolved = 0

    def describe(self) -> Json:
        """Return the group in the form of `task-group-response.json`."""
        described = {"taskGroupId": self.group_id, "schedulerId": self.scheduler_id, "expires": iso(self.expires)}
        if self.sealed is not None:
            described["sealed"] = iso(self.sealed)
        return described


def cc_keys(task: Task) -> tuple[str, ...]:
    """Return the routing keys of the CC header: one for each route."""
    return tuple(f"route.{route}" for route in task.definition["routes"])


def routing_key(task: Task, run: Json | None) -> str:
    """Return the primary routing key; `_` stands for each part that is missing."""
    definition = task.definition
    run_id = "_" if run is None else run["runId"]
    worker = "_._" if run is None or "workerId" not in run else f"{run['workerGroup']}.{run['workerId']}"
    return (
        f"primary.{task.task_id}.{run_id}.{worker}.{definition['provisionerId']}.{definition['workerType']}"
        f".{definition['schedulerId']}.{definition['taskGroupId']}._"
    )
