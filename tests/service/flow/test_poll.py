"""Which repository is asked next, and what its answer means, on both databases."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import select, update

from events import LeasedRepository, PollResult, PushEvent
from service.database import Database, now
from service.flow import poll, push
from service.models import Repository, State
from service.settings import PollSettings, load
from tests.service.flow.test_push import changesets, pushes, steps
from tests.service.world import add_repository, node, push_event

HOST = "hg.mozilla.org"
START = datetime(2030, 1, 30, 12, 0, 0, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


class Clock:
    """Time that stands still, unless it is moved."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (poll, push):
        monkeypatch.setattr(module, "now", made)
    return made


class Polls:
    """Listeners' calls."""

    def __init__(self, database: Database, clock: Clock, **settings: Any) -> None:
        self.database, self.clock = database, clock
        self.settings = PollSettings(**{"max_requests_per_host": 100, **settings})
        self.hosts = [HOST]

    async def add(self, *aliases: str, **fields: Any) -> None:
        """Monitor these, due in this order one after the other."""
        for number, alias in enumerate(aliases):
            at = self.clock.at - MINUTE + number * SECOND / 1000
            await add_repository(self.database, alias, **{"due_at": at, "turn": at, "created_at": at, **fields})

    async def lease(self, limit: int = 1, results: list[PollResult] | None = None) -> list[LeasedRepository]:
        return (await self.lease_or_wait(limit, results))[0]

    async def lease_or_wait(
        self, limit: int = 1, results: list[PollResult] | None = None
    ) -> tuple[list[LeasedRepository], float]:
        async with self.database.writing() as session:
            spent = await poll.report(session, self.settings, results or [])
            return await poll.lease(session, self.settings, self.hosts, limit, (), spent)

    async def report(self, leased: LeasedRepository, outcome: Any = "listed", **fields: Any) -> None:
        values = {"lastpushid": leased.cursor, "at_cursor": leased.last_changeset} if outcome == "listed" else {}
        result = PollResult(repository=leased.repository, lease=leased.lease, outcome=outcome, **{**values, **fields})
        await self.lease(0, [result])

    async def poll(self, outcome: Any = "listed", **fields: Any) -> LeasedRepository:
        """Wait until the only repository is due, lease it, and report so."""
        repository = await self.row()
        self.clock.at = max(self.clock.at, repository.due_at, repository.leased_until or self.clock.at)
        (leased,) = await self.lease()
        await self.report(leased, outcome, **fields)
        return leased

    async def row(self, alias: str = "mc") -> Repository:
        async with self.database.reading() as session:
            return (await session.exec(select(Repository).where(Repository.alias == alias))).one()

    async def change(self, **values: Any) -> None:
        if "due_at" in values:
            values = {"turn": values["due_at"], **values}  # it is never later
        async with self.database.writing() as session:
            await session.exec(update(Repository).values(**values))

    async def store(self, *events: PushEvent) -> None:
        async with self.database.writing() as session:
            await push.store(session, load(), list(events))


@pytest.fixture
def polls(database: Database, clock: Clock) -> Polls:
    return Polls(database, clock)


@pytest.fixture
def quick(sqlite: Database, clock: Clock) -> Polls:
    """On SQLite, where the database is not the point."""
    return Polls(sqlite, clock)


# Leases


async def test_a_lease_says_what_to_ask(polls: Polls) -> None:
    await polls.add("mc", last_push_id=7, last_changeset=node(7), generation=2, lease=4)
    (leased,) = await polls.lease()
    assert leased == LeasedRepository(
        repository="mc",
        lease=5,
        url="https://hg.mozilla.org/mc",
        host=HOST,
        generation=2,
        cursor=7,
        last_changeset=node(7),
        etag=None,
        seconds=30,
    )
    assert (await polls.row()).leased_until == START + 30 * SECOND


async def test_each_goes_to_one_listener_at_a_time(polls: Polls) -> None:
    await polls.add(*"abcd")
    first = await polls.lease(2)
    second = await polls.lease(5)
    assert [leased.repository for leased in first + second] == list("abcd")
    assert await polls.lease(5) == []


async def test_to_one_even_when_many_ask_at_once(database: Database, clock: Clock) -> None:
    polls = Polls(database, clock, at_a_time=50)
    aliases = [f"r{n:02}" for n in range(24)]
    await polls.add(*aliases)
    async with asyncio.timeout(20):
        given = await asyncio.gather(*(polls.lease(3) for _ in range(12)))
    assert sorted(leased.repository for leases in given for leased in leases) == aliases


async def test_due_again_after_the_interval(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    await quick.report(leased)
    assert await quick.lease() == []
    quick.clock.go(4.4)
    assert await quick.lease() == []
    quick.clock.go(1.2)
    assert len(await quick.lease()) == 1


async def test_intervals_are_spread(quick: Polls) -> None:
    await quick.add("mc")
    due = set()
    for _ in range(10):
        await quick.poll()
        due.add((await quick.row()).due_at - quick.clock.at)
    assert len(due) > 5
    assert all(4.4 * SECOND <= each <= 5.6 * SECOND for each in due)


async def test_a_listener_that_died_keeps_nothing(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    quick.clock.go(29.9)
    assert await quick.lease() == []
    quick.clock.go(0.2)
    (again,) = await quick.lease()
    assert again.lease == leased.lease + 1


async def test_a_late_result_changes_nothing(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    quick.clock.go(31)
    (again,) = await quick.lease()
    before = await quick.row()
    await quick.report(leased, "failed", error="late")
    assert await quick.row() == before
    await quick.report(again)
    assert (await quick.row()).last_good_poll_at == quick.clock.at


async def test_of_a_deleted_one_neither(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    await quick.change(deleted_at=now())
    before = await quick.row()
    await quick.report(leased, "failed")
    assert await quick.row() == before


@pytest.mark.parametrize("fields", [{"enabled": False}, {"deleted_at": START}, {"due_at": START + SECOND}])
async def test_what_is_not_to_be_asked(quick: Polls, fields: dict[str, Any]) -> None:
    await quick.add("mc", **fields)
    assert await quick.lease() == []
    async with quick.database.reading() as session:
        assert not await poll.any_due(session, quick.hosts)


async def test_a_host_that_is_not_allowed_any_more(quick: Polls) -> None:
    await quick.add("mc")
    quick.hosts = ["hg.example.com"]
    assert await quick.lease() == []
    async with quick.database.reading() as session:
        assert not await poll.any_due(session, quick.hosts)


async def test_any_due(quick: Polls) -> None:
    await quick.add("mc")
    for due, seconds in ((True, 0), (False, 0), (False, 29.9), (True, 0.2)):
        quick.clock.go(seconds)
        async with quick.database.reading() as session:
            assert await poll.any_due(session, quick.hosts) == due
        if due:
            await quick.lease()


async def test_announced_ones_are_due_at_once(quick: Polls) -> None:
    await quick.add("a", "b")
    for leased in await quick.lease(2):
        await quick.report(leased)
    async with quick.database.writing() as session:
        await poll.announced(session, ["https://hg.mozilla.org/b", "https://hg.mozilla.org/nothing"])
    assert [leased.repository for leased in await quick.lease(2)] == ["b"]


async def test_announced_while_it_is_polled_it_is_polled_once_more(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    async with quick.database.writing() as session:
        await poll.announced(session, [leased.url])
    assert await quick.lease() == []
    await quick.report(leased)
    assert len(await quick.lease()) == 1


# Limits


async def test_so_many_of_a_host_at_a_time(database: Database, clock: Clock) -> None:
    polls = Polls(database, clock, at_a_time=4)
    await polls.add(*"abcdef")
    await polls.add("other", url="https://hg.example.com/other")
    polls.hosts = [HOST, "hg.example.com"]
    leases = await polls.lease(10)
    assert [leased.repository for leased in leases] == ["other", *"abcd"]
    assert await polls.lease(10) == []
    await polls.report(leases[1])
    assert [leased.repository for leased in await polls.lease(10)] == ["e"]


async def test_the_budget_of_a_host_holds_for_all_listeners(database: Database, clock: Clock) -> None:
    polls = Polls(database, clock, at_a_time=100, max_requests_per_host=10)
    aliases = [f"r{n}" for n in range(40)]
    await polls.add(*aliases)
    given = 0
    for _ in range(3):
        given += len(await polls.lease(40))
    assert given == 10
    _, wait = await polls.lease_or_wait(5)
    assert wait == pytest.approx(0.5)
    clock.go(wait)
    assert len(await polls.lease(5)) == 5


async def test_over_a_long_time_it_is_the_rate(quick: Polls) -> None:
    """With many repositories the interval stretches, and none is left out."""
    quick.settings = PollSettings(at_a_time=4, max_requests_per_host=10)
    aliases = [f"r{n:03}" for n in range(120)]
    await quick.add(*aliases)
    asked: Counter[str] = Counter()
    results: list[PollResult] = []
    began = quick.clock.at
    while quick.clock.at - began < 25 * SECOND:
        leases, wait = await quick.lease_or_wait(4, results)
        asked.update(leased.repository for leased in leases)
        results = [PollResult(repository=each.repository, lease=each.lease, outcome="unchanged") for each in leases]
        quick.clock.go(max(wait, 0.05))
    assert 230 <= asked.total() <= 265
    assert set(asked) == set(aliases)
    assert max(asked.values()) - min(asked.values()) <= 3


async def test_requests_beyond_the_first_are_counted(quick: Polls) -> None:
    quick.settings = PollSettings(at_a_time=10, max_requests_per_host=10)
    await quick.add("a", "b")
    first, _ = await quick.lease(2)
    await quick.report(first, requests=21)
    quick.clock.go(6)  # 10 - 2 - 20, and at most 10 again in two seconds
    assert len(await quick.lease(2)) == 1
    await quick.change(leased_until=None, due_at=START)
    assert len(await quick.lease(2)) == 2


async def test_an_overdrawn_budget_gives_nothing(quick: Polls) -> None:
    quick.settings = PollSettings(at_a_time=10, max_requests_per_host=10)
    await quick.add("a", "b")
    (first,) = await quick.lease(1)
    await quick.report(first, requests=40)
    leases, wait = await quick.lease_or_wait(2)
    assert leases == []
    assert 2 < wait < 4
    quick.clock.go(wait)
    assert [leased.repository for leased in await quick.lease(1)] == ["b"]


async def test_less_than_one_request_a_second(quick: Polls) -> None:
    quick.settings = PollSettings(max_requests_per_host=0.2)
    await quick.add("a", "b")
    assert len(await quick.lease(5)) == 1
    quick.clock.go(4.9)
    assert await quick.lease(5) == []
    quick.clock.go(0.2)
    assert len(await quick.lease(5)) == 1


async def test_two_replicas_never_wait_for_each_others_budgets_in_a_circle(postgres_url: str, clock: Clock) -> None:
    """Each reports many requests to one host, and leases of both."""
    database = Database(postgres_url)
    polls = Polls(database, clock, at_a_time=100, max_requests_per_host=1_000, interval=0)
    polls.hosts = ["a.example.com", "b.example.com"]
    aliases = [f"{host}{n}" for n in range(8) for host in "ab"]
    for alias in aliases:
        await polls.add(alias, url=f"https://{alias[0]}.example.com/{alias}")

    async def listen() -> None:
        results: list[PollResult] = []
        for _ in range(12):
            leases = await polls.lease(2, results)
            results = [
                PollResult(repository=each.repository, lease=each.lease, outcome="unchanged", requests=3)
                for each in leases[::-1]
            ]

    async with asyncio.timeout(30):
        await asyncio.gather(*(listen() for _ in range(6)))
    await database.close()


# Who comes first


async def test_busy_ones_come_first(quick: Polls) -> None:
    await quick.add("idle", "busy")
    for leased in await quick.lease(2):
        await quick.report(leased)
    await quick.store(push_event(1, alias="busy"))
    quick.clock.go(6)
    for leased in await quick.lease(2):  # from here on busy has its earlier turn
        await quick.report(leased)
    quick.clock.go(6)
    assert [leased.repository for leased in await quick.lease(1)] == ["busy"]


async def test_but_an_idle_one_that_waited_longer_goes_before_them(quick: Polls) -> None:
    await quick.add("idle")
    await quick.add("busy", last_push_at=START)
    await quick.lease(2)
    async with quick.database.writing() as session:
        for alias, late in (("idle", 16), ("busy", 0)):
            repository = (await session.exec(select(Repository).where(Repository.alias == alias))).one()
            repository.leased_until = None
            poll._due(quick.settings, repository, quick.clock.at - late * SECOND)
    assert [leased.repository for leased in await quick.lease(1)] == ["idle"]


async def test_no_idle_one_starves(quick: Polls) -> None:
    quick.settings = PollSettings(at_a_time=1, max_requests_per_host=1)
    await quick.add(*(f"busy{n}" for n in range(20)), last_push_at=START)
    await quick.add("idle")
    asked: Counter[str] = Counter()
    for _ in range(60):
        for leased in await quick.lease(1):
            asked[leased.repository] += 1
            await quick.report(leased)
        quick.clock.go(1)
    assert asked["idle"] >= 1
    assert min(asked[f"busy{n}"] for n in range(20)) >= 2


async def test_after_an_hour_without_a_push_it_is_busy_no_more(quick: Polls) -> None:
    await quick.add("mc", last_push_at=START)
    await quick.poll()
    row = await quick.row()
    assert row.turn == row.due_at - 15 * SECOND
    quick.clock.go(3600)
    await quick.poll()
    row = await quick.row()
    assert row.turn == row.due_at


# ETags


def tag(at: datetime) -> str:
    return f'W/"{int(at.timestamp())}"'


@pytest.mark.parametrize(
    ("etag", "age", "kept"),
    [
        (tag(START - 10 * SECOND), 0, True),
        (tag(START - 3 * SECOND), 0, True),
        (tag(START - 2 * SECOND), 0, False),
        (tag(START), 0, False),
        (tag(START + 10 * SECOND), 0, False),
        (tag(START - 10 * SECOND).removeprefix("W/"), 0, True),
        ('W/"abc"', 0, False),
        ('W/""', 0, False),
        ('W/"-5"', 0, False),
        ('W/"\u0663\u0663"', 0, False),
        (f'W/"{"9" * 400}"', 0, False),
        (None, 0, False),
        (tag(START - 10 * SECOND), None, False),
    ],
)
async def test_a_tag_is_relied_on_only_when_it_was_old_when_given(
    quick: Polls, etag: str | None, age: int | None, kept: bool
) -> None:
    """It is the change time in whole seconds: a second push in that second would be hidden for ever."""
    await quick.add("mc")
    await quick.poll(etag=etag, date=None if age is None else START)
    assert (await quick.row()).etag == (etag if kept else None)
    quick.clock.go(10)
    (leased,) = await quick.lease()
    assert leased.etag == (etag if kept else None)


async def test_now_and_then_it_is_asked_without(quick: Polls) -> None:
    quick.settings = PollSettings(full_every=100)
    await quick.add("mc")
    old = tag(START - MINUTE)
    await quick.poll(etag=old, date=START)
    end = quick.clock.at + 100 * SECOND
    while True:
        leased = await quick.poll("unchanged")
        if leased.etag is None:
            break
        assert leased.etag == old
        assert quick.clock.at < end
    assert end <= quick.clock.at < end + 10 * SECOND
    await quick.poll(etag=old, date=quick.clock.at)
    assert (await quick.poll("unchanged")).etag == old


async def test_unchanged_is_a_good_poll_and_keeps_the_tag(quick: Polls) -> None:
    await quick.add("mc")
    await quick.poll(etag=tag(START - MINUTE), date=START)
    await quick.poll("unchanged")
    row = await quick.row()
    assert row.last_good_poll_at == row.last_polled_at == quick.clock.at
    assert row.last_full_poll_at is not None
    assert row.last_full_poll_at < quick.clock.at
    assert row.etag is not None


# What goes wrong


async def test_a_broken_one_backs_off_by_itself(quick: Polls) -> None:
    await quick.add("mc", "fine")
    waits = []
    for number in range(1, 12):
        await quick.change(leased_until=None, due_at=quick.clock.at)
        fine, broken = sorted(await quick.lease(2), key=lambda leased: leased.repository)
        await quick.report(broken, "failed", error="404: there is no repository")
        await quick.report(fine)
        row = await quick.row()
        assert (row.poll_failures, row.poll_error) == (number, "404: there is no repository")
        assert row.last_polled_at == quick.clock.at
        assert row.last_good_poll_at is None
        waits.append((row.due_at - quick.clock.at).total_seconds())
        assert (await quick.row("fine")).due_at - quick.clock.at < 6 * SECOND
    for number, wait in enumerate(waits, 1):
        middle = min(5 * 2**number, 300)
        assert 0.8 * middle <= wait <= 1.2 * middle
    quick.clock.go(400)
    for leased in await quick.lease(2):
        await quick.report(leased)
    row = await quick.row()
    assert (row.poll_failures, row.poll_error) == (0, None)
    assert row.due_at - quick.clock.at < 6 * SECOND


async def test_a_failure_without_a_reason_says_so(quick: Polls) -> None:
    await quick.add("mc")
    await quick.poll("failed")
    assert (await quick.row()).poll_error == "the listener gave no reason"


async def test_a_failure_forgives_no_suspicion_and_is_none(quick: Polls) -> None:
    await quick.add("mc", last_push_id=10)
    await quick.poll(lastpushid=3)
    await quick.poll("failed")
    assert (await quick.row()).reset_suspicions == 1


async def test_a_slow_one_is_asked_less_often(quick: Polls) -> None:
    await quick.add("mc")
    await quick.poll(seconds=20)
    row = await quick.row()
    assert row.due_at - quick.clock.at == 20 * SECOND
    await quick.poll(seconds=0.2)
    assert (await quick.row()).due_at - quick.clock.at < 6 * SECOND


async def test_a_backlog_is_gone_on_with_at_once(quick: Polls) -> None:
    await quick.add("mc")
    (leased,) = await quick.lease()
    await quick.report(leased, more=True, seconds=25)
    assert len(await quick.lease()) == 1


async def test_the_tip_at_the_cursor_becomes_known(quick: Polls) -> None:
    await quick.add("mc", last_push_id=7)
    await quick.poll(at_cursor=node("tip"), lastpushid=7)
    assert (await quick.row()).last_changeset == node("tip")
    assert (await quick.poll()).last_changeset == node("tip")


# Resets


async def new(polls: Polls, **fields: Any) -> None:
    """A repository with ten pushes, polled well."""
    await polls.add("mc", created_at=START - 100 * MINUTE, **fields)
    await polls.store(*(push_event(n, date=START - 50 * MINUTE) for n in range(1, 11)))
    await polls.poll(lastpushid=10, at_cursor=node("mc 10"))


SHRUNK = {"lastpushid": 3, "at_cursor": None}
REPLACED = {"lastpushid": 12, "at_cursor": node("other"), "moved": True}


@pytest.mark.parametrize("seen", [SHRUNK, REPLACED])
async def test_a_reset_is_believed_once_several_polls_saw_it_over_a_minute(polls: Polls, seen: dict[str, Any]) -> None:
    await new(polls)
    good = (await polls.row()).last_good_poll_at
    began, count = None, 0
    while (await polls.row()).generation == 0:
        leased = await polls.poll(**seen)
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

    (leased,) = await polls.lease()  # at once
    assert (leased.generation, leased.cursor) == (1, 0)
    await polls.store(
        push_event(1, generation=1, date=START - 50 * MINUTE, changesets=changesets("new 1")),
        push_event(2, generation=1, date=polls.clock.at, changesets=changesets("new 2")),
    )
    await polls.report(leased, lastpushid=2)
    for _ in range(15):
        await polls.poll(lastpushid=2, at_cursor=node("new 2"))
    assert (await polls.row()).generation == 1, "once"
    assert len(await pushes(polls.database)) == 12
    assert [step.state for step in (await steps(polls.database))[-2:]] == [State.SKIPPED, State.PENDING]


async def test_few_polls_are_not_enough_however_long_apart(quick: Polls) -> None:
    await new(quick)
    for _ in range(2):
        quick.clock.go(3600)
        await quick.poll(**SHRUNK)
    assert (await quick.row()).generation == 0
    await quick.poll(**SHRUNK)
    assert (await quick.row()).generation == 1


async def test_many_polls_are_not_enough_within_a_minute(quick: Polls) -> None:
    await new(quick)
    for _ in range(30):
        await quick.change(due_at=quick.clock.at, leased_until=None)
        await quick.poll(**SHRUNK)
    assert (await quick.row()).generation == 0


@pytest.mark.parametrize("lags", [(True, False), (True, True, True, False), (True, True, False, False)])
async def test_never_by_a_mirror_that_lags(quick: Polls, lags: tuple[bool, ...]) -> None:
    """The others contradict it."""
    await new(quick)
    for number in range(30):
        if lags[number % len(lags)]:
            await quick.poll(lastpushid=9, at_cursor=None)
        else:
            await quick.poll(lastpushid=10, at_cursor=node("mc 10"))
    row = await quick.row()
    assert (row.generation, row.last_push_id) == (0, 10)


async def test_a_tag_of_a_suspicious_answer_is_not_used(quick: Polls) -> None:
    """A 304 to it would pass for a good poll, and the reset would never be believed."""
    await new(quick)
    await quick.poll(**SHRUNK, etag=tag(START - MINUTE), date=quick.clock.at)
    (leased,) = [await quick.poll(**SHRUNK)]
    assert leased.etag is None
    assert (await quick.row()).reset_suspicions == 2


async def test_a_good_poll_ends_the_suspicion(quick: Polls) -> None:
    await new(quick)
    await quick.poll(**SHRUNK)
    assert (await quick.row()).reset_suspected_at == quick.clock.at
    await quick.poll(lastpushid=10, at_cursor=node("mc 10"))
    row = await quick.row()
    assert (row.reset_suspicions, row.reset_suspected_at) == (0, None)
    assert row.last_good_poll_at == quick.clock.at


@pytest.mark.parametrize(
    ("left", "at_cursor", "moved"),
    [(["a"], "a", True), (["b"], "b", False), ([], None, False), (["a", "b", "c"], "c", False)],
)
async def test_never_by_a_strip_or_an_amend(quick: Polls, left: list[str], at_cursor: str | None, moved: bool) -> None:
    """lastpushid stays, and what is left of the push at the cursor was in it before."""
    await quick.add("mc", created_at=START - 100 * MINUTE)
    await quick.store(push_event(1, changesets=changesets("a", "b")))
    for _ in range(15):
        await quick.poll(lastpushid=1, at_cursor=at_cursor and node(at_cursor), moved=moved)
    row = await quick.row()
    assert (row.generation, row.reset_suspicions) == (0, 0)


async def test_a_strip_where_monitoring_began_is_no_reset(quick: Polls) -> None:
    """The push at the first cursor was never stored: nothing tells what was in it."""
    await quick.add("mc", last_push_id=10, created_at=START - 100 * MINUTE)
    await quick.poll(lastpushid=10, at_cursor=node("tip"))
    for _ in range(15):
        await quick.poll(lastpushid=10, at_cursor=node("what is left"), moved=True)
    row = await quick.row()
    assert (row.generation, row.reset_suspicions, row.last_changeset) == (0, 0, node("what is left"))


async def test_a_strip_of_the_pushes_before_the_cursor_is_none(quick: Polls) -> None:
    await new(quick)
    for _ in range(15):
        await quick.poll(lastpushid=10, at_cursor=None)
    assert (await quick.row()).generation == 0


async def test_a_reset_before_any_good_poll_replays_no_history(quick: Polls) -> None:
    """Added with a cursor beyond the pushlog's end, say."""
    await quick.add("mc", last_push_id=1_000, created_at=START - MINUTE)
    while (await quick.row()).generation == 0:
        await quick.poll(**SHRUNK)
    assert (await quick.row()).record_before == START - MINUTE
    await quick.store(push_event(1, generation=1, date=START - 100 * MINUTE))
    assert [step.state for step in await steps(quick.database)] == [State.SKIPPED]


async def test_a_result_of_the_old_generation_changes_nothing(quick: Polls) -> None:
    await new(quick)
    quick.clock.go(10)
    (leased,) = await quick.lease()
    async with quick.database.writing() as session:
        repository = (await session.exec(select(Repository))).one()
        poll.reset(repository, last_push_id=0, record_before=None)
    before = await quick.row()
    await quick.report(leased, **SHRUNK)
    assert await quick.row() == before
    assert before.generation == 1
