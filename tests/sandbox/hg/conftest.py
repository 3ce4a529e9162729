"""Fixtures: the hgweb stand-in on a pushlog in memory, in the process of the test and on a socket."""

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from sandbox.hg import Client, MemoryPushlog, NewChangeset, create_app
from tests.sandbox.hg.support import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pushlog(clock: Clock) -> MemoryPushlog:
    pushlog = MemoryPushlog(clock)
    pushlog.create("r")
    for number in (1, 2, 3):
        clock.now += 10
        pushlog.push("r", [NewChangeset(message=f"Bug {number}", files={f"{number}.txt": "x" * number})])
    return pushlog


@pytest.fixture
def transport(pushlog: MemoryPushlog) -> httpx.ASGITransport:
    return httpx.ASGITransport(create_app(pushlog))


@pytest.fixture
async def web(transport: httpx.ASGITransport) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=transport, base_url="http://hg") as client:
        yield client


@pytest.fixture
async def control(transport: httpx.ASGITransport) -> AsyncIterator[Client]:
    async with Client("http://hg/", transport=transport) as client:
        yield client


@pytest.fixture
async def served(pushlog: MemoryPushlog) -> AsyncIterator[str]:
    """Serve the stand-in on a real socket; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(create_app(pushlog), date_header=False, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await running
