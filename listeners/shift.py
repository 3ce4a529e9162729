"""Schedule the polls of the repositories that this listener has leased for a shift, and collect what it reports.

The service grants a rate for each host, and every request waits for its turn within it
(`ShiftScheduler.wait_for_turn`), so the budget of a host is kept however many listeners run. After the end of the shift
no request is sent. A shift counts from the moment when its renewal was sent, by a clock that runs on while the machine
is suspended.
"""

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from listeners.clock import boottime
from listeners.retry import jitter, wait_or_stop
from service.contract.events import MAX_EVENTS, HostRate, Lease, PollNews, Shift, ShiftRequest

log = structlog.get_logger()

POLL_STILL_RUNNING = "the previous poll has not ended: the pushlog neither answers nor closes the connection"


class ShiftEnded(Exception):
    """The repository is no longer leased to this listener, or its turn would come after the end of the shift."""


@dataclass(eq=False)
class LeasedRepository:
    """A repository that this listener polls, and the state of its polls. Times are of `boottime`."""

    lease: Lease
    until: float  # the end of its shift
    due: float
    unconditional_at: float  # from then on it is polled without an ETag
    unconditional_every: float  # seconds until that is due again
    cursor: int
    last_changeset: str | None
    etag: str | None
    suspected: bool
    polling: bool = False
    has_paid_turn: bool = False  # a request has its turn, and is not sent yet
    requested_at: float | None = None  # the last request since the last renewal
    unreported_success_at: float | None = None  # the beginning of the last good poll that the service does not know of
    slowest: float = 0.0

    @classmethod
    def from_lease(cls, lease: Lease, now: float, until: float, full_every: float = math.inf) -> "LeasedRepository":
        """Return a repository that was leased at `now`."""
        return cls(
            lease=lease,
            until=until,
            due=now + lease.first_in,
            unconditional_at=now + lease.full_in,
            unconditional_every=full_every,
            cursor=lease.cursor,
            last_changeset=lease.last_changeset,
            etag=lease.etag,
            suspected=lease.suspected,
        )


@dataclass
class PollResult:
    """The outcome of a poll. After a failure, the repository is given back, or its shift has ended already."""

    news: PollNews | None = None
    succeeded: bool = False
    began_at: float = 0.0
    requests: int = 0
    slowest: float = 0.0  # seconds of its slowest answer


@dataclass
class _Host:
    """A host's rate, and its repositories in the order in which they are due."""

    rate: float = 0.0
    max_requests: int = 1
    until: float = 0.0
    next_turn: float = math.inf  # when the next request may be sent
    last_turn: float = 0.0
    requests: int = 0
    queue: list[tuple[float, int, LeasedRepository]] = field(default_factory=list)

    def grant(self, granted: HostRate, now: float, until: float) -> bool:
        """Set the rate, and return True if it is lower than before."""
        previous = self.rate if now < self.until else 0.0
        self.rate, self.max_requests, self.until = granted.rate, granted.at_a_time, until
        if not self.rate:
            self.next_turn = math.inf
        elif not previous:
            self.next_turn = now + 1 / self.rate  # the bucket starts empty
        elif self.rate < previous:
            self.next_turn = max(self.next_turn, self.last_turn + 1 / self.rate)
        return self.rate < previous

    def take_turn(self, now: float) -> float:
        """Take the next turn, and return its time."""
        turn = max(now, self.next_turn)
        self.next_turn, self.last_turn = turn + 1 / self.rate, turn
        return turn


@dataclass
class _SentReport:
    """The contents of a renewal, which are forgotten when it is answered."""

    sent_at: float
    polled: list[tuple[LeasedRepository, float]]
    under_way: list[tuple[LeasedRepository, float]]
    news: int
    polls: int
    requests: int


class ShiftScheduler:
    """The leased repositories of this listener, in the order of their polls.

    Threads that poll call `next_poll`, `wait_for_turn` and `record_result`; one that renews calls the others.
    """

    def __init__(self, listener: str, stop: threading.Event, clock: Callable[[], float] = boottime) -> None:
        self._listener, self._stop, self._clock = listener, stop, clock
        self._lock = threading.Lock()
        self._schedule_changed = threading.Condition(self._lock)  # of the one thread that waits for the next due poll
        self._leader_left = threading.Condition(self._lock)  # of the other threads
        self._polls_ended = threading.Condition(self._lock)
        self._has_leader, self._waiting_threads, self._leader_waits_until = False, 0, 0.0
        self._hosts: dict[str, _Host] = {}
        self._leased: dict[int, LeasedRepository] = {}
        self._polling: dict[int, LeasedRepository] = {}
        self._numbers = itertools.count()
        self._news: list[tuple[PollNews, float | None]] = []
        self._polls, self._requests, self._slowest = 0, 0, 0.0
        self._answer = 0
        self._sent_report: _SentReport | None = None

    # Threads that poll

    def next_poll(self) -> tuple[LeasedRepository, bool] | None:
        """Wait until a repository is due and has its turn, and return it; return None if the listener stops.

        The second value is True if no thread waits any more, so that another one is needed.
        """
        with self._lock:
            self._waiting_threads += 1
            while self._has_leader and not self._stop.is_set():
                self._leader_left.wait()
            self._has_leader = True
            while not self._stop.is_set():
                now = self._clock()
                at, repository = self._find_first(now)
                if repository is not None and at <= now:
                    self._start(repository, now)
                    self._leave()
                    return repository, self._waiting_threads == 0
                self._leader_waits_until = at
                self._schedule_changed.wait(at - now if at < math.inf else None)
            self._leave()
            return None

    def _leave(self) -> None:
        """Let another thread wait for the next due poll."""
        self._has_leader = False
        self._waiting_threads -= 1
        self._leader_left.notify()

    def _find_first(self, now: float) -> tuple[float, LeasedRepository | None]:
        """Return the repository that can be polled first, and the time of that."""
        first: tuple[float, LeasedRepository | None] = math.inf, None
        for host in self._hosts.values():
            while host.queue:
                due, _, repository = host.queue[0]
                if self._is_queued(repository, due) and now < repository.until:
                    break
                heapq.heappop(host.queue)
                if self._is_leased(repository) and not repository.polling and now >= repository.until:
                    del self._leased[repository.lease.id]
            if host.queue and host.requests < host.max_requests and now < host.until:
                at = max(host.queue[0][0], host.next_turn)
                if at < first[0]:
                    first = at, host.queue[0][2]
        return first

    def _is_leased(self, repository: LeasedRepository) -> bool:
        return self._leased.get(repository.lease.id) is repository

    def _is_queued(self, repository: LeasedRepository, due: float) -> bool:
        return self._is_leased(repository) and not repository.polling and repository.due == due

    def _start(self, repository: LeasedRepository, now: float) -> None:
        host = self._hosts[repository.lease.host]
        host.take_turn(now)
        host.requests += 1
        repository.polling = repository.has_paid_turn = True
        self._polling[repository.lease.id] = repository

    def wait_for_turn(self, repository: LeasedRepository) -> float:
        """Wait until a request may be sent for this repository, and return the seconds that are left to send it.

        Raises ShiftEnded, ListenerStopped.
        """
        with self._lock:
            host, now = self._hosts[repository.lease.host], self._clock()
            turn = now
            if repository.has_paid_turn:
                repository.has_paid_turn = False
            elif not host.rate or max(now, host.next_turn) >= repository.until:
                raise ShiftEnded
            else:
                turn = host.take_turn(now)
        while (seconds := turn - self._clock()) > 0:
            wait_or_stop(self._stop, seconds)
        with self._lock:
            now = self._clock()
            until = min(repository.until, host.until)
            if now >= until or not self._is_leased(repository):
                raise ShiftEnded
            repository.requested_at = now
            return until - now

    def record_result(self, repository: LeasedRepository, result: PollResult) -> None:
        """Record the end of a poll, and schedule the next one."""
        with self._lock:
            repository.polling = False
            del self._polling[repository.lease.id]
            host = self._hosts[repository.lease.host]
            was_full = host.requests == host.max_requests
            host.requests -= 1
            self._polls += 1
            self._requests += result.requests
            self._slowest = max(self._slowest, result.slowest)
            if result.news is not None:
                self._news.append((result.news, None if result.succeeded else repository.unreported_success_at))
            if self._is_leased(repository):
                if result.succeeded:
                    repository.unreported_success_at = result.began_at
                    repository.slowest = max(repository.slowest, result.slowest)
                    pause = max(jitter(repository.lease.interval, 0.9, 1.1), result.slowest)
                    self._queue(repository, result.began_at + pause)
                else:
                    del self._leased[repository.lease.id]
            if was_full or max(repository.due, host.next_turn) < self._leader_waits_until:
                self._schedule_changed.notify()
            if not self._polling:
                self._polls_ended.notify_all()

    def _queue(self, repository: LeasedRepository, due: float) -> None:
        repository.due = due
        heapq.heappush(self._hosts[repository.lease.host].queue, (due, next(self._numbers), repository))

    # The thread that renews

    def build_report(self, *, ends: bool = False) -> ShiftRequest:
        """Return the renewal to send now. The shift counts from this moment, so send it at once."""
        with self._lock:
            now = self._clock()
            polled = [
                (repository, repository.unreported_success_at)
                for repository in self._leased.values()
                if repository.unreported_success_at is not None
            ]
            under_way = [
                (repository, repository.requested_at)
                for repository in self._polling.values()
                if repository.requested_at is not None
                and repository.unreported_success_at is None
                and self._is_leased(repository)
            ]
            news = [
                item if success_at is None else item.model_copy(update={"good_ago": now - success_at})
                for item, success_at in self._news[:MAX_EVENTS]
            ]
            self._sent_report = _SentReport(now, polled, under_way, len(news), self._polls, self._requests)
            return ShiftRequest(
                listener=self._listener,
                answer=self._answer,
                polled=[
                    (
                        repository.lease.id,
                        repository.lease.shift,
                        round(now - success_at, 3),
                        round(repository.slowest, 3),
                    )
                    for repository, success_at in polled
                ],
                under_way=[(repository.lease.id, repository.lease.shift) for repository, _ in under_way],
                news=news,
                polls=self._polls,
                requests=self._requests,
                slowest=self._slowest,
                ends=ends,
            )

    def apply_answer(self, shift: Shift) -> bool:
        """Apply the answer to the last report; return True if the next renewal is to be sent at once.

        That is so after a rate was cut, because other listeners wait for it.
        """
        with self._lock:
            report = self._sent_report
            assert report is not None
            until = report.sent_at + shift.seconds
            self._answer = shift.answer
            self._forget(report)
            renewed = set(shift.renewed)
            for repository, _ in [*report.polled, *report.under_way]:
                if not self._is_leased(repository):
                    continue
                if repository.lease.id in renewed:
                    repository.until = until
                else:
                    del self._leased[repository.lease.id]
            now = self._clock()
            for name in shift.hosts.keys() - self._hosts.keys():
                self._hosts[name] = _Host()
            no_rate = HostRate(rate=0, at_a_time=1)
            cuts = [host.grant(shift.hosts.get(name, no_rate), now, until) for name, host in self._hosts.items()]
            for lease in shift.leases:
                self._begin(LeasedRepository.from_lease(lease, now, until, shift.full_every))
            self._schedule_changed.notify()
            return any(cuts)

    def _forget(self, report: _SentReport) -> None:
        """Forget what the service knows now."""
        del self._news[: report.news]
        self._polls -= report.polls
        self._requests -= report.requests
        self._slowest = 0.0
        for repository, success_at in report.polled:
            if repository.unreported_success_at == success_at:
                repository.unreported_success_at, repository.slowest = None, 0.0
        for repository in self._leased.values():
            if repository.requested_at is not None and repository.requested_at < report.sent_at:
                repository.requested_at = None

    def _begin(self, repository: LeasedRepository) -> None:
        lease = repository.lease
        if lease.id in self._polling:
            # the poll outlasted its shift; a second thread that hangs there would in the end leave none for the others
            news = PollNews(repository_id=lease.id, shift=lease.shift, outcome="failed", error=POLL_STILL_RUNNING)
            self._news.append((news, None))
            return
        self._leased[lease.id] = repository
        self._queue(repository, repository.due)

    def wake(self) -> None:
        """Let the threads that wait in `next_poll` return, after `stop` was set."""
        with self._lock:
            self._schedule_changed.notify_all()
            self._leader_left.notify_all()

    def wait_until_idle(self) -> None:
        """Return once no poll is in progress."""
        with self._lock:
            self._polls_ended.wait_for(lambda: not self._polling)

    @property
    def leased(self) -> list[str]:
        """The aliases of the repositories that are leased to this listener."""
        with self._lock:
            return sorted(repository.lease.repository for repository in self._leased.values())

    @property
    def polling(self) -> list[str]:
        """The aliases of the repositories that are being polled."""
        with self._lock:
            return sorted(repository.lease.repository for repository in self._polling.values())
