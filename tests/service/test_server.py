"""Limits of the HTTP protocol with a minimal app, and the parts of uvicorn that they rely on.

How the whole service behaves within them is in tests/service/api/test_limit.py.
"""

import asyncio
import inspect
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl

from service import server
from service.server import MAX_HEAD, MAX_HEADERS, MAX_PIPELINED, Protocol


@pytest.mark.parametrize(
    "name",
    [
        *("on_message_begin", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete"),
        *("send_400_response", "shutdown"),
    ],
)
def test_uvicorn_calls_the_methods_that_we_override(name: str) -> None:
    reason = f"uvicorn's HttpToolsProtocol has no method {name} any more: see service/server.py"
    assert callable(getattr(httptools_impl.HttpToolsProtocol, name, None)), reason


@pytest.mark.parametrize(
    "use",
    [
        *("self.pipeline.appendleft(", "self.headers.append(", "self.cycle.more_body = False"),
        *("self.cycle.response_complete", "on_response=self.on_response_complete", "self.send_400_response("),
    ],
)
def test_uvicorn_uses_the_attributes_that_we_use(use: str) -> None:
    source = inspect.getsource(httptools_impl)
    assert use in source, f"uvicorn's HttpToolsProtocol has no `{use}` any more: see service/server.py"


@pytest.mark.parametrize("name", ["main_loop", "on_tick", "handle_exit"])
def test_uvicorns_server_has_the_methods_that_we_use(name: str) -> None:
    assert callable(getattr(uvicorn.Server, name, None)), (
        f"uvicorn.Server has no {name} any more: see service/server.py"
    )


def test_a_server_ends_at_once_and_not_with_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK", 60)
    running = server.Server(uvicorn.Config(echo, port=0, log_config=None, lifespan="off"))
    threading.Timer(0.5, lambda: running.handle_exit(signal.SIGTERM, None)).start()
    monkeypatch.setattr(running, "capture_signals", nullcontext)
    began = time.monotonic()
    running.run()
    assert running.started
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("started", "code"), [(True, None), (False, server.STARTUP_FAILED)])
def test_a_process_whose_app_did_not_start_has_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, started: bool, code: int | None
) -> None:
    def end(running: server.Server) -> None:
        running.started = started
        raise KeyboardInterrupt

    monkeypatch.setattr(server.Server, "run", end)
    with nullcontext() if code is None else pytest.raises(SystemExit) as ended:
        server.run(uvicorn.Config(echo))
    assert ended is None or ended.value.code == code


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    if request.url.path in {"/endless", "/unread"}:
        scope["endless"] = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        if request.url.path == "/unread":
            scope["abort"]()
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if request.url.path == "/early":
        answer = PlainTextResponse("early")
    else:
        body = await request.body()
        answer = PlainTextResponse(f"{len(request.headers)} headers, {len(body)} bytes")
    await answer(scope, receive, send)


@asynccontextmanager
async def started(seconds: float) -> AsyncIterator[tuple[uvicorn.Server, asyncio.Task[None], int]]:
    config = uvicorn.Config(
        echo,
        lifespan="off",
        log_config=None,
        http=partial(Protocol, seconds=seconds),  # type: ignore[arg-type]  # a factory
        ws="none",
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield server, task, listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def connected(seconds: float = 5) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with started(seconds) as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def answers_to(sent: bytes, seconds: float = 5) -> bytes:
    """Send these bytes, and return everything that the server answers until it closes the connection."""
    async with connected(seconds) as (reader, writer), asyncio.timeout(20):
        writer.write(sent)
        return await reader.read()


def is_problem(answer: bytes, status: int, *words: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert all(word in problem["detail"] for word in words), problem


async def test_a_request_within_the_limits_is_answered() -> None:
    extensions = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await answers_to(extensions + b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"3 headers, 5 bytes")


async def test_a_head_that_is_too_large_is_431() -> None:
    is_problem(await answers_to(b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD), 431, "65,536 bytes", "shorter headers")


@pytest.mark.parametrize(("count", "status"), [(MAX_HEADERS, b"200"), (MAX_HEADERS + 1, b"400")])
async def test_the_number_of_headers_is_limited(count: int, status: bytes) -> None:
    headers = b"".join(b"a%d: b\r\n" % number for number in range(count - 1))
    answer = await answers_to(b"GET / HTTP/1.1\r\nConnection: close\r\n" + headers + b"\r\n")
    assert answer.split(b" ", 2)[1] == status


async def test_what_is_not_http_is_400() -> None:
    is_problem(await answers_to(b"hello\r\n\r\n"), 400, "not an HTTP/1.1 request")


async def test_only_so_many_requests_wait_on_a_connection() -> None:
    blocking = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    answer = await answers_to(blocking * (MAX_PIPELINED + 2))
    assert b" 200 OK" not in answer.partition(b"\r\n")[0]


async def test_a_head_that_does_not_end_is_408_and_a_silent_connection_is_closed() -> None:
    is_problem(await answers_to(b"GET / HTT", seconds=0.2), 408, "within 0.2 s", "request_timeout")
    assert await answers_to(b"", seconds=0.2) == b""


async def test_a_connection_is_closed_if_an_unread_body_does_not_end() -> None:
    answer = await answers_to(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", seconds=0.2)
    assert answer.endswith(b"early")


async def test_an_answer_without_an_end_does_not_keep_the_server_from_ending() -> None:
    async with started(5) as (server, task, port), asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"begin")
        server.should_exit = True
        await task
        writer.close()


async def test_an_answer_that_nobody_reads_can_be_cut_off() -> None:
    async with connected() as (reader, writer), asyncio.timeout(20):
        writer.write(b"GET /unread HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
        assert not rest.endswith(b"0\r\n\r\n")
