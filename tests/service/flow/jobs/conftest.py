"""Fixtures that tests of the delivery share."""

from collections.abc import AsyncIterator

import pytest

from tests.service.flow.report_harness import ReportHarness
from tests.service.flow.single_treeherder import open_single_treeherder


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[ReportHarness]:
    async with open_single_treeherder(database_url) as opened:
        yield opened


@pytest.fixture
async def sqlite_harness(sqlite_url: str) -> AsyncIterator[ReportHarness]:
    async with open_single_treeherder(sqlite_url) as opened:
        yield opened
