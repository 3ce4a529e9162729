"""Define the faults that an hgweb can be made to show, and count its requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["status", "delay", "garbage", "truncated", "hangup", "lag"]
Command = Literal["json-pushes", "raw-file"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of one repository, of one of these kinds.

    - status: answer with `status`, and with `retry_after` (seconds) if given
    - delay: answer after `seconds`
    - garbage: answer 200 with something that is not JSON
    - truncated: answer 200 with the first half of the body
    - hangup: send half of the body, then drop the connection
    - lag: answer as a mirror that stands at push `upto` (default: the one before the last); with `ahead`, `lastpushid`
      already names the newer push
    """

    repository: str
    kind: Kind
    times: int | None = None  # number of requests that it hits; None: limited by `lasts` only
    lasts: float | None = None  # seconds from now on
    command: Command | None = None  # requests that it hits; None: both
    status: int = 503
    seconds: float = 0.0
    retry_after: int | None = None
    upto: int | None = None
    ahead: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("command", self.command, (None, *get_args(Command))),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it is one of {', '.join(map(repr, allowed))}")


@dataclass
class _Waiting:
    fault: Fault
    left: int | None
    until: float | None


class Faults:
    """Active faults in order; each request takes at most one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    def add(self, fault: Fault) -> None:
        """Activate a fault."""
        with self._lock:
            until = None if fault.lasts is None else self._clock() + fault.lasts
            self._waiting.append(_Waiting(fault, fault.times, until))

    def take(self, repository: str, command: str) -> Fault | None:
        """Return the fault that hits this request, and count it down."""
        with self._lock:
            now = self._clock()
            self._waiting = [w for w in self._waiting if w.left != 0 and (w.until is None or now < w.until)]
            for waiting in self._waiting:
                if waiting.fault.repository == repository and waiting.fault.command in {None, command}:
                    if waiting.left is not None:
                        waiting.left -= 1
                    return waiting.fault
            return None

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._waiting.clear()


class Requests:
    """Counts of requests since the last `clear`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.clear()

    def clear(self) -> None:
        """Reset all counts."""
        with self._lock:
            self._counts: dict[str, Counter[str]] = {}
            self._statuses: dict[str, Counter[str]] = {}
            self._repositories: Counter[str] = Counter()
            self._listed: dict[str, float] = {}
            self._arrivals: list[float] = []
            self._most = self._now

    def begin(self, kind: str, repository: str, *, conditional: bool) -> None:
        """Count a request that came in."""
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
            self._repositories[repository] += 1
            self._arrivals.append(time.time())
            self._counts.setdefault(kind, Counter()).update({"requests": 1, "conditional": conditional})

    def listed(self, repository: str, last_push_id: int, since: float) -> None:
        """Record the time (epoch seconds) of the first request whose answer ended with this push."""
        with self._lock:
            self._listed.setdefault(f"{repository} {last_push_id}", since)

    def end(self, kind: str, status: int) -> None:
        """Count the answer to a request."""
        with self._lock:
            self._now -= 1
            self._statuses.setdefault(kind, Counter())[str(status)] += 1

    def arrivals(self) -> list[float]:
        """Return the time of each request, in epoch seconds."""
        with self._lock:
            return list(self._arrivals)

    def report(self) -> dict[str, Any]:
        """Return all counts.

        By kind: requests, conditional requests, and answers by status. By repository: requests. Besides: the largest
        number of concurrent requests, and by repository and push id the time (epoch seconds) of the first request whose
        answer ended with that push.
        """
        with self._lock:
            kinds = {
                kind: {
                    "requests": counts["requests"],
                    "conditional": counts["conditional"],
                    "not_modified": self._statuses.get(kind, Counter())["304"],
                    "statuses": dict(self._statuses.get(kind, Counter())),
                }
                for kind, counts in self._counts.items()
            }
            return {
                "kinds": kinds,
                "repositories": dict(self._repositories),
                "max_concurrent": self._most,
                "listed": dict(self._listed),
            }
