"""Budgets of requests, shared by all replicas, on both databases."""

import asyncio
from datetime import timedelta

import pytest
from sqlmodel import select

from service.clock import now
from service.engine.budget import burst, jobs_budget, refilled
from service.settings import Environment
from service.store.database import Database
from service.store.models import Budget

NAME = "hg hg.mozilla.org"
START = now()


async def taken(database: Database, wanted: float, *, after: float = 0, rate: float = 10, name: str = NAME) -> float:
    """Take up to so many whole requests, so many seconds after the start; return how many were left before."""
    async with database.writing() as session:
        bucket = await refilled(session, name, START + timedelta(seconds=after), rate)
        given = max(0, min(wanted, int(bucket.tokens)))
        bucket.tokens -= given
        return given


async def charged(database: Database, requests: float) -> None:
    async with database.writing() as session:
        (await refilled(session, NAME, START, 10)).tokens -= requests


async def test_a_full_bucket_gives_its_burst_and_then_refills(database: Database) -> None:
    assert await taken(database, 25) == 10
    assert await taken(database, 1) == 0
    assert await taken(database, 5, after=0.25) == 2
    assert await taken(database, 5, after=0.3) == 1
    assert await taken(database, 100, after=1000) == 10


async def test_only_whole_requests_are_given(database: Database) -> None:
    assert await taken(database, 10) == 10
    assert await taken(database, 1, after=0.09) == 0
    assert await taken(database, 1, after=0.11) == 1


async def test_a_clock_that_is_behind_takes_nothing_away(database: Database) -> None:
    assert await taken(database, 4, after=5) == 4
    assert await taken(database, 10, after=0) == 6


async def test_charges_overdraw_and_nothing_is_given_until_they_are_made_up_for(database: Database) -> None:
    await charged(database, 25)
    assert await taken(database, 1) == 0
    assert await taken(database, 1, after=1.5) == 0
    assert await taken(database, 9, after=1.8) == 3


async def test_what_was_taken_too_much_can_be_given_back(database: Database) -> None:
    assert await taken(database, 10) == 10
    await charged(database, -4)
    assert await taken(database, 10) == 4


async def test_less_than_one_a_second_is_given_now_and_then(database: Database) -> None:
    """A bucket that holds less than one request would never grant one."""
    assert await taken(database, 4, rate=0.5) == 1
    assert await taken(database, 4, rate=0.5, after=1) == 0
    assert await taken(database, 4, rate=0.5, after=2) == 1


async def test_many_at_once_never_get_more_than_there_is(database: Database) -> None:
    """Several processes make the bucket at the same moment."""
    given = await asyncio.gather(*(taken(database, 3) for _ in range(8)))
    assert sum(given) == 10
    async with database.reading() as session:
        assert (await session.exec(select(Budget.tokens))).one() == pytest.approx(0)


async def test_buckets_are_apart(database: Database) -> None:
    assert await taken(database, 10) == 10
    assert await taken(database, 3, name="hg other") == 3


@pytest.mark.parametrize("limit", [100, 220, 1000])
@pytest.mark.parametrize("late", [0, 2, 10])
def test_the_rate_leaves_room_for_a_full_bucket_and_late_requests_at_the_start_of_a_minute(
    limit: int, late: int
) -> None:
    environment = Environment(
        url="https://th.example.com",
        client_id="me",
        secret="hush",
        jobs_per_minute=limit,
    )
    _, rate = jobs_budget(environment, timedelta(seconds=late))
    assert (60 + late) * rate + burst(rate) <= limit + 0.02
