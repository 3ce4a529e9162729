"""What a task's status says, and what is done with the one scope for the one task."""

from typing import Any

import structlog

from service.clients.taskcluster import Definition, Queue, Status

log = structlog.get_logger()

RESOLVED = frozenset({"completed", "failed", "exception"})
"""States in which a task stays."""


def exact_scope(what: str, status: Status) -> str:
    """The one scope for the one task."""
    return f"queue:{what}:{status['schedulerId']}/{status['taskGroupId']}/{status['taskId']}"


def was_cancelled(status: Status) -> bool:
    """Return True if the task's latest run was cancelled."""
    runs = status["runs"]
    return bool(runs) and runs[-1].get("reasonResolved") == "canceled"


async def schedule_if_forgotten(queue: Queue, status: Status, definition: Definition) -> None:
    """Schedule what a crash inside `createTask` left: a task that waits for nothing and was never scheduled.

    `definition` is that of the existing task: its own dependencies decide, whatever the plan says.
    """
    if status["state"] != "unscheduled" or not await _dependencies_met(queue, definition):
        return
    await queue.schedule_task(status["taskId"], exact_scope("schedule-task", status))
    log.info("task-scheduled", task_id=status["taskId"], why="it was created but never scheduled")


async def _dependencies_met(queue: Queue, definition: dict[str, Any]) -> bool:
    resolved = {"completed"} if definition["requires"] == "all-completed" else RESOLVED
    dependencies = definition["dependencies"]
    statuses = await queue.statuses(dependencies) if dependencies else {}
    return all(statuses.get(dependency, {}).get("state") in resolved for dependency in dependencies)
