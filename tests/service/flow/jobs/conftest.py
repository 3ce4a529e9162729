"""Fixtures that tests of the delivery share."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.service.flow.report_harness import ReportHarness
from tests.service.flow.single_treeherder import open_single_treeherder

OpenHarness = Callable[[str], AbstractAsyncContextManager[ReportHarness]]


@pytest.fixture
def open_harness() -> OpenHarness:
    """Return what opens a harness on a database: with one Treeherder, unless a module says otherwise."""
    return open_single_treeherder


@pytest.fixture
async def harness(database_url: str, open_harness: OpenHarness) -> AsyncIterator[ReportHarness]:
    async with open_harness(database_url) as opened:
        yield opened


@pytest.fixture
async def sqlite_harness(sqlite_url: str, open_harness: OpenHarness) -> AsyncIterator[ReportHarness]:
    async with open_harness(sqlite_url) as opened:
        yield opened
