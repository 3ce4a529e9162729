"""Fixture: a client of the Treeherder stand-in, in the process of the test."""

from collections.abc import AsyncIterator

import pytest

from tests.sandbox.treeherder.support import (
    Treeherder,
)


@pytest.fixture
async def th() -> AsyncIterator[Treeherder]:
    async with Treeherder() as client:
        yield client
