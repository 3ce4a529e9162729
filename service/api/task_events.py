"""Ingress of task events: stored and answered at once, whatever state Treeherder and Taskcluster are in."""

from typing import Any

import structlog
from fastapi import APIRouter, Request

from events import PulseMessage, Verdict, Verdicts
from service import metrics
from service.api.deps import PartsDep
from service.api.openapi import PulseMessages, signed
from service.api.route import SignedRoute
from service.api.signed import events_of, signed_json
from service.database import now
from service.door import originals, reason_of, visible
from service.flow import report
from service.models import DeadLetter

log = structlog.get_logger()
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
            verdict, noted = report.judge(parts.settings, PulseMessage.model_validate(event), at)
        except ValueError as error:  # pydantic's is one
            refused[number] = visible(reason_of(error))
            verdict, noted = Verdict(verdict="rejected", reason=f"{refused[number]}; kept as a dead letter"), []
        verdicts.append(verdict)
        rows += noted
    letters = []
    if refused:
        bytes_of = originals(raw, "events")
        letters = [
            DeadLetter(kind="task-event", subject=_subject(events[number]), reason=reason, payload=bytes_of[number])
            for number, reason in refused.items()
        ]
    if rows or letters:
        async with parts.database.writing() as session:
            await report.upsert(session, rows)
            session.add_all(letters)
    for letter in letters:
        log.warning("event-not-understood", subject=letter.subject, reason=letter.reason)
    if rows:
        request.app.state.reporter.wake()
    metrics.event_in("task", verdicts)
    return Verdicts(verdicts=verdicts)


def _subject(event: Any) -> str:
    if not isinstance(event, dict):
        return "an event that is no object"
    return f"{str(event.get('exchange'))[:100]}, {str(event.get('routing_key'))[:200]}"
