"""Fair sharing of slots. Tests count the order, not the time."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.fair import FIRST_SLOTS, SLOW, AdaptiveSlots, FairSlots, deal, most_of
from service.errors import PermanentUpstreamError, Unavailable


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 1), (10, 9)])
def test_nobody_holds_the_last_slot(slots: int, most: int) -> None:
    assert most_of(slots) == most
    assert deal(["hog"], {}, slots, most) == {"hog": most}


def test_whoever_holds_least_goes_first() -> None:
    assert deal(["a", "b", "c"], {"a": 3, "b": 1}, 4, 9) == {"c": 2, "b": 2}
    assert deal(["b", "a"], {}, 1, 9) == {"b": 1}, "of those that hold as much, whose turn it is"
    assert deal(["hog", "other"], {"hog": 9}, 1, 9) == {"other": 1}
    assert deal(["hog"], {"hog": 9}, 1, 9) == {}
    assert deal([], {}, 5, 9) == {}


@given(
    shares=st.lists(st.sampled_from("abcdef"), unique=True),
    held=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 12)),
    slots=st.integers(0, 20),
    most=st.integers(1, 10),
)
def test_what_is_dealt_is_fair(shares: list[str], held: dict[str, int], slots: int, most: int) -> None:
    dealt = deal(shares, held, slots, most)
    assert sum(dealt.values()) <= slots
    after = {share: held.get(share, 0) + dealt.get(share, 0) for share in shares}
    for share in dealt:
        assert after[share] <= most
        assert all(after[share] <= after[other] + 1 for other in shares)
    if sum(dealt.values()) < slots:
        assert all(leases_held >= most for leases_held in after.values())


class Calls:
    """Calls that each take a slot until they are let go, in the order in which they began."""

    def __init__(self, slots: int) -> None:
        self.slots = FairSlots(slots)
        self.began: list[str] = []
        self._going: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    def call(self, share: str, times: int = 1) -> None:
        self.tasks += [asyncio.create_task(self._call(share)) for _ in range(times)]

    async def _call(self, share: str) -> None:
        async with self.slots.use(share):
            self.began.append(share)
            going = asyncio.Event()
            self._going.append(going)
            await going.wait()

    async def end(self, count: int = 1) -> None:
        for _ in range(count):
            self._going.pop(0).set()
        await self.record_outcomes()

    async def record_outcomes(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        while self._going:
            await self.end()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in ended), ended


async def test_a_call_of_another_never_waits_behind_ten_thousand() -> None:
    calls = Calls(10)
    calls.call("hog", 10_000)
    await calls.record_outcomes()
    assert calls.began == ["hog"] * 9
    calls.call("other", 3)
    await calls.record_outcomes()
    assert calls.began[9:] == ["other"]
    await calls.end(2)
    assert calls.began[10:] == ["other"] * 2, "and then it is its turn until it has as many"
    for task in calls.tasks:
        task.cancel()
    await calls.end_all()


async def test_shares_take_turns() -> None:
    calls = Calls(2)
    calls.call("a", 4)
    calls.call("b", 4)
    calls.call("c", 4)
    await calls.record_outcomes()
    for _ in range(10):
        await calls.end()
    assert Counter(calls.began[:6]) == {"a": 2, "b": 2, "c": 2}
    await calls.end_all()
    assert Counter(calls.began) == {"a": 4, "b": 4, "c": 4}


async def test_one_slot_is_everybodys() -> None:
    calls = Calls(1)
    calls.call("a", 2)
    calls.call("b")
    await calls.record_outcomes()
    await calls.end_all()
    assert calls.began == ["a", "b", "a"]


@pytest.mark.parametrize("given_before", [False, True])
async def test_who_is_cancelled_keeps_no_slot(given_before: bool) -> None:
    calls = Calls(2)
    calls.call("a", 2)
    await calls.record_outcomes()
    if given_before:
        await_end = calls.tasks[1]
        calls._going.pop(0).set()  # the slot is given on in the step in which it is cancelled
        await asyncio.sleep(0)
        await_end.cancel()
    else:
        calls.tasks[1].cancel()
        await calls.record_outcomes()
        await calls.end()
    await calls.record_outcomes()
    calls.call("b", 2)
    await calls.record_outcomes()
    assert calls.began.count("b") == 1
    calls.call("c")
    await calls.record_outcomes()
    assert calls.began.count("c") == 1, "both slots are free again"
    await calls.end_all()


async def test_an_error_gives_the_slot_back() -> None:
    slots = FairSlots(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with slots.use("a"):
                raise ZeroDivisionError


async def test_shares_that_want_nothing_any_more_are_forgotten() -> None:
    """They are named after users, of whom there are ever more."""
    slots = FairSlots(2)
    for number in range(50):
        async with slots.use(f"mc/{number}"):
            pass
    assert (slots._served, slots._held, slots._waiting) == ({}, {}, {})


class Upstream:
    """Calls of two shares to an upstream that answers after `seconds`, by a clock of its own."""

    def __init__(self, ceiling: int) -> None:
        self.time = 0.0
        self.seen: list[int] = []
        self.slots = AdaptiveSlots(ceiling, self.seen.append, lambda: self.time)
        self.most = 0

    async def round(self, seconds: float, *, calls: int = 200, error: Exception | None = None) -> None:
        """Make as many calls at once as there is room for, and then end them; others wait meanwhile."""
        under_way = 0
        ends = asyncio.Event()

        async def call(share: str) -> None:
            nonlocal under_way
            async with self.slots.use(share):
                if ends.is_set():
                    return
                under_way += 1
                with self.slots.watch():
                    await ends.wait()
                    if error is not None:
                        raise error

        tasks = [asyncio.create_task(call("ab"[number % 2])) for number in range(calls)]
        for _ in range(5):
            await asyncio.sleep(0)
        self.most = max(self.most, under_way)
        self.time += seconds
        ends.set()
        await asyncio.gather(*tasks, return_exceptions=True)


THROTTLED = Unavailable("taskcluster", "Taskcluster answers 429", status=429)


async def test_there_are_more_slots_while_calls_are_fast_and_never_more_than_the_ceiling() -> None:
    upstream = Upstream(25)
    assert upstream.slots.slots == FIRST_SLOTS
    for _ in range(5):
        await upstream.round(1)
    assert upstream.slots.slots == 25
    assert upstream.seen == [*range(FIRST_SLOTS, 26)]
    assert upstream.most <= 25
    assert AdaptiveSlots(3).slots == 3


async def test_there_are_no_more_slots_while_nobody_waits_or_calls_are_slow() -> None:
    upstream = Upstream(50)
    await upstream.round(1, calls=4)
    assert upstream.slots.slots == FIRST_SLOTS
    await upstream.round(2 * SLOW)
    assert upstream.slots.slots == FIRST_SLOTS
    await upstream.round(1)
    assert upstream.slots.slots > FIRST_SLOTS


async def test_an_upstream_that_has_become_slower_for_good_is_slow_no_more() -> None:
    upstream = Upstream(50)
    await upstream.round(1, calls=1)
    rounds = 0
    while upstream.slots.slots == FIRST_SLOTS and rounds < 100:
        await upstream.round(2 * SLOW)
        rounds += 1
    assert 5 < rounds < 100


@pytest.mark.parametrize("status", [429, 408, 500, 503, None])
async def test_slots_are_halved_once_for_each_round_of_calls_and_come_back_slowly(status: int | None) -> None:
    upstream = Upstream(24)
    for _ in range(5):
        await upstream.round(1)
    await upstream.round(1, error=Unavailable("taskcluster", "too much", status=status))
    assert upstream.slots.slots == 12, "all of them were made with as many slots"
    upstream.time += 1
    await upstream.round(1, error=THROTTLED)
    assert upstream.slots.slots == 6
    upstream.seen.clear()
    for _ in range(3):
        await upstream.round(1)
    assert 6 < upstream.slots.slots <= 10, "one for each round"
    assert upstream.seen == sorted(upstream.seen)


async def test_nobody_ever_holds_the_last_slot() -> None:
    upstream = Upstream(24)
    for _ in range(10):
        upstream.time += 1
        await upstream.round(1, error=THROTTLED)
    assert upstream.slots.slots == 2
    only = AdaptiveSlots(1)
    with pytest.raises(Unavailable), only.watch():
        raise THROTTLED
    assert only.slots == 1


@pytest.mark.parametrize(
    "error", [PermanentUpstreamError("taskcluster", "no", 403), Unavailable("taskcluster", "no", status=401)]
)
async def test_an_upstream_that_answers_has_not_too_much_to_do(error: Exception) -> None:
    upstream = Upstream(24)
    await upstream.round(1, error=error)
    assert upstream.slots.slots == FIRST_SLOTS


async def test_what_is_taken_away_is_given_back_before_anybody_gets_a_slot() -> None:
    slots = AdaptiveSlots(10)
    held = [slots.use("ab"[number % 2]) for number in range(10)]
    for slot in held:
        await slot.__aenter__()
    with pytest.raises(Unavailable), slots.watch():
        raise THROTTLED
    waiting = asyncio.create_task(slots.use("c").__aenter__())
    for number, slot in enumerate(held, 1):
        assert not waiting.done()
        await slot.__aexit__(None, None, None)
        await asyncio.sleep(0)
        if number == 6:
            break
    assert waiting.done(), "four of five are held"
    for slot in held[6:]:
        await slot.__aexit__(None, None, None)
