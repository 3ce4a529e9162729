"""Refuse before a body is read, and limit the values in a body."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import psutil
import pytest

from tests.service.api.test_limit import served
from tests.service.asgi import ADMIN, READER, SECRETS, WRITER, Api, is_problem, signature

SIGNED = ["/events/pushes", "/events/job-actions", "/events/tasks", "/polls/lease", "/listeners/report"]


class Body:
    """A body that counts what is read of it."""

    def __init__(self) -> None:
        self.read = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        for _ in range(10):
            self.read += 1
            yield b'{"x": '


def operations(api: Api) -> list[tuple[str, str]]:
    """All operations of the API, with paths that could be."""
    return [
        (method.upper(), template.format(alias="mc", push_id=1, action_id=1, letter_id=1, task_id="A" * 22))
        for template, methods in api.app.openapi()["paths"].items()
        for method in methods
    ]


async def test_who_is_unknown_is_refused_before_the_body_is_read(sqlite_api: Api) -> None:
    calls = [(method, path) for method, path in operations(sqlite_api) if path.startswith("/api/v1")]
    assert len(calls) > 20
    for method, path in calls:
        for token in (None, "unknown-0123456789abcdef"):
            body = Body()
            headers = {"Content-Type": "application/json"}
            is_problem(await sqlite_api.call(method, path, token=token, content=body(), headers=headers), 401)
            assert not body.read, path


async def test_who_lacks_the_scope_of_the_route_is_refused_before_the_body_is_read(sqlite_api: Api) -> None:
    for method, path in operations(sqlite_api):
        if method == "GET" or path.endswith("/plan") or ("/repositories" not in path and "/dead-letters" not in path):
            continue
        body = Body()
        headers = {"Content-Type": "application/json"}
        is_problem(await sqlite_api.call(method, path, token=READER, content=body(), headers=headers), 403)
        assert not body.read, path


@pytest.mark.parametrize("path", SIGNED)
async def test_what_is_not_signed_for_this_route_is_refused_before_the_body_is_read(sqlite_api: Api, path: str) -> None:
    raw = b"{}"
    good = signature(raw, path=path)
    other = next(each for each in SIGNED if each != path)
    old = {name: value for name, value in good.items() if name != "webhook-route-signature"}
    for headers in (
        {},
        old,
        signature(raw, path=other),
        signature(raw, path=path + "/"),
        signature(raw, "whsec_" + "b3RoZXI=" * 6, path=path),
        signature(raw, at=datetime.now(UTC) - timedelta(minutes=6), path=path),
        {**good, "webhook-id": "msg_2"},
        {**old, "webhook-route-signature": good["webhook-signature"]},
        {"authorization": f"Bearer {ADMIN}"},
    ):
        body = Body()
        answer = await sqlite_api.client.post(f"/api/v1{path}", content=body(), headers=headers)
        is_problem(answer, 401, "webhook-route-signature")
        assert not body.read
    for secret in SECRETS:
        answer = await sqlite_api.client.post(f"/api/v1{path}", content=raw, headers=signature(raw, secret, path=path))
        assert answer.status_code != 401, answer.text


async def test_the_route_signature_is_none_of_the_body(sqlite_api: Api) -> None:
    path = "/events/pushes"
    good = signature(b"{}", path=path)
    swapped = {**good, "webhook-signature": good["webhook-route-signature"]}
    is_problem(await sqlite_api.client.post(f"/api/v1{path}", content=b"{}", headers=swapped), 401, "of the body")


# --- what a body may hold


async def test_a_body_with_many_members_is_not_parsed(sqlite_api: Api) -> None:
    for raw in (
        json.dumps({f"k{n}": n for n in range(2_000)}).encode(),
        b'{"scopes": [' + b"[" * 2_000,
        b'{"scopes": ' + json.dumps([{}] * 1_000).encode() + b"}",
    ):
        answer = await sqlite_api.call(
            "POST", "/api/v1/repositories", content=raw, headers={"Content-Type": "application/json"}
        )
        is_problem(answer, 413, "1,000 members")
    whole = {
        "alias": "mc",
        "url": "https://hg.mozilla.org/mc",
        "level": "1",
        "last_push_id": 1,
        "scopes": ["a,b"] * 100,
    }
    assert (await sqlite_api.post("/repositories", whole)).status_code == 201


async def test_nesting_is_bounded(sqlite_api: Api) -> None:
    for levels, status in ((90, 422), (101, 400), (400, 400), (200_000, 400)):
        raw = b'{"events": ' + b"[" * levels + b"]" * levels + b"}"
        answer = await sqlite_api.signed("/events/pushes", raw)
        assert answer.status_code == (202 if status == 422 else status), answer.text


async def test_a_signed_body_of_ten_million_objects_costs_little(sqlite_url: str) -> None:
    path = "/events/pushes"
    raw = b'{"events":[' + b",".join([b"{}"] * 10_000_000) + b"]}"
    headers = signature(raw, path=path)
    async with served(sqlite_url, 30) as (port, _):
        code = (
            "import sys, httpx, json; headers = json.loads(sys.argv[2]);"
            "raw = b'{\"events\":[' + b','.join([b'{}'] * 10_000_000) + b']}';"
            "print(httpx.post(sys.argv[1], content=raw, headers=headers, trust_env=False, timeout=30).text)"
        )
        url = f"http://127.0.0.1:{port}/api/v1{path}"
        del raw
        caller = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, url, json.dumps(headers), stdout=asyncio.subprocess.PIPE
        )
        process = psutil.Process()
        begun, before = time.thread_time(), process.memory_info().rss
        most = longest = 0.0
        told = asyncio.create_task(caller.communicate())
        while not told.done():
            at = time.thread_time()
            await asyncio.sleep(0.002)
            longest = max(longest, time.thread_time() - at)
            most = max(most, process.memory_info().rss - before)
        answer = json.loads((await told)[0])
    assert answer["status"] == 413
    assert "members" in answer["detail"]
    assert longest < 0.5, "what else waits for the event loop: parsing it takes seconds"
    assert most < 50_000_000
    assert time.thread_time() - begun < 3


async def test_liveness_is_quick_while_anonymous_callers_send_what_they_like(sqlite_url: str) -> None:
    raw = json.dumps({f"key {n}": n for n in range(48_000)}).encode()
    assert len(raw) > 850_000
    async with (
        served(sqlite_url, 30) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):

        async def send(path: str, token: str | None) -> None:
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
            for piece in (raw, raw[:200_000]):
                try:
                    answer = await client.post(path, content=piece, headers=headers)
                except httpx.TransportError:  # it was hung up on
                    continue
                assert answer.status_code in {401, 413}, answer.text

        calls = [
            asyncio.create_task(send(path, token))
            for path in ("/api/v1/actions", "/api/v1/actions/plan")
            for token in [None] * 8 + [WRITER] * 2
        ]
        longest = 0.0  # in CPU time of the event loop, which other processes have no part in
        while not all(call.done() for call in calls):
            begun = time.thread_time()
            assert (await client.get("/__lbheartbeat__")).status_code == 200
            longest = max(longest, time.thread_time() - begun)
        await asyncio.gather(*calls)
    assert longest < 0.5, "callers and service share the event loop; it was 11 s"


@pytest.mark.parametrize("path", ["/repositories", "/pushes", "/actions", "/reports", "/dead-letters"])
async def test_an_unknown_query_parameter_is_422_and_names_the_known_ones(sqlite_api: Api, path: str) -> None:
    answer = await sqlite_api.get(f"{path}?colour=red")
    is_problem(answer, 422, "colour", "limit", "after")
    is_problem(await sqlite_api.get(f"{path}?colour=red", token=None), 401)


async def test_no_route_ignores_a_query_parameter(sqlite_api: Api) -> None:
    for method, path in operations(sqlite_api):
        headers = signature(b"{}", path=path.removeprefix("/api/v1"))
        answer = await sqlite_api.call(method, f"{path}?colour=red", content=b"{}", headers=headers)
        is_problem(answer, 422, "colour")


async def test_a_bewit_that_nobody_looks_at_is_unknown_too(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.get("/repositories?bewit=x"), 422, "bewit")
