"""Requests left for a host or a credential: a bucket in the database, shared by all replicas."""

from datetime import datetime, timedelta

from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlmodel import select

from service.database import Session
from service.models import Budget


async def take(session: Session, name: str, at: datetime, rate: float, wanted: float, burst: float) -> float:
    """Take up to `wanted` requests of the bucket `name`, which refills at `rate` a second up to `burst`, at least one.

    The row stays locked until the caller's transaction ends. `wanted` may be 0 to look; nothing is given while the
    bucket is overdrawn.
    """
    burst = max(burst, 1)  # a bucket that holds less than one request would never give any
    budget = await _locked(session, name, at, burst)
    budget.tokens = min(burst, budget.tokens + rate * max((at - budget.at).total_seconds(), 0))
    budget.at = at
    given = max(0.0, min(wanted, float(int(budget.tokens))))
    budget.tokens -= given
    return given


async def charge(session: Session, name: str, at: datetime, burst: float, requests: float) -> None:
    """Take off `requests` that were made without being asked for first; the bucket may be overdrawn by them."""
    budget = await _locked(session, name, at, burst)
    budget.tokens -= requests


def wait_for_one(rate: float) -> timedelta:
    """How long an empty bucket takes to hold one request."""
    return timedelta(seconds=1 / rate)


async def _locked(session: Session, name: str, at: datetime, burst: float) -> Budget:
    query = select(Budget).where(Budget.name == name).with_for_update()
    budget = (await session.exec(query)).first()
    if budget is None:  # two replicas can come to this at once: one of them makes it, the other waits for that
        insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
        values = {"name": name, "tokens": burst, "at": at}
        await session.exec(insert(Budget).values(values).on_conflict_do_nothing())
        budget = (await session.exec(query)).one()
    return budget
