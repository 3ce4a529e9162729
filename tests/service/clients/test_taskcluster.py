"""Calls of Taskcluster's queue through the official client: the meaning of each answer, and the number of requests."""

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.taskcluster import Client, Taskcluster, create_app
from sandbox.taskcluster.clock import DAY, HOUR, iso
from service.clients.taskcluster import ScopeSet, TaskclusterQueue, missing_scopes, satisfies
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.tasks.ids import slugid
from service.settings import TaskclusterSettings
from tests.service.harness import ROOT, serving

TASK = slugid(b"k", "a")
CREATE = [
    "queue:create-task:project:none",
    "queue:scheduler-id:test",
    "queue:create-task:lowest:prov/w",
]


def settings_of(url: str, **more: Any) -> TaskclusterSettings:
    values = {"client_id": ROOT.client_id, "access_token": ROOT.access_token, "timeout": 5, **more}
    return TaskclusterSettings(root_url=url, **values)


@asynccontextmanager
async def queue_at(url: str, **more: Any) -> AsyncIterator[TaskclusterQueue]:
    queue = TaskclusterQueue(settings_of(url, **more))
    try:
        yield queue
    finally:
        await queue.close()


@pytest.fixture
def tc() -> Taskcluster:
    return Taskcluster([ROOT, Client("reader", "reader-secret", ("queue:get-task:*",))], claim_wait=0)


@pytest.fixture
async def url(tc: Taskcluster) -> AsyncIterator[str]:
    async with serving(create_app(tc)) as address:
        yield address


@pytest.fixture
async def queue(url: str) -> AsyncIterator[TaskclusterQueue]:
    async with queue_at(url) as opened:
        yield opened


def define(tc: Taskcluster, **more: Any) -> dict[str, Any]:
    at = tc.clock.now()
    return {
        "taskQueueId": "prov/w",
        "schedulerId": "test",
        "created": iso(at),
        "deadline": iso(at + HOUR),
        "expires": iso(at + DAY),
        "payload": {"none": None, "\u00e4": 1.5},
        "metadata": {"name": "n", "description": "d", "owner": "o", "source": "https://example.com"},
        **more,
    }


# What is done


async def test_create_read_schedule_and_cancel(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    assert await queue.task(TASK) is None
    assert await queue.status(TASK) is None
    status = await queue.create_task(TASK, define(tc), CREATE)
    assert (status["taskId"], status["state"]) == (TASK, "pending")
    definition = await queue.task(TASK)
    assert definition == tc.queue.task(TASK)
    assert definition is not None
    assert definition["payload"] == {"none": None, "\u00e4": 1.5}
    current = await queue.status(TASK)
    assert current is not None
    assert current["state"] == "pending"
    status = await queue.cancel_task(TASK, f"queue:cancel-task:test/{TASK}/{TASK}")
    assert status["state"] == "exception"

    other = slugid(b"k", "b")
    tc.faults.add("crash", "createTask", times=1)
    with pytest.raises(Unavailable):
        await queue.create_task(other, define(tc), CREATE)
    status = await queue.schedule_task(other, f"queue:schedule-task:test/{other}/{other}")
    assert status["state"] == "pending"


async def test_many_at_once(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    ids = [slugid(b"k", str(n)) for n in range(1_050)]
    for task_id in ids[:1_020]:
        tc.queue.create_task(task_id, define(tc))
    assert set(await queue.statuses(ids)) == set(ids[:1_020])
    tasks = await queue.tasks(ids)
    assert set(tasks) == set(ids[:1_020])
    assert tasks[ids[0]] == tc.queue.task(ids[0])
    assert await queue.statuses([]) == {}


async def test_calls_go_in_parallel_over_one_session(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    tc.latency = 0.3
    loop = asyncio.get_running_loop()
    began = loop.time()
    ids = [slugid(b"k", str(n)) for n in range(20)]
    await asyncio.gather(*(queue.create_task(task_id, define(tc), CREATE) for task_id in ids))
    assert loop.time() - began < 4
    assert set(tc.queue.tasks) == set(ids)


# With which rights


async def test_authorized_scopes_cut_our_rights_down(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    for missing in CREATE:
        with pytest.raises(PermanentUpstreamError) as refused:
            await queue.create_task(TASK, define(tc), [scope for scope in CREATE if scope != missing])
        assert refused.value.status == 403
        assert missing in str(refused.value)
        assert "credentials" not in str(refused.value)
        assert "---" not in str(refused.value)
    with pytest.raises(PermanentUpstreamError):
        await queue.create_task(TASK, define(tc), [])
    assert await queue.status(TASK) is None  # reads go with all our rights
    await queue.create_task(TASK, define(tc), CREATE)
    for scope in ("queue:cancel-task:test/x/y", f"queue:schedule-task:test/{TASK}/{TASK}"):
        with pytest.raises(PermanentUpstreamError):
            await queue.cancel_task(TASK, scope)


async def test_a_scope_that_cannot_be_sent_is_left_out(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    """Otherwise every call would be a 401."""
    odd = ["queue:route:notify.email.\u00e4@example.com.*", "a\nb", "a\0", "\ud800"]
    status = await queue.create_task(TASK, define(tc), [*CREATE, *odd])
    assert status["state"] == "pending"


async def test_credentials_stay_as_they_were(url: str, tc: Taskcluster) -> None:
    """Taskcluster's client changes its dict of credentials, so a shared dict would keep the scopes of another call."""
    settings = settings_of(url)
    before = settings.model_dump_json(), settings.access_token
    queue = TaskclusterQueue(settings)
    await queue.create_task(TASK, define(tc), CREATE)
    with pytest.raises(PermanentUpstreamError):
        await queue.create_task(TASK, define(tc), CREATE[:1])
    await queue.create_task(TASK, tc.queue.task(TASK), CREATE)
    await queue.close()
    assert (settings.model_dump_json(), settings.access_token) == before


async def test_temporary_credentials(url: str, tc: Taskcluster) -> None:
    at = tc.clock.now()
    temporary = tc.auth.temporary_credentials(ROOT.client_id, "temporary", ["*"], at - HOUR, at + HOUR)
    async with queue_at(
        url,
        client_id=temporary["clientId"],
        access_token=temporary["accessToken"],
        certificate=temporary["certificate"],
    ) as queue:
        await queue.create_task(TASK, define(tc), CREATE)
        assert await queue.task(TASK) is not None
        with pytest.raises(PermanentUpstreamError):
            await queue.create_task(slugid(b"k", "b"), define(tc), CREATE[1:])


async def test_without_credentials_it_asks_as_anybody(url: str, tc: Taskcluster) -> None:
    async with queue_at(url, client_id=None, access_token=None) as queue:
        with pytest.raises(PermanentUpstreamError) as refused:
            await queue.create_task(TASK, define(tc), CREATE)
    assert refused.value.status == 403


async def test_reads_that_are_not_allowed(url: str, tc: Taskcluster) -> None:
    async with queue_at(url, client_id="reader", access_token="reader-secret") as queue:
        assert await queue.task(TASK) is None
        with pytest.raises(PermanentUpstreamError) as refused:
            await queue.status(TASK)
    assert refused.value.status == 403


async def test_wrong_credentials_can_be_mended(url: str, tc: Taskcluster) -> None:
    async with queue_at(url, access_token="wrong-secret") as queue:
        with pytest.raises(Unavailable, match="refuses our credentials") as refused:
            await queue.status(TASK)
    assert "wrong-secret" not in str(refused.value)


# What goes wrong


async def test_what_is_refused_for_good(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    await queue.create_task(TASK, define(tc), CREATE)
    for definition, status in (
        (define(tc, payload={"other": 1}), 409),
        (define(tc, retries=99), 400),
        (define(tc, dependencies=[slugid(b"k", "missing")]), 400),
    ):
        with pytest.raises(PermanentUpstreamError) as refused:
            await queue.create_task(TASK if status == 409 else slugid(b"k", "b"), definition, CREATE)
        assert (refused.value.status, refused.value.system) == (status, "taskcluster")
        assert len(str(refused.value)) > 20


STATUSES: list[tuple[int, type[Exception]]] = [
    (status, PermanentUpstreamError) for status in (400, 403, 404, 405, 409, 410, 413, 418, 422)
]
LATER: list[tuple[int, type[Exception]]] = [
    (status, Unavailable) for status in (401, 408, 429, 500, 502, 503, 504, 599)
]


@pytest.mark.parametrize(("status", "error"), STATUSES + LATER)
@pytest.mark.parametrize("body", ["ours", "nothing", "html"])
async def test_each_status(status: int, error: type[Exception], body: str) -> None:
    content = {
        "ours": json.dumps({"code": "Some", "message": "because\n---\nmore", "requestInfo": {}}),
        "nothing": "",
        "html": "<html>\0",
    }[body]
    calls = 0

    async def answer(_: Request) -> Response:
        nonlocal calls
        calls += 1
        return Response(content, status, media_type="application/json" if body == "ours" else "text/html")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT"])])
    async with serving(app) as url, queue_at(url) as queue:
        with pytest.raises(error) as raised:
            await queue.create_task(TASK, {}, ["a"])
        assert getattr(raised.value, "status", None) in {None, status}
        if status == 404:
            assert await queue.task(TASK) is None
        else:
            with pytest.raises(error):
                await queue.task(TASK)
    assert calls == 2, "the library must retry nothing: our own work does"
    assert ROOT.access_token not in str(raised.value)


async def test_a_reason_without_an_end_is_cut() -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"code": "InputError", "message": "x" * 1_000_000, "requestInfo": {}}, 400)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["PUT"])])
    async with serving(app) as url, queue_at(url) as queue:
        with pytest.raises(PermanentUpstreamError) as raised:
            await queue.create_task(TASK, {}, ["a"])
    assert 30_000 < len(str(raised.value)) < 30_100
    assert str(raised.value).endswith("… (1,000,000 characters)")


@pytest.mark.parametrize("content", ["", "<html>", "[1]", "null", '"x"'])
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
async def test_a_success_that_is_none(content: str, kind: str) -> None:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT"])])
    async with serving(app) as url, queue_at(url) as queue:
        with pytest.raises(Unavailable, match="answer is not a JSON object"):
            await queue.create_task(TASK, {}, ["a"])
        with pytest.raises(Unavailable, match="answer is not a JSON object"):
            await queue.task(TASK)


LISTS: dict[str, Callable[[TaskclusterQueue], Awaitable[Any]]] = {
    "dependents": lambda queue: queue.dependents(TASK),
    "group": lambda queue: _whole(queue.group(TASK)),
    "tasks": lambda queue: queue.tasks([TASK]),
    "statuses": lambda queue: queue.statuses([TASK]),
}


async def _whole(pages: AsyncIterator[Any]) -> list[Any]:
    return [page async for page in pages]


@pytest.mark.parametrize("item", [None, "x", 1, [], {}, {"taskId": TASK}, {"status": 1, "task": 1, "taskId": TASK}])
@pytest.mark.parametrize("listed", LISTS)
async def test_a_list_of_something_else(listed: str, item: Any) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"tasks": [item], "statuses": [item]})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with serving(app) as url, queue_at(url) as queue:
        with pytest.raises(Unavailable, match="Taskcluster's answer has no"):
            await LISTS[listed](queue)


@pytest.mark.parametrize(("token", "ends"), [("again", False), ({}, True), (7, False), ("", True), (None, True)])
@pytest.mark.parametrize("listed", [name for name in LISTS if name != "dependents"])
async def test_a_list_that_never_ends(listed: str, token: Any, ends: bool) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"tasks": [], "statuses": [], "continuationToken": token})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with serving(app) as url, queue_at(url) as queue, asyncio.timeout(5):
        if ends:
            assert not any(await LISTS[listed](queue))
        else:
            with pytest.raises(Unavailable, match="Taskcluster's answer"):
                await LISTS[listed](queue)


@pytest.mark.parametrize(("kind", "calls"), [("drop", 2), ("drop-after", 2), ("hang", 1)])
async def test_a_call_without_an_answer_ends(url: str, tc: Taskcluster, kind: str, calls: int) -> None:
    """A request whose connection was lost is sent again by aiohttp, which does no harm: it is the same request."""
    tc.faults.add(kind, "createTask")
    async with queue_at(url, timeout=0.3) as queue:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await queue.create_task(TASK, define(tc), CREATE)
        assert tc.journal.calls["createTask"] == calls
        status = await queue.status(TASK)
    tc.faults.remove()
    assert (status is not None) == (kind == "drop-after")


async def test_a_taskcluster_that_is_away() -> None:
    async with serving(Starlette()) as url:
        pass
    address = url.removeprefix("http://")
    async with queue_at(url) as queue:
        with pytest.raises(Unavailable, match=rf"cannot be reached: Connection refused \({address}\)"):
            await queue.status(TASK)


async def test_a_throttled_call_is_later(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    tc.faults.add("throttle", "createTask", times=1)
    with pytest.raises(Unavailable, match="429") as refused:
        await queue.create_task(TASK, define(tc), CREATE)
    assert (refused.value.retry_after, refused.value.status) == (None, 429)
    await queue.create_task(TASK, define(tc), CREATE)


@pytest.mark.parametrize("status", [429, 503])
async def test_how_long_an_upstream_asks_to_be_left_alone_is_heard(
    tc: Taskcluster, queue: TaskclusterQueue, status: int
) -> None:
    """Taskcluster itself does not say; what stands before it may."""
    tc.faults.add("before", "createTask", status=status, retry_after=7, times=1)
    with pytest.raises(Unavailable) as refused:
        await queue.create_task(TASK, define(tc), CREATE)
    assert (refused.value.retry_after, refused.value.status) == (timedelta(seconds=7), status)


async def test_the_authorization_is_not_logged(
    tc: Taskcluster, queue: TaskclusterQueue, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await queue.create_task(TASK, define(tc), CREATE)
        tc.faults.add("before", "createTask", times=1)
        with pytest.raises(Unavailable):
            await queue.create_task(TASK, define(tc), CREATE)
    assert "Hawk" not in caplog.text
    assert ROOT.access_token not in caplog.text


async def test_clients_of_many_projects_do_not_pile_up(tc: Taskcluster, queue: TaskclusterQueue) -> None:
    for number in range(520):
        queue._queue([f"scope:{number}"])
    assert len(queue._clients) == 500
    await queue.create_task(TASK, define(tc), CREATE)


async def test_closing_leaves_no_connection(url: str, tc: Taskcluster) -> None:
    queue = TaskclusterQueue(settings_of(url))
    await queue.close()  # nothing was opened yet
    await queue.status(TASK)
    session = queue._session
    await queue.close()
    assert session is not None
    assert session.closed


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ("missing the following scopes:\n\n```\nqueue:route:a\n```\n\nmore ```\nb\n```", ["queue:route:a"]),
        ('missing the following scopes:\n```\n{"AllOf": ["a", {"AnyOf": ["b", "c"]}]}\n```', ["a", "c"]),
        ('missing the following scopes:\n```\n{"AnyOf": []}\n```', []),
        ("something else", []),
        ("", []),
    ],
)
def test_missing_scopes(message: str, missing: list[str]) -> None:
    assert missing_scopes(message) == missing


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", [" " * 1_000_000, "`" * 1_000_000, "missing the following scopes:" * 30_000])
def test_missing_scopes_of_hostile_texts_takes_no_time(text: str) -> None:
    """A message contains scopes of a stranger's task. A megabyte of spaces once took minutes."""
    assert missing_scopes(f"missing the following scopes:\n\n```\n{text}x\n```") != []
    assert missing_scopes(f"missing the following scopes: {text}") == [] or "`" in text


def test_aiohttp_keeps_what_was_read_in_body() -> None:
    """Our `_LimitedResponse` relies on this name, which is not part of aiohttp's documented interface (3.14.5)."""
    source = inspect.getsource(aiohttp.ClientResponse.read)
    assert "if self._body is None" in source, "ClientResponse.read has no _body any more: see _LimitedResponse"


_SCOPES = st.text("ab:*", max_size=4)


@given(st.lists(_SCOPES, max_size=4), _SCOPES)
def test_a_set_of_scopes_satisfies_what_its_scopes_do(held: list[str], scope: str) -> None:
    stars = [candidate[:-1] for candidate in held if candidate.endswith("*")]
    expected = scope in held or any(scope.startswith(prefix) for prefix in stars)
    assert ScopeSet(held).satisfies(scope) is satisfies(held, scope) is expected


def test_many_scopes_are_found_among_many() -> None:
    held = ScopeSet(f"queue:route:index.a{number}*" for number in range(100_000))
    assert not any(held.satisfies(f"queue:route:index.b{number}") for number in range(10_000))
    assert held.satisfies("queue:route:index.a77.b")
