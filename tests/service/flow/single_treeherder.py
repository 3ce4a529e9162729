"""Harness of the delivery to a single Treeherder, and helpers of its tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlmodel import select

from service.engine.leases import Lease, claim
from service.flow.pushes.push import store
from service.flow.pushes.resultset import run as post_resultset
from service.store.models import Push, PushStep, StepKind
from tests.service.flow.report_harness import PREFIX, STAGE, ReportHarness, open_report_harness
from tests.service.harness import add_repository, push_event


@asynccontextmanager
async def open_single_treeherder(database_url: str, **more: Any) -> AsyncIterator[ReportHarness]:
    """Open a harness in which the second Treeherder takes no jobs."""
    async with open_report_harness(database_url, **more) as harness:
        harness.services.settings.environments[STAGE].jobs = "off"
        yield harness


async def until(what: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - the stand-in tells nobody
            await asyncio.sleep(0.01)


OTHER = "c3" * 20


async def own_push(harness: ReportHarness, alias: str = "mc") -> tuple[str, str]:
    """Store a push whose resultset is not created yet; return its revision and revision_hash."""
    await add_repository(harness.database, alias)
    async with harness.database.writing() as session:
        await store(session, harness.services.settings, [push_event(1, alias=alias)])
    async with harness.database.reading() as session:
        push = (await session.exec(select(Push))).one()
    return push.revision or "", push.revision_hash


async def create_resultset(harness: ReportHarness) -> None:
    async with harness.database.writing() as session:
        (step,) = await claim(session, PushStep, f"resultset {PREFIX}", 1, timedelta(seconds=30))
    assert step.kind == StepKind.RESULTSET
    await post_resultset(harness.services, Lease(harness.database, harness.services.settings.work, step))


def upload(harness: ReportHarness, task_id: str, *names: str) -> None:
    for name in names:
        harness.tc.artifacts.store(task_id, 0, name, b"x")
