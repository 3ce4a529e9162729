"""Tasks that tell the worker how to end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.clock import iso
from sandbox.taskcluster.worker import LOG
from tests.sandbox.taskcluster.support import ROOT, Api


@pytest.fixture
def tc() -> Taskcluster:
    return Taskcluster([ROOT], worker=True, worker_capacity=4, worker_seconds=0.01)


@pytest.fixture(autouse=True)
async def working(api: Api) -> AsyncIterator[None]:
    async with api.tc.running():
        yield


async def create(api: Api, sandbox: Any = None, **more: Any) -> str:
    task_id = str(slugId())
    payload = {} if sandbox is None else {"sandbox": sandbox}
    api.tc.queue.create_task(task_id, api.define(**{"payload": payload, **more}))
    return task_id


async def ended(api: Api, task_id: str) -> str:
    """Return the reason of the last run, once the task is resolved."""
    for _ in range(500):
        task = api.tc.queue.tasks[task_id]
        if task.resolved:
            return str(task.runs[-1]["reasonResolved"])
        await asyncio.sleep(0.005)
    raise AssertionError(f"the task is still {task.state}")


@pytest.mark.parametrize(
    ("sandbox", "reason"),
    [
        (None, "completed"),
        ({}, "completed"),
        ({"seconds": 0, "result": "failed"}, "failed"),
        ({"result": "exception:internal-error"}, "internal-error"),
        ({"result": "exception:malformed-payload"}, "malformed-payload"),
        ({"result": "purple"}, "malformed-payload"),
        ({"result": "exception:canceled"}, "malformed-payload"),
        ({"result": []}, "malformed-payload"),
        ({"once": 5}, "malformed-payload"),
        ({"seconds": "long"}, "malformed-payload"),
        ({"seconds": -1}, "malformed-payload"),
        ({"seconds": 1e9}, "malformed-payload"),
        ({"decision": {}}, "malformed-payload"),
        ({"artifacts": []}, "malformed-payload"),
        ({"artifacts": {"x": "y"}}, "malformed-payload"),
        ({"artifacts": {"x": {}}}, "failed"),
        ("nonsense", "malformed-payload"),
    ],
)
async def test_a_task_ends_as_its_payload_says(api: Api, sandbox: Any, reason: str) -> None:
    assert await ended(api, await create(api, sandbox)) == reason
    assert await ended(api, await create(api)) == "completed"


async def test_a_run_takes_as_long_as_it_is_told(api: Api) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await ended(api, await create(api, {"seconds": 0.1}))
    assert loop.time() - begun >= 0.1


async def test_an_intermittent_task_is_tried_again_until_its_retries_are_used_up(api: Api) -> None:
    task_id = await create(api, {"result": "exception:intermittent-task"}, retries=2)
    assert await ended(api, task_id) == "intermittent-task"
    assert len(api.tc.queue.tasks[task_id].runs) == 3


async def test_once_holds_for_the_first_run_and_neither_for_reruns_nor_for_copies(api: Api) -> None:
    instructions = {"once": "failed", "result": "completed"}
    routes = ["tc-treeherder.try.abc", "index.x"]
    first = await create(api, instructions, routes=routes)
    assert await ended(api, first) == "failed"
    assert await ended(api, await create(api, instructions, routes=["tc-treeherder.try.abc"])) == "completed"
    api.tc.queue.rerun_task(first)
    assert await ended(api, first) == "completed"
    assert await ended(api, await create(api, instructions, routes=["tc-treeherder.try.other-push"])) == "failed"
    api.tc.clear()
    assert await ended(api, await create(api, instructions, routes=routes)) == "failed"


async def test_a_retried_run_counts_as_another(api: Api) -> None:
    task_id = await create(api, {"once": "exception:worker-shutdown"})
    assert await ended(api, task_id) == "completed"
    assert [run["reasonCreated"] for run in api.tc.queue.tasks[task_id].runs] == ["scheduled", "retry"]


async def test_a_task_that_hangs_stays_until_it_is_canceled_and_takes_no_room(api: Api) -> None:
    hanging = [await create(api, {"result": "hang"}) for _ in range(5)]
    assert await ended(api, await create(api)) == "completed"
    assert [api.tc.queue.tasks[task_id].state for task_id in hanging] == ["running"] * 5
    await api("cancelTask", hanging[0])
    assert await ended(api, hanging[0]) == "canceled"


async def test_a_task_that_is_canceled_while_it_runs_stays_canceled(api: Api) -> None:
    task_id = await create(api, {"seconds": 0.05})
    await asyncio.sleep(0.01)
    assert api.tc.queue.tasks[task_id].state == "running"
    await api("cancelTask", task_id)
    forgotten = await create(api, {"seconds": 0.05})
    await asyncio.sleep(0.01)
    assert api.tc.queue.tasks[forgotten].state == "running"
    api.tc.queue.clear()
    await asyncio.sleep(0.07)
    assert await ended(api, await create(api)) == "completed"


@pytest.mark.parametrize(
    ("worker_type", "payload", "reason"),
    [
        ("succeed", {}, "completed"),
        ("fail", {}, "failed"),
        ("succeed", {"x": 1}, "malformed-payload"),
    ],
)
async def test_the_built_in_queues_end_tasks_at_once(
    api: Api, worker_type: str, payload: dict[str, Any], reason: str
) -> None:
    task_id = await create(api, provisionerId="built-in", workerType=worker_type, payload=payload)
    assert await ended(api, task_id) == reason


async def test_a_run_leaves_its_log(api: Api) -> None:
    task_id = await create(api, {"result": "failed"})
    await ended(api, task_id)
    assert [artifact["name"] for artifact in (await api("listArtifacts", task_id, 0))["artifacts"]] == [LOG]
    url = (await api("getArtifact", task_id, 0, LOG))["url"]
    assert (await api.http.get(url)).text.splitlines()[-1] == "[taskcluster] === Task finished: failed ==="


async def test_a_decision_whose_hook_cannot_be_named_fails_and_the_worker_goes_on(api: Api) -> None:
    push = dict.fromkeys(("owner", "revision", "base_revision", "pushlog_id"), "x")
    decision = {"repository": {"url": "https://x", "project": "x", "level": "no level"}, "push": push}
    assert await ended(api, await create(api, {"decision": decision})) == "failed"
    decision["repository"]["level"] = "3"
    task_id = await create(api, {"decision": decision})
    assert await ended(api, task_id) == "completed"
    names = [artifact["name"] for artifact in (await api("listArtifacts", task_id, 0))["artifacts"]]
    assert names == ["public/actions.json", LOG]


@pytest.mark.parametrize(
    ("artifact", "status", "body"),
    [
        ({"content": {"version": 2}}, 303, {"storageType": "s3"}),
        (
            {"storageType": "reference", "contentType": "x/y", "url": "https://x.example"},
            303,
            {"url": "https://x.example"},
        ),
        ({"storageType": "error", "reason": "too-large-file-on-worker", "message": "!"}, 424, {"message": "!"}),
        ({"storageType": "link", "artifact": "nothing", "expires": "now"}, 410, {}),
    ],
)
async def test_a_task_may_say_which_artifacts_it_leaves(
    api: Api, artifact: dict[str, Any], status: int, body: dict[str, Any]
) -> None:
    if artifact.get("expires") == "now":
        artifact = {**artifact, "expires": iso(api.tc.clock.now())}
    task_id = await create(api, {"artifacts": {"public/actions.json": artifact}})
    assert await ended(api, task_id) == "completed"
    api.tc.auth.set_roles({"anonymous": ["queue:get-artifact:*"]})
    answer = await api.http.get(f"/api/queue/v1/task/{task_id}/artifacts/public/actions.json")
    assert answer.status_code == status
    assert answer.json().items() >= body.items()


@pytest.mark.parametrize(("content", "stored"), [({"a": 1}, b'{"a": 1}'), ("{no json", b"{no json"), ([], b"[]")])
async def test_content_of_an_artifact_is_json_or_text_as_it_is(api: Api, content: Any, stored: bytes) -> None:
    task_id = await create(api, {"artifacts": {"public/actions.json": {"content": content}}})
    await ended(api, task_id)
    answer = await api.http.get((await api("getLatestArtifact", task_id, "public/actions.json"))["url"])
    assert (answer.content, answer.headers["content-type"]) == (stored, "application/json")


async def test_no_more_run_at_a_time_than_there_is_room_for(api: Api) -> None:
    ids = [await create(api, {"seconds": 0.03}) for _ in range(6)]
    await asyncio.sleep(0.01)
    states = [api.tc.queue.tasks[task_id].state for task_id in ids]
    assert (states.count("running"), states.count("pending")) == (4, 2)
    for task_id in ids:
        assert await ended(api, task_id) == "completed"


async def test_a_graph_runs_to_its_end(api: Api) -> None:
    root = await create(api, {"seconds": 0})
    middle = [await create(api, {"seconds": 0}, dependencies=[root], taskGroupId=root) for _ in range(10)]
    last = await create(api, {"seconds": 0}, dependencies=middle, taskGroupId=root, workerType="other")
    assert await ended(api, last) == "completed"
