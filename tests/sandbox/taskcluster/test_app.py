"""Calls of the official client to a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest
import taskcluster
import taskcluster.aio
from taskcluster import slugId

from tests.sandbox.taskcluster.support import ROOT, Api, sign

CREDENTIALS = {"clientId": ROOT.client_id, "accessToken": ROOT.access_token}


@pytest.fixture
async def queue(root: str) -> AsyncIterator[Any]:
    """Yield the official client's async half, as the service uses it."""
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


async def test_the_async_client_triggers_a_hook_whose_id_has_a_slash(root: str, api: Api) -> None:
    metadata = {"name": "h", "description": "d", "owner": "a@b.example"}
    task = api.define(payload={"what": {"$eval": "payload"}})
    schema = {"type": "object"}
    api.tc.hooks.define("project-x", "in-tree/1", {"metadata": metadata, "task": task, "triggerSchema": schema})
    api.tc.auth.set_roles({"hook-id:project-x/*": ["queue:*"]})
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
        options = {"rootUrl": root, "credentials": dict(CREDENTIALS), "maxRetries": 0}
        hooks = taskcluster.aio.Hooks(options, session=session)
        triggered = await hooks.triggerHook("project-x", "in-tree/1", {"a": 1})
        (fire,) = (await hooks.listLastFires("project-x", "in-tree/1"))["lastFires"]
        with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as failure:
            await hooks.triggerHook("project-x", "in-tree/2", {})
    assert fire["taskId"] == triggered["status"]["taskId"]
    assert (await api("task", fire["taskId"]))["payload"] == {"what": {"a": 1}}
    assert failure.value.status_code == 404


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
    created = await queue.createArtifact(task_id, 0, "public/logs/a b.log", body)
    async with httpx.AsyncClient() as http:
        assert (await http.put(created["putUrl"], content=b"x")).status_code == 200
        latest = await queue.getLatestArtifact(task_id, "public/logs/a b.log")
        assert (await http.get(latest["url"])).content == b"x"


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


# --- bodies ---


async def test_what_is_no_method_is_404(api: Api) -> None:
    assert (await api.http.get("/api/queue/v1/nothing")).status_code == 404
    assert (await api.http.delete(f"/api/queue/v1/task/{slugId()}")).status_code == 405
