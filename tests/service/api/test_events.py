"""Ingress: signed, judged event by event, and answered after the commit."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.api.events import push_event as understand
from service.contract.events import MAX_BYTES
from tests.service.asgi import (
    SECRETS,
    TREEHERDER_SECRET,
    Api,
    changeset,
    is_problem,
    node,
    push_event,
    signature,
)
from tests.service.odd_input import ANYTHING, api_in_a_loop

PUSHES = "/api/v1/events/pushes"


async def test_a_push_is_stored_with_its_steps_and_the_cursor_moves(api: Api) -> None:
    await api.add()
    (verdict,) = await api.push(push_event(101, date=1_700_000_000.25))
    moved = {"repository": "mc", "cursor": 101, "shift": 0}
    assert {name: verdict[name] for name in ("verdict", "reason", *moved)} == {
        "verdict": "accepted",
        "reason": None,
        **moved,
    }
    (push,) = await api.pushes()
    assert (push.push_id, push.user, push.revision) == (101, "pusher@example.com", node(101))
    assert push.date == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert {(s.kind, s.environment, s.state) for s in await api.steps()} == {
        ("resultset", "tc-treeherder", "pending"),
        ("resultset", "tc-treeherder-stage", "pending"),
        ("graph", "", "pending"),
    }
    repository = (await api.get("/repositories/mc")).json()
    assert (repository["last_push_id"], repository["last_changeset"]) == (101, node(101))


async def test_what_is_not_understood_is_kept_before_the_cursor_can_pass_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a crash between the two would lose it: nobody lists it again from beyond."""
    await api.add()
    bad, good = {**push_event(101), "push": {"id": 101, "user": 7}}, push_event(102, since=100)

    def crash(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr("service.api.events.store_new", crash)
        assert (await api.signed("/events/pushes", {"events": [bad, good]})).status_code == 500
    assert (await api.repository()).last_push_id == 100
    assert len(await api.letters()) == 1
    assert [verdict["verdict"] for verdict in await api.push(bad, good)] == ["rejected", "accepted"]
    assert len(await api.letters()) == 1
    assert (await api.repository()).last_push_id == 102


async def test_the_same_batch_again_is_a_duplicate(api: Api) -> None:
    await api.add()
    batch = [push_event(n, since=100) for n in (101, 102, 103)]
    assert [v["verdict"] for v in await api.push(*batch)] == ["accepted"] * 3
    again = await api.push(*batch)
    assert [(v["verdict"], v["cursor"]) for v in again] == [("duplicate", 103)] * 3
    assert len(await api.pushes()) == 3
    assert len(await api.steps()) == 9


async def test_twice_in_one_batch_is_once(api: Api) -> None:
    await api.add()
    assert [v["verdict"] for v in await api.push(push_event(101), push_event(101))] == ["accepted", "duplicate"]
    assert len(await api.pushes()) == 1


async def test_the_same_batches_at_once_store_each_push_once(api: Api) -> None:
    for alias in ("mc", "other"):
        await api.add(alias)
    batch = [push_event(n, since=100, alias=alias) for n in range(101, 111) for alias in ("mc", "other")]
    answers = await asyncio.gather(*(api.push(*(batch if n % 2 else reversed(batch))) for n in range(6)))
    taken = [verdict["verdict"] for verdicts in answers for verdict in verdicts]
    assert (taken.count("accepted"), taken.count("duplicate")) == (20, 100)
    assert len(await api.pushes()) == 20
    assert len(await api.steps()) == 60


async def test_a_push_that_came_by_another_way_skips_nothing(api: Api) -> None:
    await api.add()
    (verdict,) = await api.push(push_event(105, since=104))
    assert (verdict["verdict"], verdict["cursor"]) == ("accepted", 100)
    listed = await api.push(*(push_event(n, since=100) for n in range(101, 107)))
    assert [v["verdict"] for v in listed] == ["accepted"] * 4 + ["duplicate", "accepted"]
    assert {v["cursor"] for v in listed} == {106}


async def test_a_late_batch_does_not_take_the_cursor_back(api: Api) -> None:
    await api.add()
    await api.push(push_event(105, since=100))
    (verdict,) = await api.push(push_event(103, since=100))
    assert (verdict["verdict"], verdict["cursor"]) == ("accepted", 105)
    assert (await api.get("/repositories/mc")).json()["last_changeset"] == node(105)


async def test_the_same_id_with_another_revision_is_evidence_of_a_reset_and_no_duplicate(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    (verdict,) = await api.push(push_event(101, changesets=[changeset("another")]))
    assert verdict["verdict"] == "rejected"
    assert node(101) in verdict["reason"]
    assert (await api.get("/repositories/mc")).json()["reset_suspected_at"] is not None
    assert len(await api.pushes()) == 1
    assert await api.letters() == [], "nothing was wrong with the event"


async def test_another_generation_is_rejected(api: Api) -> None:
    await api.add()
    for generation in (1, 2**80):
        (verdict,) = await api.push({**push_event(101), "generation": generation})
        assert (verdict["verdict"], verdict["shift"], verdict["cursor"]) == ("rejected", 0, 100)
    assert await api.pushes() == []


async def test_a_repository_that_is_not_monitored_is_rejected(api: Api) -> None:
    (verdict,) = await api.push(push_event(1, alias="nowhere"))
    assert verdict["verdict"] == "rejected"
    assert "nowhere" in verdict["reason"]
    assert verdict["cursor"] is None


async def test_a_push_without_changesets_is_stored(api: Api) -> None:
    await api.add()
    (verdict,) = await api.push(push_event(101, changesets=[]))
    assert (verdict["verdict"], verdict["cursor"]) == ("accepted", 101)
    assert (await api.pushes())[0].revision is None


async def test_a_push_of_5000_changesets_is_stored_with_the_last_200_in_full(api: Api) -> None:
    await api.add()
    bare = [{"node": node(n), "branch": "default"} for n in range(4_800)]
    await api.push(push_event(101, changesets=bare + [changeset(n) for n in range(4_800, 5_000)]))
    push = (await api.get("/pushes/mc/101")).json()
    assert push["changesets_count"] == 5_000
    assert [c["node"] for c in push["changesets"]] == [node(n) for n in range(5_000)]
    assert [c["desc"] is not None for c in push["changesets"]] == [False] * 4_800 + [True] * 200


async def test_a_push_too_large_to_send_is_a_dead_letter_and_the_cursor_goes_on(api: Api) -> None:
    await api.add()
    large = {**push_event(102, since=100), "oversized": True, "push_id": 101}
    del large["push"]
    verdicts = await api.push({**large, "reason": "40,000,000 bytes"}, push_event(102, since=100))
    assert [(v["verdict"], v["cursor"]) for v in verdicts] == [("accepted", 102)] * 2
    (letter,) = await api.letters()
    assert (letter.kind, letter.subject, letter.reason) == ("push-event", "push 101 of mc", "40,000,000 bytes")
    assert json.loads(letter.payload or b"")["push_id"] == 101
    (again,) = await api.push({**large, "reason": "40,000,000 bytes"})
    assert again["verdict"] == "duplicate"
    assert len(await api.letters()) == 1, "the same batch again says nothing new"


async def test_what_no_database_stores_is_made_visible(api: Api) -> None:
    await api.add()
    odd = changeset(
        "odd", desc="\x00\x01\ud83d \U0001f600", author="\udcff", files=["latin-\udce9.txt"], branch="\ud800"
    )
    raw = json.dumps({"events": [push_event(101, user="\udce9\x00", changesets=[odd])]}).encode()
    verdict = (await api.signed("/events/pushes", raw)).json()["verdicts"][0]
    assert verdict["verdict"] == "accepted"
    push = (await api.get("/pushes/mc/101")).json()
    assert push["user"] == "\\udce9\\u0000"
    (stored,) = push["changesets"]
    assert stored["desc"] == "\\u0000\x01\\ud83d \U0001f600"
    assert (stored["author"], stored["files"], stored["branch"]) == ("\\udcff", ["latin-\\udce9.txt"], "\\ud800")


WHOLE = push_event(101, since=100)


def _changed(**values: Any) -> dict[str, Any]:
    return {**WHOLE, **values}


def _with_push(**values: Any) -> dict[str, Any]:
    return {**WHOLE, "push": {**WHOLE["push"], **values}}


def _with_changeset(**values: Any) -> dict[str, Any]:
    return _with_push(changesets=[{**changeset(1), **values}])


def _of(*values: Any) -> tuple[Any, ...]:
    return values


async def test_events_of_wrong_types_are_rejected_by_themselves(api: Api) -> None:
    await api.add()
    nan, infinity, huge = float("nan"), float("inf"), 10**400
    bad: Any = [
        *(None, 1, "x", [], {}, [[]], True, nan),
        *(_changed(repository=value) for value in _of(None, 1, "", "a b", "\0", "x" * 51, ["mc"], {})),
        *(_changed(generation=value) for value in _of(None, "0", -1, 0.0, True, nan, [])),
        *(_changed(push=value) for value in _of(None, 1, [], {}, "x")),
        *(_with_push(id=value) for value in _of(None, "101", -1, 2**31, huge, 101.0, True, nan)),
        *(_with_push(user=value) for value in _of(None, 1, [], {})),
        *(_with_push(date=value) for value in _of(None, -1, 1e300, 1e18, huge, nan, infinity, "x", "NaN", "inf", [])),
        *(_with_push(changesets=value) for value in _of(None, 1, {}, [1], [[]], [{}])),
        *(_with_changeset(node=value) for value in _of(None, 1, "", node(1)[:-1], node(1).upper(), node(1) + "\n")),
        *(_with_changeset(branch=value) for value in _of(None, 1, "x" * 1001)),
        *(_with_changeset(files=value) for value in _of(1, "a", [1], ["x"] * 1001)),
        *(_with_changeset(parents=value) for value in _of(1, ["x"], [None])),
        *(_with_changeset(files_count=value) for value in _of("x", -1, huge, nan, infinity, 2**63)),
        *(_with_changeset(desc=value) for value in _of(1, [])),
        {"oversized": True},
        {**WHOLE, "oversized": True, "push_id": -1, "reason": "x"},
        {**WHOLE, "oversized": True, "push_id": 101, "reason": None},
    ]
    listed_oddly = [  # which does not make them other pushes
        *(_changed(since=value) for value in _of(None, "100", -1, 2**31, huge, 1.0)),
        *(_changed(lastpushid=value) for value in _of(None, "101", -1, 2**31)),
    ]
    kept = {json.dumps(event).encode() for event in [*bad, listed_oddly[0]]}
    bad += listed_oddly
    verdicts = await api.push(*bad, WHOLE)
    taken = [event for event, verdict in zip(bad, verdicts, strict=False) if verdict["verdict"] != "rejected"]
    assert taken == []
    assert verdicts[-1]["verdict"] == "accepted"
    assert len(await api.pushes()) == 1
    assert {letter.payload for letter in await api.letters()} == kept


PATHS: list[list[Any]] = [
    *([name] for name in WHOLE),
    *(["push", name] for name in WHOLE["push"]),
    *(["push", "changesets", 0, name] for name in changeset(1)),
    ["oversized"],
    ["push_id"],
]


def _mangled(event: Any, path: list[Any], value: Any) -> Any:
    copy = json.loads(json.dumps(event))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mangles=st.lists(st.tuples(st.sampled_from(PATHS), ANYTHING), min_size=1, max_size=30), junk=ANYTHING)
@example(mangles=[(["push", "date"], "nan"), (["push", "date"], "inf")], junk=None)
def test_mangled_events_are_never_our_fault(loop_api: Any, mangles: list[tuple[list[Any], Any]], junk: Any) -> None:
    api, run = loop_api
    events = [_mangled(WHOLE, path, value) for path, value in mangles] + [junk]
    answer = run(api.signed("/events/pushes", {"events": events}))
    assert answer.status_code == 202, answer.text
    verdicts = answer.json()["verdicts"]
    assert len(verdicts) == len(events)
    for event, verdict in zip(events, verdicts, strict=True):
        assert verdict["verdict"] in {"accepted", "duplicate", "rejected"}
        assert (verdict["reason"] is not None) or verdict["verdict"] != "rejected", event
    listed = run(api.get("/dead-letters", params={"limit": 500}))
    assert listed.status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), ANYTHING))
@example(body=b'{"events": [' + b"[" * 200_000)
@example(body=b'{"events": [' + b"[" * 3_000 + b"]" * 3_000 + b"]}")
@example(body=b'{"events": [' + b"[" * 300 + b"]" * 300 + b"]}")
@example(body=b'{"events": [' + b"9" * 5_000 + b"]}")
@example(body=b'{"events": [1e999, -1e999, NaN, -Infinity, "\\ud800", {"\\u0000": 1}]}')
@example(body=b'\xef\xbb\xbf{"events": []}')
@example(body=b'{"events": []} {}')
@example(body=b"")
def test_any_bytes_get_an_answer_that_blames_nobody_else(loop_api: Any, body: bytes) -> None:
    api, run = loop_api
    headers = signature(body) if _is_text(body) else signature(b"")
    answer = run(api.client.post(PUSHES, content=body, headers=headers))
    assert answer.status_code in {202, 400, 401, 422}, answer.text


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.fixture
def loop_api(database_url: str) -> Any:
    with api_in_a_loop(database_url) as made:
        yield made


# --- limits


async def test_32_mib_are_read_and_more_is_413_with_or_without_a_length(sqlite_api: Api) -> None:
    whole = b'{"events": [], "x": "' + b"x" * (MAX_BYTES - 23) + b'"}'
    assert len(whole) == MAX_BYTES
    assert (await sqlite_api.signed("/events/pushes", whole)).status_code == 202

    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 3 * MAX_BYTES:
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    headers = signature(b" ")
    answer = await sqlite_api.client.post(PUSHES, content=chunks(), headers=headers)
    is_problem(answer, 413, "33,554,432")
    assert "content-length" not in answer.request.headers
    assert sent <= MAX_BYTES + 2 * 1024 * 1024, "the rest was not read"
    is_problem(await sqlite_api.client.post(PUSHES, content=whole + b" ", headers=headers), 413, "33,554,432")
    is_problem(await sqlite_api.call("POST", "/api/v1/repositories", content=whole + b" ", token=None), 413)


# --- the promise


async def test_nothing_is_acknowledged_before_the_commit(api: Api) -> None:
    await api.add()
    batch = {"events": [push_event(101), {"bad": 1}]}
    with api.commits_fail():
        answer = await api.signed("/events/pushes", batch)
    is_problem(answer, 500, "try again")
    assert await api.pushes() == []
    assert await api.letters() == []
    assert (await api.get("/repositories/mc")).json()["last_push_id"] == 100
    assert [v["verdict"] for v in await api.push(*batch["events"])] == ["accepted", "rejected"]


async def test_the_answer_waits_for_the_commit(sqlite_api: Api) -> None:
    await sqlite_api.add()
    async with sqlite_api.database.writing():
        call = asyncio.create_task(sqlite_api.push(push_event(101)))
        await asyncio.sleep(0.1)
        assert not call.done(), "another transaction holds the lock: nothing can be committed yet"
    assert [v["verdict"] for v in await call] == ["accepted"]


async def test_no_secret_is_in_what_is_answered_or_shown(sqlite_api: Api) -> None:
    answer: httpx.Response = await sqlite_api.signed("/events/pushes", b"{", SECRETS[1])
    shown = [answer.text, repr(sqlite_api.services.settings), str(sqlite_api.services.settings)]
    for secret in (*SECRETS, TREEHERDER_SECRET):
        assert not any(secret in text for text in shown)


def test_only_true_marks_an_oversized_push() -> None:
    assert type(understand({**WHOLE, "oversized": 1})).__name__ == "PushEvent"
    assert type(understand({**WHOLE, "oversized": True, "push_id": 1, "reason": ""})).__name__ == "OversizedPush"
