"""Budgets of requests for a host or a credential: token buckets in the database, shared by all replicas."""

from datetime import datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import Connection
from sqlmodel import col, select

from service import clock
from service.settings import Environment
from service.store.database import Session, insert_new, insert_of
from service.store.models import Budget

ANY_RATE = 1_000_000.0
"""Requests a second of a budget without a limit."""


def jobs_budget(environment: Environment, longest_delay: timedelta) -> tuple[str, float]:
    """Return the bucket of the requests with jobs, and its rate in requests a second.

    Each credential has one bucket at each Treeherder. A request may be sent `longest_delay` after its token was taken.
    """
    client = environment.client_id if environment.jobs == "rest" else "pulse"
    limit = environment.jobs_per_minute if environment.jobs == "rest" else 0
    # at the start of a minute the bucket may hold a second's worth, and late requests count for that minute too
    rate = limit / (60 + 1 + longest_delay.total_seconds()) if limit else ANY_RATE
    return f"jobs {urlsplit(str(environment.url)).netloc} {client}", rate


def burst(rate: float) -> float:
    """Return the capacity of a bucket that refills at `rate` a second: a second's worth, and at least one request."""
    return max(rate, 1.0)


async def refilled(session: Session, name: str, at: datetime, rate: float, *, empty: bool = False) -> Budget:
    """Return the bucket `name` with its tokens at `at`, locked until the caller's transaction ends.

    The caller subtracts what it spends from `tokens`, which may become negative. A new bucket is full unless `empty`.
    """
    query = select(Budget).where(Budget.name == name).with_for_update()
    bucket = (await session.exec(query)).first()
    if bucket is None:  # two replicas can get here at once: one inserts the row, the other waits for it
        await insert_new(session, Budget, name=name, tokens=0 if empty else burst(rate), at=at)
        bucket = (await session.exec(query)).one()
    bucket.tokens = min(burst(rate), bucket.tokens + rate * max((at - bucket.at).total_seconds(), 0))
    if bucket.at - at > timedelta(
        seconds=clock.REPORTED
    ):  # a clock jumped: the bucket would stay empty until that time
        bucket.at = at
    bucket.at = max(at, bucket.at)
    return bucket


def lock(connection: Connection, names: list[str], at: datetime) -> None:
    """Lock the buckets of these names until the caller's transaction ends, and create the missing ones.

    SQLite has one writer at a time, so there is nothing to lock.
    """
    if connection.dialect.name != "postgresql":
        return
    query = select(Budget.name).where(col(Budget.name).in_(names)).order_by(col(Budget.name)).with_for_update()
    if missing := sorted(set(names) - set(connection.scalars(query))):
        # empty: what was spent just before is not known
        rows = [{"name": name, "tokens": 0, "at": at} for name in missing]
        connection.execute(insert_of("postgresql")(Budget).on_conflict_do_nothing(), rows)
        connection.scalars(query).all()


def blocked_for(bucket: Budget, at: datetime, longest: timedelta) -> timedelta:
    """Return how long the bucket stays blocked; zero if it says more than `longest`, which a wrong clock wrote."""
    left = (bucket.blocked_until or at) - at
    return left if timedelta() < left <= longest else timedelta()
