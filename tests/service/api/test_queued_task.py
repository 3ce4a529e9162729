"""Tasks that only the queue knows."""

import pytest

from sandbox import taskcluster
from service.api.queue_look import QueueLooks
from service.api.queued_task import find_queued_task
from tests.service.asgi import Api, changeset, node, push_event
from tests.service.flow.graph_factory import Direct, build, end, slug


@pytest.fixture
def queue(sqlite_api: Api) -> Direct:
    queue = Direct(taskcluster.Taskcluster([], claim_wait=0).queue)
    sqlite_api.services.queue = queue  # type: ignore[assignment]  # it has the calls that are made
    return queue


async def test_its_routes_lead_to_the_push(sqlite_api: Api, queue: Direct) -> None:
    await sqlite_api.add()
    await sqlite_api.push(push_event(101, changesets=[changeset("tip")]))
    build(queue._queue, {"theirs": ()}, routes=[f"tc-treeherder.v2.mc.{node('tip')}.101"])
    end(queue._queue, "theirs")
    looks = QueueLooks(lambda: sqlite_api.services.queue)
    found = await find_queued_task(sqlite_api.services, looks, slug("theirs"))
    assert found is not None
    assert (found.task.name, found.state.state, found.project) == ("theirs", "failed", "mc")
    assert found.task.push is not None
    assert (found.task.push.repository, found.task.push.push_id) == ("mc", 101)
    await looks.close()


async def test_a_task_of_nobody_we_know_is_not_told(sqlite_api: Api, queue: Direct) -> None:
    await sqlite_api.add()
    build(queue._queue, {"strange": ()}, routes=[f"tc-treeherder.v2.elsewhere.{node('tip')}.1", "index.mc"])
    looks = QueueLooks(lambda: sqlite_api.services.queue)
    for task_id in (slug("strange"), slug("missing"), "no task", "x" * 500):
        assert await find_queued_task(sqlite_api.services, looks, task_id) is None
    assert queue.calls["statuses"] == 2
    await looks.close()
