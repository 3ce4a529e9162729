"""A process's clock over simulated clocks that are off, step and stop, on both databases."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select, update
from structlog.testing import capture_logs

from service import clock as clock_module
from service.clock import SETTLED, Clock, now
from service.engine.budget import blocked_for, refilled
from service.engine.leases import Lease
from service.store import database as module
from service.store.database import Database, check_clock
from service.store.models import Budget, DeadLetter, PushStep, State
from tests.service.api.test_health import heartbeat
from tests.service.asgi import Api, push_event, running, settings_for, signature
from tests.service.engine.test_leases import add_steps, take
from tests.service.engine.test_worker import Steps, settings_of, steps, until, working

__all__ = ["steps"]

HOUR = timedelta(hours=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Machine:
    """A machine whose wall clock can be wrong, and its clock that counts suspended time, which cannot."""

    def __init__(self, start: datetime = NOON) -> None:
        self.time = start
        self.wall_is_off = timedelta()
        self.passed = 0.0

    def wall(self) -> datetime:
        return self.time + self.wall_is_off

    def steady(self) -> float:
        return self.passed

    def wait(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.passed += seconds

    def clock(self) -> Clock:
        return Clock(self.wall, self.steady)


def compare(clock: Clock, machine: Machine, off: float = 0, round_trip: float = 0) -> None:
    """Let the database, whose clock is so far off, answer in the middle of the round trip."""
    sent = machine.steady()
    machine.wait(round_trip / 2)
    database_time = machine.time + timedelta(seconds=off)
    machine.wait(round_trip / 2)
    clock.compare(database_time, sent, machine.steady())


def test_the_time_is_the_databases_and_is_carried_forward() -> None:
    machine = Machine()
    machine.wall_is_off = HOUR
    clock = machine.clock()
    compare(clock, machine)
    assert clock.now() == machine.time
    machine.wall_is_off = -HOUR
    machine.wait(90)
    assert clock.now() == machine.time
    compare(clock, machine, off=2)  # it drifts
    assert clock.now() == machine.time + timedelta(seconds=2)
    assert clock.usable
    assert not clock.reported


@pytest.mark.parametrize("boottime", [True, False])
def test_the_time_in_which_the_machine_is_suspended_is_counted(monkeypatch: pytest.MonkeyPatch, boottime: bool) -> None:
    if boottime:
        monkeypatch.setattr(time, "CLOCK_BOOTTIME", 77, raising=False)
        monkeypatch.setattr(time, "clock_gettime", {77: 1234.5}.__getitem__)
    else:  # such as macOS, whose monotonic clock is the best there is
        monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
        monkeypatch.setattr(time, "monotonic", lambda: 1234.5)
    assert Clock().steady() == 1234.5


def test_three_differences_in_a_row_are_reported() -> None:
    machine = Machine()
    clock = machine.clock()
    compare(clock, machine)
    with capture_logs() as logs:
        for off in (6, 6, 0, 6, 6):
            compare(clock, machine, off)
            assert not clock.reported
        compare(clock, machine, 6)
        assert clock.reported
        assert clock.usable
        compare(clock, machine, 6)
        compare(clock, machine, 0)
        assert not clock.reported
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("clock-differs", "error"),
        ("clock-agrees-again", "info"),
    ]


def test_half_of_the_round_trip_is_taken_off() -> None:
    machine = Machine()
    clock = machine.clock()
    compare(clock, machine)
    compare(clock, machine, off=250, round_trip=600)  # a process that was stopped in the middle of a claim
    assert clock.difference == 0
    compare(clock, machine, off=310, round_trip=600)
    assert clock.difference == pytest.approx(10)


@pytest.mark.parametrize("off", [61, -61, 172_800])
def test_beyond_a_minute_nothing_is_taken_until_the_clocks_agree(off: float) -> None:
    machine = Machine()
    clock = machine.clock()
    compare(clock, machine)
    compare(clock, machine, off)
    assert not clock.usable
    assert clock.now() == machine.time, "a single answer sets nothing"
    compare(clock, machine, 0)
    assert clock.usable


def test_a_difference_that_stays_is_followed() -> None:
    machine = Machine()
    clock = machine.clock()
    compare(clock, machine)
    for _ in range(int(SETTLED)):
        compare(clock, machine, 3600)
        assert not clock.usable
        machine.wait(1)
    with capture_logs() as logs:
        compare(clock, machine, 3600)
    assert [(line["event"], line["log_level"]) for line in logs] == [("clock-followed", "warning")]
    assert clock.usable
    assert clock.now() == machine.time + HOUR


def test_one_that_changes_is_not() -> None:
    machine = Machine()
    clock = machine.clock()
    compare(clock, machine)
    for number in range(3 * int(SETTLED)):
        compare(clock, machine, 100 + number)
        machine.wait(1)
    assert not clock.usable


# Processes on such machines


@asynccontextmanager
async def on(machine: Machine, database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clock]:
    """Let this process run on that machine, with its clock set at the start."""
    clock = machine.clock()
    with monkeypatch.context() as patched:
        patched.setattr(clock_module, "process_clock", clock)
        async with database.reading() as session:
            await check_clock(session)
        yield clock


def postgresql(database: Database) -> bool:
    return not database.sqlite


async def steps_of(database: Database) -> list[PushStep]:
    async with database.reading() as session:
        return list(await session.exec(select(PushStep)))


async def test_a_replica_an_hour_ahead_steals_nothing(
    database: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's time is independent of this machine. On SQLite the wall clock steps, and the process notices."""
    machine = Machine(now())
    if postgresql(database):
        machine.wall_is_off = HOUR
    (held,) = await add_steps(database, due_at=now() + timedelta(seconds=10), fencing_token=1)
    (due,) = await add_steps(database, lane="graph y")
    async with on(machine, database, monkeypatch) as clock:
        machine.wall_is_off = HOUR
        async with working(database, steps):
            if postgresql(database):
                await until(lambda: _began(steps, 1))
            else:
                await until(lambda: _is(not clock.usable))
            await asyncio.sleep(0.1)
    assert steps.began == ([due] if postgresql(database) else [])
    (first, _) = await steps_of(database)
    assert (first.id, first.fencing_token) == (held, 1)


async def _began(steps: Steps, count: int) -> bool:
    return len(steps.began) == count


async def _is(value: bool) -> bool:
    return value


async def test_ten_minutes_ahead_for_some_seconds_hides_no_push(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(now())
    async with running(settings_for(database_url)) as api, on(machine, api.database, monkeypatch):
        await api.add()
        machine.wall_is_off = timedelta(minutes=10)
        async with api.database.reading() as session:
            await check_clock(session)
        assert (await api.push(push_event(101)))[0]["verdict"] == "accepted", "intake goes on"
        assert len((await api.lease())["leases"]) == 1
        machine.wall_is_off = timedelta()
        machine.wait(16)
        assert (await api.repository()).due_at <= now(), "and polls do"
        assert all(step.due_at is not None and step.due_at <= now() for step in await api.steps())


async def test_two_days_ahead_bury_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(now())
    await add_steps(database, 22)
    async with on(machine, database, monkeypatch):
        machine.wall_is_off = timedelta(days=2)
        async with database.reading() as session:
            await check_clock(session)
        for item in await take(database, 22):
            await Lease(database, settings_of(give_up_attempts=20).work, item).retry("not yet")
    await _none_is_buried(database, 22)


async def _none_is_buried(database: Database, count: int) -> None:
    assert [step.state for step in await steps_of(database)] == [State.PENDING] * count
    async with database.reading() as session:
        assert list(await session.exec(select(DeadLetter))) == []


async def test_not_even_when_the_database_is_two_days_ahead(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the clock was followed, as SQLite's is in the end. Work is only buried after several attempts, too."""
    await add_steps(database, since=now() - timedelta(days=2))
    for attempts in range(19):
        async with database.writing() as session:
            await session.exec(update(PushStep).values(due_at=now()))
        (item,) = await take(database)
        assert item.attempts == attempts + 1
        await Lease(database, settings_of(give_up_attempts=20).work, item).retry("not yet")
    await _none_is_buried(database, 1)


async def test_what_is_due_later_than_the_longest_wait_is_due(database: Database, steps: Steps) -> None:
    """Work whose due time was written by a wrong clock is not hidden by it. Work that may be due later waits."""
    (hidden,) = await add_steps(database, due_at=now() + HOUR)
    await add_steps(database, lane="graph y", due_at=now() + timedelta(minutes=25))
    async with working(database, steps):
        await until(lambda: _began(steps, 1))
        await asyncio.sleep(0.1)
    assert steps.began == [hidden]


async def test_a_wall_clock_that_stops_is_noticed_on_sqlite(
    sqlite: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(now())
    await add_steps(sqlite)
    async with on(machine, sqlite, monkeypatch) as clock:
        machine.passed += 120
        async with working(sqlite, steps):
            await until(lambda: _is(not clock.usable))
            await asyncio.sleep(0.1)
            assert steps.began == []
            machine.time += timedelta(seconds=120)
            await until(lambda: _began(steps, 1))


async def test_a_budget_that_a_clock_filled_too_late_refills(database: Database) -> None:
    async with database.writing() as session:
        session.add(Budget(name="hg x", tokens=0, at=now() + HOUR, blocked_until=now() + HOUR))
    async with database.writing() as session:
        await refilled(session, "hg x", now(), 10)
    async with database.writing() as session:
        bucket = await refilled(session, "hg x", now() + timedelta(seconds=1), 10)
        assert bucket.tokens > 9
        assert blocked_for(bucket, now(), timedelta(minutes=30)) == timedelta()
        assert blocked_for(bucket, now(), HOUR * 2) > timedelta(minutes=59)


async def test_a_process_that_claims_nothing_compares_its_clock_too(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOCK_EVERY", 0.01)
    machine = Machine(now())
    async with on(machine, sqlite, monkeypatch) as clock:
        following = asyncio.create_task(module.follow_clock(sqlite))
        machine.wall_is_off = HOUR
        await until(lambda: _is(not clock.usable))
        machine.wall_is_off = timedelta()
        await until(lambda: _is(clock.usable))
        following.cancel()


# What people see, and what is signed


@pytest.mark.parametrize(("off", "status", "code"), [(30, "warning", 200), (3600, "error", 503)])
async def test_differences_are_reported_and_intake_goes_on(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, off: float, status: str, code: int
) -> None:
    machine = Machine(now())
    async with running(settings_for(sqlite_url), work=True) as api, on(machine, api.database, monkeypatch):
        await api.add()
        assert (await heartbeat(api))[2]["clock"]["status"] == "ok"
        machine.wall_is_off = timedelta(seconds=off)
        await until(lambda: _says(api, status), 10)
        checked = await heartbeat(api)
        assert checked[0] == code
        assert f"{off:+} s" in checked[2]["clock"]["detail"]
        assert f"tc_treeherder_clock_difference_seconds {off:.1f}" in (await metrics_of(api))
        assert (await api.push(push_event(101)))[0]["verdict"] == "accepted"
        assert (await api.call("GET", "/__readiness__", token=None)).status_code == 200
        if status == "error":
            await asyncio.sleep(0.7)
            assert all(step.fencing_token == 0 for step in await api.steps()), "no work is taken"


async def _says(api: Api, status: str) -> bool:
    return bool((await heartbeat(api))[2]["clock"]["status"] == status)


async def metrics_of(api: Api) -> str:
    return (await api.call("GET", "/metrics")).text


async def test_signatures_are_judged_by_the_databases_time(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = now() + timedelta(minutes=10)
    clock = Machine(ahead).clock()
    monkeypatch.setattr(clock_module, "process_clock", clock)
    raw = b'{"events": []}'

    async def sent(at: datetime) -> int:
        answer = await sqlite_api.client.post("/api/v1/events/pushes", content=raw, headers=signature(raw, at=at))
        return answer.status_code

    assert await sent(ahead) == 202
    assert await sent(ahead + timedelta(seconds=299)) == 202
    assert await sent(ahead - timedelta(seconds=301)) == 401
    assert await sent(ahead + timedelta(seconds=301)) == 401
