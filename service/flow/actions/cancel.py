"""The action `cancel`: fetch the task, then call `queue.cancelTask` with the scope for exactly this task."""

import structlog

from service.clients.taskcluster import Status, validate_status
from service.clock import now
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError
from service.flow.tasks.action_kinds import ActionKind, Plan, register
from service.flow.tasks.status import RESOLVED, exact_scope, was_cancelled
from service.flow.tasks.subject import ActionFailedError, Subject, fetch_subject
from service.services import Services
from service.store.models import Action, State

log = structlog.get_logger()


async def run(services: Services, lease: Lease[Action]) -> None:
    """Cancel the task, unless it has ended already."""
    action = lease.item
    subject = await fetch_subject(services, action.project, action.task)
    nothing = nothing_to_do(subject)
    if nothing is not None:
        # an earlier attempt may have cancelled it without recording that
        cancelled = action.planned_at is not None and was_cancelled(subject.status)
        await lease.finish(State.DONE if cancelled else State.NOTHING_TO_DO, None if cancelled else nothing)
        return
    if action.planned_at is None:
        await lease.commit(planned_at=now())
    try:
        status = await services.queue.cancel_task(action.task, exact_scope("cancel-task", subject.status))
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(refusal_text(subject.name, subject.status, refusal)) from None
    subject.status = validate_status(status)
    nothing = nothing_to_do(subject)
    if not was_cancelled(subject.status) and nothing is not None:  # it ended just before
        await lease.finish(State.NOTHING_TO_DO, nothing)
        return
    await lease.finish(State.DONE)
    log.info("task-cancelled", task_id=action.task_id, project=action.project, requester=action.requester)


async def plan(services: Services, action: Action) -> Plan:
    """Return a plan that cancels the task, or the reason why there is nothing to cancel."""
    return Plan(nothing_to_do=nothing_to_do(await fetch_subject(services, action.project, action.task)))


def nothing_to_do(subject: Subject) -> str | None:
    """Return the reason why there is nothing to cancel, None if there is something."""
    state = subject.status["state"]
    return f"task {subject.status['taskId']} ({subject.name}) is already {state}" if state in RESOLVED else None


def refusal_text(name: str, status: Status, refusal: PermanentUpstreamError) -> str:
    """Return why Taskcluster does not cancel a task, and what would help."""
    task = f"task {status['taskId']} ({name})"
    scope = exact_scope("cancel-task", status)
    if refusal.status == 409:
        return f"{task} is past its deadline, {status['deadline']}, so it can no longer be cancelled"
    if refusal.status in {401, 403}:
        return f"Taskcluster does not let this service cancel {task}: its client needs the scope {scope}"
    return f"Taskcluster refuses to cancel {task} with {refusal.status}: {refusal}"


register(ActionKind("cancel", "Cancel a task that has not ended.", run, plan, replaceable=True))
