"""Fixtures: a Taskcluster stand-in, its messages, and calls to it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.tasks import Message
from tests.sandbox.taskcluster.support import ROOT, Api, served, validate_message


@pytest.fixture
def tc() -> Taskcluster:
    """Return a stand-in whose clock is frozen and whose claimWork does not wait."""
    stand_in = Taskcluster([ROOT], claim_wait=0.0)
    stand_in.clock.freeze()
    return stand_in


@pytest.fixture
def messages(tc: Taskcluster) -> list[Message]:
    """Return the list of messages, each validated as it arrives."""
    received: list[Message] = []

    def receive(message: Message) -> None:
        validate_message(message)
        received.append(message)

    tc.queue.listeners.append(receive)
    return received


@pytest.fixture
async def api(tc: Taskcluster, messages: Any) -> AsyncIterator[Api]:
    """Yield a client of the stand-in, in the process of the test."""
    calls = Api(tc)
    async with calls.http:
        yield calls


@pytest.fixture
async def root(tc: Taskcluster) -> AsyncIterator[str]:
    """Serve the stand-in on a free port; yield its root URL."""
    async with served(tc) as url:
        yield url
