"""No request of ours goes to another host than the configured one, and no answer is read without limits."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.clients import hg, taskcluster, treeherder
from service.clients.auth import SignedRequest, TaskclusterLogins
from service.clients.http import Http
from service.errors import UpstreamError
from service.settings import Environment, Settings, TaskclusterSettings
from tests.service.asgi import NO_CERTIFICATES
from tests.service.harness import serving

TASK = "fN1SbArXTPSVFNUvaOlinQ"
NODE = "0" * 40
SECRET = "hush-hush-0123456789"

Call = Callable[[], Awaitable[Any]]


async def calls_of(url: str, exits: AsyncExitStack) -> dict[str, Call]:
    """Return calls of all clients to the server at `url`, one for each way in which a client sends requests."""
    settings = TaskclusterSettings.model_validate(
        {"root_url": url, "client_id": "tc-treeherder", "access_token": SECRET, "timeout": 5}
    )
    mercurial = hg.HttpHg(Settings(hg_timeout=5))
    queue, logins = taskcluster.TaskclusterQueue(settings), TaskclusterLogins(settings)
    for client in (mercurial, queue, logins):
        exits.push_async_callback(client.close)
    environment = Environment.model_validate({"url": url, "client_id": "tc", "secret": SECRET, "timeout": 5})
    th = treeherder.RestTreeherder(environment, await exits.enter_async_context(Http("treeherder")))
    return {
        "hg raw-file": lambda: mercurial.raw_file(f"{url}/mc", NODE, ".taskcluster.yml"),
        "hg json-pushes": lambda: mercurial.last_push_id(f"{url}/mc"),
        "queue get": lambda: queue.task(TASK),
        "queue put": lambda: queue.create_task(TASK, {}, ["a"]),
        "queue post": lambda: queue.statuses([TASK]),
        "queue cancel": lambda: queue.cancel_task(TASK, "a"),
        "auth": lambda: logins.check(SignedRequest("GET", "/", "example.com", 443, "Hawk x")),
        "treeherder post": lambda: th.post_jobs("mc", [{}]),
        "treeherder get": lambda: th.find_push("mc", NODE, None),
    }


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl.create_default_context", lambda *_, **__: NO_CERTIFICATES)


NAMES = [
    *("hg raw-file", "hg json-pushes", "queue get", "queue put", "queue post", "queue cancel", "auth"),
    *("treeherder post", "treeherder get"),
]
WELCOME = {
    # whatever the client hopes for
    "lastpushid": 1,
    "results": [{"revision": NODE}],
    "status": {"taskId": TASK},
    "statuses": [],
    "tasks": [],
    "clientId": "x",
    "scopes": ["*"],
}


ODD = b'{"status": 7, "statuses": {}, "results": {}, "lastpushid": "1"}'


def app_of(answer: Callable[[Request], Response]) -> Starlette:
    async def any_path(request: Request) -> Response:
        await request.body()
        return answer(request)

    methods = ["GET", "POST", "PUT"]
    return Starlette(routes=[Route("/{path:path}", any_path, methods=methods)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_nor_believed(name: str, status: int) -> None:
    requests: list[Request] = []

    def elsewhere(request: Request) -> Response:
        requests.append(request)
        return JSONResponse(WELCOME)

    async with AsyncExitStack() as exits:
        other = await exits.enter_async_context(serving(app_of(elsewhere)))
        redirect = JSONResponse(WELCOME, status, {"Location": f"{other}/secret"})
        url = await exits.enter_async_context(serving(app_of(lambda _: redirect)))
        call = (await calls_of(url, exits))[name]
        with pytest.raises(UpstreamError, match="redirects are not followed") as refused:
            await call()
    assert f"{other}/secret" in str(refused.value)
    assert requests == []


@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_without_end_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskcluster, "MAX_ANSWER", 1_000_000)
    monkeypatch.setattr(treeherder, "MAX_ANSWER", 1_000_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b" " * 65_536
            await asyncio.sleep(0)  # the server learns only on the loop's next turn that nobody reads any more

    async with AsyncExitStack() as exits:
        answer = StreamingResponse(endless(), media_type="application/json")
        url = await exits.enter_async_context(serving(app_of(lambda _: answer)))
        call = (await calls_of(url, exits))[name]
        with pytest.raises(UpstreamError, match=r"(larger|more) than (1,000,000|2,097,152|65,536) bytes"):
            await call()
    assert sent < 20_000_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer", [b"", b"null", b"[]", b"{}", b'"x"', b"[" * 100_000, ODD, b"\xff\xfe"], ids=lambda answer: str(answer[:9])
)
async def test_nonsense_is_an_upstream_error_and_nothing_else(name: str, answer: bytes) -> None:
    async with AsyncExitStack() as exits:
        response = Response(answer, media_type="application/json")
        url = await exits.enter_async_context(serving(app_of(lambda _: response)))
        call = (await calls_of(url, exits))[name]
        if name in {"hg raw-file", "treeherder post"}:  # bytes are bytes, and whatever comes with a 200 is one
            await call()
            return
        if name == "queue get" and answer in {b"{}", ODD}:
            assert await call() == json.loads(answer), "a definition is what the queue says it is"
            return
        with pytest.raises(UpstreamError):
            await call()
