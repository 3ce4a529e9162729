"""The record of Pulse queues, and of their deletion."""

from datetime import timedelta
from typing import Literal

from sqlmodel import select

from service.clock import now
from service.contract.events import QueueReport, QueueState
from service.flow.jobs import queues, reconcile
from service.store.database import Database
from service.store.models import GroupCheck, PulseQueue

NAME = "queue/me/tasks"


async def report(
    database: Database,
    found: Literal["new", "there", "deleted"],
    events: Literal["tasks", "job-actions"] = "tasks",
) -> QueueState:
    async with database.writing() as session:
        return await queues.record_queue(session, QueueReport(queue=NAME, events=events, found=found))


async def checks(database: Database) -> list[str]:
    async with database.reading() as session:
        return list(await session.exec(select(GroupCheck.task_group_id)))


async def move_back(database: Database, age: timedelta) -> None:
    """Let all that is recorded of the queue have happened earlier."""
    async with database.writing() as session:
        queue = (await session.exec(select(PulseQueue))).one()
        queue.declared_at = queue.seen_at = now() - age


async def test_a_queue_that_was_never_read_is_not_deleted(database: Database) -> None:
    assert not (await report(database, "new")).deleted
    assert not (await report(database, "there")).deleted
    assert await checks(database) == []


async def test_a_queue_that_is_new_although_it_was_read_was_deleted(database: Database) -> None:
    await report(database, "new")
    await move_back(database, timedelta(hours=1))
    state = await report(database, "new")
    assert state.deleted
    assert state.messages_lost_since is not None
    assert await checks(database) == [reconcile.EVERYTHING]


async def test_a_deletion_that_is_reported_twice_counts_once(database: Database) -> None:
    await report(database, "new")
    await move_back(database, timedelta(hours=1))
    assert (await report(database, "deleted")).deleted
    assert (await report(database, "new")).deleted, "the second listener hears of it too"
    async with database.reading() as session:
        assert (await session.exec(select(PulseQueue))).one().deletions == 1


async def test_only_lost_task_events_request_a_check_of_runs(database: Database) -> None:
    await report(database, "new", "job-actions")
    await move_back(database, timedelta(hours=1))
    assert (await report(database, "deleted", "job-actions")).deleted
    assert await checks(database) == []
