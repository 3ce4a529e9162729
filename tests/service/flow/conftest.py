"""Fixtures that tests of several steps share."""

import pytest

from service.flow.pushes import poll, push, shift
from tests.service.flow.fake_listeners import Clock
from tests.service.harness import FlowHarness


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the time of polls and pushes by one that stands still unless it is moved."""
    fake_clock = Clock()
    for module in (poll, push, shift):
        monkeypatch.setattr(module, "now", fake_clock)
    return fake_clock


@pytest.fixture
async def monitored(harness: FlowHarness) -> FlowHarness:
    await harness.add_repository()
    return harness
