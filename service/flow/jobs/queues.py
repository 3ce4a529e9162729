"""The queues that listeners read. They keep no state: whether one that is gone ever was, only the service knows."""

from datetime import timedelta

from sqlmodel import select

from service.clock import now
from service.contract.events import QueueReport, QueueState
from service.flow.jobs import reconcile
from service.store.database import Session, insert_new
from service.store.models import PulseQueue

ONCE = timedelta(minutes=1)
"""Reports of a missing queue within this time are of one deletion: of two listeners, or of one that repeats itself."""


async def note(session: Session, report: QueueReport) -> QueueState:
    """Write down that a queue is read, and when it was found to have been deleted."""
    at = now()
    query = select(PulseQueue).where(PulseQueue.name == report.queue).with_for_update()
    queue = (await session.exec(query)).first()
    if queue is None:  # two listeners can come to this at once: one of them makes it, the other waits for that
        values = {"name": report.queue, "events": report.events, "declared_at": at, "seen_at": at, "deletions": 0}
        await insert_new(session, PulseQueue, **values)
        queue = (await session.exec(query)).one()
    was_there = report.found == "deleted" or (report.found == "new" and at - queue.declared_at > ONCE)
    if was_there and (queue.deleted_at is None or at - queue.deleted_at > ONCE):
        queue.deleted_at = queue.declared_at = at
        queue.messages_lost_since = queue.seen_at
        queue.deletions += 1
        if report.events == "tasks":
            await reconcile.queue_was_deleted(session)
    deleted = report.found != "there" and queue.deleted_at is not None and at - queue.deleted_at <= ONCE
    queue.events, queue.seen_at = report.events, at
    return QueueState(deleted=deleted, messages_lost_since=str(queue.messages_lost_since) if deleted else None)
