"""Read what people watch beside pushes and actions: which Pulse queues are read, and what waits."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, literal
from sqlmodel import col, select

from service.api.deps import Reader, Reading
from service.api.health import UNREAD
from service.api.openapi import problems
from service.api.route import API, Route
from service.api.schemas.watch import QueuePage, QueueRead
from service.api.waiting import WaitingPiece, pieces_of, small_columns
from service.clock import now
from service.engine.registry import WORK
from service.store.database import Session
from service.store.distinct import distinct_of
from service.store.models import PulseQueue, Work

router = APIRouter(prefix=f"{API}/pulse-queues", tags=["pulse queues"], route_class=Route)

MOST_QUEUES = 100
"""Queues that are listed, those that were read last."""

MOST_COUNTED = 10_000
"""Waiting pieces of one lane that are counted."""

MOST_LANES = 200
"""Lanes that are listed, those that have waited longest."""


@router.get("", operation_id="listPulseQueues", responses=problems(422))
async def list_pulse_queues(session: Reading, _: Reader) -> QueuePage:
    """List the Pulse queues that listeners read or have read, those that were read last first; at most 100."""
    at = now()
    newest = select(PulseQueue).order_by(col(PulseQueue.seen_at).desc(), col(PulseQueue.name)).limit(MOST_QUEUES)
    queues = [
        QueueRead(
            name=queue.name,
            events=queue.events,
            read=at - queue.seen_at <= UNREAD,
            seen_at=queue.seen_at,
            declared_at=queue.declared_at,
            deleted_at=queue.deleted_at,
            messages_lost_since=queue.messages_lost_since,
            deletions=queue.deletions,
        )
        for queue in await session.exec(newest)
    ]
    return QueuePage(items=queues)


@dataclass(frozen=True)
class WaitingLane:
    """The unfinished work of one lane: an upstream, a project of one, or a kind of action."""

    lane: str
    count: int
    oldest: WaitingPiece  # the piece that has waited longest


async def list_waiting(session: Session) -> list[WaitingLane]:
    """Return each lane with unfinished work, and its oldest piece; the lane that has waited longest comes first."""
    lanes = [lane for model in WORK.tables for lane in await _lanes_of(session, model)]
    lanes = sorted(lanes, key=lambda lane: lane[2].since)[:MOST_LANES]
    pieces = await pieces_of(session, [oldest for _, _, oldest in lanes])
    return [WaitingLane(lane, count, oldest) for (lane, count, _), oldest in zip(lanes, pieces, strict=True)]


async def _lanes_of(session: Session, model: type[Work]) -> list[tuple[str, int, Work]]:
    """Return each lane of one table, how many of its pieces wait, and the oldest of them."""
    waiting = col(model.due_at).is_not(None)
    lanes = distinct_of(model.lane, "lanes", waiting)
    of_lane = (col(model.lane) == lanes.c.lane, waiting)
    first = select(model.id).where(*of_lane).order_by(col(model.since)).limit(1).correlate(lanes).scalar_subquery()
    some = select(literal(1)).where(*of_lane).limit(MOST_COUNTED).correlate(lanes).subquery()
    count = select(func.count()).select_from(some).scalar_subquery()
    query: Any = (
        select(lanes.c.lane, count, model)
        .select_from(lanes)
        .join(model, col(model.id) == first)
        .where(lanes.c.lane.is_not(None))
        .options(small_columns(model))
    )
    return [(lane, number, oldest) for lane, number, oldest in await session.exec(query)]
