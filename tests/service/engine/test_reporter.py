"""Reporter: budget, turns of projects, and restarts."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from service.clock import now
from service.engine import leases
from service.engine.registry import Registry
from service.engine.reporter import EnvironmentReporter, Reporter
from service.flow.jobs.deliver import TreeherderDeliverer
from service.store.models import JobReport
from tests.service.flow.report_harness import PREFIX, ReportHarness, route
from tests.service.flow.single_treeherder import open_single_treeherder


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[ReportHarness]:
    async with open_single_treeherder(database_url) as harness:
        yield harness


@pytest.fixture
async def sqlite_harness(sqlite_url: str) -> AsyncIterator[ReportHarness]:
    async with open_single_treeherder(sqlite_url) as harness:
        yield harness


async def test_the_budget_holds_for_all_replicas_and_treeherder_never_throttles(database_url: str) -> None:
    limit = 60
    async with open_single_treeherder(
        database_url, environment={"jobs_per_minute": limit}, reports={"batch": 2}
    ) as harness:
        for _ in range(8):
            harness.create()
        await harness.take_all()
        began = time.monotonic()
        others = [Reporter(harness.services) for _ in range(2)]
        running = [asyncio.create_task(other.run()) for other in others]
        await harness.report()
        for other in others:
            other.stop()
        await asyncio.gather(*running)
        assert len(harness.jobs()) == 8
        assert harness.posts() == 4
        # one request is in the bucket, the others come at one a second
        assert time.monotonic() - began > 2.5


async def test_the_fullest_project_first_and_each_within_its_turn(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"turn": 1, "gather": 0.1}) as harness:
        reporter = EnvironmentReporter(harness.services, PREFIX, TreeherderDeliverer(harness.services, PREFIX))
        small, large = f"job {PREFIX} try", f"job {PREFIX} mc"
        at = time.monotonic()
        reporter.served_at = {small: at - 0.5, large: at - 0.5}
        assert reporter.next_lane({small: 1, large: 500})[0] == large
        reporter.served_at[small] = at - 1.5
        assert reporter.next_lane({small: 1, large: 500})[0] == small
        reporter.served_at = {small: at, large: at}
        lane, pause = reporter.next_lane({small: 1})
        assert lane is None
        assert 0 < pause <= 0.1
        assert reporter.next_lane({small: 1, large: 200})[0] == large, "a full batch does not wait"


async def test_projects_take_turns(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.services.settings.reports.batch = 5
    for _ in range(20):
        sqlite_harness.create()
    last = sqlite_harness.create(routes=[route(PREFIX, "try")])
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs()[f"{last}/0"] == ("pending", "unknown")
    assert len(sqlite_harness.jobs()) == 21


async def test_what_a_dead_holder_had_is_done_by_another(harness: ReportHarness) -> None:
    harness.services.settings.work.lease = timedelta(seconds=0.3)
    task_id = harness.create()
    await harness.take_all()
    async with harness.database.writing() as session:
        held = await leases.claim(session, JobReport, f"job {PREFIX} mc", 10, timedelta(seconds=0.3))
    assert len(held) == 1  # and its holder is never heard of again
    await harness.report()
    assert harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_stopping_gives_back_what_takes_too_long(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.services.settings.work.drain = timedelta(seconds=0.1)
    sqlite_harness.th[PREFIX].behaviour.delay = 2
    sqlite_harness.create()
    await sqlite_harness.take_all()
    reporter = Reporter(sqlite_harness.services)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.3)
    reporter.stop()
    async with asyncio.timeout(2):
        await running
    (report,) = await sqlite_harness.reports()
    assert report.due_at is not None
    assert report.due_at <= now()


async def test_what_is_due_now_and_then_is_done_without_an_environment_too(sqlite_harness: ReportHarness) -> None:
    registry, done = Registry(), asyncio.Event()

    async def step(_: object) -> float:
        done.set()
        return 60

    registry.add_step(step)
    reporter = Reporter(sqlite_harness.services, registry)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(5):
        await done.wait()
        reporter.stop()
        await running
