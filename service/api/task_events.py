"""Ingress of task events: stored and answered at once, whatever state Treeherder and Taskcluster are in."""

from fastapi import APIRouter, Request

from events import PulseMessage, Verdict, Verdicts
from service import metrics
from service.api.deps import PartsDep
from service.api.openapi import PulseMessages, signed
from service.api.refused import dead_letters, keep, verdict
from service.api.route import SignedRoute
from service.api.signed import events_of, signed_json
from service.database import now
from service.door import reason_of, visible
from service.flow import report
from service.wakeups import Topic

router = APIRouter(prefix="/events", tags=["internal"], route_class=SignedRoute)


@router.post("/tasks", status_code=202, operation_id="takeTaskEvents", openapi_extra=signed(PulseMessages))
async def take_task_events(request: Request, parts: PartsDep) -> Verdicts:
    """Take messages of the queue's task exchanges. The answer goes out after the commit."""
    raw, body = await signed_json(request, parts.settings)
    events = events_of(body)
    at = now()
    verdicts: list[Verdict] = []
    rows: list[report.Row] = []
    refused: dict[int, str] = {}
    for number, event in enumerate(events):
        try:
            judged, noted = report.judge(parts.settings, PulseMessage.model_validate(event), at)
        except ValueError as error:  # pydantic's is one
            refused[number] = visible(reason_of(error))
            judged, noted = verdict(refused[number]), []
        verdicts.append(judged)
        rows += noted
    letters = dead_letters("task-event", raw, events, refused)
    if rows or letters:
        async with parts.database.writing() as session:
            await report.upsert(session, rows)
            await keep(session, letters)
    if rows:
        parts.database.wakeups.wake(Topic.REPORTS)
    metrics.event_in("task", verdicts)
    return Verdicts(verdicts=verdicts)
