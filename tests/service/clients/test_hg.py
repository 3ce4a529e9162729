"""Mercurial over HTTP: what is read, and what is refused."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.hg import MemoryPushlog, NewChangeset
from sandbox.hg.app import create_app
from sandbox.hg.faults import Fault, Faults
from service.clients.hg import MAX_FILE, HttpHg
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import load
from tests.service.harness import serving

FILE = ".taskcluster.yml"


@asynccontextmanager
async def client(seconds: float = 5) -> AsyncIterator[HttpHg]:
    hg = HttpHg(load(hg_timeout=seconds))
    try:
        yield hg
    finally:
        await hg.close()


@pytest.fixture
async def hg() -> AsyncIterator[HttpHg]:
    async with client() as opened:
        yield opened


class Server:
    """A stand-in with the repository `mc`."""

    def __init__(self, url: str, pushlog: MemoryPushlog, faults: Faults) -> None:
        self.url, self.pushlog, self.faults = f"{url}/mc", pushlog, faults

    def push(self, content: bytes | None = b"version: 1\n") -> str:
        files = {"other": "x"} if content is None else {FILE: content}
        return self.pushlog.push("mc", [NewChangeset(files=files)], user="u").nodes[-1]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    pushlog = MemoryPushlog()
    pushlog.create("mc")
    app = create_app(pushlog)
    async with serving(app) as url:
        yield Server(url, pushlog, app.state.faults)


def answering(response: Response) -> Starlette:
    """Serve this answer to every request."""

    async def answer(_: Request) -> Response:
        return response

    return Starlette(routes=[Route("/{path:path}", answer)])


async def test_a_file_comes_as_its_bytes(server: Server, hg: HttpHg) -> None:
    odd = b"\xff\x00 raw\r\n"
    assert await hg.raw_file(server.url, server.push(odd), FILE) == odd


async def test_a_file_that_is_not_there_is_none(server: Server, hg: HttpHg) -> None:
    assert await hg.raw_file(server.url, server.push(None), FILE) is None


async def test_a_changeset_that_is_not_there_may_come_yet(server: Server, hg: HttpHg) -> None:
    node = server.push()
    with pytest.raises(Unavailable, match="the server does not have the changeset"):
        await hg.raw_file(server.url, "f" * 40, FILE)
    with pytest.raises(Unavailable, match="the server does not have the changeset"):
        await hg.raw_file(server.url + "x", node, FILE)  # no such repository, or not just now
    server.pushlog.obsolete("mc", 1)
    with pytest.raises(Unavailable, match="the server does not have the changeset"):
        await hg.raw_file(server.url, node, FILE)


async def test_the_end_of_a_pushlog(server: Server, hg: HttpHg) -> None:
    assert await hg.last_push_id(server.url) == 0
    for _ in range(12):
        server.push()
    assert await hg.last_push_id(server.url) == 12


async def test_no_pushlog_there(server: Server, hg: HttpHg) -> None:
    with pytest.raises(PermanentUpstreamError, match=r"/nothing has no pushlog: .* answers 404") as refused:
        await hg.last_push_id(server.url.replace("/mc", "/nothing"))
    assert refused.value.status == 404
    assert refused.value.system == "hg"


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
async def test_other_answers_mean_later(server: Server, hg: HttpHg, status: int) -> None:
    server.faults.add(Fault(repository="mc", kind="status", status=status))
    with pytest.raises(Unavailable, match=f"answers {status}"):
        await hg.last_push_id(server.url)
    with pytest.raises(Unavailable, match=f"answers {status}"):
        await hg.raw_file(server.url, "0" * 40, FILE)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>\xff\x00",
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"lastpushid": "1"}',
        b'{"lastpushid": -1}',
        b'{"lastpushid": 1.5}',
        b'{"lastpushid": 99999999999}',
        b'{"lastpushid": null}',
    ],
)
async def test_an_answer_that_is_no_pushlog(hg: HttpHg, body: bytes) -> None:
    async with serving(answering(Response(body))) as url:
        with pytest.raises(Unavailable, match=r"does not answer a pushlog of version 2") as refused:
            await hg.last_push_id(url)
        assert "\0" not in str(refused.value)


@pytest.mark.parametrize("kind", ["hangup", "truncated"])
async def test_half_an_answer(server: Server, hg: HttpHg, kind: str) -> None:
    server.faults.add(Fault(repository="mc", kind=kind, command="json-pushes"))  # type: ignore[arg-type]  # one of its kinds
    with pytest.raises(Unavailable):
        await hg.last_push_id(server.url)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(hg: HttpHg, status: int) -> None:
    paths: list[str] = []

    async def elsewhere(request: Request) -> Response:
        paths.append(request.url.path)
        return Response(b'{"lastpushid": 1}')

    target = Starlette(routes=[Route("/{path:path}", elsewhere)])
    async with serving(target) as other, serving(answering(RedirectResponse(f"{other}/secret", status))) as url:
        with pytest.raises(
            PermanentUpstreamError, match=r"redirects to .*/secret, and redirects are not followed"
        ) as refused:
            await hg.last_push_id(url)
        assert refused.value.status == status
        with pytest.raises(PermanentUpstreamError, match="redirects to"):
            await hg.raw_file(url, "0" * 40, FILE)
    assert paths == []


async def test_a_file_of_just_the_limit_and_one_beyond(server: Server, hg: HttpHg) -> None:
    assert len(await hg.raw_file(server.url, server.push(b"x" * MAX_FILE), FILE) or b"") == MAX_FILE
    with pytest.raises(PermanentUpstreamError, match="is larger than 2,097,152 bytes"):
        await hg.raw_file(server.url, server.push(b"x" * (MAX_FILE + 1)), FILE)


async def endless(chunk: bytes, pause: float = 0) -> AsyncIterator[bytes]:
    while True:
        yield chunk
        await asyncio.sleep(pause)


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_without_end_is_not_read(hg: HttpHg, status: int) -> None:
    async with serving(answering(StreamingResponse(endless(b"x" * 65536), status))) as url:
        with pytest.raises((PermanentUpstreamError, Unavailable)):
            await hg.raw_file(url, "0" * 40, FILE)


async def test_a_bomb_in_the_encoding_is_not_unpacked(hg: HttpHg) -> None:
    packed = gzip.compress(b"\0" * 200 * 1024 * 1024, 9)
    response = Response(packed, headers={"content-encoding": "gzip"})
    async with serving(answering(response)) as url:
        with pytest.raises(PermanentUpstreamError, match="larger than"):
            await hg.raw_file(url, "0" * 40, FILE)


async def test_an_answer_that_drips_is_ended() -> None:
    async with client(0.3) as hg, serving(answering(StreamingResponse(endless(b"x", 0.05)))) as url:
        with pytest.raises(Unavailable, match=r"no complete answer within 0\.3 s"):
            await hg.raw_file(url, "0" * 40, FILE)


async def test_a_server_that_says_nothing_is_left() -> None:
    async with client(0.2) as hg, serving(answering(StreamingResponse(endless(b"", 5)))) as url:
        with pytest.raises(Unavailable):
            await hg.last_push_id(url)


async def test_a_server_that_is_away(hg: HttpHg) -> None:
    async with serving(answering(Response())) as url:
        pass
    with pytest.raises(Unavailable, match="Cannot connect to host"):
        await hg.last_push_id(url)


async def test_we_say_who_asks_and_ask_for_next_to_nothing(hg: HttpHg) -> None:
    seen: list[Request] = []

    async def note(request: Request) -> Response:
        seen.append(request)
        return Response(b'{"lastpushid": 1}')

    async with serving(Starlette(routes=[Route("/{path:path}", note)])) as url:
        assert await hg.last_push_id(f"{url}/mc") == 1
    assert seen[0].headers["user-agent"] == "tc-treeherder"
    assert dict(seen[0].query_params) == {"version": "2", "startID": str(2**31 - 1)}


async def test_a_push_is_read_by_its_id(hg: HttpHg, server: Server) -> None:
    server.push(b"version: 1\n")
    tip = server.push(b"version: 2\n")
    entry = await hg.push(server.url, 2)
    assert entry is not None
    assert (entry["user"], [changeset["node"] for changeset in entry["changesets"]]) == ("u", [tip])
    assert await hg.push(server.url, 3) is None
    with pytest.raises(PermanentUpstreamError, match="has no pushlog"):
        await hg.push(f"{server.url}x", 1)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"pushes": []}', b'{"pushes": null}', b"\xff"])
async def test_what_is_no_pushlog_of_version_2_is_asked_for_again(hg: HttpHg, body: bytes) -> None:
    async with serving(answering(Response(body))) as url:
        with pytest.raises(Unavailable, match="does not answer a pushlog of version 2"):
            await hg.push(f"{url}/mc", 1)
