"""Conditional requests of the bare loop."""

import asyncio
import socket

import uvicorn

from sandbox.hg import MemoryPushlog, create_app
from tests.benchmarks.support import run_benchmark


async def test_each_request_is_conditional_and_counted() -> None:
    pushlog = MemoryPushlog()
    for name in ("r0", "r1"):
        pushlog.create(name)
    app = create_app(pushlog)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, date_header=False, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (line,) = await asyncio.to_thread(run_benchmark, "bare_polls", url, "2", "50", "0.2")
        server.should_exit = True
        await serving
    requests, cpu_seconds = line.split()
    polls = app.state.requests.report()["kinds"]["json-pushes"]
    assert polls["conditional"] == polls["not_modified"] == int(requests) > 0
    assert float(cpu_seconds) >= 0
