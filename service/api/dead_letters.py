"""Routes for dead letters: events that were not understood, and work that ran out of retries."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request
from sqlalchemy import LargeBinary, func
from sqlalchemy.orm import defer
from sqlmodel import select

from service.api.audit import record
from service.api.deps import After, LetterNumber, Limit, Reader, Reading, ServicesDep, Writer, Writing
from service.api.openapi import WRITES, problems
from service.api.paging import page_of_all
from service.api.pushes import refuse_deleted
from service.api.route import API, Route
from service.api.schemas.dead_letters import DeadLetterPage, DeadLetterRead, DeadLetterSummary, LetterKind
from service.auth import Caller
from service.engine import leases
from service.engine.registry import WORK
from service.errors import Problem
from service.store.database import Session
from service.store.models import AuditEvent, DeadLetter, Push, PushStep, Work, work_tables
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/dead-letters", tags=["dead letters"], route_class=Route)


MAX_PAYLOAD = 1024 * 1024
"""Bytes of a payload that are shown."""

# neither database reads a large value for its length
_SIZE = func.length(DeadLetter.payload)
_WITHOUT_PAYLOAD = defer(DeadLetter.payload, raiseload=True)  # type: ignore[arg-type]  # a column, of which mypy sees the value


def _summary(letter: DeadLetter, payload_bytes: int | None) -> DeadLetterSummary:
    return DeadLetterSummary(
        id=letter.id or 0,
        kind=letter.kind,
        subject=letter.subject,
        reason=letter.reason,
        since=letter.since,
        payload_bytes=payload_bytes,
    )


def _unknown(letter_id: int) -> Problem:
    detail = f"there is no dead letter {letter_id}: it may have been replayed or dropped"
    return Problem(404, "Unknown dead letter", f"{detail}. `tc-treeherder dead-letters list` lists them")


async def _find(session: Session, letter_id: int) -> DeadLetter:
    letter = await session.get(DeadLetter, letter_id, with_for_update=True) if 0 < letter_id < 2**31 else None
    if letter is None:
        raise _unknown(letter_id)
    return letter


@router.get("", operation_id="listDeadLetters", responses=problems())
async def list_dead_letters(
    session: Reading,
    _: Reader,
    kind: Annotated[LetterKind | None, Query(description="of this kind alone")] = None,
    limit: Limit = 50,
    after: After = None,
) -> DeadLetterPage:
    """List dead letters, the newest first, without their payloads."""
    query = select(DeadLetter, _SIZE).options(_WITHOUT_PAYLOAD)
    if kind is not None:
        query = query.where(DeadLetter.kind == kind.value)
    rows, following = await page_of_all(session, query, DeadLetter.id, limit, after, newest_first=True)
    return DeadLetterPage(items=[_summary(letter, size) for letter, size in rows], next=following)


@router.get("/{letter_id}", operation_id="getDeadLetter", responses=problems(404))
async def get_dead_letter(letter_id: LetterNumber, session: Reading, _: Reader) -> DeadLetterRead:
    """Return one dead letter, with its payload."""
    shown = func.substr(DeadLetter.payload, 1, MAX_PAYLOAD, type_=LargeBinary)
    query = select(DeadLetter, _SIZE, shown).options(_WITHOUT_PAYLOAD).where(DeadLetter.id == letter_id)
    row = (await session.exec(query)).first() if 0 < letter_id < 2**31 else None
    if row is None:
        raise _unknown(letter_id)
    letter, size, payload = row
    text = None if payload is None else payload.decode(errors="backslashreplace")
    return DeadLetterRead(**_summary(letter, size).model_dump(), payload=text)


@router.post(
    "/{letter_id}/replay",
    status_code=202,
    operation_id="replayDeadLetter",
    responses=problems(404, 409, scope=WRITES),
)
async def replay_dead_letter(
    letter_id: LetterNumber, request: Request, services: ServicesDep, caller: Writer
) -> DeadLetterSummary:
    """Take in the event again, or make the buried work due again. The dead letter stays if that fails."""
    async with services.database.writing() as session:
        letter = await _find(session, letter_id)
        read = _summary(letter, None if letter.payload is None else len(letter.payload))
        if (buried := _buried_work(letter)) is not None:
            await _requeue(session, letter, *buried)
        elif letter.kind in WORK.replays:
            await WORK.replays[letter.kind](session, services, letter.payload or b"")
        else:
            raise Problem(
                409, "Cannot be replayed", f"this release knows no dead letter of kind {letter.kind}: drop it"
            )
        await session.delete(letter)
        _record(session, AuditEvent.DEAD_LETTER_REPLAYED, caller, letter)
    log.info("dead-letter-replayed", dead_letter=letter_id, by=caller.name)
    for topic in Topic:
        services.database.wakeups.wake(topic)
    return read


def _buried_work(letter: DeadLetter) -> tuple[type[Work], int] | None:
    """Return the table and the id of the work that was buried, None if the letter is of an event."""
    for model in work_tables():
        number = getattr(letter, model.letter_column) if model.letter_column else None
        if number is not None:
            return model, number
    return None


async def _requeue(session: Session, letter: DeadLetter, model: type[Work], work_id: int) -> None:
    buried = await session.get(model, work_id, with_for_update=True)
    if buried is None:
        raise Problem(409, "Cannot be replayed", f"the work of dead letter {letter.id} is gone: drop it")
    if isinstance(buried, PushStep):
        push = await session.get_one(Push, buried.push_id)
        await refuse_deleted(session, push.repository_id)
    leases.requeue([buried])


@router.delete("/{letter_id}", status_code=204, operation_id="dropDeadLetter", responses=problems(404, scope=WRITES))
async def drop_dead_letter(letter_id: LetterNumber, caller: Writer, session: Writing) -> None:
    """Delete a dead letter."""
    letter = await _find(session, letter_id)
    await session.delete(letter)
    _record(session, AuditEvent.DEAD_LETTER_DROPPED, caller, letter)
    log.info("dead-letter-dropped", dead_letter=letter_id, by=caller.name)


def _record(session: Session, event: AuditEvent, caller: Caller, letter: DeadLetter) -> None:
    record(session, event, caller, subject=letter.subject, dead_letter=letter.id, kind=letter.kind)
