"""Tasks of a loop and the leases that they hold: renewed, drained, and given back."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from service.clock import now
from service.engine import leases
from service.engine.leases import Lease, Storing
from service.engine.running import Running
from service.settings import WorkSettings
from service.store.database import Database
from service.store.models import PushStep, StepKind
from tests.service.engine.test_leases import add_steps

LANE = "graph x"


async def claim_one(database: Database, settings: WorkSettings) -> Lease[PushStep]:
    await add_steps(database, lane=LANE)
    async with database.writing() as session:
        (step,) = await leases.claim(session, PushStep, LANE, 1, settings.lease)
    return Lease(database, settings, step)


async def read_step(database: Database, lease: Lease[PushStep]) -> PushStep:
    async with database.reading() as session:
        return await session.get_one(PushStep, lease.item.id)


async def test_leases_of_a_task_that_ended_are_passed_on(sqlite: Database) -> None:
    settings = WorkSettings()
    ended: list[Sequence[Lease[Any]]] = []
    running = Running(sqlite, settings, ended.append)
    lease = await claim_one(sqlite, settings)
    running.start(asyncio.sleep(0), [lease])
    assert running.leases == [lease]
    await asyncio.wait(running.tasks)
    await asyncio.sleep(0)
    assert (ended, running.leases) == ([[lease]], [])


async def test_a_task_that_fails_is_logged(sqlite: Database) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    running = Running(sqlite, WorkSettings(), lambda _: None)
    with capture_logs() as logs:
        running.start(fail(), [])
        await asyncio.wait(running.tasks)
        await asyncio.sleep(0)
    assert [line["event"] for line in logs] == ["work-not-recorded"]


async def test_leases_are_renewed_while_their_task_runs(sqlite: Database) -> None:
    settings = WorkSettings(lease=timedelta(seconds=0.3))
    running = Running(sqlite, settings, lambda _: None)
    lease = await claim_one(sqlite, settings)
    running.start(asyncio.sleep(60), [lease])
    renewing = asyncio.create_task(running.keep_renewing())
    await asyncio.sleep(0.6)
    step = await read_step(sqlite, lease)
    assert step.due_at is not None
    assert step.due_at > now(), "later than the end of the first lease"
    for task in (renewing, *running.tasks):
        task.cancel()
    await asyncio.gather(renewing, *running.tasks, return_exceptions=True)


async def test_a_task_that_lost_its_lease_is_cancelled(sqlite: Database) -> None:
    settings = WorkSettings(lease=timedelta(seconds=0.3))
    running = Running(sqlite, settings, lambda _: None)
    lease = await claim_one(sqlite, settings)
    async with sqlite.writing() as session:
        (await session.get_one(PushStep, lease.item.id)).fencing_token += 1
    running.start(asyncio.sleep(60), [lease])
    renewing = asyncio.create_task(running.keep_renewing())
    (task,) = running.tasks
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)


async def test_work_that_outlasts_the_drain_is_given_back(sqlite: Database) -> None:
    settings = WorkSettings(drain=timedelta(seconds=0.05))
    running = Running(sqlite, settings, lambda _: None)
    lease = await claim_one(sqlite, settings)
    running.start(asyncio.sleep(60), [lease])
    await running.drain()
    assert running.leases == []
    step = await read_step(sqlite, lease)
    assert step.due_at is not None
    assert step.due_at <= now()
    assert step.attempts == 0


async def test_a_lease_that_is_not_stored_yet_is_neither_renewed_nor_lost(sqlite: Database) -> None:
    settings = WorkSettings(lease=timedelta(seconds=0.15))
    running = Running(sqlite, settings, lambda _: None)
    storing = Storing()
    lease = Lease(sqlite, settings, PushStep(push_id=0, kind=StepKind.GRAPH, lane=LANE), storing=storing)
    running.start(asyncio.sleep(60), [lease])
    renewing = asyncio.create_task(running.keep_renewing())
    (task,) = running.tasks
    await asyncio.sleep(0.3)
    assert not task.done()
    storing.end(succeeded=True)  # but no row has its id
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
