"""Ingress: it stores and answers, and calls nobody."""

from typing import Any

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError

from service import metrics
from service.api.deps import ServicesDep
from service.api.openapi import JobActionMessages, Pushes, signed
from service.api.refused import dead_letters, keep, verdict
from service.api.route import SignedRoute
from service.api.signed import events_of, signed_json
from service.contract.events import Acknowledged, JobActionMessage, OversizedPush, PushEvent, Verdict, Verdicts
from service.engine.worker import Worker
from service.errors import Problem
from service.flow.actions import receive
from service.flow.pushes.push import Stored, store_new
from service.sanitize import escape_unstorable, reason_of
from service.store.database import SyncSession
from service.store.models import Work
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix="/events", tags=["internal"], route_class=SignedRoute)


@router.post("/pushes", status_code=202, operation_id="takePushes", openapi_extra=signed(Pushes))
async def take_pushes(request: Request, services: ServicesDep) -> Verdicts:
    """Take pushes of the pushlog. The answer goes out after the commit."""
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, services.settings)
    events = events_of(body)
    understood: dict[int, PushEvent | OversizedPush] = {}
    refused: dict[int, str] = {}
    for number, event in enumerate(events):
        try:
            understood[number] = push_event(event)
        except ValidationError as error:
            refused[number] = reason_of(error)
    letters = dead_letters("push-event", raw, events, refused)
    if letters:  # first: once good pushes that follow are stored, nobody lists these again
        async with services.database.writing() as session:
            await keep(session, letters)

    def write(session: SyncSession) -> tuple[Stored, list[Work]]:
        stored = store_new(session, services.settings, list(understood.values()))
        return stored, worker.preclaim(stored[1])

    (stored, steps, pushes), taken = await services.database.run_objects(write)
    if len(taken) < len(steps):
        services.database.wakeups.wake(Topic.WORK)
    worker.begin(taken, {step.id or 0: pushes[step.push_id] for step in steps})
    return _answer("push", len(events), dict(zip(understood, stored, strict=True)), refused)


@router.post("/job-actions", status_code=202, operation_id="takeJobActions", openapi_extra=signed(JobActionMessages))
async def take_job_actions(request: Request, services: ServicesDep) -> Verdicts:
    """Take buttons that were pressed in Treeherder, as Pulse delivered them, and what the broker has confirmed.

    The answer goes out after the commit.
    """
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, services.settings)
    events = events_of(body)
    try:
        acknowledged = Acknowledged.model_validate(body).acknowledged
    except ValidationError as error:
        raise Problem(422, "Invalid request", reason_of(error)) from None
    arrivals: dict[int, receive.Arrival] = {}
    refused: dict[int, str] = {}
    for number, event in enumerate(events):
        try:
            arrivals[number] = job_action(event)
        except ValueError as error:  # pydantic's is one
            refused[number] = escape_unstorable(reason_of(error))
    letters = dead_letters("job-action", raw, events, refused)
    async with services.database.writing() as session:
        stored, actions = await receive.store(session, list(arrivals.values()), acknowledged)
        await keep(session, letters)
        taken = worker.preclaim(actions)
    if len(taken) < len(actions):
        services.database.wakeups.wake(Topic.WORK)
    worker.begin(taken)
    for each in stored:
        if each.verdict == "rejected":
            log.warning("action-rejected", reason=each.reason)
    return _answer("job-action", len(events), dict(zip(arrivals, stored, strict=True)), refused)


def _answer(kind: str, events: int, stored: dict[int, Verdict], refused: dict[int, str]) -> Verdicts:
    answers = [stored.get(number) or verdict(refused[number]) for number in range(events)]
    metrics.event_in(kind, answers)
    return Verdicts(verdicts=answers)


def job_action(event: Any) -> receive.Arrival:
    """Return the message and what it says. Raises ValueError: not understood."""
    message = JobActionMessage.model_validate(event)
    return receive.Arrival(message, receive.parse_press(message))


def push_event(event: Any) -> PushEvent | OversizedPush:
    if isinstance(event, dict) and event.get("oversized") is True:
        return OversizedPush.model_validate(event)
    return PushEvent.model_validate(event)
