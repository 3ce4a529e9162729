"""Dead letters: listed, replayed, dropped."""

import json

import pytest
from sqlmodel import select

from service.api.dead_letters import MAX_PAYLOAD
from service.flow.jobs import reconcile
from service.store.models import DeadLetter, GroupCheck, State
from tests.service.asgi import ADMIN, READER, WRITER, Api, is_problem, node, push_event


async def test_they_are_listed_newest_first_with_what_came_and_why(api: Api) -> None:
    bad = b'{"repository": "mc", "push": {"id": 7, "user": "\\udce9"}}'
    await api.signed("/events/pushes", b'{"events": [' + bad + b', "another"]}')
    page = (await api.get("/dead-letters", token=READER)).json()
    assert page["next"] is None
    another, first = page["items"]
    assert first["kind"] == "push-event"
    assert first["subject"] == "push 7 of mc"
    assert first["reason"].startswith("not understood: repository_id is missing; ")
    assert first["payload_bytes"] == len(bad)
    assert first["since"].endswith("Z")
    assert "payload" not in first
    shown = (await api.get(f"/dead-letters/{first['id']}", token=READER)).json()
    assert shown == {**first, "payload": bad.decode()}
    assert (await api.get(f"/dead-letters/{another['id']}")).json()["payload"] == '"another"'


async def test_no_list_holds_what_came_and_of_a_large_one_the_beginning_is_shown(api: Api) -> None:
    async with api.database.writing() as session:
        for size in (3 * MAX_PAYLOAD, MAX_PAYLOAD):
            session.add(DeadLetter(kind="push-event", subject="x", reason="x", payload=b"x" * size))
    answer = await api.get("/dead-letters")
    assert len(answer.content) < 1_000
    small, large = answer.json()["items"]
    assert (small["payload_bytes"], large["payload_bytes"]) == (MAX_PAYLOAD, 3 * MAX_PAYLOAD)
    for letter in (small, large):
        assert (await api.get(f"/dead-letters/{letter['id']}")).json()["payload"] == "x" * MAX_PAYLOAD
    is_problem(await api.get("/dead-letters/99"), 404)
    is_problem(await api.get(f"/dead-letters/{2**40}"), 404)


async def test_lists_come_in_pages(api: Api) -> None:
    for number in range(5):
        await api.push(number)
    seen, after = [], None
    while True:
        page = (await api.get("/dead-letters", params={"limit": 2, **({"after": after} if after else {})})).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert [(await api.get(f"/dead-letters/{number}")).json()["payload"] for number in seen] == [*"43210"]


async def test_bytes_that_are_no_text_can_still_be_listed(api: Api) -> None:
    async with api.database.writing() as session:
        session.add(DeadLetter(kind="push-event", subject="x", reason="x", payload=b"\xff\x00\xed\xa0\x80"))
    (item,) = (await api.get("/dead-letters")).json()["items"]
    assert "\\xff" in (await api.get(f"/dead-letters/{item['id']}")).json()["payload"]


async def test_an_event_is_replayed_once_its_cause_is_gone(api: Api) -> None:
    """Here: a person mended the bytes, or a newer release understands them."""
    await api.add()
    async with api.database.writing() as session:
        raw = json.dumps(push_event(101)).encode()
        session.add(DeadLetter(kind="push-event", subject="mc, push 101", reason="an old release", payload=raw))
    (letter,) = await api.letters()
    answer = await api.post(f"/dead-letters/{letter.id}/replay", token=WRITER)
    assert answer.status_code == 202
    assert answer.json()["subject"] == "mc, push 101"
    assert (await api.get("/pushes/mc/101")).json()["revision"] == node(101)
    assert await api.letters() == []
    is_problem(await api.post(f"/dead-letters/{letter.id}/replay"), 404)


async def test_an_event_that_came_again_meanwhile_is_done_with(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    async with api.database.writing() as session:
        raw = json.dumps(push_event(101)).encode()
        session.add(DeadLetter(kind="push-event", subject="x", reason="x", payload=raw))
    (letter,) = await api.letters()
    assert (await api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    assert len(await api.pushes()) == 1
    assert await api.letters() == []


@pytest.mark.parametrize(
    ("payload", "status", "word"),
    [
        (b'{"repository": "mc"}', 422, "generation"),
        (b"5", 422, "it is a number, and must be an object"),
        (b"{", 422, "not JSON"),
        (b"\xff", 422, "not JSON"),
        (None, 422, "not JSON"),
        (json.dumps(push_event(101, alias="nowhere")).encode(), 409, "nowhere"),
        (json.dumps({**push_event(101), "generation": 5}).encode(), 409, "generation"),
        (
            json.dumps({**push_event(1), "oversized": True, "push_id": 100, "reason": "40 MB"}).encode(),
            409,
            "too large",
        ),
    ],
)
async def test_what_still_cannot_be_taken_stays(sqlite_api: Api, payload: bytes | None, status: int, word: str) -> None:
    await sqlite_api.add()
    async with sqlite_api.database.writing() as session:
        session.add(DeadLetter(kind="push-event", subject="x", reason="x", payload=payload))
    (letter,) = await sqlite_api.letters()
    is_problem(await sqlite_api.post(f"/dead-letters/{letter.id}/replay"), status, word)
    assert [kept.payload for kept in await sqlite_api.letters()] == [payload]
    assert await sqlite_api.pushes() == []


async def test_a_task_group_that_could_not_be_listed_is_listed_again(sqlite_api: Api) -> None:
    group = "AAAAAAAAAAAAAAAAAAAAAA"
    async with sqlite_api.database.writing() as session:
        session.add(GroupCheck(task_group_id=group, lane=reconcile.LANE).dead_letter("given up"))
    (letter,) = await sqlite_api.letters()
    assert (await sqlite_api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    assert await sqlite_api.letters() == []
    async with sqlite_api.database.reading() as session:
        (check,) = await session.exec(select(GroupCheck))
    assert (check.task_group_id, check.lane, check.state) == (group, "task-groups", State.PENDING)
    assert check.due_at is not None


async def test_buried_work_is_done_again(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.end_steps(State.FAILED, "given up", bury=True)
    letters = (await api.get("/dead-letters")).json()["items"]
    assert {letter["kind"] for letter in letters} == {"resultset", "graph"}
    assert {letter["payload_bytes"] for letter in letters} == {None}
    assert (await api.get(f"/dead-letters/{letters[0]['id']}")).json()["payload"] is None
    graph = next(letter for letter in letters if letter["kind"] == "graph")
    assert (await api.post(f"/dead-letters/{graph['id']}/replay", token=WRITER)).status_code == 202
    push = (await api.get("/pushes/mc/101")).json()
    assert (push["graph"]["state"], push["graph"]["attempts"], push["graph"]["reason"]) == ("pending", 0, None)
    assert {resultset["state"] for resultset in push["resultsets"]} == {"failed"}
    assert len(await api.letters()) == 2


async def test_work_of_a_deleted_repository_is_not_done_again(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.delete("/repositories/mc", params={"force": "true"})
    letters = await api.letters()
    for letter in letters:
        is_problem(await api.post(f"/dead-letters/{letter.id}/replay"), 409, "mc", "deleted", "add it again")
    assert {step.state for step in await api.steps()} == {State.FAILED}
    assert len(await api.letters()) == len(letters)
    await api.add()
    for letter in letters:
        assert (await api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    assert {step.state for step in await api.steps()} == {State.PENDING}


async def test_one_can_be_dropped(api: Api) -> None:
    await api.push(1, 2)
    first, second = await api.letters()
    answer = await api.delete(f"/dead-letters/{first.id}", token=WRITER)
    assert (answer.status_code, answer.content) == (204, b"")
    assert [letter.id for letter in await api.letters()] == [second.id]
    is_problem(await api.delete(f"/dead-letters/{first.id}"), 404)


async def test_one_that_is_not_there_is_a_404(api: Api) -> None:
    for number in (1, 0, -1, 2**31, 2**63, 10**30):
        is_problem(await api.post(f"/dead-letters/{number}/replay"), 404)
        is_problem(await api.delete(f"/dead-letters/{number}"), 404)
    for word in ("x", "1.5", "%00", "9" * 5_000):
        is_problem(await api.post(f"/dead-letters/{word}/replay"), 422, "letter_id")
        is_problem(await api.delete(f"/dead-letters/{word}", token=ADMIN), 422, "letter_id")


async def test_a_commit_that_fails_is_no_2xx(api: Api) -> None:
    await api.add()
    async with api.database.writing() as session:
        raw = json.dumps(push_event(101)).encode()
        session.add(DeadLetter(kind="push-event", subject="x", reason="x", payload=raw))
    (letter,) = await api.letters()
    with api.commits_fail():
        is_problem(await api.post(f"/dead-letters/{letter.id}/replay"), 500)
        is_problem(await api.delete(f"/dead-letters/{letter.id}"), 500)
    assert len(await api.letters()) == 1
    assert await api.pushes() == []


async def test_they_are_filtered_by_kind(api: Api) -> None:
    async with api.database.writing() as session:
        for kind in ("graph", "push-event", "graph", "notice"):
            session.add(DeadLetter(kind=kind, subject="x", reason="x"))
    first = (await api.get("/dead-letters?kind=graph&limit=1")).json()
    second = (await api.get(f"/dead-letters?kind=graph&limit=1&after={first['next']}")).json()
    assert [letter["kind"] for letter in first["items"] + second["items"]] == ["graph", "graph"]
    assert second["next"] is None
    assert (await api.get("/dead-letters?kind=action")).json()["items"] == []
    is_problem(await api.get("/dead-letters?kind=grahp"), 422, 'kind "grahp" is none of push-event, ', "(graph?)")
