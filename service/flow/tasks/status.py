"""The status of a task: read it, schedule a forgotten task, and name the scope for exactly one task."""

from typing import Any

import structlog

from service.clients.taskcluster import Definition, Queue, Status

log = structlog.get_logger()

RESOLVED = frozenset({"completed", "failed", "exception"})
"""States that a task never leaves by itself."""


def exact_scope(operation: str, status: Status) -> str:
    """Return the scope for an operation, such as `cancel-task`, on exactly this task."""
    return f"queue:{operation}:{status['schedulerId']}/{status['taskGroupId']}/{status['taskId']}"


def was_cancelled(status: Status) -> bool:
    """Return True if the task's latest run was cancelled."""
    runs = status["runs"]
    return bool(runs) and runs[-1].get("reasonResolved") == "canceled"


async def schedule_if_forgotten(queue: Queue, status: Status, definition: Definition) -> None:
    """Schedule a task that waits for nothing and was never scheduled: a crash inside `createTask` leaves such tasks.

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
