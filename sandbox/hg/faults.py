"""What can go wrong with an hgweb, on request; and a count of what was asked of it."""

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
    """One fault of one repository.

    - status: answers with `status`, and with `retry_after` (seconds) when given
    - delay: answers after `seconds`
    - garbage: answers 200 with something that is not JSON
    - truncated: answers 200 with the first half of the body
    - hangup: sends half of the body, then drops the connection
    - lag: answers as a mirror that stands at push `upto` (default: the one before the last); with `ahead`,
      `lastpushid` already names the newer push
    """

    repository: str
    kind: Kind
    times: int | None = None  # how many requests it hits; None: no end but `lasts`
    lasts: float | None = None  # seconds from now on
    command: Command | None = None  # which requests it hits; None: both
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
    """The faults that wait, in order; each request takes at most one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    def add(self, fault: Fault) -> None:
        """Lets a fault begin."""
        with self._lock:
            until = None if fault.lasts is None else self._clock() + fault.lasts
            self._waiting.append(_Waiting(fault, fault.times, until))

    def take(self, repository: str, command: str) -> Fault | None:
        """The fault that hits this request."""
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
        """Ends all faults."""
        with self._lock:
            self._waiting.clear()


class Requests:
    """Counts requests; all counts are since the last `clear`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.clear()

    def clear(self) -> None:
        """Begins to count anew."""
        with self._lock:
            self._counts: dict[str, Counter[str]] = {}
            self._statuses: dict[str, Counter[str]] = {}
            self._repositories: Counter[str] = Counter()
            self._listed: dict[str, float] = {}
            self._arrivals: list[float] = []
            self._most = self._now

    def begin(self, kind: str, repository: str, *, conditional: bool) -> None:
        """A request came in."""
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
            self._repositories[repository] += 1
            self._arrivals.append(time.time())
            self._counts.setdefault(kind, Counter()).update({"requests": 1, "conditional": conditional})

    def listed(self, repository: str, last_push_id: int, since: float) -> None:
        """An answer that was asked for at `since` (epoch s) was the first to list everything up to a push."""
        with self._lock:
            self._listed.setdefault(f"{repository} {last_push_id}", since)

    def end(self, kind: str, status: int) -> None:
        """It was answered."""
        with self._lock:
            self._now -= 1
            self._statuses.setdefault(kind, Counter())[str(status)] += 1

    def arrivals(self) -> list[float]:
        """Return when each request came in, epoch s."""
        with self._lock:
            return list(self._arrivals)

    def report(self) -> dict[str, Any]:
        """By kind: requests, how many were conditional, answers by status; by repository; most at the same time; and
        when (epoch s) it was first asked for what ends with a push, by repository and push id."""
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
