"""Fixtures that tests of several actions share."""

from typing import Any

import pytest

from sandbox.taskcluster.queue import Queue
from service.flow.actions import retrigger
from service.services import Services
from service.settings import Settings
from service.store.database import Database
from tests.service.flow.actions.support import STREAMED
from tests.service.flow.graph_factory import (
    Direct,
    build,
    end,
)
from tests.service.harness import FlowHarness


@pytest.fixture
async def monitored(harness: FlowHarness) -> FlowHarness:
    await harness.add_repository()
    return harness


@pytest.fixture
def direct(harness: FlowHarness) -> Direct:
    """The world's queue without HTTP between."""
    made = Direct(harness.tc.queue)
    harness.services.queue = made  # type: ignore[assignment]  # its lists are the Protocol's
    return made


@pytest.fixture
def parts_of(sqlite: Database) -> Any:
    def made(queue: Queue) -> Any:
        chosen = Settings(database_url="sqlite+aiosqlite:///unused")
        nothing: Any = None
        direct: Any = Direct(queue)
        return Services(chosen, sqlite, nothing, direct, {}, None, nothing, b"")

    return made


@pytest.fixture
async def streaming(monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> FlowHarness:
    """A task that failed, and a dozen that depend on it in two layers, planned in small parts."""
    monkeypatch.setattr(retrigger, "FIRST_PART", 3)
    monkeypatch.setattr(retrigger, "PART", 3)
    build(monitored.tc.queue, {"group": [], "a": [], **STREAMED})
    end(monitored.tc.queue, "a")
    return monitored
