"""Cancel many tasks of a push at once, each with the one scope for this task."""

import asyncio
from collections.abc import Sequence

from service.clients.taskcluster import validate_status
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError, UpstreamError
from service.flow.actions.cancel import refusal_text
from service.flow.actions.push_tasks import PushTask
from service.flow.tasks.status import exact_scope
from service.services import Services
from service.store.models import Action

PART = 500
"""Tasks that are cancelled before others who wait have their turn."""


async def cancel_tasks(services: Services, lease: Lease[Action], tasks: Sequence[PushTask]) -> dict[str, str]:
    """Cancel tasks in this order, some at a time; return the reasons of refusals by task id.

    The status of each task is then that of the answer. Raises Unavailable after the calls under way have ended, and
    YieldedError between two parts: who continues finds the cancelled ones resolved.
    """
    refused: dict[str, str] = {}
    share = f"{lease.item.lane} {lease.item.share}"
    errors: list[UpstreamError] = []

    async def cancel(task: PushTask) -> None:
        async with services.connections.use(share):
            if errors:
                return
            try:
                with services.connections.watch():
                    answer = await services.queue.cancel_task(task.task_id, exact_scope("cancel-task", task.status))
                task.status = validate_status(answer)
            except PermanentUpstreamError as refusal:
                refused[task.task_id] = refusal_text(task.name, task.status, refusal)
            except UpstreamError as error:
                errors.append(error)

    for start in range(0, len(tasks), PART):
        if start:
            lease.give_way()
        await asyncio.gather(*(cancel(task) for task in tasks[start : start + PART]))
        if errors:
            raise errors[0]
    return refused
