"""Logins through the official client of Taskcluster's auth service: answers that are a login, and all others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mohawk
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from taskcluster.aio import asyncclient

from sandbox.taskcluster import Client, Taskcluster, create_app
from service.clients.auth import Login, SignedRequest, TaskclusterLogins
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import TaskclusterSettings
from tests.service.harness import serving

PERSON = Client("person", "person-secret-0123456789", ("a:b", "c:*"))
URL = "https://us.example.com/api/v1/repositories?x=1"
SUCCESS = {
    "status": "auth-success",
    "scheme": "hawk",
    "clientId": "person",
    "scopes": ["a"],
    "expires": "2040-01-01T00:00:00.000Z",
}


@asynccontextmanager
async def logins_at(url: str, **more: Any) -> AsyncIterator[TaskclusterLogins]:
    logins = TaskclusterLogins(TaskclusterSettings(root_url=url, **more))
    try:
        yield logins
    finally:
        await logins.close()


@asynccontextmanager
async def answering(answer: Response | Any, delay: float = 0) -> AsyncIterator[tuple[TaskclusterLogins, list[Request]]]:
    """Serve a Taskcluster with one answer, and record its requests."""
    requests: list[Request] = []

    async def any_path(request: Request) -> Response:
        requests.append(request)
        await request.body()
        await asyncio.sleep(delay)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    methods = ["GET", "POST"]
    app = Starlette(routes=[Route("/{path:path}", any_path, methods=methods)])
    async with serving(app) as url, logins_at(url, timeout=1) as logins:
        yield logins, requests


def signed(url: str = URL, method: str = "GET", key: str = PERSON.access_token, **more: Any) -> SignedRequest:
    sender = mohawk.Sender(
        {"id": PERSON.client_id, "key": key, "algorithm": "sha256"}, url, method, always_hash_content=False, **more
    )
    return SignedRequest(method, "/api/v1/repositories?x=1", "us.example.com", 443, sender.request_header)


async def test_who_signed_and_with_which_scopes() -> None:
    tc = Taskcluster([PERSON])
    async with serving(create_app(tc)) as url, logins_at(url) as logins:
        login = await logins.check(signed())
        assert login.client_id == "person"
        assert {"a:b", "c:*"} <= set(login.scopes)
        assert login.payload_hash is None
        body = signed(method="POST", content=b"{}", content_type="application/json")
        assert (await logins.check(body)).payload_hash is not None
        for bad in (
            signed(key="another"),
            signed("https://other.example.com/api/v1/repositories?x=1"),
            signed("https://us.example.com:8443/api/v1/repositories?x=1"),
            signed("http://us.example.com/api/v1/repositories?x=1"),
            signed("https://us.example.com/api/v1/repositories?x=2"),
            signed("https://us.example.com/api/v1/repositories"),
            SignedRequest("PATCH", "/api/v1/repositories?x=1", "us.example.com", 443, signed().authorization),
        ):
            with pytest.raises(PermanentUpstreamError, match="Bad mac") as refused:
                await logins.check(bad)
            assert refused.value.status == 401
        with pytest.raises(PermanentUpstreamError, match="no signature") as refused:
            await logins.check(SignedRequest("GET", "/x", "us.example.com", 443, None))
        assert refused.value.status == 401


async def test_it_is_asked_without_any_credentials_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"clientId": "from", "accessToken": "the environment"}
    monkeypatch.setitem(asyncclient._defaultConfig, "credentials", elsewhere)
    async with answering(SUCCESS) as (logins, requests):
        assert await logins.check(signed()) == Login("person", ("a",), None)
        (request,) = requests
        assert request.url.path == "/api/auth/v1/authenticate-hawk"
        assert "authorization" not in request.headers


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        "auth-success",
        {**SUCCESS, "status": "ok"},
        {**SUCCESS, "scheme": "none"},
        {**SUCCESS, "scheme": "basic"},
        {**SUCCESS, "clientId": None},
        {**SUCCESS, "clientId": ""},
        {**SUCCESS, "clientId": "a\nb"},
        {**SUCCESS, "clientId": "a" * 1001},
        {**SUCCESS, "scopes": "*"},
        {**SUCCESS, "scopes": ["a", 1]},
        {**SUCCESS, "scopes": None},
        {**SUCCESS, "hash": 7},
        {key: value for key, value in SUCCESS.items() if key != "scopes"},
        Response("<html>", 200),
        JSONResponse(SUCCESS, 302, {"Location": "/api/auth/v1/authenticate-hawk"}),
        JSONResponse(SUCCESS, 307, {"Location": "/elsewhere"}),
        JSONResponse(SUCCESS, 500),
        JSONResponse(SUCCESS, 503),
        JSONResponse({"message": "slow down"}, 429),
        JSONResponse({"message": "no such method"}, 404),
        JSONResponse({"message": "no"}, 403),
    ],
)
async def test_whatever_else_is_answered_is_no_login(answer: Any) -> None:
    async with answering(answer) as (logins, requests):
        with pytest.raises(Unavailable):
            await logins.check(signed())
        assert len(requests) == 1


async def test_a_request_that_it_does_not_understand_is_the_callers() -> None:
    async with answering(JSONResponse({"message": "input is wrong"}, 400)) as (logins, _):
        with pytest.raises(PermanentUpstreamError, match="input is wrong") as refused:
            await logins.check(signed())
        assert refused.value.status == 401


async def test_what_it_says_is_cut_and_storable() -> None:
    async with answering({"status": "auth-failed", "message": "\x00" + "x" * 9_000}) as (logins, _):
        with pytest.raises(PermanentUpstreamError, match=r"^\\u0000xxx") as refused:
            await logins.check(signed())
        assert len(str(refused.value)) == 500


async def test_no_answer_is_no_login_and_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(SUCCESS, delay=30) as (logins, _):
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await logins.check(signed())
        assert time.monotonic() - begun < 5
    async with logins_at("http://127.0.0.1:9") as logins:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await logins.check(signed())


async def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.clients.taskcluster.MAX_ANSWER", 1_000)
    async with answering({**SUCCESS, "expires": "x" * 2_000}) as (logins, _):
        with pytest.raises(Unavailable, match="more than 1,000 bytes"):
            await logins.check(signed())
