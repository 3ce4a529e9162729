"""Reconciliation: silent runs, deleted queues, and tasks that do not exist any more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col, select, update

from service.clock import now
from service.engine.batches import lock_reports
from service.engine.leases import Lease, LeaseLostError, claim
from service.engine.reporter import Reporter
from service.flow.jobs import reconcile
from service.store.database import Session
from service.store.models import (
    NEVER,
    Action,
    GroupCheck,
    JobReport,
    PlannedTask,
    Source,
    Stage,
    State,
)
from tests.service.flow.jobs.conftest import OpenHarness
from tests.service.flow.jobs.support import age, check_groups, reconcile_now
from tests.service.flow.report_harness import (
    PREFIX,
    STAGE,
    ReportHarness,
    open_report_harness,
)


@pytest.fixture
def open_harness() -> OpenHarness:
    """Return what opens a harness with two Treeherders."""
    return open_report_harness


async def test_a_run_that_is_silent_for_long_is_asked_after(harness: ReportHarness) -> None:
    first, second = harness.create(), harness.create()
    await harness.deliver_all()
    harness.end(first, "failed")
    harness.tc.queue.rerun_task(first)
    harness.claim(second)
    harness.messages.clear()  # lost
    await reconcile.reconcile_quiet_runs(harness.services)
    assert harness.tc.journal.calls["statuses"] == 0, "it was heard of a moment ago"
    await age(harness)
    await reconcile.reconcile_quiet_runs(harness.services)
    await harness.report()
    assert harness.jobs() == harness.jobs(STAGE) == harness.expected_jobs()
    assert harness.tc.journal.calls["statuses"] == 1, "one call for all of them"
    assert len(harness.expected_jobs()) == 3


async def test_the_reporter_asks_by_itself(sqlite_url: str) -> None:
    async with open_report_harness(sqlite_url, reports={"quiet": 0.2}) as harness:
        task_id = harness.create()
        await harness.deliver_all()
        harness.end(task_id, "completed")
        harness.messages.clear()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        async with asyncio.timeout(10):
            while harness.jobs() != harness.expected_jobs():  # noqa: ASYNC110 - the stand-in tells nobody
                await asyncio.sleep(0.02)
        reporter.stop()
        await running


async def test_what_is_final_or_skipped_is_not_asked_after(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.end(sqlite_harness.create(), "completed")
    sqlite_harness.create(extra={})
    await sqlite_harness.deliver_all()
    await age(sqlite_harness)
    assert await reconcile.reconcile_quiet_runs(sqlite_harness.services) == 0


async def test_a_task_that_taskcluster_has_forgotten_is_not_asked_after_for_ever(harness: ReportHarness) -> None:
    task_id = harness.create()
    await harness.deliver_all()
    harness.claim(task_id)
    await harness.take_all()
    async with harness.database.writing() as session:
        held = await claim(session, JobReport, f"job {PREFIX} mc", 1, harness.services.settings.work.lease)
    harness.tc.queue.clear()
    await age(harness)
    assert await reconcile.reconcile_quiet_runs(harness.services) == 2
    for report in held:
        with pytest.raises(LeaseLostError):
            await Lease(harness.database, harness.services.settings.work, report).release()
    assert await harness.unfinished() == 0, "a holder of before says nothing more"
    assert {report.state for report in await harness.reports()} == {State.SKIPPED}
    assert {report.error for report in await harness.reports()} == {"Taskcluster has no such task any more"}


async def test_after_a_deleted_queue_all_is_asked_after_and_groups_are_listed(harness: ReportHarness) -> None:
    decision = harness.create()
    await harness.deliver_all()
    harness.end(decision, "completed")
    member = harness.create(taskGroupId=decision)
    harness.claim(member)
    harness.messages.clear()  # lost, with the only word of the second task
    async with harness.database.writing() as session:
        await reconcile.request_full_check(session)
        await reconcile.request_full_check(session)
    await reconcile_now(harness)
    await harness.report()
    assert harness.jobs() == harness.jobs(STAGE) == harness.expected_jobs()
    assert len(harness.expected_jobs()) == 2
    assert harness.tc.journal.calls["listTaskGroup"] == 1, "a group that waits to be listed is not listed twice"


async def test_after_a_deleted_queue_more_than_one_calls_worth_is_asked_after(
    harness: ReportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "STATUSES_PER_CALL", 2)
    for _ in range(3):
        harness.create()
    await harness.take_all()
    async with harness.database.writing() as session:
        await reconcile.request_full_check(session)
        later = now() + timedelta(hours=1)
        newest = max(report.id or 0 for report in await harness.reports())
        await session.exec(update(JobReport).where(col(JobReport.id) == newest).values(last_event_at=later))
    async with asyncio.timeout(10):
        await check_groups(harness, most=1)
    heard = {report.id: report.last_event_at for report in await harness.reports()}
    assert heard.pop(newest) == later, "it is heard of again"
    assert set(heard.values()) == {NEVER}
    assert len(heard) == 5


async def test_a_run_that_ends_while_its_task_is_found_gone_keeps_its_end(
    harness: ReportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = harness.create()
    await harness.take_all()
    real = lock_reports

    async def late(session: Session, reports: Sequence[JobReport]) -> None:
        ended = update(JobReport).where(col(JobReport.environment) == PREFIX).values(stage=Stage.RESOLVED)
        await session.exec(ended)  # as another transaction may, until the rows are locked
        await real(session, reports)

    monkeypatch.setattr(reconcile, "lock_reports", late)
    async with harness.database.writing() as session:
        await reconcile.skip_reports(session, [task_id], "gone")
    states = {report.environment: report.state for report in await harness.reports()}
    assert states == {PREFIX: State.PENDING, STAGE: State.SKIPPED}


async def test_after_a_deleted_queue_groups_of_retriggers_are_listed_too(harness: ReportHarness) -> None:
    async with harness.database.writing() as session:
        for number, since in enumerate((now(), now() - 2 * reconcile.LOOK_BACK)):
            who: dict[str, Any] = {"project": "mc", "task_id": "x", "requester": "me", "source": Source.API}
            action = Action(kind="retrigger", lane="taskcluster", since=since, **who)
            session.add(action)
            await session.flush()
            plan: dict[str, Any] = {"position": 0, "label": "copy", "name": "x", "created": True}
            plan |= {"action_id": action.id, "definition": {"taskGroupId": f"group{number}"}}
            session.add(PlannedTask(task_id=f"copy{number}", **plan))
    async with harness.database.writing() as session:
        await reconcile.request_full_check(session)
    await check_groups(harness, most=1)
    async with harness.database.reading() as session:
        checks = await session.exec(select(GroupCheck.task_group_id).where(col(GroupCheck.due_at).is_not(None)))
        assert checks.all() == ["group0"]


async def test_a_status_that_is_not_understood_costs_no_other_of_its_group(
    sqlite_harness: ReportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = sqlite_harness
    decision = harness.create()
    member = harness.create(taskGroupId=decision)
    harness.messages.clear()
    group = harness.services.queue.group

    async def strange(group_id: str) -> AsyncIterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
        async for page in group(group_id):
            yield [({**s, "state": "odd"} if s["taskId"] == decision else s, task) for s, task in page]

    monkeypatch.setattr(harness.services.queue, "group", strange)
    async with harness.database.writing() as session:
        session.add(GroupCheck(task_group_id=decision, lane=reconcile.LANE))
    await reconcile_now(harness)
    await harness.report()
    assert harness.jobs() == {f"{member}/0": ("pending", "unknown")}
