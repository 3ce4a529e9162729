"""A cancel: the task as it stands, then `queue.cancelTask` with the one scope for the one task."""

import structlog

from service.clients.taskcluster import validate_status
from service.clock import now
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError
from service.flow.actions.kinds import ActionKind, Plan, register
from service.flow.actions.subject import ActionFailedError, Subject, subject_of
from service.flow.tasks.status import RESOLVED, exact_scope, was_cancelled
from service.services import Services
from service.store.models import Action, State

log = structlog.get_logger()


async def run(services: Services, lease: Lease[Action]) -> None:
    """Cancel the task, unless it has ended already."""
    action = lease.item
    subject = await subject_of(services, action.project, action.task_id)
    nothing = nothing_to_do(subject)
    if nothing is not None:
        # what we began and could not write down is done, whoever asks
        ours = action.planned_at is not None and was_cancelled(subject.status)
        await lease.finish(State.DONE if ours else State.NOTHING_TO_DO, None if ours else nothing)
        return
    if action.planned_at is None:
        await lease.commit(planned_at=now())
    try:
        after = await services.queue.cancel_task(action.task_id, exact_scope("cancel-task", subject.status))
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(_refusal_text(subject, refusal)) from None
    subject.status = validate_status(after)
    nothing = nothing_to_do(subject)
    if not was_cancelled(subject.status) and nothing is not None:  # it ended just before
        await lease.finish(State.NOTHING_TO_DO, nothing)
        return
    await lease.finish(State.DONE)
    log.info("task-cancelled", task_id=action.task_id, project=action.project, requester=action.requester)


async def plan(_services: Services, subject: Subject, _action: Action) -> Plan:
    """Return that the task would be cancelled, or why there is nothing to cancel."""
    return Plan(nothing_to_do=nothing_to_do(subject))


def nothing_to_do(subject: Subject) -> str | None:
    """Why there is nothing to cancel, None when there is."""
    state = subject.status["state"]
    return f"task {subject.status['taskId']} ({subject.name}) is {state} already" if state in RESOLVED else None


def _refusal_text(subject: Subject, refusal: PermanentUpstreamError) -> str:
    task = f"task {subject.status['taskId']} ({subject.name})"
    scope = exact_scope("cancel-task", subject.status)
    if refusal.status == 409:
        return f"{task} is past its deadline, {subject.status['deadline']}, and cannot be cancelled any more"
    if refusal.status in {401, 403}:
        return f"Taskcluster does not let this service cancel {task}: its client needs the scope {scope}"
    return f"Taskcluster refuses to cancel {task} with {refusal.status}: {refusal}"


register(ActionKind("cancel", "Cancel a task that has not ended.", run, plan))
