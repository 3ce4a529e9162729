"""Retries of reports: a bad job, a broken Treeherder, and the time after which a report is given up."""

import asyncio
from datetime import timedelta

from sqlmodel import select, update

from service.clock import now
from service.engine.batches import End
from service.engine.reporter import Reporter
from service.flow.jobs.deliver import TreeherderDeliverer
from service.flow.jobs.retries import MAX_LONE_FAILURES
from service.flow.jobs.run import job_guid
from service.store.models import Budget, JobReport
from tests.service.flow.report_harness import PREFIX, ReportHarness
from tests.service.flow.single_treeherder import open_single_treeherder, until


async def test_a_treeherder_that_is_ill_buries_nobody(sqlite_harness: ReportHarness) -> None:
    harness = sqlite_harness
    ids = [harness.create() for _ in range(16)]
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(task_id, 0) for task_id in ids)
    harness.th[PREFIX].behaviour.bad_job_status = 500
    deliverer = TreeherderDeliverer(harness.services, PREFIX)
    await harness.take_all()
    deliverer.retries.record_accepted()
    for _ in range(MAX_LONE_FAILURES + 1):
        done = await deliverer.deliver(await harness.reports())
        assert {outcome.end for outcome in done.outcomes} == {End.LATER}
        assert len(done.outcomes) == 16
        assert done.pause is not None
        assert done.requests < 12


async def test_a_job_is_bad_only_when_others_are_taken_between_its_failures(sqlite_harness: ReportHarness) -> None:
    harness = sqlite_harness
    task_id = harness.create()
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset({job_guid(task_id, 0)})
    harness.th[PREFIX].behaviour.bad_job_status = 500
    await harness.take_all()
    (bad,) = await harness.reports()
    bad.attempts = 50  # waited long for something else
    deliverer = TreeherderDeliverer(harness.services, PREFIX)

    async def ends(*reports: JobReport) -> list[End]:
        done = await deliverer.deliver(list(reports))
        return [outcome.end for outcome in done.outcomes if outcome.report is bad]

    for _ in range(9):
        assert await ends(bad) == [End.LATER], "nothing tells an ill Treeherder from a bad job"
    harness.create()
    await harness.take_all()
    good = next(report for report in await harness.reports() if report.id != bad.id)
    assert await ends(bad, good) == [End.LATER]
    assert await ends(bad) == [End.LATER]
    assert await ends(bad, good) == [End.LATER]
    assert await ends(bad, good) == [End.BURIED]


async def test_an_outage_costs_one_request_a_pause_however_much_waits(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"batch": 10, "max_pause": 0.3}) as harness:
        for _ in range(100):
            harness.create()
        harness.th[PREFIX].behaviour.down = -1
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(1.5)
        assert sum(harness.th[PREFIX].counters.values()) <= 14, harness.th[PREFIX].counters
        await until(lambda: sum(harness.th[PREFIX].counters.values()) >= 3)
        harness.th[PREFIX].behaviour.down = 0
        reporter.stop()
        await running
        await harness.report()
        assert len(harness.jobs()) == 100


async def test_retry_after_is_obeyed(sqlite_harness: ReportHarness) -> None:
    harness = sqlite_harness
    harness.th[PREFIX].behaviour.retry_after = True
    harness.th[PREFIX].behaviour.too_many = 1
    harness.create()
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.5)
    reporter.stop()
    await running
    assert harness.th[PREFIX].counters["POST jobs 429"] == 1
    (report,) = await harness.reports()
    assert report.due_at is not None
    assert report.due_at > now() + timedelta(seconds=55)
    async with harness.database.reading() as session:
        bucket = (await session.exec(select(Budget))).one()
    assert bucket.blocked_until is not None
    assert bucket.blocked_until > now() + timedelta(seconds=55)


async def test_given_up_after_a_day(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.th[PREFIX].behaviour.down = -1
    sqlite_harness.create()
    await sqlite_harness.take_all()
    async with sqlite_harness.database.writing() as session:
        await session.exec(update(JobReport).values(since=now() - timedelta(days=2)))
    sqlite_harness.services.settings.reports.push_wait = timedelta(days=9)
    await sqlite_harness.report()
    (letter,) = await sqlite_harness.dead_letters()
    assert "503" in letter.reason
    assert "given up" in letter.reason
