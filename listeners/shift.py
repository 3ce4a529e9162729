"""The repositories that this listener has for a shift: which is polled when, and what the service is told of them.

The service grants a rate for each host, and every request waits for its turn within it (`Shifts.pace`), so the host's
budget is kept however many listeners there are. Nothing is asked once the shift has ended, by a clock that counts
suspended time, from the moment at which the renewal was sent.
"""

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from listeners.clock import steady
from listeners.retry import jitter, wait_or_stop
from service.contract.events import MAX_EVENTS, HostRate, Lease, PollNews, Shift, ShiftRequest

log = structlog.get_logger()

HUNG = "the poll before has not come to an end: the pushlog neither answers nor closes the connection"


class ShiftEnded(Exception):
    """The repository is this listener's no more, or its turn would not come before that."""


@dataclass(eq=False)
class Held:
    """A repository of this listener's, and where its poll stands. Times are of `steady`."""

    lease: Lease
    until: float  # the end of its shift
    due: float
    full_at: float  # from then on it is asked without an ETag
    full_every: float  # seconds after which that is due again
    cursor: int
    last_changeset: str | None
    etag: str | None
    suspected: bool
    polling: bool = False
    paid: bool = False  # a request was paid for, and is not sent yet
    asked_at: float | None = None  # the last request since the last renewal
    good_at: float | None = None  # when the last good poll began of which the service does not know
    slowest: float = 0.0

    @classmethod
    def of(cls, lease: Lease, now: float, until: float, full_every: float = math.inf) -> "Held":
        """Return a repository that was leased just now."""
        return cls(
            lease=lease,
            until=until,
            due=now + lease.first_in,
            full_at=now + lease.full_in,
            full_every=full_every,
            cursor=lease.cursor,
            last_changeset=lease.last_changeset,
            etag=lease.etag,
            suspected=lease.suspected,
        )


@dataclass
class Result:
    """How a poll went."""

    news: PollNews | None = None
    good: bool = False  # otherwise the repository is given back, or has gone already
    began: float = 0.0
    requests: int = 0
    slowest: float = 0.0  # seconds that its slowest answer took


@dataclass
class _Host:
    """A host's rate, and the repositories there in the order in which they are due."""

    rate: float = 0.0
    at_a_time: int = 1
    until: float = 0.0
    turn: float = math.inf  # when the next request may be sent
    last: float = 0.0  # when one was sent last
    asking: int = 0
    queue: list[tuple[float, int, Held]] = field(default_factory=list)

    def grant(self, granted: HostRate, now: float, until: float) -> bool:
        """Take a rate; return True if it is less than the last one was."""
        before = self.rate if now < self.until else 0.0
        self.rate, self.at_a_time, self.until = granted.rate, granted.at_a_time, until
        if not self.rate:
            self.turn = math.inf
        elif not before:
            self.turn = now + 1 / self.rate  # it starts empty
        elif self.rate < before:
            self.turn = max(self.turn, self.last + 1 / self.rate)
        return self.rate < before

    def book(self, now: float) -> float:
        """Take the next turn, and return when it is."""
        at = max(now, self.turn)
        self.turn, self.last = at + 1 / self.rate, at
        return at


@dataclass
class _Told:
    """What a renewal told, to be forgotten once it is answered."""

    sent: float
    polled: list[tuple[Held, float]]
    under_way: list[tuple[Held, float]]
    news: int
    polls: int
    requests: int


class Shifts:
    """This listener's repositories. Threads that poll call `next`, `pace` and `ended`, one that renews the others."""

    def __init__(self, listener: str, stop: threading.Event, clock: Callable[[], float] = steady) -> None:
        self._listener, self._stop, self._clock = listener, stop, clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # of the one thread that waits for what is due next
        self._idle = threading.Condition(self._lock)  # of the others
        self._ended = threading.Condition(self._lock)
        self._leading, self._waiting, self._until = False, 0, 0.0
        self._hosts: dict[str, _Host] = {}
        self._held: dict[int, Held] = {}
        self._polling: dict[int, Held] = {}
        self._numbers = itertools.count()
        self._news: list[tuple[PollNews, float | None]] = []
        self._polls, self._requests, self._slowest = 0, 0, 0.0
        self._answer = 0
        self._told: _Told | None = None

    # Threads that poll

    def next(self) -> tuple[Held, bool] | None:
        """Wait until a repository is due and its host may be asked; None: the listener ends.

        Also returns whether no thread waits any more, so that another one is needed.
        """
        with self._lock:
            self._waiting += 1
            while self._leading and not self._stop.is_set():
                self._idle.wait()
            self._leading = True
            while not self._stop.is_set():
                now = self._clock()
                at, held = self._first(now)
                if held is not None and at <= now:
                    self._start(held, now)
                    self._let_another_lead()
                    return held, self._waiting == 0
                self._until = at
                self._changed.wait(at - now if at < math.inf else None)
            self._let_another_lead()
            return None

    def _let_another_lead(self) -> None:
        self._leading = False
        self._waiting -= 1
        self._idle.notify()

    def _first(self, now: float) -> tuple[float, Held | None]:
        """Return what can be asked first, and when."""
        best: tuple[float, Held | None] = math.inf, None
        for host in self._hosts.values():
            while host.queue:
                due, _, held = host.queue[0]
                if self._is_queued(held, due) and now < held.until:
                    break
                heapq.heappop(host.queue)
                if self._held.get(held.lease.id) is held and not held.polling and now >= held.until:
                    del self._held[held.lease.id]
            if host.queue and host.asking < host.at_a_time and now < host.until:
                at = max(host.queue[0][0], host.turn)
                if at < best[0]:
                    best = at, host.queue[0][2]
        return best

    def _is_queued(self, held: Held, due: float) -> bool:
        return self._held.get(held.lease.id) is held and not held.polling and held.due == due

    def _start(self, held: Held, now: float) -> None:
        host = self._hosts[held.lease.host]
        host.book(now)
        host.asking += 1
        held.polling = held.paid = True
        self._polling[held.lease.id] = held

    def pace(self, held: Held) -> float:
        """Wait until a request may be sent for this repository, and return the seconds that are left for that.

        Raises ShiftEnded, ListenerStopped.
        """
        with self._lock:
            host, now = self._hosts[held.lease.host], self._clock()
            at = now
            if held.paid:
                held.paid = False
            elif not host.rate or max(now, host.turn) >= held.until:
                raise ShiftEnded
            else:
                at = host.book(now)
        while (left := at - self._clock()) > 0:
            wait_or_stop(self._stop, left)
        with self._lock:
            now = self._clock()
            until = min(held.until, host.until)
            if now >= until or self._held.get(held.lease.id) is not held:
                raise ShiftEnded
            held.asked_at = now
            return until - now

    def ended(self, held: Held, result: Result) -> None:
        """Take in how a poll went."""
        with self._lock:
            held.polling = False
            del self._polling[held.lease.id]
            host = self._hosts[held.lease.host]
            full = host.asking == host.at_a_time
            host.asking -= 1
            self._polls += 1
            self._requests += result.requests
            self._slowest = max(self._slowest, result.slowest)
            if result.news is not None:
                self._news.append((result.news, None if result.good else held.good_at))
            if self._held.get(held.lease.id) is held:
                if result.good:
                    held.good_at, held.slowest = result.began, max(held.slowest, result.slowest)
                    pause = max(jitter(held.lease.interval, 0.9, 1.1), result.slowest)
                    self._queue(held, result.began + pause)
                else:
                    del self._held[held.lease.id]
            if full or max(held.due, host.turn) < self._until:
                self._changed.notify()
            if not self._polling:
                self._ended.notify_all()

    def _queue(self, held: Held, due: float) -> None:
        held.due = due
        heapq.heappush(self._hosts[held.lease.host].queue, (due, next(self._numbers), held))

    # The thread that renews

    def report(self, *, ends: bool = False) -> ShiftRequest:
        """Return what the service is to be told now. The shift counts from this moment, so send it at once."""
        with self._lock:
            now = self._clock()
            polled = [(held, held.good_at) for held in self._held.values() if held.good_at is not None]
            under_way = [
                (held, held.asked_at)
                for held in self._polling.values()
                if held.asked_at is not None and held.good_at is None and self._held.get(held.lease.id) is held
            ]
            news = [
                each if good_at is None else each.model_copy(update={"good_ago": now - good_at})
                for each, good_at in self._news[:MAX_EVENTS]
            ]
            self._told = _Told(now, polled, under_way, len(news), self._polls, self._requests)
            return ShiftRequest(
                listener=self._listener,
                answer=self._answer,
                polled=[
                    (held.lease.id, held.lease.shift, round(now - good_at, 3), round(held.slowest, 3))
                    for held, good_at in polled
                ],
                under_way=[(held.lease.id, held.lease.shift) for held, _ in under_way],
                news=news,
                polls=self._polls,
                requests=self._requests,
                slowest=self._slowest,
                ends=ends,
            )

    def take(self, shift: Shift) -> bool:
        """Take in the answer to the last report; return True if the service should know soon that it is here."""
        with self._lock:
            told = self._told
            assert told is not None
            until = told.sent + shift.seconds
            self._answer = shift.answer
            self._forget(told)
            renewed = set(shift.renewed)
            for held, _ in [*told.polled, *told.under_way]:
                if self._held.get(held.lease.id) is not held:
                    continue
                if held.lease.id in renewed:
                    held.until = until
                else:
                    del self._held[held.lease.id]
            now = self._clock()
            for name in shift.hosts.keys() - self._hosts.keys():
                self._hosts[name] = _Host()
            nothing = HostRate(rate=0, at_a_time=1)
            cut = [host.grant(shift.hosts.get(name, nothing), now, until) for name, host in self._hosts.items()]
            for lease in shift.leases:
                self._begin(Held.of(lease, now, until, shift.full_every))
            self._changed.notify()
            return any(cut)

    def _forget(self, told: _Told) -> None:
        del self._news[: told.news]
        self._polls -= told.polls
        self._requests -= told.requests
        self._slowest = 0.0
        for held, good_at in told.polled:
            if held.good_at == good_at:
                held.good_at, held.slowest = None, 0.0
        for held in self._held.values():
            if held.asked_at is not None and held.asked_at < told.sent:
                held.asked_at = None

    def _begin(self, held: Held) -> None:
        if held.lease.id in self._polling:
            # its shift ended; a second thread that hangs there would in the end leave none for the others
            lease = held.lease
            news = PollNews(repository_id=lease.id, shift=lease.shift, outcome="failed", error=HUNG)
            self._news.append((news, None))
            return
        self._held[held.lease.id] = held
        self._queue(held, held.due)

    def stop(self) -> None:
        """Let the threads that wait in `next` end: `stop` is set."""
        with self._lock:
            self._changed.notify_all()
            self._idle.notify_all()

    def wait_until_idle(self) -> None:
        """Return once no poll is under way."""
        with self._lock:
            self._ended.wait_for(lambda: not self._polling)

    @property
    def polling(self) -> list[str]:
        """The aliases of the repositories that are polled just now."""
        with self._lock:
            return sorted(held.lease.repository for held in self._polling.values())
