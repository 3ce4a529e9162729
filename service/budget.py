"""Requests left for a host or a credential: a bucket in the database, shared by all replicas."""

from datetime import datetime

from sqlmodel import select

from service.database import Session, insert_new
from service.models import Budget


def burst(rate: float) -> float:
    """How much a bucket that refills at `rate` a second holds: a second's worth, and at least one request."""
    return max(rate, 1.0)


async def refilled(session: Session, name: str, at: datetime, rate: float) -> Budget:
    """The bucket `name` with what it holds at `at`; the row stays locked until the caller's transaction ends.

    The caller takes off `tokens` what it spends; requests that were made without being asked for may overdraw it.
    """
    query = select(Budget).where(Budget.name == name).with_for_update()
    bucket = (await session.exec(query)).first()
    if bucket is None:  # two replicas can come to this at once: one of them makes it, the other waits for that
        await insert_new(session, Budget, name=name, tokens=burst(rate), at=at)
        bucket = (await session.exec(query)).one()
    bucket.tokens = min(burst(rate), bucket.tokens + rate * max((at - bucket.at).total_seconds(), 0))
    bucket.at = max(at, bucket.at)
    return bucket
