"""Pushes that are not in Treeherder yet, that it does not know, and that routes disagree about."""

import asyncio
from datetime import timedelta

import pytest
from sqlmodel import update

from service.clock import now
from service.engine.reporter import Reporter
from service.store.models import JobReport, State
from tests.service.flow.report_harness import PREFIX, ReportHarness, resultset, revision
from tests.service.flow.single_treeherder import OTHER, create_resultset, open_single_treeherder, own_push, until
from tests.service.harness import node


async def test_a_job_of_a_push_that_treeherder_does_not_know_waits_for_it(harness: ReportHarness) -> None:
    harness.th[PREFIX].behaviour.unknown_push = "drop"  # a 200 proves nothing
    task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(10):
        while f"no push {OTHER} of mc" not in ((await harness.reports())[0].error or ""):  # noqa: ASYNC110 - a row in a table
            await asyncio.sleep(0.01)
    assert harness.posts() == 0
    harness.th[PREFIX].store.store_resultsets("mc", [resultset("mc", OTHER)])
    await until(lambda: harness.jobs() == {f"{task_id}/0": ("pending", "unknown")})
    requests = harness.th[PREFIX].counters["GET resultset 200"]
    harness.end(task_id, "completed")
    await harness.take_all()
    await until(lambda: harness.jobs() == {f"{task_id}/0": ("completed", "success")})
    assert harness.th[PREFIX].counters["GET resultset 200"] == requests, "what is known is not asked again"
    reporter.stop()
    await running


async def test_after_an_hour_without_its_push_a_report_is_buried(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"push_wait": 0.3}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.deliver_all()
        (letter,) = await harness.dead_letters()
        assert f"no push {OTHER} of mc" in letter.reason
        assert "0:00:00.3" in letter.reason


async def test_a_project_that_treeherder_does_not_know_is_buried_after_an_hour(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"push_wait": 0.3}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.nowhere.{OTHER}"])
        fine = harness.create()
        await harness.deliver_all()
        (letter,) = await harness.dead_letters()
        assert "No project with name nowhere" in letter.reason
        assert set(harness.jobs()) == {f"{fine}/0"}, "another project does not wait for it"


async def test_an_outage_does_not_count_for_the_hour(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"push_wait": 0.6, "max_pause": 0.05}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.take_all()
        async with harness.database.writing() as session:
            await session.exec(update(JobReport).values(since=now() - timedelta(hours=2)))
        harness.th[PREFIX].behaviour.down = -1
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.5)
        assert await harness.dead_letters() == [], "nobody has said that there is no such push"
        harness.th[PREFIX].behaviour.down = 0
        await until(lambda: harness.th[PREFIX].counters["GET resultset 200"] > 0)
        await asyncio.sleep(0.1)
        assert await harness.dead_letters() == [], "the hour has only begun"
        await asyncio.sleep(0.1)
        reporter.stop()
        await running
        await harness.report()
        (letter,) = await harness.dead_letters()
        assert f"no push {OTHER} of mc" in letter.reason


async def test_another_outage_begins_the_hour_anew(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"max_pause": 0.01}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.take_all()
        for down, waits in ((0, True), (-1, False)):
            harness.th[PREFIX].behaviour.down = down
            reporter = Reporter(harness.services)
            running = asyncio.create_task(reporter.run())
            await until(lambda: sum(harness.th[PREFIX].counters.values()) > 0)
            await asyncio.sleep(0.1)
            reporter.stop()
            await running
            (report,) = await harness.reports()
            assert (report.no_push_since is not None) == waits
            harness.th[PREFIX].counters.clear()


async def test_a_push_that_we_are_about_to_create_is_not_given_up_after_an_hour(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"push_wait": 0}) as harness:
        tip, _ = await own_push(harness)
        task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{tip}"])
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.3)
        assert await harness.dead_letters() == []
        await create_resultset(harness)
        await until(lambda: bool(harness.jobs()))
        reporter.stop()
        await running
        assert set(harness.jobs()) == {f"{task_id}/0"}


@pytest.mark.parametrize("version", [1, 2])
async def test_a_job_of_our_own_push_waits_until_we_have_created_it(harness: ReportHarness, version: int) -> None:
    harness.services.settings.reports.max_pause = timedelta(hours=1)
    harness.services.settings.work.first_retry = harness.services.settings.work.max_retry = timedelta(hours=1)
    tip, revision_hash = await own_push(harness)
    assert tip == node("mc 1")
    task_id = harness.create(routes=[f"{PREFIX}.mc.{revision_hash}" if version == 1 else f"{PREFIX}.v2.mc.{tip}.1"])
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(10):
        while "about to create it" not in ((await harness.reports())[0].error or ""):  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)
    assert harness.th[PREFIX].counters["GET resultset 200"] == 0, "nobody needs to be asked"
    await create_resultset(harness)
    # it was to be tried again in an hour; the resultset makes it due
    await until(lambda: bool(harness.jobs()))
    reporter.stop()
    await running
    assert harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_a_v1_route_of_a_push_of_others_is_found_by_its_hash(sqlite_harness: ReportHarness) -> None:
    revision_hash = resultset("mc")["revision_hash"]
    task_id = sqlite_harness.create(routes=[f"{PREFIX}.mc.{revision_hash}"])
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}
    (job,) = sqlite_harness.th[PREFIX].store.jobs.values()
    assert job.push.revision == revision("mc")


async def test_routes_that_disagree_about_our_own_push_are_refused(sqlite_harness: ReportHarness) -> None:
    tip, revision_hash = await own_push(sqlite_harness)
    sqlite_harness.create(routes=[f"{PREFIX}.v2.mc.{tip}.1", f"{PREFIX}.mc.{'d' * 40}"])
    await create_resultset(sqlite_harness)
    await sqlite_harness.deliver_all()
    (report,) = await sqlite_harness.reports()
    assert report.state == State.SKIPPED
    assert revision_hash in (report.error or "")
