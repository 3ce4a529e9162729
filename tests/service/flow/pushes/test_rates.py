"""Rates that listeners are granted for a host."""

from datetime import UTC, datetime, timedelta

import pytest

from service.flow.pushes import rates
from service.flow.pushes.rates import Grant, Rates
from service.settings import PollSettings
from service.store.database import Database

HOST = "hg.example.com"
AT = datetime(2026, 1, 1, tzinfo=UTC)
END = AT + timedelta(minutes=5)


def test_the_reserve_and_the_shared_rate_are_the_whole_budget() -> None:
    settings = PollSettings(max_requests_per_host=10, announced_share=0.2)
    assert rates.reserved_rate(settings) == pytest.approx(2)
    assert rates.shared_rate(settings) == pytest.approx(8)


def test_a_listener_alone_gets_the_whole_rate() -> None:
    assert Rates("one", {}, {}).grant(HOST, 8, 1, END) == 8


def test_a_listener_gets_what_others_leave_and_at_most_its_share() -> None:
    grants = Rates("one", {}, {HOST: [Grant(7, 7, 1, END)]})
    assert (grants.sharers(HOST), grants.grant(HOST, 8, 1, END)) == (2, 1)
    assert Rates("one", {}, {HOST: [Grant(1, 1, 1, END)]}).grant(HOST, 8, 1, END) == 4
    assert Rates("one", {}, {HOST: [Grant(9, 9, 1, END)]}).grant(HOST, 8, 1, END) == 0, "never below zero"


def test_a_reduced_rate_counts_as_before() -> None:
    grants = Rates("one", {HOST: Grant(8, 8, 1, END)}, {HOST: [Grant(0, 0, 1, END)]})
    grants.grant(HOST, 8, 2, END)
    assert (grants.grants[HOST].rate, grants.grants[HOST].counted) == (4, 8)


async def test_a_reduced_rate_is_free_once_the_listener_names_the_answer(database: Database) -> None:
    latest = AT + timedelta(minutes=10)
    async with database.writing() as session:
        connection = await session.connection()
        reduced = Rates("one", {HOST: Grant(4, 8, 2, END)}, {})
        await connection.run_sync(rates.write, reduced, [HOST])
        before = await connection.run_sync(rates.read, "one", 1, [HOST], AT, latest)
        after = await connection.run_sync(rates.read, "one", 2, [HOST], AT, latest)
        seen_by_another = await connection.run_sync(rates.read, "two", 0, [HOST], AT, latest)
    assert (before.grants[HOST].counted, after.grants[HOST].counted) == (8, 4)
    assert [grant.counted for grant in seen_by_another.others[HOST]] == [8]
    assert seen_by_another.next_end([HOST]) == END


async def test_rates_of_ended_shifts_are_deleted(database: Database) -> None:
    async with database.writing() as session:
        connection = await session.connection()
        await connection.run_sync(rates.write, Rates("one", {HOST: Grant(4, 4, 1, AT)}, {}), [HOST])
        read = await connection.run_sync(rates.read, "two", 0, [HOST], AT, END)
        again = await connection.run_sync(rates.read, "two", 0, [HOST], AT - timedelta(days=1), END)
    assert (read.others, again.others) == ({}, {})
