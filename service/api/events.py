"""Ingress: it stores and answers, and calls nobody."""

from typing import Any

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError
from sqlmodel import col, select

from events import Acknowledged, Noted, OversizedPush, PulseMessage, PushEvent, Verdict, Verdicts
from service import metrics
from service.api.deps import PartsDep
from service.api.openapi import PulseMessages, Pushes, signed
from service.api.route import SignedRoute
from service.api.signed import events_of, signed_json
from service.database import Session
from service.door import NonsenseError, originals, reason_of
from service.errors import Problem
from service.flow import action
from service.flow.push import store
from service.models import DeadLetter
from service.worker import Worker

log = structlog.get_logger()
router = APIRouter(prefix="/events", tags=["internal"], route_class=SignedRoute)


@router.post("/pushes", status_code=202, operation_id="takePushes", openapi_extra=signed(Pushes))
async def take_pushes(request: Request, parts: PartsDep) -> Verdicts:
    """Take pushes of the pushlog. The answer goes out after the commit."""
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, parts.settings)
    events = events_of(body)
    understood: dict[int, PushEvent | OversizedPush] = {}
    refused: dict[int, str] = {}
    for number, event in enumerate(events):
        try:
            understood[number] = push_event(event)
        except ValidationError as error:
            refused[number] = reason_of(error)
    letters = []
    if refused:
        bytes_of = originals(raw, "events")
        letters = [
            DeadLetter(kind="push-event", subject=_subject(events[number]), reason=reason, payload=bytes_of[number])
            for number, reason in refused.items()
        ]
    async with parts.database.writing() as session:
        stored, steps = await store(session, parts.settings, list(understood.values()))
        letters = await _new(session, letters)
        session.add_all(letters)
        taken = worker.take(steps)
    for letter in letters:
        log.warning("event-not-understood", subject=letter.subject, reason=letter.reason)
    worker.begin(taken)
    verdicts = dict(zip(understood, stored, strict=True))
    answers = [
        verdicts.get(number) or Verdict(verdict="rejected", reason=f"{refused[number]}; kept as a dead letter")
        for number in range(len(events))
    ]
    metrics.event_in("push", answers)
    return Verdicts(verdicts=answers)


async def _new(session: Session, letters: list[DeadLetter]) -> list[DeadLetter]:
    """Those that are not kept yet: a listener lists the same bad push again at every poll, until the next one."""
    if not letters:
        return []
    subjects = {letter.subject for letter in letters}
    kept = set(await session.exec(select(DeadLetter.payload).where(col(DeadLetter.subject).in_(subjects))))
    new = []
    for letter in letters:
        if letter.payload not in kept:
            kept.add(letter.payload)
            new.append(letter)
    return new


@router.post("/job-actions", status_code=202, operation_id="takeJobActions", openapi_extra=signed(PulseMessages))
async def take_job_actions(request: Request, parts: PartsDep) -> Verdicts:
    """Take buttons that were pressed in Treeherder, as Pulse delivered them. The answer goes out after the commit."""
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, parts.settings)
    events = events_of(body)
    arrivals: dict[int, action.Arrival] = {}
    refused: dict[int, str] = {}
    for number, event in enumerate(events):
        try:
            arrivals[number] = job_action(event)
        except ValidationError as error:
            refused[number] = reason_of(error)
    bad = refused.keys() | {number for number, arrival in arrivals.items() if arrival.press is None}
    bytes_of = originals(raw, "events") if bad else []
    for number in bad - refused.keys():
        arrivals[number].payload = bytes_of[number]
    letters = [
        DeadLetter(kind="job-action", subject="an event that is no message", reason=reason, payload=bytes_of[number])
        for number, reason in refused.items()
    ]
    async with parts.database.writing() as session:
        stored, actions = await action.store(session, list(arrivals.values()), parts.settings.pulse.acknowledged_within)
        letters = await _new(session, letters)
        session.add_all(letters)
        taken = worker.take(actions)
    worker.begin(taken)
    verdicts = dict(zip(arrivals, stored, strict=True))
    for verdict in stored:
        if verdict.verdict == "rejected":
            log.warning("action-rejected", reason=verdict.reason)
    for letter in letters:
        log.warning("event-not-understood", subject=letter.subject, reason=letter.reason)
    answers = [
        verdicts.get(number) or Verdict(verdict="rejected", reason=f"{refused[number]}; kept as a dead letter")
        for number in range(len(events))
    ]
    metrics.event_in("job-action", answers)
    return Verdicts(verdicts=answers)


@router.post("/job-actions/acknowledged", operation_id="noteAcknowledgements", openapi_extra=signed(Acknowledged))
async def note_acknowledgements(request: Request, parts: PartsDep) -> Noted:
    """Take note of which messages the broker will not bring again."""
    _, body = await signed_json(request, parts.settings)
    try:
        told = Acknowledged.model_validate(body)
    except ValidationError as error:
        raise Problem(422, "Invalid request", reason_of(error)) from None
    async with parts.database.writing() as session:
        return Noted(actions=await action.acknowledged(session, told.deliveries))


def job_action(event: Any) -> action.Arrival:
    """A message, and what it says or why that cannot be understood. Raises ValidationError when it is no message."""
    message = PulseMessage.model_validate(event)
    try:
        return action.Arrival(message, action.pressed(message))
    except ValidationError as error:
        return action.Arrival(message, None, reason_of(error))
    except NonsenseError as error:
        return action.Arrival(message, None, f"the message is {error}")


def push_event(event: Any) -> PushEvent | OversizedPush:
    if isinstance(event, dict) and event.get("oversized") is True:
        return OversizedPush.model_validate(event)
    return PushEvent.model_validate(event)


def _subject(event: Any) -> str:
    if not isinstance(event, dict):
        return "an event that is no object"
    push = event.get("push")
    push_id = push.get("id") if isinstance(push, dict) else None
    return f"{str(event.get('repository'))[:50]}, push {str(push_id)[:20]}"
