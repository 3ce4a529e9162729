"""Routes that take events of listeners: they store, answer, and call no upstream."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError
from sqlalchemy import Connection

from service import metrics
from service.api.deps import ServicesDep
from service.api.ingest import parse_each, parse_letter, store_letters
from service.api.openapi import JobActionMessages, Pushes, signed
from service.api.route import API, SignedRoute
from service.api.signed import events_of, signed_json
from service.contract.events import Acknowledged, JobActionMessage, OversizedPush, PushEvent, Verdict, Verdicts
from service.contract.validation import reason_of
from service.engine.leases import Storing
from service.engine.registry import WORK
from service.engine.worker import Worker
from service.errors import Problem
from service.flow.actions import receive
from service.flow.pushes.push import Stored, store, store_new
from service.services import Services
from service.store.database import Session
from service.store.models import PushStep, Work
from service.store.wakeups import Topic

log = structlog.get_logger()
LOOP_ANSWERS = 30.0
"""Seconds that a thread waits for the event loop, which may have been ended meanwhile."""

router = APIRouter(prefix=f"{API}/events", tags=["internal"], route_class=SignedRoute)


@router.post("/pushes", status_code=202, operation_id="takePushes", openapi_extra=signed(Pushes))
async def take_pushes(request: Request, services: ServicesDep) -> Verdicts:
    """Take pushes of the pushlog. The answer goes out after the commit."""
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, services.settings)
    batch = parse_each("push-event", raw, events_of(body), push_event)
    letters = batch.letters()
    if letters:  # first: once good pushes that follow are stored, nobody lists these again
        async with services.database.writing() as session:
            await store_letters(session, letters)

    loop = asyncio.get_running_loop()
    storing = Storing()
    taken: list[Work] = []

    async def begin(new: Sequence[PushStep], owners: Sequence[Any]) -> None:
        taken[:] = worker.preclaim(new)
        chosen = {id(step) for step in taken}
        worker.begin(taken, [owner for step, owner in zip(new, owners, strict=True) if id(step) in chosen], storing)

    def claim(new: Sequence[PushStep], owners: Sequence[Any]) -> Callable[[], object]:
        begun = asyncio.run_coroutine_threadsafe(begin(new, owners), loop)  # which alone uses the worker
        return partial(begun.result, LOOP_ANSWERS)

    def write(connection: Connection) -> Stored:
        return store_new(connection, services.settings, list(batch.parsed.values()), claim)

    async def store_batch() -> list[Verdict]:
        try:
            verdicts, steps = await services.database.run(write)
        except BaseException:
            storing.end(succeeded=False)
            raise
        storing.end(succeeded=True)
        if len(taken) < len(steps):
            services.database.wakeups.wake(Topic.WORK)
        return verdicts

    # to cancel this request ends neither the transaction, which is in a thread, nor the work that was begun
    verdicts = await asyncio.shield(store_batch())
    await asyncio.sleep(0)  # the work goes on before the answer is written
    return _answer("push", batch.verdicts(verdicts))


@router.post("/job-actions", status_code=202, operation_id="takeJobActions", openapi_extra=signed(JobActionMessages))
async def take_job_actions(request: Request, services: ServicesDep) -> Verdicts:
    """Take buttons that were pressed in Treeherder, as Pulse delivered them, and what the broker has confirmed.

    The answer goes out after the commit.
    """
    worker: Worker = request.app.state.worker
    raw, body = await signed_json(request, services.settings)
    try:
        acknowledged = Acknowledged.model_validate(body).acknowledged
    except ValidationError as error:
        raise Problem(422, "Invalid request", reason_of(error)) from None
    batch = parse_each("job-action", raw, events_of(body), job_action)
    async with services.database.writing() as session:
        stored, actions = await receive.store(session, list(batch.parsed.values()), acknowledged)
        await store_letters(session, batch.letters())
        taken = worker.preclaim(actions)
    if len(taken) < len(actions):
        services.database.wakeups.wake(Topic.WORK)
    worker.begin(taken)
    for verdict in stored:
        if verdict.verdict == "rejected":
            log.warning("action-rejected", reason=verdict.reason)
    return _answer("job-action", batch.verdicts(stored))


def _answer(kind: str, verdicts: list[Verdict]) -> Verdicts:
    metrics.event_in(kind, verdicts)
    return Verdicts(verdicts=verdicts)


def job_action(event: Any) -> receive.Arrival:
    """Return the message and the press in it. Raises ValueError for an invalid one."""
    message = JobActionMessage.model_validate(event)
    return receive.Arrival(message, receive.parse_press(message))


def push_event(event: Any) -> PushEvent | OversizedPush:
    """Return the push. Raises ValidationError for an invalid one."""
    if isinstance(event, dict) and event.get("oversized") is True:
        return OversizedPush.model_validate(event)
    return PushEvent.model_validate(event)


async def _replay_push(session: Session, services: Services, payload: bytes) -> None:
    event = parse_letter(push_event, payload)
    if isinstance(event, OversizedPush):
        detail = "the push was too large to send and is not in this dead letter: see the pushlog, then drop it"
        raise Problem(409, "Cannot be replayed", detail)
    (verdict,), _ = await store(session, services.settings, [event], replayed=True)
    if verdict.verdict == "rejected" or verdict.reason is not None:
        raise Problem(409, "Cannot be replayed", verdict.reason or "it was rejected")


async def _replay_press(session: Session, _services: Services, payload: bytes) -> None:
    (verdict,), _ = await receive.store(session, [parse_letter(job_action, payload)])
    if verdict.verdict == "rejected":
        raise Problem(409, "Cannot be replayed", verdict.reason or "it was rejected")


WORK.add_replay("push-event", _replay_push)
WORK.add_replay("job-action", _replay_press)
