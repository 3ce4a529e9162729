"""Treeherder: REST submission against the stand-in, and the message for one that listens on Pulse."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox import treeherder
from sandbox.treeherder.store import Repository, Store
from service.clients.http import Http
from service.clients.treeherder import FoundPush, RestTreeherder, hgpushes_message
from service.errors import PermanentUpstreamError, Unavailable, UpstreamError
from service.settings import Environment
from tests.published_schemas import read_published
from tests.service.harness import TREEHERDER_ID, TREEHERDER_SECRET, node, serving

RESULTSET: dict[str, Any] = {
    "revision": node(1),
    "revision_hash": node("hash"),
    "push_timestamp": 1_700_000_000,
    "author": "dev@example.com",
    "type": "push",
    "active_status": "active",
    "revisions": [],
}


@pytest.fixture
def state() -> treeherder.State:
    return treeherder.State(Store([Repository("mc")]), {TREEHERDER_ID: TREEHERDER_SECRET})


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with Http("treeherder") as client:
        yield client


def client_of(http: Http, url: str, **more: Any) -> RestTreeherder:
    values = {"client_id": TREEHERDER_ID, "secret": TREEHERDER_SECRET, "timeout": 5, **more}
    return RestTreeherder(Environment(url=url, **values), http)


@pytest.fixture
async def th(state: treeherder.State, http: Http) -> AsyncIterator[RestTreeherder]:
    async with serving(treeherder.create_app(state)) as url:
        yield client_of(http, url)


def resultset() -> dict[str, Any]:
    """Return a resultset that the stand-in accepts."""
    revision = node(1)
    return {
        **RESULTSET,
        "revision_hash": hashlib.sha1(f"{revision}default".encode(), usedforsecurity=False).hexdigest(),
        "revisions": [
            {
                "revision": revision,
                "author": "D\u00e4v <dev@example.com>",
                "comment": "Bug 1 \u2014 \U0001f600",
                "files": [],
                "branch": "default",
                "repository": "mc",
            }
        ],
    }


async def test_a_resultset_is_taken(th: RestTreeherder, state: treeherder.State) -> None:
    for _ in range(2):
        await th.post_resultset("mc", resultset())
    (push,) = state.store.pushes
    assert push.body == resultset()
    assert push.posts == 2


async def test_the_same_at_the_same_time(th: RestTreeherder, state: treeherder.State) -> None:
    """Each signature has a nonce of its own."""
    await asyncio.gather(*(th.post_resultset("mc", resultset()) for _ in range(20)))
    assert state.counters["POST resultset 200"] == 20


@pytest.mark.parametrize(("name", "value"), [("client_id", "nobody"), ("secret", "wrong-secret")])
async def test_wrong_credentials_can_be_mended(state: treeherder.State, http: Http, name: str, value: str) -> None:
    async with serving(treeherder.create_app(state)) as url:
        with pytest.raises(Unavailable, match="answers 403") as refused:
            await client_of(http, url, **{name: value}).post_resultset("mc", resultset())
    assert "wrong-secret" not in str(refused.value)
    assert ("the key is not that of this client" in str(refused.value)) == (name == "secret")


async def test_a_project_that_is_not_there_yet(th: RestTreeherder) -> None:
    with pytest.raises(Unavailable, match=r"/api/project/other/resultset/ answers 404: "):
        await th.post_resultset("other", resultset())


@pytest.mark.parametrize("with_header", [True, False])
async def test_throttled(th: RestTreeherder, state: treeherder.State, with_header: bool) -> None:
    state.behaviour.too_many, state.behaviour.retry_after = 1, with_header
    with pytest.raises(Unavailable, match="answers 429") as refused:
        await th.post_resultset("mc", resultset())
    if with_header:
        assert refused.value.retry_after is not None
        assert timedelta() < refused.value.retry_after <= timedelta(minutes=1)
    else:
        assert refused.value.retry_after is None
    await th.post_resultset("mc", resultset())


async def test_a_failure_after_the_work(th: RestTreeherder, state: treeherder.State) -> None:
    state.behaviour.fail_after = 1
    with pytest.raises(Unavailable, match="answers 500"):
        await th.post_resultset("mc", resultset())
    await th.post_resultset("mc", resultset())
    assert len(state.store.pushes) == 1


@pytest.mark.parametrize("how", ["503", "drop"])
async def test_down_for_a_while(th: RestTreeherder, state: treeherder.State, how: Any) -> None:
    state.behaviour.down_how, state.behaviour.down = how, 1
    with pytest.raises(Unavailable):
        await th.post_resultset("mc", resultset())
    await th.post_resultset("mc", resultset())


def answering(response: Response) -> Starlette:
    async def answer(_: Request) -> Response:
        return response

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (JSONResponse({"detail": "because"}, 400), PermanentUpstreamError, "answers 400: because"),
        (JSONResponse({"message": "because"}, 422), PermanentUpstreamError, "answers 422: because"),
        (JSONResponse(["because"], 400), PermanentUpstreamError, "because"),
        (JSONResponse({"detail": "x" * 5_000}, 400), PermanentUpstreamError, "answers 400: x"),
        (Response(b"\xff\x00" * 400, 400), PermanentUpstreamError, "answers 400"),
        (JSONResponse({"detail": "because"}, 401), Unavailable, "answers 401: because"),
        (Response("", 408), Unavailable, "answers 408"),
        (Response("", 500), Unavailable, "answers 500"),
        (Response("<html>gone", 502), Unavailable, "answers 502: <html>gone"),
        (Response("", 503, {"retry-after": "7"}), Unavailable, "answers 503"),
        (RedirectResponse("http://127.0.0.1:9/login", 302), Unavailable, "answers 302"),
    ],
)
async def test_what_other_answers_mean(
    http: Http, response: Response, error: type[UpstreamError], message: str
) -> None:
    async with serving(answering(response)) as url:
        with pytest.raises(error, match=message) as raised:
            await client_of(http, url).post_resultset("mc", resultset())
    assert len(str(raised.value)) < 800
    assert raised.value.system == "treeherder"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999999", 3600),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
        ("\u0663", None),
        ("", None),
    ],
)
async def test_retry_after(http: Http, value: str, seconds: int | None) -> None:
    response = Response("", 429)
    response.raw_headers.append((b"retry-after", value.encode()))
    async with serving(answering(response)) as url:
        with pytest.raises(Unavailable) as refused:
            await client_of(http, url).post_resultset("mc", resultset())
    assert refused.value.retry_after == (None if seconds is None else timedelta(seconds=seconds))


async def test_a_server_that_says_nothing_is_left(http: Http) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.sleep(5)
        yield b""

    async with serving(answering(StreamingResponse(nothing()))) as url:
        with pytest.raises(Unavailable):
            await client_of(http, url, timeout=0.2).post_resultset("mc", resultset())


async def test_a_server_that_drips_is_left(http: Http) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    async with serving(answering(StreamingResponse(drip()))) as url, asyncio.timeout(2):
        with pytest.raises(Unavailable):
            await client_of(http, url, timeout=0.3).post_resultset("mc", resultset())


async def test_a_treeherder_that_is_away(http: Http) -> None:
    async with serving(Starlette()) as url:
        pass
    with pytest.raises(Unavailable, match="Cannot connect to host"):
        await client_of(http, url).post_resultset("mc", resultset())


def shape(value: Any) -> Any:
    """Return the types of a JSON value, with the names of its fields."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.published
def test_the_message_has_the_form_of_hgpushes_v1() -> None:
    listing = "https://hg.example.org/try/json-pushes?version=2"
    has_the_form_of(
        {
            "pushlog_pushes": [
                {
                    "pushid": 450_002,
                    "time": 1_469_000_000,
                    "user": "rosa@example.org",
                    "push_json_url": f"{listing}&startID=450001&endID=450002",
                    "push_full_json_url": f"{listing}&full=1&startID=450001&endID=450002",
                }
            ],
            "heads": ["5e" * 20],
            "repo_url": "https://hg.example.org/try",
            "_meta": {
                "exchange": "exchange/hgpushes/v1",
                "routing_key": "try",
                "serializer": "json",
                "sent": "2016-07-20T07:33:20.123456",
            },
        }
    )


@pytest.mark.published
def test_the_message_has_the_form_of_a_recorded_one() -> None:
    real = read_published("pulse/hgpushes-v1.json")["payload"]
    (push,) = real["pushlog_pushes"]
    push["push_json_url"] = push["push_json_url"].replace(" ", "")  # its own is broken
    has_the_form_of(real)


def has_the_form_of(real: dict[str, Any]) -> None:
    (push,) = real["pushlog_pushes"]
    at = datetime.fromtimestamp(push["time"], UTC)
    message = hgpushes_message(real["repo_url"], "try", push["pushid"], push["user"], at, real["heads"][0])["payload"]
    assert shape(message) == shape(real)
    sent = message["_meta"].pop("sent")
    assert abs(datetime.fromisoformat(sent) - datetime.now(UTC)) < timedelta(minutes=1)
    del real["_meta"]["sent"]
    assert message == real


# --- which push it has ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", treeherder.SUBMISSION)
async def test_a_push_is_found_in_each_year_of_the_submission(
    th: RestTreeherder, state: treeherder.State, year: Any
) -> None:
    state.behaviour.year = year
    posted = resultset()
    expected = FoundPush(posted["revision"], posted["revision_hash"])
    assert await th.find_push("mc", posted["revision"], None) is None
    await th.post_resultset("mc", posted)
    assert await th.find_push("mc", posted["revision"], None) == expected
    assert await th.find_push("mc", None, posted["revision_hash"]) == expected
    assert await th.find_push("mc", node("other"), None) is None
    assert await th.find_push("mc", None, node("other")) is None, "whatever is listed instead"
    assert state.counters["GET push 404"] == 0, "it is there, so nothing else is asked"


async def test_a_push_is_found_in_todays(th: RestTreeherder, state: treeherder.State) -> None:
    await th.post_resultset("mc", resultset())
    state.behaviour.year = "today"
    assert await th.find_push("mc", node(1), None) == FoundPush(node(1), None)
    assert await th.find_push("mc", node("other"), None) is None
    with pytest.raises(Unavailable, match="answers 404"):
        await th.find_push("mc", None, resultset()["revision_hash"])
    with pytest.raises(Unavailable, match="No project with name other") as unknown:
        await th.find_push("other", node(1), None)
    assert unknown.value.status == 404


async def test_the_tip_of_a_push_that_has_the_revision_among_others(http: Http) -> None:
    short = {"revision": node(1)[:12], "revision_hash": "h"}
    pushes = [{"revision": node(2), "revision_hash": "g"}, short]
    async with serving(answering(JSONResponse({"results": pushes}))) as url:
        th = client_of(http, url)
        assert await th.find_push("mc", node(3), None) == FoundPush(node(2), "g")
        assert await th.find_push("mc", node(1), None) == FoundPush(node(1), "h"), "as it was asked for"


TASK = "Vg7hTWNXSTyVNsVjBpOyCQ"
_PUSHES = {"results": [{"id": 6, "revision": node(2)}, {"id": 7, "revision": node(1)}]}


def todays(pushes: Any, decisions: Any) -> Starlette:
    """Return a Treeherder of today with these answers."""

    async def push(request: Request) -> Response:
        assert "authorization" not in request.headers
        assert dict(request.query_params) == {"revision": node(1)}
        return pushes if isinstance(pushes, Response) else JSONResponse(pushes)

    async def decisiontask(request: Request) -> Response:
        assert dict(request.query_params) == {"push_ids": "7"}
        return decisions if isinstance(decisions, Response) else JSONResponse(decisions)

    return Starlette(
        routes=[
            Route("/api/project/mc/push/", push),
            Route("/api/project/mc/push/decisiontask/", decisiontask),
        ]
    )


@pytest.mark.parametrize(
    ("pushes", "decisions", "task_id"),
    [
        (_PUSHES, {"7": {"id": TASK, "run": "0"}}, TASK),
        (_PUSHES, {"6": {"id": TASK, "run": "0"}}, None),
        (_PUSHES, JSONResponse("No decision tasks found for pushes: ['7']", 404), None),
        ({"results": _PUSHES["results"][:1]}, {}, None),
        ({"results": []}, {}, None),
        (JSONResponse({"detail": "No project with name mc"}, 404), {}, None),
        ([], {}, None),
        ({"results": [7, {"revision": node(1)}]}, {}, None),
        ({"results": [{"id": "x", "revision": node(1)}]}, {}, None),
        (Response(b"<html>"), {}, None),
        (_PUSHES, Response(b"<html>"), None),
        (_PUSHES, [], None),
        (_PUSHES, {"7": None}, None),
        (_PUSHES, {"7": {"id": 3}}, None),
    ],
)
async def test_the_decision_task_of_a_push(http: Http, pushes: Any, decisions: Any, task_id: str | None) -> None:
    async with serving(todays(pushes, decisions)) as url:
        th = RestTreeherder(Environment(url=url, pushes="off", jobs="off"), http)  # without credentials
        assert await th.decision_task("mc", node(1)) == task_id


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_treeherder_that_does_not_answer_names_no_decision_task(http: Http, status: int) -> None:
    async with serving(todays(_PUSHES, JSONResponse({}, status))) as url:
        with pytest.raises(Unavailable, match=f"answers {status}"):
            await client_of(http, url).decision_task("mc", node(1))
