"""The metrics of this process for Prometheus. Names begin with `tc_treeherder_`; durations are in seconds.

Counters and histograms are this process's own; `service.api.gauges` adds what is read from the database.
"""

import re
import time
from collections import Counter as Tally
from collections.abc import Iterable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from service.clock import now
from service.contract.events import Verdict

log = structlog.get_logger()

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_cpu_seconds_total, process_resident_memory_bytes and the like
PREFIX = "tc_treeherder_"
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)

_events = Counter(PREFIX + "events", "events that listeners sent", ["kind", "verdict"], registry=REGISTRY)
_attempts = Counter(PREFIX + "work_attempts", "pieces of work that ended", ["work", "outcome"], registry=REGISTRY)
_upstream = Histogram(
    PREFIX + "upstream_seconds",
    "requests that we made; status is HTTP's, or error where there was no answer",
    ["system", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
_graph = Histogram(
    PREFIX + "notice_to_graph_seconds", "from a push's notice to its graph", buckets=_LONG, registry=REGISTRY
)
_job = Histogram(PREFIX + "event_to_job_seconds", "from a task event to its job", buckets=_LONG, registry=REGISTRY)

_polls = Counter(
    PREFIX + "polls", "polls of repositories that listeners told of, by their outcome", ["outcome"], registry=REGISTRY
)
_poll_requests = Counter(PREFIX + "poll_requests", "requests that these polls took", registry=REGISTRY)
_slowest_poll = Histogram(
    PREFIX + "slowest_poll_seconds",
    "the slowest answer of a pushlog between two renewals of a listener",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)

_unusable = Counter(
    PREFIX + "unusable_tasks",
    "tasks with a route of a Treeherder that are not shown there, for what their extra.treeherder says or lacks",
    ["environment"],
    registry=REGISTRY,
)

_swept = Counter(PREFIX + "swept_rows", "rows that retention took away", ["what"], registry=REGISTRY)

_slots = Gauge(
    PREFIX + "taskcluster_connections",
    "tasks that this process creates at a time at most: fewer than taskcluster.connections while the queue is slow "
    "or throttles",
    registry=REGISTRY,
)


_build = Info(PREFIX + "build", "what is running", registry=REGISTRY)


def running(version: str, commit: str) -> None:
    """Tell which version of the service is running, and of which commit."""
    _build.info({"version": version, "commit": commit})


def event_in(kind: str, verdicts: Iterable[Verdict]) -> None:
    """Count events that came in; `kind` is push, job-action or task."""
    for verdict, number in Tally(verdict.verdict for verdict in verdicts).items():
        _events.labels(kind, verdict).inc(number)


def polled(polls: int, requests: int, slowest: float, failed: int) -> None:
    """Count the polls that a listener tells of; `failed` of them failed. `slowest` is in seconds."""
    _polls.labels("good").inc(max(polls - failed, 0))
    _polls.labels("failed").inc(failed)
    _poll_requests.inc(requests)
    if polls:
        _slowest_poll.observe(slowest)


def work_ended(work: str, outcome: str) -> None:
    """Count an attempt that ended: done, skipped, failed, retried, buried, ..."""
    _attempts.labels(work, outcome).inc()


def graph_created(noticed_at: datetime) -> None:
    """Observe the time from a push's notice to its graph."""
    _graph.observe((now() - noticed_at).total_seconds())


def job_reported(last_event_at: datetime) -> None:
    """Observe the time from a task event to its job, which was posted just now."""
    _job.observe((now() - last_event_at).total_seconds())


def task_unusable(environment: str) -> None:
    """Count a task whose extra.treeherder keeps it from being shown."""
    _unusable.labels(environment).inc()


def taskcluster_connections(number: int) -> None:
    """Set how many tasks this process creates at a time."""
    _slots.set(number)


def swept(what: str, rows: int) -> None:
    """Count the rows that retention deleted."""
    _swept.labels(what).inc(rows)


# --- requests that we make -----------------------------------------------------------------------------------------

_WORDS = re.compile(r"[a-z][a-z-]*[a-z]")
_NAMED = re.compile(r"/(raw-file|json-pushes)\b")


def method_of(system: str, verb: str, path: str) -> str:
    """Return the name of a request without the ids in its path: a label must not have a value for each task."""
    if system == "hg":
        named = _NAMED.search(path)
        return named[1] if named else "other"
    if system == "treeherder":
        return f"{verb} {path.rstrip('/').rsplit('/', 1)[-1]}"
    words = path.removeprefix("/api/").split("/")[2:]
    known = {"task", "tasks", "task-group", "status", "list", "dependents", "schedule", "cancel", "runs", "artifacts"}
    return " ".join([verb, *(word for word in words if word in known or word == "authenticate-hawk")])


def observe_request(system: str, verb: str, path: str, status: int | str, seconds: float) -> None:
    """Observe a request that was answered with this HTTP status, or `error` if there was no answer."""
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
        observe_request(system, params.method, params.url.path, params.response.status, seconds)

    async def failed(_: Any, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams) -> None:
        observe_request(system, params.method, params.url.path, "error", time.perf_counter() - context.began)

    trace.on_request_start.append(start)
    trace.on_request_end.append(end)
    trace.on_request_exception.append(failed)
    return trace
