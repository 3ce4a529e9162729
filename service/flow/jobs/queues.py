"""Record the Pulse queues that listeners read, and detect that one was deleted. Listeners keep no state."""

from datetime import timedelta

from sqlmodel import select

from service.clock import now
from service.contract.events import QueueReport, QueueState
from service.flow.jobs import reconcile
from service.store.database import Session, insert_new
from service.store.models import PulseQueue

SAME_DELETION = timedelta(minutes=1)
"""Time within which reports of a missing queue are of the same deletion: two listeners, or one that repeats it."""


async def record_queue(session: Session, report: QueueReport) -> QueueState:
    """Record that a queue is read, and when it was reported to be deleted; request a check of all runs then."""
    at = now()
    query = select(PulseQueue).where(PulseQueue.name == report.queue).with_for_update()
    queue = (await session.exec(query)).first()
    if queue is None:  # of two listeners at the same time, one inserts the row and the other waits for it
        values = {"name": report.queue, "events": report.events, "declared_at": at, "seen_at": at, "deletions": 0}
        await insert_new(session, PulseQueue, **values)
        queue = (await session.exec(query)).one()
    was_there = report.found == "deleted" or (report.found == "new" and at - queue.declared_at > SAME_DELETION)
    if was_there and (queue.deleted_at is None or at - queue.deleted_at > SAME_DELETION):
        queue.deleted_at = queue.declared_at = at
        queue.messages_lost_since = queue.seen_at
        queue.deletions += 1
        if report.events == "tasks":
            await reconcile.request_full_check(session)
    deleted = report.found != "there" and queue.deleted_at is not None and at - queue.deleted_at <= SAME_DELETION
    queue.events, queue.seen_at = report.events, at
    return QueueState(deleted=deleted, messages_lost_since=str(queue.messages_lost_since) if deleted else None)
