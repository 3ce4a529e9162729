"""The HTTP face: the official client over a real server, faults, and the control routes."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest
import taskcluster
import taskcluster.aio
import uvicorn
from taskcluster import slugId

from sandbox.taskcluster import Taskcluster, create_app
from sandbox.taskcluster.auth import Request, mac, payload_hash
from sandbox.taskcluster.endpoint import MAX_BODY
from tests.sandbox.taskcluster.support import ROOT, Api, Refused, now_seconds, sign

CREDENTIALS = {"clientId": ROOT.client_id, "accessToken": ROOT.access_token}


@contextlib.asynccontextmanager
async def served(tc: Taskcluster) -> AsyncIterator[str]:
    """The root url of a real server on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(tc), log_config=None, lifespan="on", timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        tc.faults.remove()
        server.should_exit = True
        await task


@pytest.fixture
async def root(tc: Taskcluster) -> AsyncIterator[str]:
    async with served(tc) as url:
        yield url


@pytest.fixture
async def queue(root: str) -> AsyncIterator[Any]:
    """The official client's async half, as the service uses it."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
        options = {"rootUrl": root, "credentials": dict(CREDENTIALS), "maxRetries": 0}
        yield taskcluster.aio.Queue(options, session=session)


# --- the official client ---


async def test_the_async_client_creates_reads_and_pages(queue: Any, api: Api) -> None:
    group = slugId()
    for _ in range(3):
        await queue.createTask(slugId(), api.define(taskGroupId=group))
    pages: list[Any] = []
    await queue.listTaskGroup(
        params={"taskGroupId": group}, paginationHandler=pages.append, paginationLimit=2, query={}
    )
    assert [len(page["tasks"]) for page in pages] == [2, 1]
    claim = await queue.claimWork("prov/w", {"workerGroup": "g", "workerId": "w", "tasks": 1})
    assert len(claim["tasks"]) == 1


async def test_the_async_clients_errors_are_the_ones_that_the_service_must_tell_apart(queue: Any, api: Api) -> None:
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as failure:
        await queue.status(slugId())
    assert failure.value.status_code == 404
    assert failure.value.body["code"] == "ResourceNotFound"
    queue.options["credentials"]["accessToken"] = b"wrong"
    with pytest.raises(taskcluster.exceptions.TaskclusterAuthFailure):
        await queue.status(slugId())


async def test_authorized_scopes_of_the_client_are_obeyed(queue: Any, api: Api) -> None:
    queue.options["authorizedScopes"] = ["queue:scheduler-id:*", "queue:create-task:*"]
    await queue.createTask(slugId(), api.define())
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure, match="queue:route:x"):
        await queue.createTask(slugId(), api.define(routes=["x"]))


async def test_the_sync_client_and_temporary_credentials_work(root: str, api: Api) -> None:
    import datetime as dt

    now = dt.datetime.now(dt.UTC)
    credentials = taskcluster.createTemporaryCredentials(
        *CREDENTIALS.values(), now - dt.timedelta(minutes=1), now + dt.timedelta(hours=1), ["auth:*", "queue:*"]
    )
    options = {"rootUrl": root, "credentials": credentials, "maxRetries": 0}

    def calls() -> None:
        queue, auth = taskcluster.Queue(options), taskcluster.Auth(options)
        task_id = slugId()
        assert queue.createTask(task_id, api.define())["status"]["state"] == "pending"
        assert queue.cancelTask(task_id)["status"]["state"] == "exception"
        assert {"auth:*", "queue:*"} <= set(auth.currentScopes()["scopes"])
        assert queue.ping()["alive"] is True
        header = sign(ROOT, "GET", "https://service.example/x")["Authorization"]
        body = {"method": "get", "resource": "/x", "host": "service.example", "port": 443, "authorization": header}
        assert auth.authenticateHawk(body)["clientId"] == "root"

    await asyncio.to_thread(calls)


async def test_an_artifact_put_by_its_url_is_there(root: str, queue: Any, api: Api) -> None:
    task_id = slugId()
    await queue.createTask(task_id, api.define())
    await queue.claimWork("prov/w", {"workerGroup": "g", "workerId": "w", "tasks": 1})
    body = {"storageType": "s3", "expires": api.define()["expires"], "contentType": "text/plain"}
    made = await queue.createArtifact(task_id, 0, "public/logs/a b.log", body)
    async with httpx.AsyncClient() as http:
        assert (await http.put(made["putUrl"], content=b"x")).status_code == 200
        found = await queue.getLatestArtifact(task_id, "public/logs/a b.log")
        assert (await http.get(found["url"])).content == b"x"


async def test_claim_work_waits_for_work(root: str, queue: Any, api: Api) -> None:
    api.tc.claim_wait = 5.0
    worker = {"workerGroup": "g", "workerId": "w", "tasks": 1}
    waiting = asyncio.create_task(queue.claimWork("prov/w", worker))
    await asyncio.sleep(0.05)
    await queue.createTask(slugId(), api.define(workerType="other"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await queue.createTask(slugId(), api.define())
    assert len((await asyncio.wait_for(waiting, 2))["tasks"]) == 1
    api.tc.claim_wait = 0.05
    assert (await queue.claimWork("prov/w", worker))["tasks"] == []


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


# --- bodies ---


async def put(api: Api, content: bytes, kind: str = "application/json") -> httpx.Response:
    """createTask with any body, signed here, because mohawk takes seconds for a large one."""
    resource = f"/api/queue/v1/task/{slugId()}"
    attributes = {"ts": str(now_seconds()), "nonce": "n", "hash": payload_hash(content, kind)}
    attributes["mac"] = mac("header", Request("PUT", resource, "taskcluster.example", 80), attributes, "root-secret")
    header = ", ".join(f'{key}="{value}"' for key, value in {"id": "root", **attributes}.items())
    return await api.http.put(
        resource, content=content, headers={"Authorization": f"Hawk {header}", "Content-Type": kind}
    )


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"{", "application/json", "Failed to parse JSON"),
        (b'{"x": NaN}', "application/json", "NaN is not JSON"),
        (b'{"x": "a\x00b"}', "application/json", "Failed to parse JSON"),
        (b"[" * 100_000, "application/json", "Failed to parse JSON"),
        (b"{}", "text/plain", "content-type: application/json got: text/plain"),
    ],
)
async def test_a_body_that_is_no_json_is_400(api: Api, content: bytes, kind: str, message: str) -> None:
    answer = await put(api, content, kind)
    assert (answer.status_code, answer.json()["code"]) == (400, "MalformedPayload")
    assert message in answer.json()["message"]


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b'"\xff"'])
async def test_a_body_that_is_no_definition_is_400(api: Api, content: bytes) -> None:
    answer = await put(api, content)
    assert (answer.status_code, answer.json()["code"]) == (400, "InputValidationError")


async def test_a_body_of_more_than_10_mb_is_500_each_time(api: Api) -> None:
    definition = api.define(payload={"x": ""})
    room = MAX_BODY - len(json.dumps(definition))
    fits = json.dumps({**definition, "payload": {"x": "y" * room}}).encode()
    assert len(fits) == MAX_BODY
    assert (await put(api, fits)).status_code == 200
    for _ in range(2):
        answer = await put(api, fits + b" ")
        assert (answer.status_code, answer.json()["code"]) == (500, "InternalServerError")


async def test_errors_tell_of_the_request(api: Api) -> None:
    task_id = slugId()
    with pytest.raises(Refused) as why:
        await api("createTask", task_id, body={"payload": {}})
    info = why.value.body["requestInfo"]
    assert (info["method"], info["params"], info["payload"]) == ("createTask", {"taskId": task_id}, {"payload": {}})
    assert "* method:     createTask\n* errorCode:  InputValidationError\n* statusCode: 400\n" in why.value.message


async def test_what_is_no_method_is_404(api: Api) -> None:
    assert (await api.http.get("/api/queue/v1/nothing")).status_code == 404
    assert (await api.http.delete(f"/api/queue/v1/task/{slugId()}")).status_code == 405


# --- faults ---


async def test_a_fault_before_the_work_leaves_nothing_behind(api: Api) -> None:
    api.tc.faults.add("before", "createTask", status=503, times=2)
    task_id = slugId()
    for _ in range(2):
        with pytest.raises(Refused) as why:
            await api("createTask", task_id, body=api.define())
        assert why.value.status == 503
    assert not api.tc.queue.tasks
    await api("createTask", task_id, body=api.define())


async def test_a_fault_after_the_work_hides_that_it_was_done(api: Api) -> None:
    api.tc.faults.add("after", "createTask", times=1)
    task_id = slugId()
    with pytest.raises(Refused) as why:
        await api("createTask", task_id, body=api.define())
    assert (why.value.status, why.value.code) == (500, "InternalServerError")
    assert await api.state(task_id) == "pending"


async def test_a_throttled_call_is_429_without_retry_after(api: Api) -> None:
    api.tc.faults.add("throttle")
    answer = await api.http.get("/api/queue/v1/ping")
    assert answer.status_code == 429
    assert "retry-after" not in answer.headers
    assert set(answer.json()) == {"code", "message", "requestInfo"}


@pytest.mark.parametrize("kind", ["throttle", "before"])
async def test_a_fault_may_say_how_long_to_wait(api: Api, kind: str) -> None:
    api.tc.faults.add(kind, retry_after=7)
    answer = await api.http.get("/api/queue/v1/ping")
    assert answer.headers["retry-after"] == "7"


async def test_a_fault_holds_for_its_method_alone_and_until_it_is_removed(api: Api) -> None:
    task_id = slugId()
    await api("createTask", task_id, body=api.define())
    fault = api.tc.faults.add("before", "task")
    for _ in range(3):
        with pytest.raises(Refused):
            await api("task", task_id)
        await api("status", task_id)
    api.tc.faults.remove(fault.fault_id)
    await api("task", task_id)


async def test_a_fault_can_strike_some_calls_only(api: Api) -> None:
    api.tc.faults.add("before", "ping", probability=0.5)
    statuses = [(await api.http.get("/api/queue/v1/ping")).status_code for _ in range(100)]
    assert 20 < statuses.count(500) < 80


async def test_a_delayed_call_lands_late_though_its_caller_has_gone(root: str, api: Api) -> None:
    fault = api.tc.faults.add("delay", "createTask", seconds=60)
    task_id = slugId()
    url = f"{root}/api/queue/v1/task/{task_id}"
    body = json.dumps(api.define())
    async with httpx.AsyncClient(timeout=0.1) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.put(url, content=body, headers=sign(ROOT, "PUT", url, body))
    assert task_id not in api.tc.queue.tasks
    api.tc.faults.remove(fault.fault_id)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if task_id in api.tc.queue.tasks:
            return
    raise AssertionError("the request never landed")


async def test_latency_is_added_to_each_call(api: Api) -> None:
    loop = asyncio.get_running_loop()
    api.tc.latency = 0.05
    begun = loop.time()
    await api("ping", client=None)
    assert loop.time() - begun >= 0.05


@pytest.mark.parametrize(("kind", "lands"), [("drop", False), ("drop-after", True)])
async def test_a_connection_is_dropped_without_an_answer(root: str, api: Api, kind: str, lands: bool) -> None:
    api.tc.faults.add(kind, "createTask", times=1)
    task_id = slugId()
    url = f"{root}/api/queue/v1/task/{task_id}"
    body = json.dumps(api.define())
    async with httpx.AsyncClient() as http:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await http.put(url, content=body, headers=sign(ROOT, "PUT", url, body))
        assert (task_id in api.tc.queue.tasks) is lands
        answer = await http.put(url, content=body, headers=sign(ROOT, "PUT", url, body))
    assert answer.status_code == 200


async def test_a_dropped_connection_is_an_exception_where_there_is_no_connection(api: Api) -> None:
    api.tc.faults.add("drop", "ping")
    with pytest.raises(ConnectionResetError):
        await api.http.get("/api/queue/v1/ping")


async def test_a_call_that_hangs_is_never_answered_and_does_nothing(
    root: str, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    fault = api.tc.faults.add("hang", "createTask")
    url = f"{root}/api/queue/v1/task/{slugId()}"
    body = json.dumps(api.define())
    async with httpx.AsyncClient(timeout=0.1) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.put(url, content=body, headers=sign(ROOT, "PUT", url, body))
    async with httpx.AsyncClient(timeout=5) as http:
        hanging = asyncio.create_task(http.put(url, content=body, headers=sign(ROOT, "PUT", url, body)))
        await asyncio.sleep(0.05)
        api.tc.faults.remove(fault.fault_id)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await hanging
    assert not api.tc.queue.tasks
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "flood"}, {"kind": "crash"}, {"kind": "before", "stauts": 500}, {"method": "task"}],
)
async def test_a_fault_that_is_none_is_refused(api: Api, wrong: dict[str, Any]) -> None:
    answer = await api.http.post("/__control__/faults", json=wrong)
    assert answer.status_code == 400
    assert "no such fault" in answer.json()["message"]


# --- control ---


async def test_faults_are_set_listed_and_removed_over_http(api: Api) -> None:
    wanted = {"kind": "before", "method": "status", "status": 502, "times": 5, "probability": 1.0}
    first = (await api.http.post("/__control__/faults", json=wanted)).json()
    assert {key: first[key] for key in wanted} == wanted
    await api.http.post("/__control__/faults", json={"kind": "throttle"})
    with pytest.raises(Refused, match="nothing was done"):
        await api("status", slugId())
    listed = (await api.http.get("/__control__/faults")).json()["faults"]
    assert [(each["kind"], each["left"]) for each in listed] == [("before", 4), ("throttle", None)]
    left = (await api.http.delete(f"/__control__/faults/{first['id']}")).json()["faults"]
    assert [each["kind"] for each in left] == ["throttle"]
    assert (await api.http.delete("/__control__/faults")).json() == {"faults": []}


async def test_calls_are_counted_and_creations_kept_in_order(api: Api) -> None:
    ids = [slugId() for _ in range(3)]
    for task_id in [*ids, ids[0]]:
        await api("createTask", task_id, body=api.define())
    with pytest.raises(Refused):
        await api("createTask", ids[0], body=api.define(retries=1))
    with pytest.raises(Refused):
        await api("status", slugId())
    seen = (await api.http.get("/__control__/calls")).json()
    assert seen["calls"] == {"createTask": 5, "status": 1}
    assert seen["answers"] == {"createTask": {"200": 4, "409": 1}, "status": {"404": 1}}
    assert [(each["task_id"], each["status"]) for each in seen["creations"]] == [
        *((task_id, 200) for task_id in ids),
        (ids[0], 200),
        (ids[0], 409),
    ]
    assert (await api.http.delete("/__control__/calls")).json() == {"calls": {}, "answers": {}, "creations": []}


async def test_the_clock_is_moved_over_http_and_what_is_due_is_done(api: Api) -> None:
    task_id = slugId()
    await api("createTask", task_id, body=api.define())
    before = (await api.http.get("/__control__/clock")).json()["now"]
    after = (await api.http.post("/__control__/clock", json={"advance": 3600})).json()["now"]
    assert after > before
    (task,) = (await api.http.get("/__control__/tasks")).json()["tasks"]
    assert task["status"] == (await api("status", task_id))["status"]
    assert task["status"]["runs"][0]["reasonResolved"] == "deadline-exceeded"
    assert (await api.http.post("/__control__/clock", json={"reset": True})).json()["now"] < after
    frozen = (await api.http.post("/__control__/clock", json={"freeze": True})).json()["now"]
    await asyncio.sleep(0.01)
    assert (await api.http.get("/__control__/clock")).json()["now"] == frozen


async def test_latency_is_set_over_http(api: Api) -> None:
    await api.http.post("/__control__/latency", json={"seconds": 0.01})
    assert api.tc.latency == 0.01


async def test_clear_forgets_everything(api: Api) -> None:
    await api("createTask", slugId(), body=api.define())
    api.tc.faults.add("before", "status")
    api.tc.clock.advance(86400)
    await api.http.post("/__control__/clear")
    assert (await api.http.get("/__control__/tasks")).json() == {"tasks": []}
    assert (await api.http.get("/__control__/calls")).json()["calls"] == {}
    with pytest.raises(Refused) as why:
        await api("status", slugId())
    assert why.value.status == 404
    assert (await api("claimWork", "prov/w", body={"workerGroup": "g", "workerId": "w", "tasks": 1}))["tasks"] == []
    await api("createTask", slugId(), body=api.define())
