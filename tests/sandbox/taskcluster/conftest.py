"""A stand-in, and calls to it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.tasks import Message
from tests.published_schemas import has_published_schemas
from tests.sandbox.taskcluster.support import ROOT, Api, served, validate_message


@pytest.fixture
def tc() -> Taskcluster:
    """A stand-in whose clock stands still and whose claimWork does not wait."""
    stand_in = Taskcluster([ROOT], claim_wait=0.0)
    stand_in.clock.freeze()
    return stand_in


@pytest.fixture
def messages(tc: Taskcluster) -> list[Message]:
    """The messages of the stand-in, each checked against its schema when it comes, where the schemas are at hand."""
    heard: list[Message] = []
    check = has_published_schemas()

    def hear(message: Message) -> None:
        if check:
            validate_message(message)
        heard.append(message)

    tc.queue.listeners.append(hear)
    return heard


@pytest.fixture
async def api(tc: Taskcluster, messages: Any) -> AsyncIterator[Api]:
    """Calls to the stand-in, in the process."""
    calls = Api(tc)
    async with calls.http:
        yield calls


@pytest.fixture
async def root(tc: Taskcluster) -> AsyncIterator[str]:
    async with served(tc) as url:
        yield url
