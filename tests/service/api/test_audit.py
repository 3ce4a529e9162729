"""The audit: an entry for each change, in the transaction of the change, and the list of them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import select

from service.api.waiting import try_now
from service.auth import LOCAL
from service.clock import now
from service.store.models import AuditEntry, AuditEvent, PushStep, State
from tests.service.api.test_actions import message, press
from tests.service.asgi import ADMIN, READER, RETRIER, WRITER, Api, is_problem, push_event

TASK = "fN1SbArXTPSVFNUvaOlinQ"


async def entries(api: Api) -> list[AuditEntry]:
    async with api.database.reading() as session:
        return list(await session.exec(select(AuditEntry).order_by(AuditEntry.id)))  # type: ignore[arg-type]  # a column


async def listed(api: Api, query: str = "") -> list[dict[str, Any]]:
    answer = await api.get(f"/audit{query}")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def buried(api: Api) -> list[int]:
    """Bury the steps of a push; return the ids of their dead letters."""
    await api.push(push_event(101))
    await api.end_steps(State.FAILED, "Treeherder answers 503", bury=True)
    return [letter.id or 0 for letter in await api.letters()]


async def do_everything(api: Api) -> None:
    """Make each change that is recorded, besides signing in."""
    await api.add()
    first, second, _ = await buried(api)
    assert (await api.patch("/repositories/mc", {"graph": False, "level": "1"}, token=WRITER)).status_code == 200
    assert (await api.post(f"/dead-letters/{first}/replay")).status_code == 202
    assert (await api.delete(f"/dead-letters/{second}")).status_code == 204
    assert (await api.post("/pushes/mc/101/retry", token=RETRIER)).status_code == 202
    body = {"action": "cancel", "project": "mc", "task_id": TASK, "requester": "sheriff@example.com"}
    for _ in range(2):
        assert (await api.post("/actions", body, headers={"Idempotency-Key": "k"})).status_code == 202
    assert (await api.post("/repositories/mc/poll")).status_code == 202
    async with api.database.writing() as session:
        for step in await session.exec(select(PushStep)):
            step.error, step.due_at = "Treeherder answers 503", now() + timedelta(hours=1)
        lane = step.lane
    assert await try_now(api.services, LOCAL, PushStep, lane) == 1
    assert (await api.post("/repositories/mc/reset", {"last_push_id": 7})).status_code == 200
    assert (await api.delete("/repositories/mc?force=true")).status_code == 204


async def test_each_change_leaves_one_entry(api: Api) -> None:
    await do_everything(api)
    stored = {entry.event: entry for entry in await entries(api)}
    assert len(await entries(api)) == len(stored)
    assert {*stored, AuditEvent.SIGNED_IN} == set(AuditEvent)
    assert {entry.event: entry.caller for entry in stored.values() if entry.caller != "admin"} == {
        "waiting-tried": "local",
        "repository-changed": "writer",
        "push-retried": "retrier",
    }
    assert {(entry.origin, entry.taskcluster) for entry in stored.values()} == {("api", False)}
    added = stored["repository-added"].details["values"]
    assert (added["url"], added["last_push_id"]) == ("https://hg.mozilla.org/mc", 100)
    assert stored["repository-changed"].details == {"changes": {"graph": [True, False]}}
    asked = stored["action-asked"]
    assert (asked.repository, asked.subject) == ("mc", f"cancel of {TASK}")
    assert asked.details == {"action": 1, "kind": "cancel", "requester": "sheriff@example.com"}
    assert stored["push-retried"].details["push"] == 101
    assert stored["repository-reset"].details == {"values": {"last_push_id": 7, "generation": 1}}
    assert stored["repository-deleted"].details["buried"] > 0
    dropped = stored["dead-letter-dropped"]
    assert dropped.subject is not None
    assert "pusher@example.com to mc" in dropped.subject
    for item in await listed(api):
        entry = stored[item["event"]]
        for name in ("id", "caller", "taskcluster", "origin", "repository", "subject", "details"):
            assert item[name] == getattr(entry, name)


async def test_each_press_in_treeherder_leaves_an_entry_of_whom_treeherder_names(api: Api) -> None:
    await api.add()
    again = message(1, requester="sheriff@example.com", redelivered=True)
    assert await press(api, message(1, requester="sheriff@example.com")) == ["accepted"]
    assert await press(api, again) == ["duplicate"]
    assert await press(api, message(2, requester="other@example.com", action="no such")) == ["rejected"]
    _, pressed, refused = await entries(api)
    assert (pressed.caller, pressed.origin, pressed.event) == ("sheriff@example.com", "pulse", "action-asked")
    assert (pressed.repository, pressed.details) == ("mc", {"action": 1, "kind": "retrigger"})
    assert (refused.caller, refused.details["kind"]) == ("other@example.com", "no such")


@contextmanager
def transactions(api: Api) -> Iterator[list[set[str]]]:
    """Note of each transaction that commits meanwhile the tables that it writes."""
    committed: list[set[str]] = []
    written: dict[int, set[str]] = defaultdict(set)

    def note(connection: Any, _: Any, statement: str, *__: Any) -> None:
        if match := re.match(r"(?:INSERT INTO|UPDATE|DELETE FROM) (\w+)", statement):
            written[id(connection)].add(match[1])

    def commit(connection: Any) -> None:
        committed.append(written.pop(id(connection), set()))

    for engine in api.database.engines:
        event.listen(engine, "before_cursor_execute", note)
        event.listen(engine, "commit", commit)
    try:
        yield committed
    finally:
        for engine in api.database.engines:
            event.remove(engine, "before_cursor_execute", note)
            event.remove(engine, "commit", commit)


async def test_an_entry_is_stored_in_the_transaction_of_its_change_or_not_at_all(api: Api) -> None:
    await api.add()
    first, *_ = await buried(api)
    before = len(await entries(api))
    body = {"alias": "other", "url": "https://hg.mozilla.org/other", "level": "1", "last_push_id": 1}
    changes: list[tuple[str, str, Any, str]] = [
        ("POST", "/repositories", body, "repository"),
        ("PATCH", "/repositories/mc", {"graph": False}, "repository"),
        ("POST", "/repositories/mc/poll", None, "repository"),
        ("POST", "/repositories/mc/reset", {"last_push_id": 7}, "repository"),
        ("POST", f"/dead-letters/{first}/replay", None, "dead_letter"),
        ("DELETE", f"/dead-letters/{first + 1}", None, "dead_letter"),
        ("POST", "/pushes/mc/101/retry", None, "push_step"),
        ("POST", "/actions", {"action": "cancel", "project": "mc", "task_id": TASK}, "action"),
        ("DELETE", "/repositories/mc?force=true", None, "repository"),
    ]
    for method, path, json, table in changes:
        with api.commits_fail():
            assert (await api.call(method, f"/api/v1{path}", json=json)).status_code == 500, path
        assert len(await entries(api)) == before
        with transactions(api) as committed:
            assert (await api.call(method, f"/api/v1{path}", json=json)).is_success, path
        assert [tables for tables in committed if "audit_entry" in tables if table in tables], path
        before += 1
        assert len(await entries(api)) == before


async def test_a_change_that_is_refused_leaves_none(sqlite_api: Api) -> None:
    await sqlite_api.add()
    before = len(await entries(sqlite_api))
    for token in (READER, None):
        assert (await sqlite_api.patch("/repositories/mc", {"graph": False}, token=token)).status_code in {401, 403}
    is_problem(await sqlite_api.post("/pushes/mc/101/retry"), 404)
    is_problem(await sqlite_api.delete("/dead-letters/9"), 404)
    is_problem(await sqlite_api.post("/repositories/mc/reset", {"last_push_id": -1}), 422)
    assert len(await entries(sqlite_api)) == before


async def test_they_are_found_by_caller_repository_and_event(api: Api) -> None:
    await do_everything(api)
    assert [item["event"] for item in await listed(api, "?caller=writer")] == ["repository-changed"]
    assert {item["repository"] for item in await listed(api, "?repository=mc")} == {"mc"}
    assert [item["event"] for item in await listed(api, "?event=action-asked")] == ["action-asked"]
    assert await listed(api, "?event=action-asked&caller=writer") == []
    assert await listed(api, "?repository=other") == []
    assert await listed(api, "?caller=%00") == []
    is_problem(await api.get("/audit?event=x"), 422)
    is_problem(await api.get("/audit?who=x"), 422)


async def test_pages_follow_each_other(sqlite_api: Api) -> None:
    for number in range(5):
        await sqlite_api.add(f"r{number}")
    seen, after = [], ""
    while True:
        answer = (await sqlite_api.get(f"/audit?limit=2&event=repository-added{after}")).json()
        seen += [item["repository"] for item in answer["items"]]
        if answer["next"] is None:
            break
        after = f"&after={answer['next']}"
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


@pytest.mark.parametrize("token", [READER, WRITER, None])
async def test_to_read_it_needs_its_own_scope(sqlite_api: Api, token: str | None) -> None:
    answer = await sqlite_api.get("/audit", token=token)
    problem = is_problem(answer, 401 if token is None else 403, "tc-treeherder:audit:read")
    assert problem["missing_scope"] == "tc-treeherder:audit:read"
    assert (await sqlite_api.get("/audit", token=ADMIN)).status_code == 200
