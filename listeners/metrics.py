"""The metrics of a listener for Prometheus. Names begin with `tc_treeherder_listener_`.

Labels have few values: no repository, no id. Other modules call these functions, and know no Prometheus.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector, generate_latest

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_cpu_seconds_total, process_resident_memory_bytes and the like

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "tc_treeherder_listener_"

_build = Info(_PREFIX + "build", "what is running", registry=REGISTRY)

_requests = Counter(
    _PREFIX + "requests",
    "requests to the service: accepted, rejected (it would reject them again), or repeated for this reason",
    ["request", "outcome"],
    registry=REGISTRY,
)
_accepted_at = Gauge(
    _PREFIX + "last_accepted_timestamp_seconds",
    "when the service last accepted such a request",
    ["request"],
    registry=REGISTRY,
)
_events = Counter(
    _PREFIX + "events", "events that the service judged, by its verdict", ["kind", "verdict"], registry=REGISTRY
)

_polls = Counter(
    _PREFIX + "polls",
    "polls of repositories: unchanged, listed, suspicious (perhaps reset), failed, or interrupted",
    ["outcome"],
    registry=REGISTRY,
)
_repositories = Gauge(_PREFIX + "repositories", "repositories that are leased to this listener", registry=REGISTRY)

_received = Counter(
    _PREFIX + "messages_received", "messages that the broker delivered", ["queue", "redelivered"], registry=REGISTRY
)
_forwarded = Counter(_PREFIX + "messages_forwarded", "messages that were handled", ["queue"], registry=REGISTRY)
_acknowledged = Counter(
    _PREFIX + "messages_acknowledged", "messages that were acknowledged to the broker", ["queue"], registry=REGISTRY
)
_waiting = Gauge(
    _PREFIX + "messages_waiting", "messages that were received and are not handled yet", ["queue"], registry=REGISTRY
)
_connected = Gauge(_PREFIX + "queue_connected", "1 while the queue is read", ["queue"], registry=REGISTRY)
_lost = Counter(_PREFIX + "connections_lost", "connections to the broker that ended", ["queue"], registry=REGISTRY)
_deletions = Counter(
    _PREFIX + "queue_deletions", "how often the queue was found deleted: what it held is lost", ["queue"],
    registry=REGISTRY,
)  # fmt: skip
_missing = Gauge(
    _PREFIX + "missing_exchanges", "exchanges that the queue cannot be bound to", ["queue"], registry=REGISTRY
)


def running(build: Mapping[str, Any]) -> None:
    """Tell which version of the listener is running, and of which commit."""
    _build.info({name: str(build.get(name, "")) for name in ("version", "commit")})


def request_ended(path: str, outcome: str) -> None:
    """Count an attempt at a request to the service, by the last part of its path."""
    request = _name_of(path)
    _requests.labels(request, outcome).inc()
    if outcome == "accepted":
        _accepted_at.labels(request).set_to_current_time()


def _name_of(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def events_judged(path: str, verdict: str, number: int) -> None:
    """Count events that were posted to this path and got this verdict."""
    _events.labels(_name_of(path), verdict).inc(number)


def polled(outcome: str) -> None:
    """Count a poll of a repository."""
    _polls.labels(outcome).inc()


def message_received(queue: str, *, redelivered: bool) -> None:
    """Count a message that the broker delivered."""
    _received.labels(queue, str(redelivered).lower()).inc()


def messages_forwarded(queue: str, number: int) -> None:
    """Count messages that the service has stored or judged, or whose repositories were polled."""
    _forwarded.labels(queue).inc(number)


def messages_acknowledged(queue: str, number: int) -> None:
    """Count messages whose acknowledgement was sent."""
    _acknowledged.labels(queue).inc(number)


def connection_lost(queue: str) -> None:
    """Count a connection to the broker that ended."""
    _lost.labels(queue).inc()


def queue_deleted(queue: str) -> None:
    """Count a deletion of the queue at the broker."""
    _deletions.labels(queue).inc()


@dataclass(frozen=True)
class QueueState:
    """The state of a queue's consumer at this moment."""

    connected: bool
    waiting: int
    missing_exchanges: int


def exposition(queues: Mapping[str, QueueState] | None = None, repositories: int | None = None) -> bytes:
    """Return all metrics in Prometheus' text format, with the present state of what this listener works on."""
    for queue, state in (queues or {}).items():
        _connected.labels(queue).set(state.connected)
        _waiting.labels(queue).set(state.waiting)
        _missing.labels(queue).set(state.missing_exchanges)
    if repositories is not None:
        _repositories.set(repositories)
    return generate_latest(REGISTRY)
