"""The schedule of a shift, with a clock that the test moves: turns, rates, reports, and its end."""

import threading
from typing import Any

import pytest

from listeners.shift import POLL_STILL_RUNNING, LeasedRepository, PollResult, ShiftEnded, ShiftScheduler
from service.contract.events import MAX_EVENTS, HostRate, Lease, PollNews, Shift

HOST = "hg.example.com"


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += seconds


class ObservableScheduler(ShiftScheduler):
    """A scheduler that says whether `next_poll` would return at once."""

    def has_due_poll(self) -> bool:
        with self._lock:
            now = self._clock()
            at, repository = self._find_first(now)
        return repository is not None and at <= now


class ShiftHarness:
    """A scheduler, and a service that answers as the test says."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stop = threading.Event()
        self.scheduler = ObservableScheduler("00000000-0000-4000-8000-000000000000", self.stop, self.clock)
        self.number = 0

    def answer(self, *leases: Lease, rate: float = 10, takes: float = 0, **fields: Any) -> bool:
        """Renew, and apply the answer, which comes after `takes` seconds."""
        self.number += 1
        report = self.scheduler.build_report()
        self.clock.go(takes)
        values: dict[str, Any] = {
            "answer": self.number,
            "seconds": 15,
            "renew": 5,
            "full_every": 600,
            "hosts": {HOST: HostRate(rate=rate, at_a_time=fields.pop("at_a_time", 4))},
            "renewed": [entry[0] for entry in (*report.polled, *report.under_way)],
            "leases": list(leases),
        }
        return self.scheduler.apply_answer(Shift(**{**values, **fields}))

    def begin(self, wait: float = 0.1) -> LeasedRepository:
        """Return the next repository, whose turn must come within `wait` seconds."""
        self.clock.go(wait)
        next_poll = self.scheduler.next_poll()
        assert next_poll is not None
        return next_poll[0]

    def poll(self, wait: float = 0.1, **result: Any) -> LeasedRepository:
        repository = self.begin(wait)
        self.scheduler.wait_for_turn(repository)
        self.scheduler.record_result(
            repository, PollResult(**{"succeeded": True, "began_at": self.clock.at, "requests": 1, **result})
        )
        return repository


@pytest.fixture
def harness() -> ShiftHarness:
    return ShiftHarness()


def make_lease(number: int = 1, shift: int = 1, **fields: Any) -> Lease:
    values = {
        "repository": f"r{number}",
        "id": number,
        "shift": shift,
        "url": f"https://{HOST}/r{number}",
        "host": HOST,
        "generation": 0,
        "cursor": 0,
        "last_changeset": None,
        "etag": None,
        "full_in": 0,
        "first_in": 0,
        "interval": 5,
        "suspected": False,
    }
    return Lease(**{**values, **fields})


# The end of a shift


def test_a_shift_counts_from_the_moment_when_its_renewal_was_sent(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), takes=10)
    repository = harness.begin()
    assert harness.scheduler.wait_for_turn(repository) == pytest.approx(4.9), "10.1 of 15 have passed"


def test_an_answer_that_came_too_late_starts_no_poll(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), takes=15)
    harness.clock.go(1)
    assert nothing_is_due(harness)


def nothing_is_due(harness: ShiftHarness) -> bool:
    """Return True if no repository can be polled now."""
    return not harness.scheduler.has_due_poll()


def test_the_last_attempt_of_a_renewal_counts(harness: ShiftHarness) -> None:
    harness.scheduler.build_report()
    harness.clock.go(100)
    harness.answer(make_lease())
    assert harness.scheduler.wait_for_turn(harness.begin()) == pytest.approx(14.9)


def test_no_request_is_sent_after_a_suspension(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2))
    repository = harness.begin()
    harness.clock.go(3_600)
    with pytest.raises(ShiftEnded):
        harness.scheduler.wait_for_turn(repository)
    assert nothing_is_due(harness)
    harness.scheduler.record_result(repository, PollResult())
    assert harness.scheduler.build_report().polled == []


def test_a_renewal_extends_the_shift_of_polled_repositories(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2, first_in=20))
    first = harness.poll()
    harness.clock.go(10)
    harness.answer()
    assert first.until == harness.clock.at + 15
    assert harness.scheduler.wait_for_turn(harness.begin()) == pytest.approx(14.9)
    harness.clock.go(5)
    harness.answer()
    assert harness.scheduler.build_report().under_way == []
    assert nothing_is_due(harness), "the second was not polled: its shift has ended"


def test_repositories_that_are_not_renewed_are_dropped(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    harness.poll()
    harness.answer(renewed=[])
    harness.clock.go(6)
    assert nothing_is_due(harness)


# Rates


def test_requests_come_at_the_rate_and_the_bucket_starts_empty(harness: ShiftHarness) -> None:
    harness.answer(*(make_lease(n, interval=0) for n in range(1, 4)), rate=4)
    sent = []
    for _ in range(400):
        harness.clock.go(0.01)
        if not nothing_is_due(harness):
            sent.append(harness.clock.at)
            harness.poll(0)
    assert all(number + 1 <= (at - 1_000) * 4 + 0.001 for number, at in enumerate(sent))
    assert 14 <= len(sent) <= 16


def test_all_requests_of_a_poll_wait_for_their_turn(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), rate=50)
    repository = harness.begin(0.02)
    harness.scheduler.wait_for_turn(repository)
    ticks: list[float] = []
    harness.stop.wait = lambda seconds: ticks.append(seconds) or harness.clock.go(seconds) or False  # type: ignore[assignment, func-returns-value, method-assign, misc]  # time passes
    for _ in range(5):
        harness.scheduler.wait_for_turn(repository)
    assert ticks == [pytest.approx(0.02)] * 5


def test_a_turn_after_the_end_of_the_shift_is_not_awaited(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), rate=0.05)
    repository = LeasedRepository.from_lease(make_lease(), harness.clock.at, harness.clock.at + 15)
    with pytest.raises(ShiftEnded):
        harness.scheduler.wait_for_turn(repository)


def test_a_lower_rate_applies_at_once_and_is_confirmed_at_once(harness: ShiftHarness) -> None:
    assert harness.answer(*(make_lease(n) for n in range(1, 4)), rate=10) is False
    harness.poll()
    assert harness.answer(rate=1) is True, "others wait for it"
    assert harness.scheduler.build_report().answer == 2
    harness.clock.go(0.9)
    assert nothing_is_due(harness)
    harness.poll(0.11)
    assert harness.answer(rate=1) is False
    assert harness.answer(hosts={}) is True
    harness.clock.go(5)
    assert nothing_is_due(harness)


def test_concurrent_polls_of_a_host_are_limited(harness: ShiftHarness) -> None:
    harness.answer(*(make_lease(n) for n in range(1, 5)), at_a_time=2)
    first, _ = harness.begin(), harness.begin()
    harness.clock.go(1)
    assert nothing_is_due(harness)
    harness.scheduler.record_result(first, PollResult(succeeded=True, began_at=harness.clock.at))
    assert not nothing_is_due(harness)


# Reports


def test_polls_are_reported_until_the_report_is_answered(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2, shift=7))
    harness.poll(slowest=0.25)
    harness.poll(slowest=0.5)
    harness.clock.go(2)
    for _ in range(2):
        report = harness.scheduler.build_report()
        assert sorted(report.polled) == [(1, 1, 2.1, 0.25), (2, 7, 2.0, 0.5)]
        assert (report.polls, report.requests, report.slowest) == (2, 2, 0.5)
    harness.answer()
    report = harness.scheduler.build_report()
    assert (report.polled, report.polls, report.requests, report.slowest) == ([], 0, 0, 0)


def test_polls_during_a_renewal_are_reported_with_the_next(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2))
    harness.poll()
    report = harness.scheduler.build_report()
    second = harness.poll()
    values = {"seconds": 15, "renew": 5, "full_every": 600, "hosts": {HOST: HostRate(rate=10, at_a_time=4)}}
    harness.scheduler.apply_answer(Shift(answer=2, renewed=[report.polled[0][0]], leases=[], **values))
    assert [entry[0] for entry in harness.scheduler.build_report().polled] == [second.lease.id]


def test_a_poll_without_changes_is_no_news(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    harness.poll()
    assert harness.scheduler.build_report().news == []


def test_a_failed_repository_is_given_back_with_its_news(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    harness.poll()
    harness.clock.go(6)
    news = PollNews(repository_id=1, shift=1, outcome="failed", error="404")
    harness.poll(succeeded=False, news=news)
    harness.clock.go(60)
    report = harness.scheduler.build_report()
    assert (report.polled, report.polls) == ([], 2)
    assert [(news.error, news.good_ago) for news in report.news] == [("404", pytest.approx(66.1))]
    assert nothing_is_due(harness)


def test_news_are_spread_over_several_renewals(harness: ShiftHarness) -> None:
    numbers = range(1, MAX_EVENTS + 3)
    harness.answer(*(make_lease(n) for n in numbers), rate=1_000, at_a_time=10)
    for _ in numbers:
        repository = harness.begin(0.002)
        news = PollNews(repository_id=repository.lease.id, shift=1, outcome="failed")
        harness.scheduler.record_result(repository, PollResult(news=news))
    for count in (MAX_EVENTS, 2, 0):
        assert len(harness.scheduler.build_report().news) == count
        harness.answer()


def test_a_hanging_poll_is_reported_when_its_repository_is_leased_again(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    repository = harness.begin()
    harness.scheduler.wait_for_turn(repository)
    harness.clock.go(5)
    assert harness.scheduler.build_report().under_way == [(1, 1)]
    harness.answer(make_lease(shift=2), renewed=[])
    (news,) = harness.scheduler.build_report().news
    assert (news.shift, news.error) == (2, POLL_STILL_RUNNING)
    harness.scheduler.record_result(repository, PollResult(succeeded=True, began_at=harness.clock.at))
    assert harness.scheduler.build_report().polled == [], "its shift had ended"


def test_a_poll_is_reported_as_under_way_only_once(harness: ShiftHarness) -> None:
    """A hanging poll must not keep its repository for ever."""
    harness.answer(make_lease())
    harness.scheduler.wait_for_turn(harness.begin())
    harness.clock.go(1)
    harness.answer()
    harness.clock.go(1)
    assert harness.scheduler.build_report().under_way == []


def test_the_next_poll_is_due_after_the_interval_or_after_a_slow_answer(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2))
    quick, slow = harness.poll(), harness.poll(slowest=9)
    assert 4.4 < quick.due - harness.clock.at + 0.1 < 5.6
    assert slow.due - harness.clock.at == 9


def test_waiting_threads_end_when_the_listener_stops(harness: ShiftHarness) -> None:
    ended: list[Any] = []
    threads = [threading.Thread(target=lambda: ended.append(harness.scheduler.next_poll())) for _ in range(3)]
    for thread in threads:
        thread.start()
    harness.stop.set()
    while any(thread.is_alive() for thread in threads):
        harness.scheduler.wake()
        threads[0].join(0.01)
    assert ended == [None, None, None]
