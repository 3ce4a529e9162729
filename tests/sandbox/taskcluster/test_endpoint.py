"""One call over HTTP: its body, its faults, its errors."""

import asyncio
import json
import logging

import httpx
import pytest
from taskcluster import slugId

from sandbox.taskcluster.auth import Request, mac, payload_hash
from sandbox.taskcluster.endpoint import MAX_BODY
from tests.sandbox.taskcluster.support import ROOT, Api, Refused, now_seconds, sign


async def put(api: Api, content: bytes, kind: str = "application/json") -> httpx.Response:
    """Call createTask with any body, signed here, because mohawk takes seconds for a large one."""
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
