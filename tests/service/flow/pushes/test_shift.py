"""Leases of repositories to listeners, on both databases."""

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from service.contract.events import Lease
from service.flow.pushes import poll, push
from service.settings import PollSettings, load
from service.store.database import Database
from service.store.models import Budget, RateGrant, Repository
from tests.service.flow.fake_listeners import HOST, MINUTE, SECOND, START, Clock, Listener, Polls
from tests.service.flow.pushes.test_push import pushes
from tests.service.harness import node, push_event, sent_statements


@pytest.fixture
def polls(database: Database, clock: Clock) -> Polls:
    return Polls(database, clock)


@pytest.fixture
def quick(sqlite: Database, clock: Clock) -> Polls:
    """On SQLite, where the database is not the point."""
    return Polls(sqlite, clock)


# A shift


async def test_a_lease_says_what_to_ask_and_how_often(polls: Polls) -> None:
    await polls.add("mc", last_push_id=7, last_changeset=node(7), generation=2, shift=4)
    answer = await polls.listener().renew()
    assert answer.leases == [
        Lease(
            repository="mc",
            id=1,
            shift=5,
            url="https://hg.mozilla.org/mc",
            host=HOST,
            generation=2,
            cursor=7,
            last_changeset=node(7),
            etag=None,
            full_in=0,
            first_in=0,
            interval=5,
            suspected=False,
        )
    ]
    assert answer.seconds == pytest.approx(14.85)
    assert (answer.renew, answer.full_every) == (5, 600)
    assert answer.hosts[HOST].rate == 9, "a tenth is kept for announced pushes"
    assert answer.hosts[HOST].at_a_time == 4
    row = await polls.row()
    assert (row.shift, row.shift_ends_at) == (5, START + 15 * SECOND)


async def test_each_goes_to_one_listener_even_when_many_ask_at_once(polls: Polls) -> None:
    aliases = [f"r{n:02}" for n in range(24)]
    await polls.add(*aliases)
    listeners = [polls.listener() for _ in range(6)]
    for _ in range(4):
        async with asyncio.timeout(20):
            await asyncio.gather(*(listener.polled_all() for listener in listeners))
        polls.clock.go(3)
        held = [alias for listener in listeners for alias in listener.leases]
        assert len(held) == len(set(held))
    assert sorted(held) == aliases


async def test_what_was_polled_is_kept_and_what_was_not_is_leased_anew(polls: Polls) -> None:
    await polls.add("polled", "hangs")
    listener = polls.listener()
    await listener.renew()
    for _ in range(2):
        polls.clock.go(5)
        assert (await listener.renew("polled")).leases == []
    polls.clock.go(5)
    answer = await listener.renew("polled", ago=1)
    assert answer.renewed == [1]
    assert [(lease.repository, lease.shift) for lease in answer.leases] == [("hangs", 2)]
    row = await polls.row("polled")
    assert (row.shift, row.last_good_poll_at) == (1, polls.clock.at - SECOND)


async def test_what_is_asked_and_has_not_answered_yet_is_kept(quick: Polls) -> None:
    await quick.add("mc")
    first, second = quick.listener(), quick.listener()
    await first.renew()
    quick.clock.go(10)
    assert (await first.renew(under_way=("mc",))).renewed == [1]
    quick.clock.go(14)
    assert (await second.renew()).leases == []
    assert (await quick.row()).last_polled_at is None
    quick.clock.go(1)
    assert [lease.shift for lease in (await second.renew()).leases] == [2]


async def test_a_listener_that_was_killed_keeps_nothing_beyond_its_shift(polls: Polls) -> None:
    """Another one asks at that very moment, and has the whole budget again."""
    aliases = [f"r{n}" for n in range(8)]
    await polls.add(*aliases)
    dead, other = polls.listener(), polls.listener()
    await dead.renew()
    await other.renew()
    killed_at = polls.clock.at
    renewed = await other.renew()
    while len(other.leases) < 8:
        polls.clock.go(renewed.renew)
        renewed = await other.renew()
    assert polls.clock.at - killed_at == 15 * SECOND
    assert renewed.hosts[HOST].rate == 9


async def test_an_older_shift_is_neither_renewed_nor_heard(quick: Polls) -> None:
    await quick.add("mc")
    first, second = quick.listener(), quick.listener()
    await first.renew()
    quick.clock.go(16)
    await second.renew()
    before = await quick.row()
    news = [first.news("failed", error="late")]
    assert (await first.renew("mc", news=news)).renewed == []
    assert await quick.row() == before
    assert before.shift == 2


async def test_nothing_of_an_older_shift_is_stored(quick: Polls) -> None:
    await quick.add("mc")
    first, second = quick.listener(), quick.listener()
    await first.renew()
    quick.clock.go(16)
    await second.renew()
    async with quick.database.writing() as session:
        events: list[Any] = [push_event(1, shift=1), push_event(2, shift=2)]
        late, good = (await push.store(session, load(), events))[0]
    assert (late.verdict, late.shift, good.verdict) == ("rejected", 2, "accepted")
    assert late.reason == "listed in shift 1 of mc, which has ended: list again"
    assert [stored.push_id for stored in await pushes(quick.database)] == [2]


async def test_a_listener_that_ends_gives_all_back_at_once(polls: Polls) -> None:
    await polls.add("a", "b", "c")
    first, second = polls.listener(), polls.listener()
    await first.renew()
    polls.clock.go(2)
    await first.renew("a", ends=True)
    answer = await second.renew()
    assert {lease.repository: lease.first_in for lease in answer.leases}.keys() == {"a", "b", "c"}
    waits = {lease.repository: lease.first_in for lease in answer.leases}
    assert (waits["b"], waits["c"]) == (0, 0)
    assert 4 < waits["a"] < 6, "it was polled just now"
    assert answer.hosts[HOST].rate == 9


async def test_a_lost_answer_keeps_repositories_from_others_for_a_shift_at_most(quick: Polls) -> None:
    await quick.add("mc")
    first, second = quick.listener(), quick.listener()
    await first.renew(lost=True)
    quick.clock.go(14)
    assert (await second.renew()).leases == []
    quick.clock.go(1)
    assert len((await second.renew()).leases) == 1


@pytest.mark.parametrize("fields", [{"enabled": False}, {"deleted_at": START}, {"due_at": START + 8 * SECOND}])
async def test_what_is_not_to_be_asked(quick: Polls, fields: dict[str, Any]) -> None:
    await quick.add("mc", **{"turn": START - MINUTE, **fields})
    assert (await quick.listener().renew()).leases == []


async def test_what_is_due_before_the_next_renewal_is_leased_with_the_wait_until_then(quick: Polls) -> None:
    await quick.add("mc", due_at=START + 4 * SECOND, turn=START + 4 * SECOND)
    (lease,) = (await quick.listener().renew()).leases
    assert lease.first_in == 4


async def test_a_host_that_is_not_allowed_any_more(quick: Polls) -> None:
    await quick.add("mc")
    listener = quick.listener()
    await listener.renew()
    quick.hosts = ["hg.example.com"]
    assert (await listener.renew("mc")).renewed == []
    assert (await listener.renew()).leases == []


async def test_a_slow_one_is_asked_less_often(quick: Polls) -> None:
    await quick.add("mc")
    listener = quick.listener()
    await listener.renew()
    assert (await listener.renew("mc", slowest=20)).renewed == [], "the next poll is beyond the shift"
    assert 17 * SECOND < (await quick.row()).due_at - quick.clock.at < 23 * SECOND


async def test_the_number_of_statements_does_not_depend_on_the_number_of_repositories(polls: Polls) -> None:
    listener = polls.listener()
    counts = []
    for more in (60, 200):
        await polls.add(*(f"{more}r{n}" for n in range(more)))
        await listener.polled_all()
        polls.clock.go(5)
        with sent_statements(polls.database) as statements:
            answer = await listener.polled_all()
        assert len(answer.leases) >= 50
        counts.append(len(statements))
        polls.clock.go(5)
    assert counts[0] == counts[1] <= 9, counts


# Several listeners


async def rounds(polls: Polls, listeners: list[Listener], count: int) -> None:
    for _ in range(count):
        for listener in listeners:
            await listener.polled_all()
        polls.clock.go(5)


async def test_two_share_and_one_that_is_alone_has_all(polls: Polls) -> None:
    aliases = {f"r{n}" for n in range(9)}
    await polls.add(*sorted(aliases))
    first, second = polls.listener(), polls.listener()
    await rounds(polls, [first], 2)
    assert (set(first.leases), first.rate) == (aliases, 9)
    await rounds(polls, [first, second], 5)
    assert {len(first.leases), len(second.leases)} == {4, 5}
    assert first.leases.keys() | second.leases.keys() == aliases
    assert (first.rate, second.rate) == (4.5, 4.5)
    await first.polled_all(ends=True)
    await rounds(polls, [second], 2)
    assert (set(second.leases), second.rate) == (aliases, 9)


async def test_when_they_share_anew_none_is_polled_twice(quick: Polls) -> None:
    """Whoever gets a repository waits until it is due."""
    await quick.add(*(f"r{n}" for n in range(8)))
    first, second = quick.listener(), quick.listener()
    await rounds(quick, [first], 2)
    polled_at = quick.clock.at - 2 * SECOND
    await second.renew()
    await first.polled_all(ago=2)
    await first.renew()  # as a listener does whose rate was cut: the rest is free
    got = (await second.renew()).leases
    assert len(got) == 4
    for lease in got:
        assert 4.4 * SECOND < quick.clock.at + lease.first_in * SECOND - polled_at < 5.6 * SECOND


async def test_two_replicas_never_wait_for_each_other_in_a_circle(postgres_url: str, clock: Clock) -> None:
    database = Database(postgres_url)
    polls = Polls(database, clock, max_requests_per_host=1_000)
    polls.hosts = ["a.example.com", "b.example.com"]
    for alias in [f"{host}{n}" for n in range(8) for host in "ab"]:
        await polls.add(alias, url=f"https://{alias[0]}.example.com/{alias}")
    listeners = [polls.listener() for _ in range(6)]

    async def listen(listener: Listener) -> None:
        for _ in range(12):
            await listener.polled_all()
            await polls.announce("https://b.example.com/b1", "https://a.example.com/a1")

    async with asyncio.timeout(30):
        await asyncio.gather(*(listen(listener) for listener in listeners))
    await database.close()


# The budget


async def test_the_rates_given_out_and_the_reserve_stay_within_the_budget_whatever_is_lost(polls: Polls) -> None:
    """Listeners come, are killed, are cut off, and lose answers. Each goes by the last answer that it has."""
    chance = random.Random(7)
    polls.settings = PollSettings(max_requests_per_host=20, announced_share=0.25)
    await polls.add(*(f"r{n}" for n in range(40)))
    living: list[tuple[Listener, list[Any]]] = []  # with when its shift ends, by its own clock
    given = set()
    for _ in range(250):
        if len(living) < 4 and chance.random() < 0.3:
            living.append((polls.listener(), [polls.clock.at]))
        elif living and chance.random() < 0.07:
            living.append((polls.listener(), [polls.clock.at]))
            living[chance.randrange(len(living) - 1)][0].leases.clear()
        if living:
            listener, until = chance.choice(living)
            lost = chance.random() < 0.3
            sent = polls.clock.at
            answer = await listener.renew(lost=lost, ends=not lost and chance.random() < 0.03)
            if not lost:
                until[0] = sent + answer.seconds * SECOND
        polls.clock.go(chance.random() * 2.5)
        living = [listener for listener in living if chance.random() > 0.01 or listener[1][0] > polls.clock.at]
        total = sum(listener.rate for listener, until in living if until[0] > polls.clock.at)
        given.add(round(total, 3))
        assert total <= 15 + 1e-9
    assert len(given) > 5
    assert max(given) == 15


async def test_a_cut_rate_is_free_once_the_listener_has_the_answer(quick: Polls) -> None:
    await quick.add("a", "b")
    first, second = quick.listener(), quick.listener()
    await first.renew()
    assert (await second.renew()).hosts[HOST].rate == 0
    assert (await first.renew(lost=True)).hosts[HOST].rate == 4.5
    assert (await second.renew()).hosts[HOST].rate == 0, "the first still goes by 9"
    await first.renew()
    assert (await second.renew()).hosts[HOST].rate == 0, "and may do so until it says what it has"
    await first.renew()
    assert (await second.renew()).hosts[HOST].rate == 4.5


async def test_who_has_no_rate_yet_asks_again_soon(quick: Polls) -> None:
    await quick.add("a")
    await quick.listener().renew()
    second = await quick.listener().renew()
    assert (second.leases, second.renew) == ([], 1)


async def test_a_shift_that_ends_before_the_next_renewal_hurries_the_others(quick: Polls) -> None:
    await quick.add("a")
    await quick.listener().renew()
    quick.clock.go(1)
    other = quick.listener()
    quick.clock.go(11)
    assert (await other.renew()).renew == 1, "it has no rate"
    await quick.change(holder=None)
    async with quick.database.writing() as session:
        for grant in await session.exec(select(RateGrant)):
            grant.rate = grant.counted = 1
    assert 3 <= (await other.renew()).renew < 3.1


async def test_ended_rates_are_swept(quick: Polls) -> None:
    await quick.add("a")
    for _ in range(4):
        await quick.listener().renew()
        quick.clock.go(16)
    async with quick.database.reading() as session:
        assert len((await session.exec(select(RateGrant))).all()) == 1


async def test_the_intervals_of_what_is_leased_are_within_the_rate(quick: Polls) -> None:
    """With many repositories the interval stretches, and none is left out."""
    quick.settings = PollSettings(max_requests_per_host=10)
    aliases = [f"r{n:03}" for n in range(120)]
    await quick.add(*aliases)
    listener = quick.listener()
    polls_of: Counter[str] = Counter()
    due: list[str] = []
    for _ in range(16):
        await listener.renew(*due, ago=2.5)
        assert sum(1 / lease.interval for lease in listener.leases.values()) <= 9.01
        due = list(listener.leases)[:45]  # so many in five seconds, those first that were leased first
        polls_of.update(due)
        quick.clock.go(5)
    assert set(polls_of) == set(aliases)
    assert max(polls_of.values()) - min(polls_of.values()) <= 3


async def test_less_than_one_request_a_second(quick: Polls) -> None:
    quick.settings = PollSettings(max_requests_per_host=0.2, announced_share=0)
    await quick.add("a", "b")
    answer = await quick.listener().renew()
    assert (answer.hosts[HOST].rate, len(answer.leases)) == (0.2, 2)
    assert [lease.interval for lease in answer.leases] == [10, 10]


async def test_polls_at_a_time_are_shared_too(quick: Polls) -> None:
    await quick.add("a")
    listeners = [quick.listener() for _ in range(6)]
    for _ in range(3):
        shares = [(await listener.renew()).hosts[HOST].at_a_time for listener in listeners]
    assert shares == [1] * 6


# Who comes first


async def test_busy_ones_come_first(quick: Polls) -> None:
    quick.settings = PollSettings(max_requests_per_host=0.2, announced_share=0)
    await quick.add("idle")
    await quick.add("waits", "busy", "waits too", last_push_at=None)
    at = quick.clock.at
    turn = poll.order_key(quick.settings, at, busy=True)
    assert turn == at - 15 * SECOND
    await quick.change(due_at=at)
    async with quick.database.writing() as session:
        for row in await session.exec(select(Repository)):
            row.turn = {"busy": turn, "idle": at - 16 * SECOND}.get(row.alias, at)
    leased = (await quick.listener().renew()).leases
    assert [lease.repository for lease in leased] == ["idle", "busy"], "one that waited longer goes before it"


@pytest.mark.parametrize(("ago", "busy"), [(59, True), (61, False)])
async def test_one_is_busy_for_an_hour_after_a_push(quick: Polls, ago: int, busy: bool) -> None:
    quick.settings = PollSettings(max_requests_per_host=0.2, announced_share=0)
    await quick.add("mc", "other", last_push_at=START - ago * MINUTE)
    listener = quick.listener()
    await listener.renew()
    await listener.renew("mc", news=[listener.news("failed", "other")], ends=True)
    for alias in ("mc", "other"):
        row = await quick.row(alias)
        assert row.due_at - row.turn == (15 * SECOND if busy else 0 * SECOND)


async def test_no_idle_one_starves(quick: Polls) -> None:
    quick.settings = PollSettings(max_requests_per_host=1, announced_share=0)
    await quick.add(*(f"busy{n}" for n in range(30)), last_push_at=START)
    await quick.add("idle")
    listener = quick.listener()
    polls_of: Counter[str] = Counter()
    for _ in range(30):
        await listener.polled_all()
        polls_of.update(list(listener.leases))
        quick.clock.go(5)
    assert polls_of["idle"] >= 1
    assert min(polls_of[f"busy{n}"] for n in range(30)) >= 2


# ETags


async def test_an_etag_is_given_with_the_cursor_that_it_stands_for(quick: Polls) -> None:
    await quick.add("mc", last_push_id=3)
    first = quick.listener()
    await first.renew()
    await first.renew("mc", news=[first.news(etag='W/"5"')])
    row = await quick.row()
    assert (row.etag, row.etag_cursor) == ('W/"5"', 3)
    await first.renew("mc", ends=True)
    quick.clock.go(100)
    second = quick.listener()
    (lease,) = (await second.renew()).leases
    assert (lease.etag, lease.full_in) == ('W/"5"', 500)
    await quick.store(push_event(4, since=3))
    await second.renew("mc", ends=True)
    (lease,) = (await quick.listener().renew()).leases
    assert (lease.etag, lease.full_in, lease.cursor) == (None, 0, 4), "the tag of push 3 says nothing of push 4"


async def test_an_etag_that_was_told_late_is_not_used_for_a_later_cursor(quick: Polls) -> None:
    """An announced push was stored outside the shift."""
    await quick.add("mc")
    listener = quick.listener()
    await listener.renew()
    news = listener.news(etag='W/"5"')
    await quick.store(push_event(1))
    await listener.renew("mc", news=[news], ends=True)
    (lease,) = (await quick.listener().renew()).leases
    assert (lease.etag, lease.cursor) == (None, 1)


async def test_now_and_then_it_is_asked_without(quick: Polls) -> None:
    await quick.add("mc", etag='W/"5"', etag_cursor=0, last_full_poll_at=START - timedelta(minutes=10))
    (lease,) = (await quick.listener().renew()).leases
    assert (lease.etag, lease.full_in) == (None, 0)


# Announced pushes


URL = "https://hg.mozilla.org/mc"


async def test_an_announced_push_is_polled_beside_the_shift_with_its_number(polls: Polls) -> None:
    await polls.add("mc", "other")
    listener = polls.listener()
    await listener.renew()
    await polls.announce(URL)
    polls.clock.go(1)
    before = await polls.row()
    answer = await polls.announce(URL, "https://hg.mozilla.org/unknown")
    assert [(lease.repository, lease.shift) for lease in answer.leases] == [("mc", 1)]
    assert answer.wait is None
    assert await polls.row() == before
    assert (await listener.polled_all()).renewed == [1, 2]


async def test_the_reserve_starts_empty_and_is_never_overdrawn(polls: Polls) -> None:
    aliases = [f"r{n}" for n in range(6)]
    await polls.add(*aliases)
    urls = [f"https://hg.mozilla.org/{alias}" for alias in aliases]
    first = await polls.announce(*urls)
    assert (first.leases, first.wait) == ([], 1)
    given = 0
    for second in range(1, 21):
        polls.clock.go(0.5)
        given += len((await polls.announce(*urls)).leases)
        assert given <= second * 0.5
    assert given == 10


async def test_what_the_reserve_does_not_reach_for_is_due_at_once(quick: Polls) -> None:
    later = START + timedelta(hours=1)
    await quick.add("mc", due_at=later, turn=later)
    assert (await quick.announce(URL)).leases == []
    assert (await quick.row()).due_at == START
    (lease,) = (await quick.listener().renew()).leases
    assert lease.first_in == 0


async def test_without_a_reserve_nothing_is_awaited(quick: Polls) -> None:
    quick.settings = PollSettings(announced_share=0)
    await quick.add("mc")
    for _ in range(2):
        answer = await quick.announce(URL)
        assert (answer.leases, answer.wait) == ([], None)
        quick.clock.go(1000)


async def test_the_reserve_is_beside_the_rates(quick: Polls) -> None:
    quick.settings = PollSettings(max_requests_per_host=20, announced_share=0.5)
    await quick.add("mc")
    assert (await quick.listener().renew()).hosts[HOST].rate == 10
    await quick.announce(URL)
    quick.clock.go(100)
    assert len((await quick.announce(*([URL] * 3))).leases) == 1
    async with quick.database.reading() as session:
        (bucket,) = (await session.exec(select(Budget))).all()
    assert (bucket.name, bucket.tokens) == (f"hg {HOST}", 9)


@pytest.mark.parametrize("fields", [{"enabled": False}, {"deleted_at": START}])
async def test_an_announcement_of_what_is_not_polled_does_nothing(quick: Polls, fields: dict[str, Any]) -> None:
    await quick.add("mc", **fields)
    await quick.announce(URL)
    quick.clock.go(10)
    answer = await quick.announce(URL)
    assert (answer.leases, answer.wait) == ([], None)
