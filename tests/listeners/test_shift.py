"""A listener's shift, by a clock that is moved: what is polled when, what is told, and when it ends."""

import threading
from typing import Any

import pytest

from listeners.shift import POLL_STILL_RUNNING, LeasedRepository, PollResult, ShiftEnded, ShiftScheduler
from service.contract.events import MAX_EVENTS, HostRate, Lease, PollNews, Shift

HOST = "hg.example.com"


class ManualClock:
    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += seconds


class ShiftHarness:
    """ShiftScheduler, and a service that answers what a test says."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stop = threading.Event()
        self.shifts = ShiftScheduler("00000000-0000-4000-8000-000000000000", self.stop, self.clock)
        self.number = 0

    def answer(self, *leases: Lease, rate: float = 10, takes: float = 0, **more: Any) -> bool:
        """Renew; the answer comes after so many seconds."""
        self.number += 1
        asked = self.shifts.build_report()
        self.clock.go(takes)
        values: dict[str, Any] = {
            "answer": self.number,
            "seconds": 15,
            "renew": 5,
            "full_every": 600,
            "hosts": {HOST: HostRate(rate=rate, at_a_time=more.pop("at_a_time", 4))},
            "renewed": [each[0] for each in (*asked.polled, *asked.under_way)],
            "leases": list(leases),
        }
        return self.shifts.apply_answer(Shift(**{**values, **more}))

    def begin(self, wait: float = 0.1) -> LeasedRepository:
        """The next repository, whose turn must come within so many seconds."""
        self.clock.go(wait)
        job = self.shifts.next_poll()
        assert job is not None
        return job[0]

    def poll(self, wait: float = 0.1, **result: Any) -> LeasedRepository:
        held = self.begin(wait)
        self.shifts.wait_for_turn(held)
        self.shifts.record_result(
            held, PollResult(**{"succeeded": True, "began_at": self.clock.at, "requests": 1, **result})
        )
        return held


@pytest.fixture
def harness() -> ShiftHarness:
    return ShiftHarness()


def make_lease(number: int = 1, shift: int = 1, **more: Any) -> Lease:
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
    return Lease(**{**values, **more})


# When a shift ends


def test_a_shift_counts_from_the_moment_at_which_its_renewal_was_sent(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), takes=10)
    held = harness.begin()
    assert harness.shifts.wait_for_turn(held) == pytest.approx(4.9), "10.1 of 15 have passed"


def test_an_answer_that_came_too_late_is_worth_nothing(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), takes=15)
    harness.clock.go(1)
    assert nothing_is_due(harness)


def nothing_is_due(harness: ShiftHarness) -> bool:
    """Whether nothing can be asked now."""
    with harness.shifts._lock:
        at, held = harness.shifts._find_first(harness.clock.at)
    return held is None or at > harness.clock.at


def test_of_a_renewal_that_is_sent_again_the_last_attempt_counts(harness: ShiftHarness) -> None:
    harness.shifts.build_report()
    harness.clock.go(100)
    harness.answer(make_lease())
    assert harness.shifts.wait_for_turn(harness.begin()) == pytest.approx(14.9)


def test_a_machine_that_was_suspended_asks_nothing(harness: ShiftHarness) -> None:
    """The clock counts that time."""
    harness.answer(make_lease(1), make_lease(2))
    begun = harness.begin()
    harness.clock.go(3_600)
    with pytest.raises(ShiftEnded):
        harness.shifts.wait_for_turn(begun)
    assert nothing_is_due(harness)
    harness.shifts.record_result(begun, PollResult())
    assert harness.shifts.build_report().polled == []


def test_a_renewal_lengthens_it_for_what_was_polled(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2, first_in=20))
    first = harness.poll()
    harness.clock.go(10)
    harness.answer()
    assert first.until == harness.clock.at + 15
    assert harness.shifts.wait_for_turn(harness.begin()) == pytest.approx(14.9)
    harness.clock.go(5)
    harness.answer()
    assert [each[0] for each in harness.shifts.build_report().under_way] == []
    assert nothing_is_due(harness), "the second was not polled: its shift has ended"


def test_what_is_not_renewed_is_dropped(harness: ShiftHarness) -> None:
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
    held = harness.begin(0.02)
    harness.shifts.wait_for_turn(held)
    ticks: list[float] = []
    harness.stop.wait = lambda seconds: ticks.append(seconds) or harness.clock.go(seconds) or False  # type: ignore[assignment, func-returns-value, method-assign, misc]  # time passes
    for _ in range(5):
        harness.shifts.wait_for_turn(held)
    assert ticks == [pytest.approx(0.02)] * 5


def test_a_turn_after_the_end_of_the_shift_is_not_waited_for(harness: ShiftHarness) -> None:
    harness.answer(make_lease(), rate=0.05)
    held = LeasedRepository.from_lease(make_lease(), harness.clock.at, harness.clock.at + 15)
    with pytest.raises(ShiftEnded):
        harness.shifts.wait_for_turn(held)


def test_a_rate_that_is_cut_is_told_soon_and_kept_at_once(harness: ShiftHarness) -> None:
    assert harness.answer(*(make_lease(n) for n in range(1, 4)), rate=10) is False
    harness.poll()
    assert harness.answer(rate=1) is True, "others wait for it"
    assert harness.shifts.build_report().answer == 2
    harness.clock.go(0.9)
    assert nothing_is_due(harness)
    harness.poll(0.11)
    assert harness.answer(rate=1) is False
    assert harness.answer(hosts={}) is True
    harness.clock.go(5)
    assert nothing_is_due(harness)


def test_so_many_at_a_time_of_a_host(harness: ShiftHarness) -> None:
    harness.answer(*(make_lease(n) for n in range(1, 5)), at_a_time=2)
    first, _ = harness.begin(), harness.begin()
    harness.clock.go(1)
    assert nothing_is_due(harness)
    harness.shifts.record_result(first, PollResult(succeeded=True, began_at=harness.clock.at))
    assert not nothing_is_due(harness)


# What is told


def test_what_was_polled_is_told_until_that_is_answered(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2, shift=7))
    harness.poll(slowest=0.25)
    harness.poll(slowest=0.5)
    harness.clock.go(2)
    for _ in range(2):
        told = harness.shifts.build_report()
        assert sorted(told.polled) == [(1, 1, 2.1, 0.25), (2, 7, 2.0, 0.5)]
        assert (told.polls, told.requests, told.slowest) == (2, 2, 0.5)
    harness.answer()
    told = harness.shifts.build_report()
    assert (told.polled, told.polls, told.requests, told.slowest) == ([], 0, 0, 0)


def test_what_is_polled_while_a_renewal_is_under_way_is_told_with_the_next(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2))
    harness.poll()
    asked = harness.shifts.build_report()
    second = harness.poll()
    values = {"seconds": 15, "renew": 5, "full_every": 600, "hosts": {HOST: HostRate(rate=10, at_a_time=4)}}
    harness.shifts.apply_answer(Shift(answer=2, renewed=[asked.polled[0][0]], leases=[], **values))
    assert [each[0] for each in harness.shifts.build_report().polled] == [second.lease.id]


def test_a_poll_that_found_nothing_new_is_no_news(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    harness.poll()
    assert harness.shifts.build_report().news == []


def test_a_repository_that_fails_is_given_back_with_that(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    harness.poll()
    harness.clock.go(6)
    news = PollNews(repository_id=1, shift=1, outcome="failed", error="404")
    harness.poll(succeeded=False, news=news)
    harness.clock.go(60)
    told = harness.shifts.build_report()
    assert (told.polled, told.polls) == ([], 2)
    assert [(each.error, each.good_ago) for each in told.news] == [("404", pytest.approx(66.1))]
    assert nothing_is_due(harness)


def test_more_news_than_a_request_may_have_are_told_one_after_the_other(harness: ShiftHarness) -> None:
    numbers = range(1, MAX_EVENTS + 3)
    harness.answer(*(make_lease(n) for n in numbers), rate=1_000, at_a_time=10)
    for _ in numbers:
        held = harness.begin(0.002)
        news = PollNews(repository_id=held.lease.id, shift=1, outcome="failed")
        harness.shifts.record_result(held, PollResult(news=news))
    for count in (MAX_EVENTS, 2, 0):
        assert len(harness.shifts.build_report().news) == count
        harness.answer()


def test_a_poll_that_does_not_end_is_said_when_it_is_leased_again(harness: ShiftHarness) -> None:
    harness.answer(make_lease())
    hung = harness.begin()
    harness.shifts.wait_for_turn(hung)
    harness.clock.go(5)
    assert harness.shifts.build_report().under_way == [(1, 1)]
    harness.answer(make_lease(shift=2), renewed=[])
    (news,) = harness.shifts.build_report().news
    assert (news.shift, news.error) == (2, POLL_STILL_RUNNING)
    harness.shifts.record_result(hung, PollResult(succeeded=True, began_at=harness.clock.at))
    assert harness.shifts.build_report().polled == [], "its shift had ended"


def test_it_is_under_way_for_one_renewal_only(harness: ShiftHarness) -> None:
    """One that hangs must not be kept for ever."""
    harness.answer(make_lease())
    harness.shifts.wait_for_turn(harness.begin())
    harness.clock.go(1)
    harness.answer()
    harness.clock.go(1)
    assert harness.shifts.build_report().under_way == []


def test_the_next_poll_is_due_after_the_interval_or_after_a_slow_answer(harness: ShiftHarness) -> None:
    harness.answer(make_lease(1), make_lease(2))
    quick, slow = harness.poll(), harness.poll(slowest=9)
    assert 4.4 < quick.due - harness.clock.at + 0.1 < 5.6
    assert slow.due - harness.clock.at == 9


def test_what_waits_ends_when_the_listener_does(harness: ShiftHarness) -> None:
    ended: list[Any] = []
    threads = [threading.Thread(target=lambda: ended.append(harness.shifts.next_poll())) for _ in range(3)]
    for thread in threads:
        thread.start()
    harness.stop.set()
    while any(thread.is_alive() for thread in threads):
        harness.shifts.wake()
        threads[0].join(0.01)
    assert ended == [None, None, None]
