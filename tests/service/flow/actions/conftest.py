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
def direct(harness: FlowHarness) -> Direct:
    """Replace the client by the queue of the stand-in, without HTTP."""
    client = Direct(harness.tc.queue)
    harness.services.queue = client  # type: ignore[assignment]  # its lists are those of the Protocol
    return client


@pytest.fixture
def services_with(sqlite: Database) -> Any:
    """Return a function that opens services with this queue as their Taskcluster, without HTTP."""

    def open_with(queue: Queue) -> Any:
        values = Settings(database_url="sqlite+aiosqlite:///unused")
        nothing: Any = None
        direct: Any = Direct(queue)
        return Services(values, sqlite, nothing, direct, {}, None, nothing, b"", nothing, nothing)

    return open_with


@pytest.fixture
async def streaming(monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> FlowHarness:
    """Prepare a failed task with a dozen dependents in two layers, which is planned in small parts."""
    monkeypatch.setattr(retrigger, "FIRST_PART", 3)
    monkeypatch.setattr(retrigger, "PART", 3)
    build(monitored.tc.queue, {"group": [], "a": [], **STREAMED})
    end(monitored.tc.queue, "a")
    return monitored
