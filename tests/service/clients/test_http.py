"""One request and its answer: read within its limits of size and time, never redirected."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from service.clients.http import AnswerTooLargeError, Http
from service.errors import Unavailable
from tests.service.harness import serving


async def echo(request: Request) -> Response:
    return Response(f"{request.method} {request.url.query} {request.headers['user-agent']}", headers={"X-Kind": "echo"})


async def large(request: Request) -> Response:
    return Response(b"x" * 1000, int(request.query_params.get("status", 200)))


async def slow(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.1)

    return StreamingResponse(chunks())


async def redirect(request: Request) -> Response:
    return RedirectResponse("/echo")


@asynccontextmanager
async def client() -> AsyncIterator[tuple[Http, str]]:
    app = Starlette(routes=[Route(f"/{route.__name__}", route) for route in (echo, large, slow, redirect)])
    async with serving(app) as url, Http("hg") as http:
        yield http, url


async def test_an_answer_has_status_headers_and_body() -> None:
    async with client() as (http, url):
        answer = await http.send("GET", f"{url}/echo", seconds=5, limit=100, params={"a": "1"})
    assert (answer.status, answer.headers["x-kind"]) == (200, "echo")
    assert answer.body == b"GET a=1 tc-treeherder"
    assert not answer.is_redirect


async def test_a_redirect_is_not_followed() -> None:
    async with client() as (http, url):
        answer = await http.send("GET", f"{url}/redirect", seconds=5, limit=100)
    assert answer.is_redirect
    assert answer.headers["location"] == "/echo"


async def test_a_larger_answer_is_refused_with_its_status() -> None:
    async with client() as (http, url):
        assert len((await http.send("GET", f"{url}/large", seconds=5, limit=1000)).body) == 1000
        with pytest.raises(AnswerTooLargeError) as refused:
            await http.send("GET", f"{url}/large?status=404", seconds=5, limit=999)
    assert refused.value.status == 404


async def test_a_larger_answer_is_cut_off_where_that_is_allowed() -> None:
    async with client() as (http, url):
        answer = await http.send("GET", f"{url}/large?status=404", seconds=5, limit=10, cut=frozenset({404}))
    assert answer.status == 404
    assert answer.body.startswith(b"x" * 10)


async def test_the_time_limit_covers_the_whole_body() -> None:
    async with client() as (http, url):
        with pytest.raises(Unavailable, match=r"/slow: no complete answer within 0\.3 s"):
            await http.send("GET", f"{url}/slow", seconds=0.3, limit=1000)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://[/", "nonsense"])
async def test_a_server_that_cannot_be_reached_is_unavailable(url: str) -> None:
    async with Http("hg") as http:
        with pytest.raises(Unavailable) as refused:
            await http.send("GET", url, seconds=5, limit=1000)
    assert refused.value.system == "hg"
    assert url in str(refused.value)


async def test_closing_twice_or_before_the_first_request_is_harmless() -> None:
    http = Http("hg")
    await http.close()
    async with client() as (opened, url):
        await opened.send("GET", f"{url}/echo", seconds=5, limit=100)
        await opened.close()
