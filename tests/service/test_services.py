"""Services of a process: opening them, and that the other tests' stand-ins are behind them."""

import asyncio
import threading

import pytest

from service.errors import PermanentUpstreamError
from service.services import open_services
from tests.service.harness import FlowHarness


async def test_reach_each_upstream(harness: FlowHarness) -> None:
    await harness.add_repository()
    assert await harness.services.hg.last_push_id(f"{harness.hg_url}/mc") == 0
    with pytest.raises(PermanentUpstreamError, match="404"):
        await harness.services.hg.last_push_id(f"{harness.hg_url}/nothing")
    assert await harness.services.queue.status("A" * 8 + "QA" + "C" + "A" * 11) is None
    assert list(harness.services.treeherders) == ["tc-treeherder"]


async def test_the_secret_is_made_once_and_kept(harness: FlowHarness) -> None:
    async with open_services(harness.settings, harness.database) as others:
        assert others.secret == harness.services.secret
    assert len(harness.services.secret) == 32


async def test_a_share_that_computes_a_lot_leaves_a_thread_to_others(harness: FlowHarness) -> None:
    running: list[str] = []
    most: list[int] = []
    began, go = threading.Event(), threading.Event()

    def compute(share: str) -> str:
        running.append(share)
        most.append(len(running))
        if share == "hog":
            began.set()
            assert go.wait(10)
        running.remove(share)
        return share

    hog = [asyncio.create_task(harness.services.compute("hog", compute, "hog")) for _ in range(6)]
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(began.wait, 10)
        assert [await harness.services.compute("other", compute, "other") for _ in range(3)] == ["other"] * 3
        go.set()
        assert await asyncio.gather(*hog) == ["hog"] * 6
    assert max(most) == 2
