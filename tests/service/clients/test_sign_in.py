"""The client for signing in: what it asks for, what it refuses, and what it does not keep."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.clients.sign_in import MAX_ANSWER, TaskclusterSignIns
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import Settings
from tests.sandbox.taskcluster.support import serve_app

VERIFIER = "v" * 64
TOKEN = {"access_token": "t-1", "token_type": "Bearer"}
CREDENTIALS = {"expires": "2026-01-15T12:00:00Z", "credentials": {"clientId": "a/b-c", "accessToken": "secret-token"}}


def sign_ins(root: str = "https://tc.example.com") -> TaskclusterSignIns:
    values: dict[str, Any] = {
        "taskcluster": {"root_url": root, "client_id": "us", "access_token": "ours"},
        "public_url": "https://us.example.com/below/",
        "web_sign_in": {"client_id": "page", "scopes": ["tc-treeherder:*", "x:y"]},
    }
    return TaskclusterSignIns(Settings(**values))


def test_the_address_asks_for_exactly_what_is_registered() -> None:
    split = urlsplit(sign_ins().authorize_url("s", VERIFIER))
    assert f"{split.scheme}://{split.netloc}{split.path}" == "https://tc.example.com/login/oauth/authorize"
    query = {name: value for name, (value,) in parse_qs(split.query).items()}
    assert query.pop("code_challenge") == "w1TpKUdYE9hUAcNSeeSRFioHDxfUxuHho_JHAfZ_vDM"  # sha256 of the verifier
    assert query == {
        "client_id": "page",
        "redirect_uri": "https://us.example.com/below/sign-in/taskcluster/done",
        "response_type": "code",
        "scope": "tc-treeherder:* x:y",
        "state": "s",
        "expires": "43200 seconds",
        "code_challenge_method": "S256",
    }
    assert VERIFIER not in split.query


@asynccontextmanager
async def answering(**answers: Any) -> AsyncIterator[tuple[TaskclusterSignIns, list[Any]]]:
    """Serve a web-server and auth that answer this by path: bytes, a status, or JSON."""
    asked: list[Any] = []

    def answer(name: str) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            asked.append((request.url.path, parse_qs((await request.body()).decode()), dict(request.headers)))
            value = answers.get(name, 404)
            if isinstance(value, int):
                return Response(b'{"code": "X", "message": "text of the upstream"}', value, {"Location": "/elsewhere"})
            return Response(value if isinstance(value, bytes) else json.dumps(value), media_type="application/json")

        return handler

    routes = [
        Route("/login/oauth/token", answer("token"), methods=["POST"]),
        Route("/login/oauth/credentials", answer("credentials")),
        Route("/api/auth/v1/clients/{name:path}", answer("client")),
    ]
    async with serve_app(Starlette(routes=routes)) as root:
        client = sign_ins(root)
        yield client, asked
        await client.close()


async def test_a_code_becomes_a_client_id_and_nothing_else() -> None:
    async with answering(token={"access_token": "t-1", "token_type": "Bearer"}, credentials=CREDENTIALS) as (
        ours,
        asked,
    ):
        assert await ours.redeem("c+1", VERIFIER) == "a/b-c"
        assert "secret-token" not in repr(vars(ours))
    (_, form, _), (_, _, headers) = asked
    assert form == {
        "grant_type": ["authorization_code"],
        "code": ["c+1"],
        "redirect_uri": ["https://us.example.com/below/sign-in/taskcluster/done"],
        "client_id": ["page"],
        "code_verifier": [VERIFIER],
    }
    assert headers["authorization"] == "Bearer t-1"


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (PermanentUpstreamError, {"token": 403}),
        (PermanentUpstreamError, {"token": TOKEN, "credentials": 400}),
        (Unavailable, {"token": 500}),
        (Unavailable, {"token": 303}),
        (Unavailable, {"token": b"<html>"}),
        (Unavailable, {"token": b"[" * MAX_ANSWER + b"]"}),
        (Unavailable, {"token": b"[" * 20_000}),
        (Unavailable, {"token": {"access_token": "x\r\nEvil: 1"}}),
        (Unavailable, {"token": {"access_token": 1}}),
        (Unavailable, {"token": TOKEN, "credentials": {"credentials": []}}),
        (Unavailable, {"token": TOKEN, "credentials": {"credentials": {"clientId": "a<b"}}}),
        (Unavailable, {"token": TOKEN, "credentials": {"credentials": {"clientId": "a" * 1_001}}}),
    ],
)
async def test_what_is_not_understood_signs_nobody_in(error: type[Exception], answers: dict[str, Any]) -> None:
    async with answering(**answers) as (ours, _):
        with pytest.raises(error) as raised:
            await ours.redeem("code-of-a-person", VERIFIER)
        for secret in ("code-of-a-person", "t-1", VERIFIER, "text of the upstream"):
            assert secret not in str(raised.value)


CLIENT = {
    "clientId": "a/b-c",
    "expires": "2030-01-15T12:00:00.000Z",
    "disabled": False,
    "expandedScopes": ["tc-treeherder:read", "queue:x", "tc-treeher*", "assume:a", 7, "*"],
}


async def test_of_a_client_only_the_scopes_of_ours_are_kept() -> None:
    async with answering(client=CLIENT) as (ours, asked):
        client = await ours.client("a/b-c")
        assert client is not None
        assert client.scopes == ("tc-treeherder:read", "tc-treeher*", "*")
        assert client.expires == datetime(2030, 1, 15, 12, tzinfo=UTC)
    ((_, _, headers),) = asked
    assert 'id="us"' in headers["authorization"]


async def test_a_client_that_is_disabled_or_gone_is_none() -> None:
    async with answering(client={**CLIENT, "disabled": True}) as (ours, _):
        assert await ours.client("a/b-c") is None
    async with answering(client=404) as (ours, _):
        assert await ours.client("a/b-c") is None


@pytest.mark.parametrize(
    "answer",
    [
        500,
        400,
        403,
        {**CLIENT, "disabled": "no"},
        {**CLIENT, "expires": "soon"},
        {**CLIENT, "expires": "2030-01-15T12:00:00"},
        {**CLIENT, "expandedScopes": "*"},
    ],
)
async def test_an_odd_answer_of_auth_is_no_answer(answer: Any) -> None:
    async with answering(client=answer) as (ours, _):
        with pytest.raises(Unavailable):
            await ours.client("a/b-c")
