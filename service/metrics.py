"""What Prometheus reads at /metrics. Names begin with `tc_treeherder_`; durations are in seconds.

Counters and histograms are this process's own; the gauges of work and polls are read from the database when they are
asked for, so every replica tells the same.
"""

import re
import time
from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any

import aiohttp
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, literal, text
from sqlalchemy.pool import QueuePool
from sqlmodel import col, select

from service.contract.events import Verdict
from service.store.database import Database, Session, Utc, clock_difference, now
from service.store.distinct import distinct_of
from service.store.models import (
    MONITORED,
    Action,
    DeadLetter,
    GroupCheck,
    JobReport,
    Notice,
    PulseQueue,
    PushStep,
    Repository,
    Work,
)

log = structlog.get_logger()

REGISTRY = CollectorRegistry()
_PREFIX = "tc_treeherder_"
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)

_events = Counter(_PREFIX + "events", "events that listeners sent", ["kind", "verdict"], registry=REGISTRY)
_attempts = Counter(_PREFIX + "work_attempts", "pieces of work that ended", ["work", "outcome"], registry=REGISTRY)
_upstream = Histogram(
    _PREFIX + "upstream_seconds",
    "requests that we made; status is HTTP's, or error where there was no answer",
    ["system", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
_graph = Histogram(
    _PREFIX + "notice_to_graph_seconds", "from a push's notice to its graph", buckets=_LONG, registry=REGISTRY
)
_job = Histogram(_PREFIX + "event_to_job_seconds", "from a task event to its job", buckets=_LONG, registry=REGISTRY)

_polls = Counter(
    _PREFIX + "polls", "polls of repositories that listeners told of, by their outcome", ["outcome"], registry=REGISTRY
)
_poll_requests = Counter(_PREFIX + "poll_requests", "requests that these polls took", registry=REGISTRY)
_slowest_poll = Histogram(
    _PREFIX + "slowest_poll_seconds",
    "the slowest answer of a pushlog between two renewals of a listener",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)

_unusable = Counter(
    _PREFIX + "unusable_tasks",
    "tasks with a route of a Treeherder that are not shown there, for what their extra.treeherder says or lacks",
    ["environment"],
    registry=REGISTRY,
)

_swept = Counter(_PREFIX + "swept_rows", "rows that retention took away", ["what"], registry=REGISTRY)

_waiting = Gauge(_PREFIX + "work_waiting", "unfinished pieces of work", ["work", "lane"], registry=REGISTRY)
_oldest = Gauge(
    _PREFIX + "work_oldest_seconds", "how long the oldest of them has waited", ["work", "lane"], registry=REGISTRY
)
_letters = Gauge(_PREFIX + "dead_letters", "dead letters that wait for a person", ["kind"], registry=REGISTRY)
_poll_age = Gauge(
    _PREFIX + "last_good_poll_seconds",
    "since the last good poll of the repository that waits longest",
    registry=REGISTRY,
)
_poll_failures = Gauge(
    _PREFIX + "poll_failures", "polls in a row that failed, of the repository that has most", registry=REGISTRY
)
_polls_old = Gauge(
    _PREFIX + "repositories_not_polled", "repositories without a good poll for ten minutes", registry=REGISTRY
)
_queue_age = Gauge(_PREFIX + "pulse_queue_read_seconds", "since a queue was last read", ["queue"], registry=REGISTRY)
_deletions = Gauge(
    _PREFIX + "pulse_queue_deletions",
    "how often a queue was found deleted: what it held is lost",
    ["queue"],
    registry=REGISTRY,
)
_pool = Gauge(_PREFIX + "database_connections", "connections of this process's pool", ["state"], registry=REGISTRY)
_slots = Gauge(
    _PREFIX + "taskcluster_connections",
    "tasks that this process creates at a time at most: fewer than taskcluster.connections while the queue is slow "
    "or throttles",
    registry=REGISTRY,
)
_clock = Gauge(
    _PREFIX + "clock_difference_seconds",
    "from this process's clock to the database's, at the last comparison; beyond 60 no work is taken",
    registry=REGISTRY,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def event_in(kind: str, verdicts: Iterable[Verdict]) -> None:
    """Events came in; `kind` is push, job-action or task."""
    for verdict, number in Tally(each.verdict for each in verdicts).items():
        _events.labels(kind, verdict).inc(number)


def polled(polls: int, requests: int, slowest: float, failed: int) -> None:
    """Count the polls that a listener tells of; `failed` of them failed. `slowest` is in seconds."""
    _polls.labels("good").inc(max(polls - failed, 0))
    _polls.labels("failed").inc(failed)
    _poll_requests.inc(requests)
    if polls:
        _slowest_poll.observe(slowest)


def work_ended(item: Work, outcome: str) -> None:
    """An attempt ended: done, skipped, failed, retried, buried, ..."""
    _attempts.labels(_kind(item), outcome).inc()


def graph_created(noticed_at: datetime) -> None:
    """The graph of a push stands."""
    _graph.observe((now() - noticed_at).total_seconds())


def job_reported(last_event_at: datetime) -> None:
    """A job is posted; `last_event_at` is when the event came that it tells of."""
    _job.observe((now() - last_event_at).total_seconds())


def task_unusable(environment: str) -> None:
    """Count a task whose extra.treeherder keeps it from being shown."""
    _unusable.labels(environment).inc()


def taskcluster_connections(number: int) -> None:
    """So many tasks are created at a time."""
    _slots.set(number)


def swept(what: str, rows: int) -> None:
    """Retention took so many rows away."""
    _swept.labels(what).inc(rows)


def _kind(item: Work) -> str:
    return str(item.kind) if isinstance(item, PushStep | Action) else type(item).__tablename__  # type: ignore[return-value]  # a str in every table


# --- requests that we make -----------------------------------------------------------------------------------------

_WORDS = re.compile(r"[a-z][a-z-]*[a-z]")
_NAMED = re.compile(r"/(raw-file|json-pushes)\b")


def method_of(system: str, verb: str, path: str) -> str:
    """What was asked for, without the ids in it: a label must not have a value for each task."""
    if system == "hg":
        named = _NAMED.search(path)
        return named[1] if named else "other"
    if system == "treeherder":
        return f"{verb} {path.rstrip('/').rsplit('/', 1)[-1]}"
    words = path.removeprefix("/api/").split("/")[2:]
    known = {"task", "tasks", "task-group", "status", "list", "dependents", "schedule", "cancel", "runs", "artifacts"}
    return " ".join([verb, *(word for word in words if word in known or word == "authenticate-hawk")])


def asked(system: str, verb: str, path: str, status: int | str, seconds: float) -> None:
    """A request was answered, or not (`error`)."""
    method = method_of(system, verb, path)
    _upstream.labels(system, method, str(status)).observe(seconds)
    log.debug("upstream-asked", system=system, method=method, path=path, status=status, ms=round(seconds * 1000, 1))


def metered_aiohttp(system: str) -> aiohttp.TraceConfig:
    """Count and time the requests of an aiohttp session to one system."""
    trace = aiohttp.TraceConfig()

    async def start(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.began = time.perf_counter()

    async def end(_: Any, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        seconds = time.perf_counter() - context.began
        asked(system, params.method, params.url.path, params.response.status, seconds)

    async def failed(_: Any, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams) -> None:
        asked(system, params.method, params.url.path, "error", time.perf_counter() - context.began)

    trace.on_request_start.append(start)
    trace.on_request_end.append(end)
    trace.on_request_exception.append(failed)
    return trace


# --- what is asked of the database -----------------------------------------------------------------------------------

MAX_LABELS = 50
"""Values of a label that comes from the database, of each kind of work; what waits least is put together."""

OTHERS = "others"

MOST_COUNTED = 100_000
"""Rows that are counted of one lane, or kind: where there are more, that is what the metric says."""

OLD_POLL = timedelta(minutes=10)
"""A repository that had no good poll for so long is not polled."""

_TABLES: tuple[type[Work], ...] = (PushStep, Action, Notice, JobReport, GroupCheck)


async def exposition(database: Database) -> bytes:
    """All metrics in Prometheus' text format."""
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
    at = now()
    _waiting.clear()
    _oldest.clear()
    for model in _TABLES:
        lanes: dict[str, tuple[int, datetime]] = {}
        # those that have waited longest come first, and are named
        for lane, count, since in sorted(await session.exec(_waiting_of(model)), key=lambda row: row[2]):
            label = _upstream_of(lane)
            label = label if label in lanes or len(lanes) < MAX_LABELS else OTHERS
            total, oldest = lanes.get(label, (0, since))
            lanes[label] = (total + count, min(oldest, since))
        for label, (total, oldest) in lanes.items():
            _waiting.labels(str(model.__tablename__), label).set(total)
            _oldest.labels(str(model.__tablename__), label).set((at - oldest).total_seconds())
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
    """Count what meets the conditions, of more than `MOST_COUNTED` so many."""
    some = select(literal(1)).where(*conditions).limit(MOST_COUNTED).correlate(values).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


async def oldest_work(session: Session) -> dict[type[Work], datetime]:
    """Return since when the oldest unfinished piece of each kind of work waits; kinds with none are left out."""
    waiting = {model: (await session.exec(_oldest_waiting(model))).all() for model in _TABLES}
    return {model: min(since) for model, since in waiting.items() if since}


@dataclass(frozen=True)
class Polls:
    """How the enabled repositories are polled. Neither /metrics nor /__heartbeat__ names any of them: both are open."""

    old: int  # repositories without a good poll for OLD_POLL
    oldest: float  # seconds since the last good poll of the one that has waited longest
    failures: int  # the most polls in a row that failed


async def summarize_polls(session: Session) -> Polls:
    """Return what may be told of all repositories' polls together."""
    at = now()
    good, created = col(Repository.last_good_poll_at), col(Repository.created_at)
    old = at - OLD_POLL

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
    waits = max(((at - since).total_seconds() for since in (oldest, oldest_new) if since is not None), default=0)
    return Polls(count + count_new, waits, failures or 0)


async def _read_polls(session: Session) -> None:
    at = now()
    polls = await summarize_polls(session)
    _poll_age.set(polls.oldest)
    _poll_failures.set(polls.failures)
    _polls_old.set(polls.old)
    _queue_age.clear()
    _deletions.clear()
    newest = select(PulseQueue).order_by(col(PulseQueue.seen_at).desc()).limit(MAX_LABELS)
    for queue in await session.exec(newest):
        _queue_age.labels(queue.name).set((at - queue.seen_at).total_seconds())
        _deletions.labels(queue.name).set(queue.deletions)
