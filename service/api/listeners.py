"""`/listeners`: the state of the queues that listeners read."""

import structlog
from fastapi import APIRouter, Request

from service.api.deps import ServicesDep
from service.api.openapi import signed
from service.api.route import API, SignedRoute
from service.api.signed import signed_model
from service.contract.events import QueueReport, QueueState
from service.flow.jobs import queues
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/listeners", tags=["internal"], route_class=SignedRoute)


@router.post("/report", operation_id="reportQueue", openapi_extra=signed(QueueReport))
async def report_queue(request: Request, services: ServicesDep) -> QueueState:
    """Take note that a queue is read, and of whether it was there: one that was deleted has lost what was sent."""
    report = await signed_model(request, services.settings, QueueReport)
    async with services.database.writing() as session:
        state = await queues.record_queue(session, report)
    if state.deleted:
        services.database.wakeups.wake(Topic.WORK)
        log.error(
            "queue-deleted", queue=report.queue, events=report.events, messages_lost_since=state.messages_lost_since
        )
    return state
