"""Control endpoints of the hgweb stand-in, and its answers on a real socket."""

import json
from typing import Any

import httpx
import pytest

from sandbox.hg import Client, Fault, MemoryPushlog, NewChangeset
from sandbox.hg.mercurial import CommandError
from tests.sandbox.hg.support import PUSHES, Clock


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("push", {"repository": "nope"}, 404, "no repository 'nope': there is r"),
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


@pytest.mark.parametrize(
    "error",
    [OSError(30, "Read-only file system"), CommandError([b"commit"], 255, b"abort: x: Read-only file system\n")],
)
async def test_control_says_that_repositories_cannot_be_written(
    web: httpx.AsyncClient, pushlog: MemoryPushlog, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pushlog, "_commit", fail)
    answer = await web.post("/__control__/push", content='{"repository": "r"}')
    assert answer.status_code == 507
    assert "Read-only file system). Give the folder write access" in answer.json()["error"]
    assert "b'" not in answer.json()["error"]


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
