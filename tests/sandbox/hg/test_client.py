"""Changes of the pushlog over HTTP, by the client."""

import json

import httpx
import pytest

from sandbox.hg import Client, NewChangeset


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
    listed = full.json()["pushes"]["7"]
    assert [c["node"] for c in listed["changesets"]] == push["changesets"]
    first = listed["changesets"][0]
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


async def test_raw_bytes_come_back_as_they_were_sent(web: httpx.AsyncClient, control: Client) -> None:
    user, message = "dev\udce9@example.com", "caf\udce9"
    pushed = await control.push("r", [NewChangeset(message=message)], user=user)
    assert (pushed["id"], pushed["user"]) == (4, user)
    assert (await web.get("/r/json-pushes?version=2&startID=3")).json()["pushes"]["4"]["user"] == user
    answer = await web.post("/__control__/push", content=json.dumps({"repository": "\udce9"}))
    assert (answer.status_code, "there is " in answer.json()["error"]) == (404, True)


async def test_the_client_raises_what_is_wrong(control: Client) -> None:
    with pytest.raises(RuntimeError, match=r"^no repository 'nope'"):
        await control.push("nope")
