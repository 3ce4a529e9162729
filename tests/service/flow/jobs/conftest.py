"""Fixtures that tests of the delivery share."""

from collections.abc import AsyncIterator

import pytest

from tests.service.flow.report_harness import ReportHarness
from tests.service.flow.single_treeherder import only_first


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[ReportHarness]:
    async with only_first(database_url) as made:
        yield made


@pytest.fixture
async def sqlite_room(sqlite_url: str) -> AsyncIterator[ReportHarness]:
    async with only_first(sqlite_url) as made:
        yield made
