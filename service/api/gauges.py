"""The gauges of /metrics that are read from the database, so that every replica tells the same."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from prometheus_client import Gauge, generate_latest
from sqlalchemy import func, literal, text
from sqlalchemy.pool import QueuePool
from sqlmodel import col, select

from service.clock import clock_difference, now
from service.engine.registry import WORK
from service.metrics import PREFIX, REGISTRY
from service.store.database import Database, Session, Utc
from service.store.distinct import distinct_of
from service.store.models import (
    MONITORED,
    DeadLetter,
    PulseQueue,
    Repository,
    Work,
)

_waiting = Gauge(PREFIX + "work_waiting", "unfinished pieces of work", ["work", "lane"], registry=REGISTRY)


_oldest = Gauge(
    PREFIX + "work_oldest_timestamp_seconds",
    "since when the oldest of them waits",
    ["work", "lane"],
    registry=REGISTRY,
)


_letters = Gauge(PREFIX + "dead_letters", "dead letters that wait for a person", ["kind"], registry=REGISTRY)


_good_poll = Gauge(
    PREFIX + "last_good_poll_timestamp_seconds",
    "the last good poll of the repository that waits longest, or its creation; NaN: no repository is polled",
    registry=REGISTRY,
)


_poll_failures = Gauge(
    PREFIX + "poll_failures", "polls in a row that failed, of the repository that has most", registry=REGISTRY
)


_polls_old = Gauge(
    PREFIX + "repositories_not_polled", "repositories without a good poll for ten minutes", registry=REGISTRY
)


_queue_read = Gauge(
    PREFIX + "pulse_queue_read_timestamp_seconds", "when a queue was last read", ["queue"], registry=REGISTRY
)


_deletions = Gauge(
    PREFIX + "pulse_queue_deletions",
    "how often a queue was found deleted: what it held is lost",
    ["queue"],
    registry=REGISTRY,
)


_pool = Gauge(PREFIX + "database_connections", "connections of this process's pool", ["state"], registry=REGISTRY)


_clock = Gauge(
    PREFIX + "clock_difference_seconds",
    "from this process's clock to the database's, at the last comparison; beyond 60 no work is taken",
    registry=REGISTRY,
)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


MAX_LABELS = 50
"""Values of a label that comes from the database, of each kind of work; what waits least is put together."""


OTHERS = "others"


MOST_COUNTED = 100_000
"""Rows of one lane, or kind, that are counted; the metric says this if there are more."""


OLD_POLL = timedelta(minutes=10)
"""A repository without a good poll for longer than this counts as not polled."""


async def exposition(database: Database) -> bytes:
    """Return all metrics in Prometheus' text format."""
    async with database.reading() as session:
        await _read_work(session)
        await _read_polls(session)
    pool = database.engine.sync_engine.pool
    if isinstance(pool, QueuePool):
        _pool.labels("in use").set(pool.checkedout())
        _pool.labels("idle").set(pool.checkedin())
    _clock.set(clock_difference())
    return generate_latest(REGISTRY)


async def _read_work(session: Session) -> None:
    _waiting.clear()
    _oldest.clear()
    for model in WORK.tables:
        lanes: dict[str, tuple[int, datetime]] = {}
        # those that have waited longest come first, and are named
        for lane, count, since in sorted(await session.exec(_waiting_of(model)), key=lambda row: row[2]):
            label = _upstream_of(lane)
            label = label if label in lanes or len(lanes) < MAX_LABELS else OTHERS
            total, oldest = lanes.get(label, (0, since))
            lanes[label] = (total + count, min(oldest, since))
        for label, (total, oldest) in lanes.items():
            _waiting.labels(str(model.__tablename__), label).set(total)
            _oldest.labels(str(model.__tablename__), label).set(oldest.timestamp())
    _letters.clear()
    for kind, count in await session.exec(_letters_of_kinds()):
        _letters.labels(kind).set(count)


def _upstream_of(lane: str) -> str:
    """Return what is done with which upstream: a third word is a project, which is not named here."""
    return " ".join(lane.split(" ", 2)[:2])


@cache
def _waiting_of(model: type[Work]) -> Any:
    """Select each lane with unfinished work, how much that is, and since when its oldest piece waits."""
    lanes, of_lane, oldest = _oldest_of(model)
    return select(lanes.c.lane, _counted(lanes, *of_lane), oldest).where(lanes.c.lane.is_not(None))


def _oldest_of(model: type[Work]) -> tuple[Any, tuple[Any, ...], Any]:
    """Return the lanes with unfinished work, what is true of a lane's work, and since when its oldest piece waits."""
    lanes = distinct_of(model.lane, "lanes", col(model.due_at).is_not(None))
    of_lane = (col(model.lane) == lanes.c.lane, col(model.due_at).is_not(None))
    return lanes, of_lane, select(func.min(model.since)).where(*of_lane).correlate(lanes).scalar_subquery()


@cache
def _oldest_waiting(model: type[Work]) -> Any:
    """Select since when the oldest unfinished piece of each lane waits."""
    lanes, _, oldest = _oldest_of(model)
    return select(oldest).where(lanes.c.lane.is_not(None))


@cache
def _letters_of_kinds() -> Any:
    kinds = distinct_of(DeadLetter.kind, "kinds")
    return select(kinds.c.kind, _counted(kinds, col(DeadLetter.kind) == kinds.c.kind)).where(kinds.c.kind.is_not(None))


def _counted(values: Any, *conditions: Any) -> Any:
    """Count the rows that meet the conditions, up to `MOST_COUNTED`."""
    some = select(literal(1)).where(*conditions).limit(MOST_COUNTED).correlate(values).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


async def oldest_work(session: Session) -> dict[type[Work], datetime]:
    """Return since when the oldest unfinished piece of each kind of work waits; kinds with none are left out."""
    waiting = {model: (await session.exec(_oldest_waiting(model))).all() for model in WORK.tables}
    return {model: min(since) for model, since in waiting.items() if since}


@dataclass(frozen=True)
class Polls:
    """The polls of the enabled repositories together: /metrics and /__heartbeat__ are open, and name none of them."""

    old: int  # repositories without a good poll for OLD_POLL
    oldest: datetime | None  # the last good poll of the one that waits longest, or its creation; None: there is none
    failures: int  # the most polls in a row that failed


async def summarize_polls(session: Session) -> Polls:
    """Return the summary of the polls of all enabled repositories."""
    good, created = col(Repository.last_good_poll_at), col(Repository.created_at)
    old = now() - OLD_POLL

    def of_monitored(value: Any, *conditions: Any) -> Any:
        return select(value).select_from(Repository).where(text(MONITORED), *conditions).scalar_subquery()

    query: Any = select(  # type: ignore[call-overload]  # SQLModel has types for four columns
        of_monitored(func.min(good, type_=Utc)),
        of_monitored(func.min(created, type_=Utc), good.is_(None)),
        of_monitored(func.max(Repository.poll_failures)),
        of_monitored(func.count(), good < old),
        of_monitored(func.count(), good.is_(None), created < old),
    )
    oldest, oldest_new, failures, count, count_new = (await session.exec(query)).one()
    since = min((time for time in (oldest, oldest_new) if time is not None), default=None)
    return Polls(count + count_new, since, failures or 0)


async def _read_polls(session: Session) -> None:
    polls = await summarize_polls(session)
    _good_poll.set(math.nan if polls.oldest is None else polls.oldest.timestamp())
    _poll_failures.set(polls.failures)
    _polls_old.set(polls.old)
    _queue_read.clear()
    _deletions.clear()
    newest = select(PulseQueue).order_by(col(PulseQueue.seen_at).desc()).limit(MAX_LABELS)
    for queue in await session.exec(newest):
        _queue_read.labels(queue.name).set(queue.seen_at.timestamp())
        _deletions.labels(queue.name).set(queue.deletions)
