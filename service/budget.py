"""Requests left for a host or a credential: a bucket in the database, shared by all replicas."""

from datetime import datetime, timedelta

from sqlmodel import select

from service.database import Session
from service.models import Budget


async def take(session: Session, name: str, at: datetime, rate: float, wanted: float, burst: float) -> float:
    """Take up to `wanted` requests of the bucket `name`, which refills at `rate` a second up to `burst`.

    The row stays locked until the caller's transaction ends. `wanted` may be 0 to look; nothing is given while the
    bucket is overdrawn.
    """
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
    budget = (await session.exec(select(Budget).where(Budget.name == name).with_for_update())).first()
    if budget is None:
        budget = Budget(name=name, tokens=burst, at=at)
        session.add(budget)
        await session.flush()
    return budget
