"""Reconciliation in tests."""

from typing import Any

from sqlmodel import update

from service.clock import now
from service.engine.leases import Lease, claim
from service.flow.jobs import reconcile
from service.store.models import (
    GroupCheck,
    JobReport,
)
from tests.service.flow.report_harness import (
    ReportHarness,
)


async def reconcile_now(harness: ReportHarness) -> None:
    """Do what the worker and the reporter do for task groups."""
    await check_groups(harness)
    while await reconcile.reconcile_quiet_runs(harness.services):
        pass


async def check_groups(harness: ReportHarness, most: int = 100) -> None:
    """List groups that are to be listed, until there are none, or of so many."""
    listed = 0
    while listed < most:
        async with harness.database.writing() as session:
            checks_due = await claim(session, GroupCheck, "task-groups", 1, harness.services.settings.work.lease)
        if not checks_due:
            return
        await reconcile.check_group(
            harness.services, Lease(harness.database, harness.services.settings.work, checks_due[0])
        )
        listed += 1


async def age(harness: ReportHarness, **values: Any) -> None:
    async with harness.database.writing() as session:
        old = now() - 2 * harness.services.settings.reports.quiet
        await session.exec(update(JobReport).values(last_event_at=old, **values))
