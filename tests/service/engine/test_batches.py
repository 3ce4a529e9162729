"""Reports are finished by the hundred, while new events come in for the same ones."""

import asyncio
from datetime import timedelta

import pytest
from sqlmodel import select

from service import metrics
from service.clock import now
from service.engine import batches, leases
from service.engine.batches import End, Outcome
from service.flow.jobs import events
from service.flow.jobs.events import Target, TaskStatus
from service.flow.tasks.ids import slugid
from service.settings import WorkSettings
from service.store.database import Database
from service.store.models import NEVER, DeadLetter, JobReport, Stage, State

LANE = "job tc-treeherder mc"
LEASE = timedelta(seconds=30)


def status(task_id: str, stage: Stage) -> TaskStatus:
    state = {Stage.PENDING: "pending", Stage.RUNNING: "running", Stage.RESOLVED: "completed"}[stage]
    run = {"runId": 0, "state": state, "reasonCreated": "scheduled", "resolved": "2026-01-01T00:00:00Z"}
    words = {"taskId": task_id, "taskGroupId": task_id, "deadline": "2026-01-02T00:00:00Z"}
    return TaskStatus.model_validate({**words, "state": state, "runs": [run]})


async def record_event(database: Database, ids: list[str], stage: Stage) -> None:
    target = Target("tc-treeherder", "mc", "a1" * 20)
    async with database.writing() as session:
        await events.upsert(
            session, [row for task_id in ids for row in events.build_rows(status(task_id, stage), [target])], now()
        )


async def claim(database: Database, limit: int = 1_000) -> list[JobReport]:
    async with database.writing() as session:
        return await leases.claim(session, JobReport, LANE, limit, LEASE)


async def finish(database: Database, ended: list[Outcome]) -> None:
    async with database.writing() as session:
        await batches.record_outcomes(session, ended)


def lease_of(database: Database, report: JobReport) -> leases.Lease[JobReport]:
    return leases.Lease(database, WorkSettings(), report)


async def one(database: Database) -> JobReport:
    async with database.reading() as session:
        report = await session.get(JobReport, 1)
    assert report is not None
    return report


async def letters(database: Database) -> list[DeadLetter]:
    async with database.reading() as session:
        return list(await session.exec(select(DeadLetter)))


TASKS = [slugid(b"settle", str(number)) for number in range(300)]


async def test_finishing_and_hearing_of_the_same_reports_do_not_deadlock(database: Database) -> None:
    await record_event(database, TASKS, Stage.PENDING)
    for stage in (Stage.RUNNING, Stage.RESOLVED):
        held = await claim(database)
        assert len(held) == len(TASKS)
        backwards = [Outcome(report, End.DONE) for report in sorted(held, key=lambda r: r.task_id, reverse=True)]
        await asyncio.gather(
            finish(database, backwards),
            record_event(database, TASKS, stage),
            record_event(database, list(reversed(TASKS)), stage),
        )
    assert len(await claim(database)) == len(TASKS), "what was heard meanwhile is due"


async def test_a_version_that_was_not_claimed_stays_due(database: Database) -> None:
    await record_event(database, TASKS[:1], Stage.PENDING)
    (held,) = await claim(database)
    await record_event(database, TASKS[:1], Stage.RUNNING)
    leased = (await one(database)).due_at
    assert leased is not None
    assert leased > now() + LEASE / 2, "nobody else takes it while it is held"
    await finish(database, [Outcome(held, End.DONE)])
    after = await one(database)
    assert (after.state, after.delivered, after.version) == (State.PENDING, Stage.PENDING, 2)
    assert after.due_at is not None
    assert after.due_at <= now()


@pytest.mark.parametrize("end", [End.BURIED, End.SKIPPED])
async def test_what_was_heard_meanwhile_is_tried_before_a_report_is_given_up(database: Database, end: End) -> None:
    await record_event(database, TASKS[:1], Stage.PENDING)
    (held,) = await claim(database)
    await record_event(database, TASKS[:1], Stage.RUNNING)
    await finish(database, [Outcome(held, end, "it is bad")])
    after = await one(database)
    assert (after.state, after.error, after.attempts, after.done_at) == (State.PENDING, None, 0, None)
    assert after.due_at is not None
    assert after.due_at <= now()
    assert await letters(database) == []
    (held,) = await claim(database)
    await finish(database, [Outcome(held, end, "it is bad")])
    after = await one(database)
    assert (after.state, after.error) == ({End.BURIED: State.FAILED, End.SKIPPED: State.SKIPPED}[end], "it is bad")
    assert after.due_at is None
    assert [letter.reason for letter in await letters(database)] == (["it is bad"] if end is End.BURIED else [])


async def test_how_late_a_job_is_is_measured_only_where_an_event_was_heard(sqlite: Database) -> None:
    await record_event(sqlite, TASKS[:2], Stage.PENDING)
    held = await claim(sqlite)
    held[0].last_event_at = NEVER
    before = observed()
    await finish(sqlite, [Outcome(report, End.DONE) for report in held])
    assert observed() == before + 1


def observed() -> float:
    return metrics.REGISTRY.get_sample_value("tc_treeherder_event_to_job_seconds_count") or 0


async def test_who_has_lost_the_lease_writes_nothing(database: Database) -> None:
    await record_event(database, TASKS[:1], Stage.PENDING)
    async with database.writing() as session:
        (lost,) = await leases.claim(session, JobReport, LANE, 1, timedelta())
    (held,) = await claim(database)
    await finish(database, [Outcome(lost, End.BURIED, "bad")])
    async with database.writing() as session:
        assert await leases.renew(session, [lease_of(database, lost)], timedelta(hours=9))
    after = await one(database)
    assert (after.state, after.fencing_token) == (State.PENDING, held.fencing_token)
    assert after.due_at is not None
    assert after.due_at < now() + timedelta(hours=1)


async def test_a_renewal_after_the_end_makes_nothing_due(database: Database) -> None:
    await record_event(database, TASKS[:1], Stage.RESOLVED)
    held = await claim(database)
    await finish(database, [Outcome(held[0], End.DONE)])
    async with database.writing() as session:
        assert await leases.renew(session, [lease_of(database, report) for report in held], LEASE)
    assert (await one(database)).due_at is None


async def test_a_pause_after_a_failure_outlasts_new_events(database: Database) -> None:
    await record_event(database, TASKS[:1], Stage.PENDING)
    (held,) = await claim(database)
    await finish(database, [Outcome(held, End.LATER, "it is away", timedelta(hours=1))])
    await record_event(database, TASKS[:1], Stage.RESOLVED)
    after = await one(database)
    assert (after.stage, after.error) == (Stage.RESOLVED, "it is away")
    assert after.due_at is not None
    assert after.due_at > now() + timedelta(minutes=50)
