"""Real repositories do not block the event loop."""

import asyncio

import httpx

from sandbox.hg import (
    MercurialPushlog,
    create_app,
)


async def test_a_slow_mercurial_does_not_hold_up_the_event_loop() -> None:
    with MercurialPushlog() as pushlog:
        pushlog.create("r")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(pushlog)), base_url="http://hg") as web:
            with pushlog._lock:  # as long as a command runs
                asking = asyncio.create_task(web.get("/r/json-pushes?version=2"))
                await asyncio.sleep(0.05)
                assert not asking.done()
            assert (await asking).status_code == 200
