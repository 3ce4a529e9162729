"""Fixtures that tests of several steps share."""

import pytest

from service.flow.pushes import poll, push, shift
from tests.service.flow.fake_listeners import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of polls and pushes, which stands still unless it is moved."""
    made = Clock()
    for module in (poll, push, shift):
        monkeypatch.setattr(module, "now", made)
    return made
