"""Ingress of task events: stored and answered at once, whatever state Treeherder and Taskcluster are in."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from service import metrics
from service.api.deps import ServicesDep
from service.api.ingest import parse_each, parse_letter, store_letters
from service.api.openapi import PulseMessages, signed
from service.api.route import API, SignedRoute
from service.api.signed import events_of, parsed, signed_body
from service.clock import now
from service.contract.events import MAX_EVENTS, Verdict, Verdicts
from service.engine.registry import WORK
from service.errors import Problem
from service.flow.jobs import events
from service.flow.jobs.events import TaskEvent
from service.sanitize import may_have_nul
from service.services import Services
from service.settings import Settings
from service.store.database import Session
from service.store.models import DeadLetter
from service.store.wakeups import Topic

router = APIRouter(prefix=f"{API}/events", tags=["internal"], route_class=SignedRoute)


class _Batch(BaseModel):
    """A request all of whose events are valid; it is parsed once, with the bodies of the messages."""

    events: Annotated[list[TaskEvent], Field(max_length=MAX_EVENTS)]


@dataclass
class _Judged:
    """The verdicts to answer, and the rows and dead letters to store."""

    verdicts: list[Verdict]
    rows: list[events.ReportRow]
    letters: list[DeadLetter]


@router.post("/tasks", status_code=202, operation_id="takeTaskEvents", openapi_extra=signed(PulseMessages))
async def take_task_events(request: Request, services: ServicesDep) -> Verdicts:
    """Take messages of the queue's task exchanges. The answer goes out after the commit."""
    judged = await signed_body(request, services.settings, lambda raw: _judge(services.settings, raw))
    if judged.rows or judged.letters:
        async with services.database.writing() as session:
            await events.upsert(session, judged.rows, now())
            await store_letters(session, judged.letters)
    if judged.rows:
        services.database.wakeups.wake(Topic.REPORTS)
    metrics.event_in("task", judged.verdicts)
    return Verdicts.model_construct(verdicts=judged.verdicts)


def _judge(settings: Settings, raw: bytes) -> _Judged:
    """Judge each event of a request. Raises a 400, 413 or 422 for a body that is no request."""
    if (batch := _parse_all(raw)) is None:
        return _judge_one_by_one(settings, raw)
    verdicts: list[Verdict] = []
    rows: list[events.ReportRow] = []
    for event in batch.events:
        judged, noted = events.judge_event(settings, event)
        verdicts.append(judged)
        rows += noted
    return _Judged(verdicts, rows, [])


def _parse_all(raw: bytes) -> _Batch | None:
    """Return the events of a request, or None if one of them cannot be parsed."""
    if may_have_nul(raw):
        return None
    try:
        return _Batch.model_validate_json(raw)
    except ValidationError:
        return None


def _judge_one_by_one(settings: Settings, raw: bytes) -> _Judged:
    batch = parse_each("task-event", raw, events_of(parsed(raw)), TaskEvent.model_validate)
    judged = [events.judge_event(settings, event) for event in batch.parsed.values()]
    rows = [row for _, of_event in judged for row in of_event]
    return _Judged(batch.verdicts(verdict for verdict, _ in judged), rows, batch.letters())


async def _replay(session: Session, services: Services, payload: bytes) -> None:
    verdict, rows = events.judge_event(services.settings, parse_letter(TaskEvent.model_validate, payload))
    if verdict.verdict == "rejected":
        raise Problem(409, "Cannot be replayed", verdict.reason or "it was rejected")
    await events.upsert(session, rows, now())


WORK.add_replay("task-event", _replay)
