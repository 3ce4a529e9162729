"""Limit the cost of one caller: the size and time of bodies, and writes; over ASGI and over real sockets."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from service.api.limit import Writes, limit_for
from service.contract.events import MAX_BYTES
from service.errors import Problem
from service.server import MAX_DISCARDED, MAX_HEAD, Protocol
from tests.service.asgi import ADMIN, READER, Api, is_problem, running, settings_for, signature

SIGNED = ["/api/v1/events/pushes", "/api/v1/events/job-actions", "/api/v1/events/tasks", "/api/v1/polls/lease"]
SIGNED.append("/api/v1/listeners/report")
OTHERS = ["/api/v1/repositories", "/api/v1/actions", "/api/v1/actions/plan", "/nowhere", "/__lbheartbeat__"]


# Size


async def body_of(size: int) -> AsyncIterator[bytes]:
    """Sent without a Content-Length."""
    for start in range(0, size, 65_536):
        yield b"x" * min(65_536, size - start)


@pytest.mark.parametrize("path", SIGNED + OTHERS)
async def test_a_body_that_says_that_it_is_too_large_is_not_read(sqlite_api: Api, path: str) -> None:
    limit = limit_for(path).size
    assert limit <= (MAX_BYTES if path in SIGNED else 256 * 1024)
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        async for chunk in body_of(limit + 1):
            read += len(chunk)
            yield chunk

    answer = await sqlite_api.call("POST", path, content=counted(), headers={"Content-Length": str(limit + 1)})
    is_problem(answer, 413, f"{limit:,} bytes", "less at a time")
    assert answer.headers["connection"] == "close"
    assert not read
    for nonsense in ("9" * 30, "9" * 5_000):
        answer = await sqlite_api.call("POST", path, content=counted(), headers={"Content-Length": nonsense})
        is_problem(answer, 413)
    assert not read


@pytest.mark.parametrize("path", ["/api/v1/repositories", "/api/v1/actions"])
async def test_a_body_that_does_not_say_is_read_up_to_the_limit(sqlite_api: Api, path: str) -> None:
    read, limit = 0, limit_for(path).size

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        async for chunk in body_of(50 * limit):
            read += len(chunk)
            yield chunk

    answer = await sqlite_api.call("POST", path, content=counted(), headers={"Content-Type": "application/json"})
    is_problem(answer, 413, f"{limit:,} bytes")
    assert read <= limit + 65_536
    whole = json.dumps({"x": "y" * (limit - 9)}).encode()
    assert len(whole) == limit
    is_problem(await sqlite_api.call("POST", path, content=whole, headers={"Content-Type": "application/json"}), 422)


# Writes


async def test_writes_of_one_caller_are_limited(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, writes_per_minute=3)) as api:
        await api.add()
        is_problem(await api.post("/actions", {"action": "nonsense"}), 422)
        is_problem(await api.patch("/repositories/nowhere", {"level": "3"}), 404)
        for call in (api.post("/repositories", {}), api.patch("/repositories/mc", {}), api.delete("/repositories/mc")):
            answer = await call
            is_problem(answer, 429, "3 writes a minute", "writes_per_minute", "wait")
            assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert (await api.get("/repositories/mc")).status_code == 200, "reads are free"
        is_problem(await api.post("/repositories", {}, token=READER), 403)
        is_problem(await api.post("/repositories", {}, token=None), 401)


async def test_who_has_no_credentials_uses_up_nothing(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, writes_per_minute=1)) as api:
        for _ in range(3):
            is_problem(await api.post("/repositories", {}, token=None), 401)
            is_problem(await api.post("/repositories", {}, token="unknown-0123456789"), 401)
        await api.add()


async def test_listeners_are_not_limited_and_zero_is_no_limit(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, writes_per_minute=1)) as api:
        for _ in range(5):
            await api.lease()
    async with running(settings_for(sqlite_url, writes_per_minute=0)) as api:
        for _ in range(50):
            is_problem(await api.patch("/repositories/nowhere", {}), 404)


def refused(writes: Writes, caller: str) -> int:
    """Spend one; the seconds to wait, 0 when it was granted."""
    try:
        writes.spend(caller)
    except Problem as problem:
        return int((problem.headers or {})["Retry-After"])
    return 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), max_size=60), st.integers(1, 10))
def test_no_caller_writes_more_than_a_bucket_and_what_flowed_in(calls: list[tuple[str, float]], rate: int) -> None:
    clock = [0.0]
    writes = Writes(rate, lambda: clock[0])
    done = {"a": 0, "b": 0}
    for caller, pause in calls:
        clock[0] += pause
        if wait := refused(writes, caller):
            assert done[caller] >= rate, "nobody is refused before the bucket is empty"
            clock[0] += wait
            assert not refused(writes, caller), "what it was told to wait is enough"
        done[caller] += 1
        assert done[caller] <= rate + clock[0] * rate / 60 + 1e-3


def test_no_more_callers_are_remembered_than_wrote_lately() -> None:
    clock = [0.0]
    writes = Writes(1, lambda: clock[0])
    for number in range(30_000):
        clock[0] += 0.1
        writes.spend(f"caller {number}")
    assert len(writes._buckets) <= 10_001
    with pytest.raises(Problem):
        writes.spend("caller 29999")


# Time, over real sockets


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def answer_on(connection: socket.socket) -> tuple[str, dict[str, Any] | None]:
    """All that comes until the other side hangs up: the head, and the body."""
    came = b""
    try:
        while chunk := connection.recv(65_536):
            came += chunk
    except ConnectionResetError:  # it hung up on what we were still sending
        pass
    head, _, body = came.partition(b"\r\n\r\n")
    return head.decode(), json.loads(body) if body else None


@asynccontextmanager
async def served(database_url: str, seconds: float) -> AsyncIterator[tuple[int, Api]]:
    """Run the app behind a real server, as `tc-treeherder serve` makes it."""
    async with running(settings_for(database_url, request_timeout=seconds)) as api:
        config = uvicorn.Config(
            api.app,
            lifespan="off",
            log_config=None,
            http=partial(Protocol, seconds=seconds),  # type: ignore[arg-type]  # makes one
            ws="none",
        )
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            task = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.01)
                yield listening.getsockname()[1], api
            finally:
                server.should_exit = True
                await task


def dripping(port: int, head: bytes, drip: bytes) -> tuple[float, str]:
    """Send the head, then `drip` again and again until it hangs up: how long that took, and what it said."""
    with connected(port) as connection:
        begun = time.monotonic()
        connection.sendall(head)
        connection.settimeout(0.05)
        came = b""
        while time.monotonic() - begun < 8:
            try:
                chunk = connection.recv(65_536)
                if not chunk:
                    break
                came += chunk
            except TimeoutError:
                connection.sendall(drip)
            except ConnectionResetError:
                break
        return time.monotonic() - begun, came.decode()


def detail_of(answer: str) -> str:
    return str(json.loads(answer.rsplit("\r\n\r\n", maxsplit=1)[-1])["detail"])


AUTHORIZED = f"Authorization: Bearer {ADMIN}\r\n".encode()


@pytest.mark.parametrize(
    ("path", "more"),
    [("/api/v1/repositories", AUTHORIZED), ("/api/v1/events/pushes", None)],
)
@pytest.mark.parametrize("length", [b"Content-Length: 200000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_drips_is_408(sqlite_url: str, path: str, more: bytes | None, length: bytes) -> None:
    if more is None:
        more = b"".join(f"{name}: {value}\r\n".encode() for name, value in signature(b"").items() if "web" in name)
    async with served(sqlite_url, 0.5) as (port, _):
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n%b\r\n\r\n"
        drip = b"1\r\n \r\n" if b"chunked" in length else b" "
        took, answer = await asyncio.to_thread(dripping, port, head % (path.encode(), more, length), drip)
        assert answer.startswith("HTTP/1.1 408 "), answer
        assert "application/problem+json" in answer
        assert "connection: close" in answer.lower()
        assert "0.5 s (request_timeout)" in detail_of(answer)
        assert 0.4 < took < 3


async def test_a_head_that_drips_is_408_and_nothing_at_all_is_hung_up_on(sqlite_url: str) -> None:
    async with served(sqlite_url, 0.5) as (port, _):
        took, answer = await asyncio.to_thread(dripping, port, b"GET / HTTP/1.1\r\nX-A: ", b"a")
        assert answer.startswith("HTTP/1.1 408 "), answer
        assert "0.5 s (request_timeout)" in detail_of(answer)
        assert 0.4 < took < 3
        took, answer = await asyncio.to_thread(dripping, port, b"", b"")
        assert not answer
        assert 0.4 < took < 3
        # a second request on the same connection, too
        whole = b"GET /__lbheartbeat__ HTTP/1.1\r\nHost: x\r\n\r\n"
        took, answer = await asyncio.to_thread(dripping, port, whole + b"GET / HTTP/1.1\r\nX-A: ", b"a")
        assert answer.startswith("HTTP/1.1 200 ")
        assert "HTTP/1.1 408 " in answer
        assert 0.4 < took < 3


async def test_a_body_that_nobody_reads_cannot_drip_for_ever(sqlite_url: str) -> None:
    async with served(sqlite_url, 0.5) as (port, _):
        head = b"GET /__lbheartbeat__ HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
        took, answer = await asyncio.to_thread(dripping, port, head, b" ")
        assert answer.startswith("HTTP/1.1 200 ")
        assert answer.count("HTTP/1.1") == 1
        assert 0.4 < took < 3


async def test_others_are_answered_meanwhile_and_slow_is_not_too_slow(sqlite_url: str) -> None:
    async with served(sqlite_url, 1) as (port, _):
        url = f"http://127.0.0.1:{port}"
        with connected(port) as one, connected(port) as two:
            one.sendall(b"GET / HT")
            two.sendall(b"POST /api/v1/events/pushes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                for _ in range(3):
                    assert (await client.get("/__lbheartbeat__")).status_code == 200
                raw = b'{"events": []}'

                async def slowly() -> AsyncIterator[bytes]:
                    for byte in raw:
                        yield bytes([byte])
                        await asyncio.sleep(0.03)

                answer = await client.post("/api/v1/events/pushes", content=slowly(), headers=signature(raw))
                assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("header", [b"X-A: " + b"a" * 100_000, b"X-A: a\r\n" * 20_000])
async def test_a_head_without_end_is_431(sqlite_url: str, header: bytes) -> None:
    async with served(sqlite_url, 30) as (port, _):

        def send() -> tuple[str, dict[str, Any] | None]:
            with connected(port) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
                for start in range(0, len(header), 10_000):
                    try:
                        connection.sendall(header[start : start + 10_000])
                    except OSError:
                        break
                    time.sleep(0.005)
                return answer_on(connection)

        answer, body = await asyncio.to_thread(send)
        assert answer.startswith("HTTP/1.1 431 "), answer
        assert body is not None
        assert f"{MAX_HEAD:,} bytes" in body["detail"]


async def test_a_large_body_in_one_piece_is_no_large_head(sqlite_url: str) -> None:
    async with served(sqlite_url, 30) as (port, _):
        raw = json.dumps({"events": [], "x": "y" * 300_000}).encode()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            for _ in range(3):  # on one connection
                answer = await client.post("/api/v1/events/pushes", content=raw, headers=signature(raw))
                assert answer.status_code == 202, answer.text


async def test_the_rest_of_a_refused_body_is_not_taken(sqlite_url: str) -> None:
    async with served(sqlite_url, 30) as (port, _):

        def send() -> tuple[int, str]:
            with connected(port) as connection:
                connection.sendall(
                    b"POST /api/v1/repositories HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
                )
                sent = 0
                try:
                    while sent < 200_000_000:
                        connection.sendall(b"x" * 1_000_000)
                        sent += 1_000_000
                except OSError:
                    return sent, ""
                return sent, answer_on(connection)[0]

        sent, _ = await asyncio.to_thread(send)
        assert sent < 50_000_000
        with connected(port) as connection:
            connection.sendall(b"POST /api/v1/actions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
            answer, body = await asyncio.to_thread(answer_on, connection)
            assert answer.startswith("HTTP/1.1 413 ")
            assert body is not None
            assert body["status"] == 413


CHUNKED = b"%b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UNREAD, READ = CHUNKED % b"GET /__lbheartbeat__", CHUNKED % b"POST /api/v1/repositories"
READ = READ.replace(b"\r\n\r\n", b"\r\n" + AUTHORIZED + b"\r\n")
BODY = b"2\r\n{}\r\n0\r\n"
PIPELINED = b"GET /__version__ HTTP/1.1\r\nHost: x\r\n\r\n" * 500
ENDLESS = {
    "trailers": (READ + BODY, b"X-A: a\r\n" * 1000),
    "trailers that nobody reads": (UNREAD + BODY, b"X-A: a\r\n" * 1000),
    "a trailer's value": (READ + BODY + b"X-A: ", b"a" * 10_000),
    "a trailer's value that nobody reads": (UNREAD + BODY + b"X-A: ", b"a" * 10_000),
    "a trailer's name": (READ + BODY, b"a" * 10_000),
    "a chunk's extension": (READ + b"2;", b"a" * 10_000),
    "a chunk's extension that nobody reads": (UNREAD + b"2;", b"a" * 10_000),
    "a chunk's size": (READ, b"0" * 10_000),
    "chunks with extensions": (READ, b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n \r\n" * 200),
    "small chunks that nobody reads": (UNREAD, b"1\r\n \r\n" * 2_000),
    "a body that nobody reads": (UNREAD, b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"),
    "empty lines": (b"", b"\r\n" * 5_000),
    "empty lines after a request": (b"GET /__version__ HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n" * 5_000),
    "pipelined requests": (PIPELINED, PIPELINED),
    "what follows an upgrade": (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b"x" * 10_000),
    "a method": (b"", b"G" * 10_000),
    "a target": (b"GET /", b"a" * 10_000),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_nothing_of_a_request_is_read_without_end(sqlite_url: str, name: str) -> None:
    head, more = ENDLESS[name]
    most = 40 * MAX_DISCARDED  # what fills the buffers between here and there, too

    def send(port: int) -> int:
        with connected(port) as connection:
            sent = 0
            try:
                connection.sendall(head)
                connection.settimeout(5)
                while sent < most:
                    sent += connection.send(more)
            except (ConnectionResetError, BrokenPipeError):
                pass
            return sent

    before = psutil.Process().memory_info().rss
    async with served(sqlite_url, 30) as (port, _):
        assert await asyncio.to_thread(send, port) < most, "it is hung up on"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/__lbheartbeat__")).status_code == 200
    assert psutil.Process().memory_info().rss - before < 30 * 1024 * 1024


async def test_empty_lines_that_drip_after_a_request_keep_no_connection(sqlite_url: str) -> None:
    async with served(sqlite_url, 0.5) as (port, _):
        whole = b"GET /__lbheartbeat__ HTTP/1.1\r\nHost: x\r\n\r\n"
        took, answer = await asyncio.to_thread(dripping, port, whole, b"\r\n")
        assert answer.startswith("HTTP/1.1 200 ")
        assert 0.4 < took < 3


async def test_trailers_are_no_headers(sqlite_url: str) -> None:
    async with served(sqlite_url, 30) as (port, _):

        def send() -> tuple[str, dict[str, Any] | None]:
            with connected(port) as connection:
                connection.sendall(CHUNKED % b"POST /api/v1/repositories" + b"2\r\n{}\r\n0\r\n" + AUTHORIZED + b"\r\n")
                connection.shutdown(socket.SHUT_WR)
                return answer_on(connection)

        answer, _ = await asyncio.to_thread(send)
        assert answer.startswith("HTTP/1.1 401 "), answer


async def test_a_request_with_thousands_of_headers_reaches_no_route(sqlite_url: str) -> None:
    async with served(sqlite_url, 30) as (port, _):

        def send() -> tuple[str, dict[str, Any] | None]:
            with connected(port) as connection:
                connection.sendall(b"GET /__version__ HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 5_000 + b"\r\n")
                return answer_on(connection)

        answer, body = await asyncio.to_thread(send)
        assert answer.startswith("HTTP/1.1 400 "), answer
        assert body is not None
        assert "headers" in body["detail"]
        assert "application/problem+json" in answer


async def test_a_body_in_many_small_chunks_is_taken(sqlite_url: str) -> None:
    async with served(sqlite_url, 30) as (port, _):
        raw = json.dumps({"events": [], "x": "y" * 40_000}).encode()

        async def bytewise() -> AsyncIterator[bytes]:
            for byte in raw:
                yield bytes([byte])

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answer = await client.post("/api/v1/events/pushes", content=bytewise(), headers=signature(raw))
            assert answer.status_code == 202, answer.text
