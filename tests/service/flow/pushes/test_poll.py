"""Polls of a repository, on both databases: failures, suspicions, resets."""

from typing import Any

import pytest
from sqlmodel import select

from service.contract.events import Lease
from service.flow.pushes import poll
from service.settings import PollSettings
from service.store.database import Database
from service.store.models import Repository, State
from tests.service.flow.fake_listeners import MINUTE, SECOND, START, Clock, Listener, Polls
from tests.service.flow.pushes.test_push import changesets, pushes, steps
from tests.service.harness import node, push_event


class One(Polls):
    """A service, and a listener that polls its only repository when that is due."""

    listening: Listener | None = None
    polled = 0  # the shift in which it was polled last

    async def poll(self, outcome: Any = "listed", **fields: Any) -> Lease:
        """Wait until it is due, poll it, and tell what was found."""
        if self.listening is None:
            self.listening = self.listener()
        listener = self.listening
        if not listener.leases:
            row = await self.row()
            self.clock.at = max(self.clock.at, row.due_at)
            await listener.renew()
        (lease,) = listener.leases.values()
        if lease.shift != self.polled:
            self.clock.go(lease.first_in)
        self.polled = lease.shift
        if outcome == "unchanged":
            await listener.renew("mc")
        elif outcome == "listed":
            await listener.renew("mc", news=[listener.news(outcome, **fields)])
        else:
            await listener.renew(news=[listener.news(outcome, **fields)])
        return lease


@pytest.fixture
def polls(database: Database, clock: Clock) -> One:
    return One(database, clock)


@pytest.fixture
def quick(sqlite: Database, clock: Clock) -> One:
    """On SQLite, where the database is not the point."""
    return One(sqlite, clock)


# What goes wrong


async def test_a_broken_one_backs_off_by_itself(quick: One) -> None:
    await quick.add("mc")
    await quick.add("fine")
    listener = quick.listener()
    waits = []
    for number in range(1, 12):
        await quick.change(holder=None, due_at=quick.clock.at)
        await listener.renew()
        news = [listener.news("failed", error="404: there is no repository")]
        assert (await listener.renew("fine", news=news)).renewed == [2]
        row = await quick.row()
        assert (row.poll_failures, row.poll_error) == (number, "404: there is no repository")
        assert (row.last_polled_at, row.last_good_poll_at, row.holder) == (quick.clock.at, None, None)
        waits.append((row.due_at - quick.clock.at).total_seconds())
    for number, wait in enumerate(waits, 1):
        middle = min(5 * 2**number, 300)
        assert 0.8 * middle <= wait <= 1.2 * middle
    quick.clock.go(400)
    await listener.renew()
    await listener.renew("mc")
    row = await quick.row()
    assert (row.poll_failures, row.poll_error, row.last_good_poll_at) == (0, None, quick.clock.at)


async def test_a_failure_without_a_reason_says_so(quick: One) -> None:
    await quick.add("mc")
    await quick.poll("failed")
    assert (await quick.row()).poll_error == "the listener gave no reason"


async def test_news_that_are_told_twice_are_counted_once(polls: One) -> None:
    """The first answer was lost."""
    await polls.add("mc", last_push_id=10)
    listener = polls.listener()
    cases: list[tuple[str, dict[str, Any]]] = [("failed", {}), ("suspicious", SHRUNK)]
    for outcome, fields in cases:
        await polls.change(holder=None, due_at=polls.clock.at)
        await listener.renew()
        news = [listener.news(outcome, **fields)]
        await listener.renew(news=news, lost=True)
        await listener.renew(news=news)
    row = await polls.row()
    assert (row.poll_failures, row.reset_suspicions) == (1, 1)


async def test_a_good_poll_before_a_failure_counts(quick: One) -> None:
    await quick.add("mc", poll_failures=4, poll_error="404")
    await quick.poll("failed", error="500", good_ago=2)
    row = await quick.row()
    assert (row.poll_failures, row.poll_error) == (1, "500")
    assert row.last_good_poll_at == quick.clock.at - 2 * SECOND


async def test_a_failure_forgives_no_suspicion_and_is_none(quick: One) -> None:
    await quick.add("mc", last_push_id=10)
    await quick.poll("suspicious", **SHRUNK)
    await quick.poll("failed")
    assert (await quick.row()).reset_suspicions == 1


async def test_the_tip_at_the_cursor_becomes_known(quick: One) -> None:
    await quick.add("mc", last_push_id=7)
    await quick.poll(at_cursor=node("tip"))
    assert (await quick.row()).last_changeset == node("tip")


async def test_the_tip_at_an_older_cursor_does_not(quick: One) -> None:
    """An announced push was stored outside the shift."""
    await quick.add("mc", last_push_id=7)
    await quick.poll(at_cursor=node("tip"), since=6)
    assert (await quick.row()).last_changeset is None


# Resets


async def new(polls: One, **fields: Any) -> None:
    """Store a repository with ten pushes and one good poll."""
    await polls.add("mc", created_at=START - 100 * MINUTE, **fields)
    await polls.store(*(push_event(n, date=START - 50 * MINUTE) for n in range(1, 11)))
    await polls.poll(at_cursor=node("mc 10"))


SHRUNK: dict[str, Any] = {"lastpushid": 3, "at_cursor": None}
REPLACED = {"lastpushid": 12, "at_cursor": node("other"), "moved": True}


@pytest.mark.parametrize("seen", [SHRUNK, REPLACED])
async def test_a_reset_is_believed_once_several_polls_saw_it_over_a_minute(polls: One, seen: dict[str, Any]) -> None:
    await new(polls)
    good = (await polls.row()).last_good_poll_at
    began, count = None, 0
    while (await polls.row()).generation == 0:
        leased = await polls.poll("suspicious", **seen)
        assert (leased.generation, leased.cursor, leased.etag) == (0, 10, None)
        began, count = began or polls.clock.at, count + 1
        assert count < 20
    assert count >= 3
    assert began is not None
    assert MINUTE <= polls.clock.at - began < MINUTE + 7 * SECOND
    row = await polls.row()
    assert (row.generation, row.last_push_id, row.last_changeset, row.etag) == (1, 0, None, None)
    assert row.record_before == good
    assert (row.reset_suspicions, row.reset_suspected_at) == (0, None)

    listener = polls.listener()
    await polls.listening.renew(ends=True)  # type: ignore[union-attr]  # it polled
    ((leased),) = (await listener.renew()).leases
    assert (leased.generation, leased.cursor, leased.first_in) == (1, 0, 0)
    await polls.store(
        push_event(1, generation=1, date=START - 50 * MINUTE, changesets=changesets("new 1")),
        push_event(2, generation=1, date=polls.clock.at, changesets=changesets("new 2")),
    )
    for _ in range(15):
        await listener.renew("mc", news=[listener.news(lastpushid=2, cursor=2)])
    assert (await polls.row()).generation == 1, "once"
    assert len(await pushes(polls.database)) == 12
    assert [step.state for step in (await steps(polls.database))[-2:]] == [State.SKIPPED, State.PENDING]


async def test_few_polls_are_not_enough_however_long_apart(quick: One) -> None:
    await new(quick)
    for _ in range(2):
        quick.clock.go(3600)
        await quick.poll("suspicious", **SHRUNK)
    assert (await quick.row()).generation == 0
    await quick.poll("suspicious", **SHRUNK)
    assert (await quick.row()).generation == 1


async def test_many_polls_are_not_enough_within_a_minute(quick: One) -> None:
    quick.settings = PollSettings(interval=1)
    await new(quick)
    for _ in range(30):
        await quick.poll("suspicious", **SHRUNK)
    assert (await quick.row()).generation == 0


@pytest.mark.parametrize("lags", [(True, False), (True, True, True, False), (True, True, False, False)])
async def test_never_by_a_mirror_that_lags(quick: One, lags: tuple[bool, ...]) -> None:
    """The other mirrors contradict it."""
    await new(quick)
    for number in range(30):
        if lags[number % len(lags)]:
            await quick.poll("suspicious", lastpushid=9, at_cursor=None)
        else:
            await quick.poll(lastpushid=10, at_cursor=node("mc 10"))
    row = await quick.row()
    assert (row.generation, row.last_push_id) == (0, 10)


async def test_no_tag_is_used_while_a_reset_is_suspected(quick: One) -> None:
    """A 304 would count as a good poll, and the reset would never be certain."""
    await new(quick)
    await quick.poll(etag='W/"5"', lastpushid=10)
    await quick.poll("suspicious", **SHRUNK)
    leased = await quick.poll("suspicious", **SHRUNK)
    assert (leased.etag, leased.suspected) == (None, True), "and it is asked over a new connection"
    assert (await quick.row()).reset_suspicions == 2


async def test_suspicions_are_counted_over_shifts_and_listeners(polls: One) -> None:
    await new(polls)
    await polls.listening.renew(ends=True)  # type: ignore[union-attr]  # it polled
    shifts = set()
    while (await polls.row()).generation == 0:
        polls.listening = polls.listener()
        shifts.add((await polls.poll("suspicious", **SHRUNK)).shift)
        await polls.listening.renew(ends=True)
        polls.clock.go(25)
    assert len(shifts) == 4


async def test_a_push_that_came_beside_the_shift_makes_no_suspicion(quick: One) -> None:
    """An earlier listing of the listener is compared with the cursor at that time."""
    await new(quick)
    await quick.store(push_event(11, since=10))
    await quick.poll(lastpushid=10, at_cursor=node("mc 10"))
    assert (await quick.row()).reset_suspicions == 0


async def test_a_good_poll_ends_the_suspicion(quick: One) -> None:
    await new(quick)
    await quick.poll("suspicious", **SHRUNK)
    assert (await quick.row()).reset_suspected_at == quick.clock.at
    await quick.poll(lastpushid=10, at_cursor=node("mc 10"))
    row = await quick.row()
    assert (row.reset_suspicions, row.reset_suspected_at) == (0, None)
    assert row.last_good_poll_at == quick.clock.at


@pytest.mark.parametrize(
    ("left", "at_cursor", "moved"),
    [(["a"], "a", True), (["b"], "b", False), ([], None, False), (["a", "b", "c"], "c", False)],
)
async def test_never_by_a_strip_or_an_amend(quick: One, left: list[str], at_cursor: str | None, moved: bool) -> None:
    """After a strip, lastpushid stays, and the rest of the push at the cursor belonged to it before."""
    await quick.add("mc", created_at=START - 100 * MINUTE)
    await quick.store(push_event(1, changesets=changesets("a", "b")))
    for _ in range(15):
        seen = {"lastpushid": 1, "at_cursor": at_cursor and node(at_cursor), "moved": moved}
        await quick.poll("suspicious" if moved else "listed", **seen)
    row = await quick.row()
    assert (row.generation, row.reset_suspicions) == (0, 0)


async def test_a_strip_where_monitoring_began_is_no_reset(quick: One) -> None:
    """The push at the first cursor was never stored, so its changesets are not known."""
    await quick.add("mc", last_push_id=10, created_at=START - 100 * MINUTE)
    await quick.poll(lastpushid=10, at_cursor=node("tip"))
    for _ in range(15):
        await quick.poll("suspicious", lastpushid=10, at_cursor=node("what is left"), moved=True)
    row = await quick.row()
    assert (row.generation, row.reset_suspicions, row.last_changeset) == (0, 0, node("what is left"))


async def test_a_strip_of_the_pushes_before_the_cursor_is_none(quick: One) -> None:
    await new(quick)
    for _ in range(15):
        await quick.poll(lastpushid=10, at_cursor=None)
    assert (await quick.row()).generation == 0


async def test_a_reset_before_any_good_poll_replays_no_history(quick: One) -> None:
    """Added with a cursor beyond the pushlog's end, say."""
    await quick.add("mc", last_push_id=1_000, created_at=START - MINUTE)
    while (await quick.row()).generation == 0:
        await quick.poll("suspicious", **SHRUNK)
    assert (await quick.row()).record_before == START - MINUTE
    await quick.store(push_event(1, generation=1, date=START - 100 * MINUTE))
    assert [step.state for step in await steps(quick.database)] == [State.SKIPPED]


async def test_news_of_the_old_generation_change_nothing(quick: One) -> None:
    await new(quick)
    listener = quick.listening
    assert listener is not None
    async with quick.database.writing() as session:
        repository = (await session.exec(select(Repository))).one()
        poll.reset(repository, last_push_id=0, record_before=None)
    before = await quick.row()
    answer = await listener.renew(news=[listener.news("suspicious", **SHRUNK)])
    assert (before.generation, before.reset_suspicions) == (1, 0)
    assert [lease.generation for lease in answer.leases] == [1], "it hears of the new one"
    assert (await quick.row()).reset_suspicions == 0
