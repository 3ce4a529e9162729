"""Faults, control and counters of the hgweb stand-in."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from sandbox.hg import Client, Fault, MemoryPushlog, NewChangeset, create_app
from sandbox.hg.faults import Kind

PUSHES = "/r/json-pushes?version=2&startID=0"


class Clock:
    """A clock that tests move."""

    now = 1_795_461_448.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pushlog(clock: Clock) -> MemoryPushlog:
    pushlog = MemoryPushlog(clock)
    pushlog.create("r")
    for number in (1, 2, 3):
        clock.now += 10
        pushlog.push("r", [NewChangeset(message=f"Bug {number}", files={f"{number}.txt": "x" * number})])
    return pushlog


@pytest.fixture
def transport(pushlog: MemoryPushlog) -> httpx.ASGITransport:
    return httpx.ASGITransport(create_app(pushlog))


@pytest.fixture
async def web(transport: httpx.ASGITransport) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=transport, base_url="http://hg") as client:
        yield client


@pytest.fixture
async def control(transport: httpx.ASGITransport) -> AsyncIterator[Client]:
    async with Client("http://hg/", transport=transport) as client:
        yield client


@pytest.fixture
async def served(pushlog: MemoryPushlog) -> AsyncIterator[str]:
    """The address of the stand-in on a real socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(create_app(pushlog), date_header=False, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await running


async def test_the_client_does_all_that_the_pushlog_does(web: httpx.AsyncClient, control: Client) -> None:
    await control.create("integration/autoland", last_push_id=6)
    push = await control.push(
        "integration/autoland",
        [
            NewChangeset(message="caf\udce9", files={"latin-\udce9": b"\xff\0", "b": "é"}, branch="x", author="a"),
            NewChangeset(message="on top", files={"b": None}),
        ],
        user="jörg",
        date=1_700_000_000,
    )
    assert (push["id"], push["user"], push["date"]) == (7, "jörg", 1_700_000_000)
    full = await web.get("/integration/autoland/json-pushes?version=2&full=1")
    assert rb'"latin-\udce9"' in full.content
    told = full.json()["pushes"]["7"]
    assert [c["node"] for c in told["changesets"]] == push["changesets"]
    first = told["changesets"][0]
    assert (first["desc"], first["author"], first["branch"]) == ("café", "a", "x")
    assert (await web.get("/integration/autoland/raw-file/tip/latin-%E9")).content == b"\xff\0"
    assert (await web.get("/integration/autoland/raw-file/tip/b")).status_code == 404

    default = await control.push("integration/autoland")
    assert await control.repositories() == [
        {"repository": "integration/autoland", "last_push_id": 8},
        {"repository": "r", "last_push_id": 3},
    ]
    await control.obsolete("integration/autoland", 8)
    after = (await web.get("/integration/autoland/json-pushes?version=2&startID=7")).json()["pushes"]["8"]
    assert (after["changesets"], after["obsoletechangesets"]) == ([], default["changesets"])
    await control.strip("integration/autoland", 7)
    after = (await web.get("/integration/autoland/json-pushes?version=2&startID=0")).json()
    assert after == {"lastpushid": 8, "pushes": {}}
    await control.reset("integration/autoland", away=60)
    assert (await web.get("/integration/autoland/json-pushes")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("push", {"repository": "nope"}, 404, "no repository 'nope': create it first"),
        ("push", {"repository": "r", "changesets": [{"mesage": "x"}]}, 400, "mesage"),
        ("push", {"repository": "r", "changesets": [{"message": ""}]}, 400, "give it one"),
        ("push", {"repository": "r", "changesets": [{"parents": ["zz"]}]}, 404, "unknown revision 'zz'"),
        ("strip", {"repository": "r", "push_id": 9}, 400, "there is no push 9"),
        ("strip", {"repository": "r"}, 400, "push_id"),
        ("faults", {"repository": "r", "kind": "fire"}, 400, "kind is 'fire'; it is one of"),
        ("faults", {"repository": "r", "kind": "lag", "command": "x"}, 400, "command is 'x'; it is one of"),
        ("repositories", {"repository": "r"}, 400, "exists already"),
        ("repositories", None, 400, "repository"),
    ],
)
async def test_control_says_what_is_wrong(web: httpx.AsyncClient, path: str, body: Any, status: int, why: str) -> None:
    content = None if body is None else json.dumps(body)
    answer = await web.post(f"/__control__/{path}", content=content)
    assert answer.status_code == status
    assert why in answer.json()["error"]


async def test_raw_bytes_come_back_as_they_were_sent(web: httpx.AsyncClient, control: Client) -> None:
    user, message = "dev\udce9@example.com", "caf\udce9"
    pushed = await control.push("r", [NewChangeset(message=message)], user=user)
    assert (pushed["id"], pushed["user"]) == (4, user)
    assert (await web.get("/r/json-pushes?version=2&startID=3")).json()["pushes"]["4"]["user"] == user
    answer = await web.post("/__control__/push", content=json.dumps({"repository": "\udce9"}))
    assert (answer.status_code, "create it first" in answer.json()["error"]) == (404, True)


async def test_the_client_raises_what_is_wrong(control: Client) -> None:
    with pytest.raises(RuntimeError, match=r"404.*no repository 'nope'"):
        await control.push("nope")


async def test_statuses_for_the_next_requests_of_one_repository(
    web: httpx.AsyncClient, control: Client, pushlog: MemoryPushlog
) -> None:
    pushlog.create("other")
    await control.fault(Fault(repository="r", kind="status", status=503, times=2, retry_after=7))
    assert (await web.get("/other/json-pushes")).status_code == 200
    answers = [await web.get(PUSHES) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert [answer.headers.get("retry-after") for answer in answers] == ["7", "7", None]


async def test_a_fault_of_one_command_lasts_its_time(web: httpx.AsyncClient, control: Client, clock: Clock) -> None:
    await control.fault(Fault(repository="r", kind="status", status=500, lasts=5, command="raw-file"))
    for _ in range(3):
        assert (await web.get("/r/raw-file/tip/1.txt")).status_code == 500
        assert (await web.get(PUSHES)).status_code == 200
    clock.now += 5
    assert (await web.get("/r/raw-file/tip/1.txt")).status_code == 200


async def test_faults_come_in_order_and_can_be_cleared(web: httpx.AsyncClient, control: Client) -> None:
    await control.fault(Fault(repository="r", kind="status", status=429, times=1))
    await control.fault(Fault(repository="r", kind="status", status=502))
    assert [(await web.get(PUSHES)).status_code for _ in range(3)] == [429, 502, 502]
    await control.clear_faults()
    assert (await web.get(PUSHES)).status_code == 200


async def test_bodies_that_are_no_json(web: httpx.AsyncClient, control: Client) -> None:
    whole = (await web.get(PUSHES)).content
    bodies: list[tuple[Kind, bytes | None]] = [("garbage", None), ("truncated", whole[: len(whole) // 2])]
    for kind, body in bodies:
        await control.fault(Fault(repository="r", kind=kind, times=1))
        answer = await web.get(PUSHES)
        assert answer.status_code == 200
        assert body is None or answer.content == body
        with pytest.raises(ValueError):  # noqa: PT011  # garbage is not UTF-8, half a body not JSON: both are this
            answer.json()
    assert (await web.get(PUSHES)).content == whole


async def test_a_delay(web: httpx.AsyncClient, control: Client) -> None:
    await control.fault(Fault(repository="r", kind="delay", seconds=0.2, times=1))
    began = asyncio.get_running_loop().time()
    assert (await web.get(PUSHES)).status_code == 200
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_mirror_that_lags(web: httpx.AsyncClient, control: Client, pushlog: MemoryPushlog) -> None:
    now = await web.get(PUSHES + "&full=1")
    node = now.json()["pushes"]["3"]["changesets"][0]["node"]
    await control.fault(Fault(repository="r", kind="lag", times=3))
    old = await web.get(PUSHES + "&full=1")
    assert old.json()["lastpushid"] == 2
    assert list(old.json()["pushes"]) == ["1", "2"]
    assert old.json()["pushes"]["2"]["changesets"][0]["tags"] == ["tip"]
    assert old.headers["etag"] != now.headers["etag"]
    assert (await web.get(f"/r/raw-file/{node}/3.txt")).status_code == 404
    assert (await web.get(PUSHES, headers={"If-None-Match": old.headers["etag"]})).status_code == 304
    assert (await web.get(PUSHES + "&full=1", headers={"If-None-Match": old.headers["etag"]})).content == now.content
    assert (await web.get(f"/r/raw-file/{node}/3.txt")).content == b"xxx"


async def test_lastpushid_can_run_ahead_of_the_list(
    web: httpx.AsyncClient, control: Client, pushlog: MemoryPushlog
) -> None:
    await control.fault(Fault(repository="r", kind="lag", upto=3, ahead=True, times=1))
    pushlog.push("r")  # the fault was there first, so nobody saw this push
    early = (await web.get(PUSHES)).json()
    assert (early["lastpushid"], list(early["pushes"])) == (4, ["1", "2", "3"])
    assert list((await web.get(PUSHES)).json()["pushes"]) == ["1", "2", "3", "4"]


async def test_a_repository_that_does_not_exist_has_no_faults_but_404(web: httpx.AsyncClient, control: Client) -> None:
    await control.fault(Fault(repository="nope", kind="lag"))
    await control.fault(Fault(repository="nope", kind="truncated"))
    for _ in range(2):
        assert (await web.get("/nope/json-pushes")).status_code == 404


async def test_requests_are_counted(web: httpx.AsyncClient, control: Client) -> None:
    tag = (await web.get(PUSHES)).headers["etag"]
    await web.get(PUSHES, headers={"If-None-Match": tag})
    await web.get(PUSHES, headers={"If-None-Match": 'W/"1"'})
    await web.get("/r/raw-file/tip/nope")
    await web.get("/index")
    report = await control.requests()
    assert list(report.pop("listed")) == ["r 3"]
    assert report == {
        "kinds": {
            "json-pushes": {
                "requests": 3,
                "conditional": 2,
                "not_modified": 1,
                "statuses": {"200": 2, "304": 1},
            },
            "raw-file": {"requests": 1, "conditional": 0, "not_modified": 0, "statuses": {"404": 1}},
            "other": {"requests": 1, "conditional": 0, "not_modified": 0, "statuses": {"404": 1}},
        },
        "repositories": {"r": 4, "": 1},
        "max_concurrent": 1,
    }
    await control.clear_requests()
    assert await control.requests() == {"kinds": {}, "repositories": {}, "max_concurrent": 0, "listed": {}}


async def test_most_requests_at_the_same_time(web: httpx.AsyncClient, control: Client) -> None:
    await control.fault(Fault(repository="r", kind="delay", seconds=0.05))
    await asyncio.gather(*(web.get(PUSHES) for _ in range(7)))
    assert (await control.requests())["max_concurrent"] == 7


async def test_a_connection_that_breaks_is_the_same_on_a_socket_and_without(
    transport: httpx.ASGITransport, served: str, control: Client
) -> None:
    fault = Fault(repository="r", kind="hangup", times=1)
    async with Client(served) as other:
        await other.fault(fault)
    await control.fault(fault)
    for client in httpx.AsyncClient(base_url=served), httpx.AsyncClient(base_url="http://hg", transport=transport):
        async with client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(PUSHES)
            assert (await client.get(PUSHES)).json()["lastpushid"] == 3


async def test_served_by_uvicorn_there_is_one_date_and_names_keep_their_bytes(
    served: str, clock: Clock, pushlog: MemoryPushlog
) -> None:
    pushlog.push("r", [NewChangeset(files={"latin-\udce9": "odd"})])
    async with httpx.AsyncClient(base_url=served) as web:
        answer = await web.get("/r/raw-file/tip/latin-%E9")
        assert answer.text == "odd"
        assert answer.headers.get_list("date") == ["Mon, 23 Nov 2026 19:17:58 GMT"]
        assert (await web.get(PUSHES, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304
