"""Deadlines pass while the stand-in runs."""

import asyncio

from taskcluster import slugId

from tests.sandbox.taskcluster.support import Api


async def test_deadlines_pass_by_themselves_while_the_app_runs(api: Api) -> None:
    api.tc._tick = 0.01
    task_id = slugId()
    api.tc.queue.create_task(task_id, api.define())
    async with api.tc.running():
        api.tc.clock.advance(3601)
        for _ in range(200):
            if await api.state(task_id) == "exception":
                return
            await asyncio.sleep(0.01)
    raise AssertionError("the deadline never came")
