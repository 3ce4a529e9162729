"""Artifacts: created, listed, followed and fetched."""

from typing import Any

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import DAY, iso
from tests.sandbox.taskcluster.support import Api, refused


@pytest.fixture
async def running(api: Api) -> str:
    """Return the id of a task whose run 0 is running."""
    task_id = str(slugId())
    await api("createTask", task_id, body=api.define(projectId="proj"))
    await api.claim()
    return task_id


def request(api: Api, kind: str, **more: Any) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "s3": {"contentType": "text/plain"},
        "object": {"contentType": "text/plain", "contentLength": 7},
        "reference": {"contentType": "text/html", "url": "https://elsewhere.example/x"},
        "link": {"artifact": "public/target"},
        "error": {"reason": "file-missing-on-worker", "message": "gone"},
    }
    return {"storageType": kind, "expires": iso(api.tc.clock.now() + DAY), **kinds[kind], **more}


async def test_an_s3_artifact_is_put_and_fetched_where_the_answers_say(api: Api, running: str) -> None:
    created = await api("createArtifact", running, 0, "public/logs/live.log", body=request(api, "s3"))
    assert (await api.http.get(created["putUrl"])).status_code == 404
    assert (await api.http.put(created["putUrl"], content=b"a log")).status_code == 200
    artifact = await api("getArtifact", running, 0, "public/logs/live.log")
    assert (await api("getLatestArtifact", running, "public/logs/live.log")) == artifact
    fetched = await api.http.get(artifact["url"])
    assert (fetched.content, fetched.headers["content-type"]) == (b"a log", "text/plain; charset=utf-8")
    assert (await api("artifact", running, 0, "public/logs/live.log"))["url"] == artifact["url"]
    (listed,) = (await api("listLatestArtifacts", running))["artifacts"]
    assert listed["contentLength"] == 5


async def test_the_answer_redirects_to_the_artifact(api: Api, running: str) -> None:
    await api("createArtifact", running, 0, "public/x", body=request(api, "reference"))
    api.tc.auth.set_roles({"anonymous": ["queue:get-artifact:public/*"]})
    answer = await api.http.get(f"/api/queue/v1/task/{running}/runs/0/artifacts/public/x")
    assert answer.status_code == 303
    assert answer.headers["location"] == answer.json()["url"] == "https://elsewhere.example/x"
    assert answer.headers["x-taskcluster-artifact-storage-type"] == answer.json()["storageType"] == "reference"
    answer = await api.http.get(f"/api/queue/v1/task/{running}/runs/0/artifacts/private/x")
    assert answer.status_code == 403


async def test_a_link_is_followed_with_the_scopes_of_both_names(api: Api, running: str) -> None:
    await api("createArtifact", running, 0, "public/target", body=request(api, "reference"))
    await api("createArtifact", running, 0, "public/link", body=request(api, "link"))
    assert (await api("getArtifact", running, 0, "public/link"))["url"] == "https://elsewhere.example/x"
    assert (await api("latestArtifact", running, "public/link"))["storageType"] == "reference"
    assert (await api("artifactInfo", running, 0, "public/link"))["storageType"] == "link"
    api.tc.auth.add_client("c", "c", ["queue:get-artifact:public/link"])
    api.client = Client("c", "c")
    call = api("getArtifact", running, 0, "public/link")
    await refused(call, 403, "InsufficientScopes", "queue:get-artifact:public/target")


async def test_links_in_a_circle_are_refused(api: Api, running: str) -> None:
    await api("createArtifact", running, 0, "a", body=request(api, "link", artifact="b"))
    await api("createArtifact", running, 0, "b", body=request(api, "link", artifact="a"))
    await refused(api("getArtifact", running, 0, "a"), 400, "InputError", "Artifact leads to a link cycle")


async def test_an_error_artifact_is_424(api: Api, running: str) -> None:
    await api("createArtifact", running, 0, "public/e", body=request(api, "error"))
    api.tc.auth.set_roles({"anonymous": ["queue:get-artifact:public/*"]})
    answer = await api.http.get(f"/api/queue/v1/task/{running}/artifacts/public/e")
    assert answer.status_code == 424
    assert answer.json() == {"reason": "file-missing-on-worker", "message": "gone"}
    assert answer.headers["x-taskcluster-artifact-storage-type"] == "error"
    assert (await api("artifact", running, 0, "public/e"))["message"] == "gone"


async def test_an_expired_artifact_is_410_and_its_task_stays(api: Api, running: str) -> None:
    soon = iso(api.tc.clock.now() + 60_000)
    for name, kind in (("public/x", "reference"), ("public/e", "error")):
        await api("createArtifact", running, 0, name, body=request(api, kind, expires=soon))
    api.tc.clock.advance(60)
    assert await api("getLatestArtifact", running, "public/x")
    api.tc.clock.advance(1)
    for name in ("public/x", "public/e"):
        await refused(api("getLatestArtifact", running, name), 410, "ResourceExpired", "Artifact expired\n\n---")
        await refused(api("getArtifact", running, 0, name), 410, "ResourceExpired")


async def test_an_artifact_may_have_expired_a_quarter_of_an_hour_ago_and_no_longer(api: Api, running: str) -> None:
    now = api.tc.clock.now()
    await api("createArtifact", running, 0, "x", body=request(api, "error", expires=iso(now - 15 * 60_000)))
    body = request(api, "error", expires=iso(now - 15 * 60_000 - 1))
    await refused(api("createArtifact", running, 0, "y", body=body), 400, "InputError", "Expires must be in the future")


async def test_what_is_not_there_is_404_in_three_ways(api: Api, running: str) -> None:
    unscheduled = str(slugId())
    await api("createTask", unscheduled, body=api.define(dependencies=[running]))
    for task_id, message in (
        (running, "Artifact not found"),
        (unscheduled, "Task doesn't have any runs"),
        (str(slugId()), "does not correspond to a task"),
    ):
        await refused(api("getLatestArtifact", task_id, "public/actions.json"), 404, "ResourceNotFound", message)


async def test_scopes_are_checked_before_anything_is_looked_for(api: Api) -> None:
    for method, names in (("getLatestArtifact", ["x"]), ("getArtifact", [0, "x"])):
        await refused(api(method, str(slugId()), *names, client=None), 403, "InsufficientScopes", "get-artifact:x")


async def test_an_object_is_there_once_it_is_finished(api: Api, running: str) -> None:
    created = await api("createArtifact", running, 0, "public/o", body=request(api, "object"))
    assert created["projectId"] == "proj"
    await refused(api("getArtifact", running, 0, "public/o"), 404, "ResourceNotFound", "Artifact not found")
    wrong = {"uploadId": slugId()}
    await refused(api("finishArtifact", running, 0, "public/o", body=wrong), 400, "InputError", "uploadId")
    await api("finishArtifact", running, 0, "public/o", body={"uploadId": created["uploadId"]})
    assert (await api("getArtifact", running, 0, "public/o"))["storageType"] == "object"
    content = await api("artifact", running, 0, "public/o")
    assert content["name"] == f"t/{running}/0/public/o"
    assert (await api("latestArtifactInfo", running, "public/o"))["contentLength"] == 7
    await api("createArtifact", running, 0, "public/x", body=request(api, "s3"))
    finish = api("finishArtifact", running, 0, "public/x", body={"uploadId": created["uploadId"]})
    await refused(finish, 400, "InputError", "not finished")


async def test_the_same_again_is_the_same_and_may_only_last_longer(api: Api, running: str) -> None:
    body = request(api, "reference")
    later = iso(api.tc.clock.now() + 2 * DAY)
    await api("createArtifact", running, 0, "x", body=body)
    await api("createArtifact", running, 0, "x", body={**body, "expires": later})
    assert (await api("artifactInfo", running, 0, "x"))["expires"] == later
    await refused(api("createArtifact", running, 0, "x", body=body), 409, "RequestConflict")
    await refused(
        api("createArtifact", running, 0, "x", body=request(api, "s3", expires=later)), 409, "RequestConflict"
    )
    await api("createArtifact", running, 0, "x", body={**body, "expires": later, "url": "https://new.example"})
    assert (await api("getArtifact", running, 0, "x"))["url"] == "https://new.example"
    await api("createArtifact", running, 0, "x", body=request(api, "link", expires=later))
    await refused(api("createArtifact", running, 0, "x", body={**body, "expires": later}), 409, "RequestConflict")


async def test_an_artifact_must_not_outlast_its_task(api: Api, running: str) -> None:
    body = request(api, "s3", expires=iso(api.tc.clock.now() + 31 * DAY))
    await refused(api("createArtifact", running, 0, "x", body=body), 400, "InputError", "after the task expiration")


async def test_only_a_running_run_gets_artifacts_or_one_that_just_ended_in_an_exception(api: Api, running: str) -> None:
    body = request(api, "error")
    await refused(api("createArtifact", running, 1, "x", body=body), 404, "ResourceNotFound")
    await api("reportException", running, 0, body={"reason": "internal-error"})
    api.tc.clock.advance(25 * 60)
    await api("createArtifact", running, 0, "x", body=body)
    api.tc.clock.advance(1)
    await refused(api("createArtifact", running, 0, "y", body=body), 409, "RequestConflict")
    other = slugId()
    await api("createTask", other, body=api.define())
    await refused(api("createArtifact", other, 0, "x", body=body), 409, "RequestConflict", "pending")


async def test_artifacts_are_listed_by_run_in_pages(api: Api, running: str) -> None:
    for name in ("c", "a", "b"):
        await api("createArtifact", running, 0, name, body=request(api, "reference"))
    page = await api("listArtifacts", running, 0, query={"limit": 2})
    rest = await api("listArtifacts", running, 0, query={"continuationToken": page["continuationToken"]})
    assert [artifact["name"] for artifact in page["artifacts"] + rest["artifacts"]] == ["a", "b", "c"]
    await api("reportException", running, 0, body={"reason": "worker-shutdown"})
    assert (await api("listLatestArtifacts", running))["artifacts"] == []
    await refused(api("listArtifacts", running, 2), 404, "ResourceNotFound")
    await refused(api("getArtifact", running, 0, "nothing"), 404, "ResourceNotFound")
    await refused(api("listLatestArtifacts", slugId()), 404, "ResourceNotFound")


async def test_each_method_asks_for_its_scope(api: Api, running: str) -> None:
    await api("createArtifact", running, 0, "x", body=request(api, "reference"))
    api.tc.auth.add_client("c", "c")
    api.client = Client("c", "c")
    calls = {
        f"queue:create-artifact:{running}/0": api("createArtifact", running, 0, "x", body=request(api, "s3")),
        f"queue:list-artifacts:{running}:0": api("listArtifacts", running, 0),
        f"queue:list-artifacts:{running}\n": api("listLatestArtifacts", running),
        "queue:get-artifact:x": api("artifact", running, 0, "x"),
    }
    for scope, call in calls.items():
        await refused(call, 403, "InsufficientScopes", scope)
    finish = api("finishArtifact", running, 0, "x", body={"uploadId": slugId()})
    await refused(finish, 403, "InsufficientScopes", "queue:create-artifact")
    await refused(api("artifactInfo", running, 0, "x"), 403, "InsufficientScopes", "queue:list-artifacts")


async def test_a_stored_artifact_lasts_as_long_as_its_task(api: Api, running: str) -> None:
    api.tc.artifacts.store(running, 0, "public/log", b"text")
    info = await api("artifactInfo", running, 0, "public/log")
    assert info["expires"] == (await api("task", running))["expires"]
    assert await api("getArtifact", running, 0, "public/log")
