"""Faults of the hgweb stand-in, and the count of its requests."""

import asyncio

import httpx
import pytest

from sandbox.hg import Client, Fault, MemoryPushlog
from sandbox.hg.faults import Kind
from tests.sandbox.hg.support import PUSHES, Clock


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
