"""Every error reaches the caller as problem+json, whatever is in it."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Query
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from service.errors import PermanentUpstreamError, Problem, Unavailable, UpstreamError, install, problem
from tests.service.asgi import Api, is_problem


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sides: int
    fill: Literal["solid", "dotted"] = "solid"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install(app)

    @app.get("/problem")
    async def _problem() -> None:
        headers = {"Retry-After": "5"}
        raise Problem(409, "Taken", "alias '\ud800\0' is taken", headers, repository="\udfff", count=float("inf"))

    @app.get("/teapot")
    async def _teapot() -> None:
        raise HTTPException(418, "short and stout", {"X-Spout": "1"})

    @app.get("/bug")
    async def _bug() -> None:
        raise RuntimeError("postgresql://me:secret@host")

    @app.get("/number")
    async def _number(n: Annotated[int, Query(le=9)]) -> int:
        return n

    @app.post("/shape")
    async def _shape(body: Shape) -> int:
        return body.sides

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_a_problem_carries_what_it_was_given_and_can_always_be_sent(client: httpx.AsyncClient) -> None:
    answer = await client.get("/problem")
    body = is_problem(answer, 409, "alias '\\ud800\\u0000' is taken")
    assert answer.headers["retry-after"] == "5"
    assert body == {
        "type": "/problems#taken",
        "title": "Taken",
        "status": 409,
        "detail": "alias '\\ud800\\u0000' is taken",
        "repository": "\\udfff",
        "count": "inf",
    }


async def test_frameworks_errors_are_problems_too(client: httpx.AsyncClient) -> None:
    is_problem(await client.get("/nowhere"), 404, "/nowhere", "/docs")
    answer = await client.post("/problem")
    is_problem(answer, 405)
    assert answer.headers["allow"] == "GET"
    answer = await client.get("/teapot")
    assert is_problem(answer, 418, "short and stout")["title"] == "I'm a Teapot"
    assert answer.headers["x-spout"] == "1"
    body = is_problem(await client.get("/number", params={"n": 10}), 422, 'n "10" is too large: it must be at most 9')
    assert body["errors"] == [{"at": "query.n", "message": 'n "10" is too large: it must be at most 9'}]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"side": 3}', "sides is missing; unknown key side (sides?)"),
        (b'{"sides": 3, "fill": "dot"}', 'fill "dot" is none of solid, dotted (dotted?)'),
        (b'{"sides": "three"}', 'sides "three" is no whole number'),
        (b"[]", "the body is a list, and must be an object ({…})"),
        (b"", "the body is missing"),
        (b"{sides: 3}", "the body is no JSON: Expecting property name enclosed in double quotes at character 1"),
    ],
)
async def test_a_request_that_does_not_fit_is_told_in_a_sentence(
    client: httpx.AsyncClient, body: bytes, detail: str
) -> None:
    answer = await client.post("/shape", content=body, headers={"Content-Type": "application/json"})
    problem = is_problem(answer, 422)
    assert problem["detail"] == detail
    assert "; ".join(error["message"] for error in problem["errors"]) == detail


async def test_a_bug_says_nothing_of_its_inside(client: httpx.AsyncClient) -> None:
    answer = await client.get("/bug")
    is_problem(answer, 500, "the log")
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/bug", 500), ("/problem", 409), ("/number", 422)])
async def test_no_query_is_too_strange(path: str, status: int, client: httpx.AsyncClient) -> None:
    """Bytes that no client library sends."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"n=\xff&\xed\xa0\x80", "headers": []}
    app: Any = client._transport.app  # type: ignore[attr-defined]  # httpx has no other way to it
    try:
        await app(scope, receive, send)
    except RuntimeError:
        assert status == 500  # the server is to log it, so it goes on
    assert sent[0]["status"] == status
    assert (b"content-type", b"application/problem+json") in sent[0]["headers"]


@pytest.mark.parametrize("host", ["[", "a b", "\u00e9", "", "x" * 10_000, "[::1", "x:99999999"])
async def test_no_host_header_is_too_strange(client: httpx.AsyncClient, host: str) -> None:
    for path, status in {"/nowhere": 404, "/bug": 500, "/problem": 409, "/number": 422}.items():
        is_problem(await client.get(path, headers={b"Host": host.encode()}), status)


async def test_a_path_of_any_bytes_is_a_problem(client: httpx.AsyncClient) -> None:
    for path in ("/%00", "/%ff%fe", "/%ED%A0%80", "/%0d%0aX: y", "/" + "x" * 20_000):
        is_problem(await client.get(path), 404)


@given(st.dictionaries(st.text(st.characters()), st.text(st.characters()) | st.floats()), st.text(st.characters()))
def test_no_problem_is_unspeakable(more: dict[str, object], detail: str) -> None:
    answer = problem(400, detail, detail, None, more=more)
    answer.body.decode()  # type: ignore[union-attr]  # bytes; memoryview is for others


def test_the_tree_of_upstream_errors() -> None:
    assert issubclass(Unavailable, UpstreamError)
    assert issubclass(PermanentUpstreamError, UpstreamError)
    assert str(PermanentUpstreamError("hg", "no", 404)) == "no"
    assert (PermanentUpstreamError("hg", "no", 404).system, PermanentUpstreamError("hg", "no", 404).status) == (
        "hg",
        404,
    )
    assert Unavailable("hg", "later").retry_after is None


async def test_the_app_has_them_installed(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.get("/nowhere"), 404, "/api/v1/nowhere")
    is_problem(await sqlite_api.call("PUT", "/api/v1/repositories"), 405)
    is_problem(await sqlite_api.call("GET", "/elsewhere"), 404)
