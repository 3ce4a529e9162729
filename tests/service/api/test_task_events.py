"""The ingress of task events: it stores, answers, and calls nobody."""

import asyncio
import base64
import json
import uuid
from typing import Any

import pytest
from sqlmodel import col, select

from service.flow.jobs import reconcile
from service.store.models import GroupCheck, JobReport, Stage
from tests.service.asgi import Api, is_problem, running, settings_for

TASK = "A35mWTRuQmyj88yMnIF0fA"
REVISION = "a1" * 20
PREFIXES = ("tc-treeherder", "tc-treeherder-stage")


def event(task_id: str = TASK, state: str = "pending", runs: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    run = {"runId": 0, "state": state, "reasonCreated": "scheduled", "scheduled": "2026-01-01T00:00:00.000Z"}
    status = {
        "taskId": task_id,
        "taskGroupId": task_id,
        "deadline": "2026-01-02T00:00:00.000Z",
        "state": state,
        "runs": [run] if runs is None else runs,
    }
    return {
        "exchange": f"exchange/taskcluster-queue/v1/task-{state}",
        "routing_key": f"primary.{task_id}.0._._.p.w.s.g._",
        "cc": [f"route.{prefix}.v2.mc.{REVISION}.1" for prefix in PREFIXES],
        "body": json.dumps({"status": status, "runId": 0, "version": 1}),
        **more,
    }


async def take(api: Api, *events: Any) -> list[dict[str, Any]]:
    answer = await api.signed("/events/tasks", {"events": list(events)})
    assert answer.status_code == 202, answer.text
    verdicts: list[dict[str, Any]] = answer.json()["verdicts"]
    assert len(verdicts) == len(events)
    return verdicts


async def reports(api: Api) -> list[JobReport]:
    async with api.database.reading() as session:
        return list(await session.exec(select(JobReport).order_by(col(JobReport.environment))))


async def test_a_batch_is_one_row_a_run_and_environment(api: Api) -> None:
    verdicts = await take(api, event(), event(state="running"), event(state="completed"))
    assert [verdict["verdict"] for verdict in verdicts] == ["accepted"] * 3
    rows = await reports(api)
    assert [(row.environment, row.run_id, row.stage, row.version) for row in rows] == [
        (prefix, 0, Stage.RESOLVED, 1) for prefix in PREFIXES
    ]
    assert {(row.project, row.revision) for row in rows} == {("mc", REVISION)}
    assert all(row.due_at is not None for row in rows)


async def test_a_later_state_raises_the_version_and_a_late_one_is_dropped(api: Api) -> None:
    for state, version in (("pending", 1), ("running", 2), ("pending", 2), ("running", 2), ("failed", 3)):
        await take(api, event(state=state))
        assert {row.version for row in await reports(api)} == {version}, state


async def test_the_same_batch_again_changes_nothing(api: Api) -> None:
    batch = [event(), event(state="running")]
    await take(api, *batch)
    before = [(row.version, row.stage, row.due_at, row.last_event_at, row.fencing_token) for row in await reports(api)]
    await take(api, *batch)
    assert [
        (row.version, row.stage, row.due_at, row.last_event_at, row.fencing_token) for row in await reports(api)
    ] == before


def task_id(number: int) -> str:
    return base64.urlsafe_b64encode(uuid.UUID(int=number, version=4).bytes).decode().rstrip("=")


async def test_many_batches_at_once_neither_deadlock_nor_lose(api: Api) -> None:
    ids = [task_id(n) for n in range(400)]
    for state in ("pending", "running", "completed"):
        there, back = [event(each, state) for each in ids], [event(each, state) for each in reversed(ids)]
        await asyncio.gather(*(take(api, *batch) for batch in (there, back, there, back)))
    rows = await reports(api)
    assert len(rows) == 2 * len(ids)
    assert {row.stage for row in rows} == {Stage.RESOLVED}


async def test_a_bad_event_becomes_a_dead_letter_and_does_not_spoil_the_batch(api: Api) -> None:
    bad: list[Any] = [
        event(body="no json"),
        event(body=json.dumps({"status": {"taskId": "x"}})),
        event(encoding="base64", body="AAAA"),
        event(routing_key=7),
        {},
        None,
        7,
        "x",
    ]
    verdicts = await take(api, *bad, event())
    assert [verdict["verdict"] for verdict in verdicts] == ["rejected"] * len(bad) + ["accepted"]
    assert all("not understood" in verdict["reason"] for verdict in verdicts[:-1])
    letters = await api.letters()
    assert len(letters) == len(bad)
    assert {letter.kind for letter in letters} == {"task-event"}
    (letter,) = [letter for letter in letters if json.loads(letter.payload or b"") == bad[0]]
    assert "primary." in letter.subject
    assert len(await reports(api)) == 2


@pytest.mark.parametrize("odd", ["\0", "\ud800"])
async def test_what_no_database_takes_is_written_out(api: Api, odd: str) -> None:
    for extra in ([], [event(body="no json")]):  # with and without a bad event in the batch
        verdicts = await take(api, event(cc=[f"route.tc-treeherder.x{odd}"]), *extra)
        assert verdicts[0]["verdict"] == "accepted"
        (row,) = await reports(api)
        assert (row.state, row.due_at) == ("skipped", None)
        assert f"\\u{ord(odd):04x}" in (row.error or "")


async def test_a_bad_event_that_comes_again_is_kept_once(api: Api) -> None:
    bad = event(body="no json")
    other = {**bad, "body": "no json either"}
    for batch in ([bad, bad, other], [other, bad], [bad, 7], [7]):
        assert {verdict["verdict"] for verdict in await take(api, *batch)} == {"rejected"}
    payloads = [json.loads(letter.payload or b"") for letter in await api.letters()]
    assert len(payloads) == 3
    assert all(each in payloads for each in (bad, other, 7))


async def test_bad_events_that_come_at_once_in_any_order_are_kept_once(postgres_url: str) -> None:
    bad = [event(body=f"no json {number}") for number in range(30)]
    async with running(settings_for(postgres_url)) as api:
        await asyncio.gather(*(take(api, *batch) for batch in (bad, bad[::-1]) * 4))
        assert len(await api.letters()) == 30


async def test_what_concerns_no_environment_is_not_kept(sqlite_api: Api) -> None:
    (verdict,) = await take(sqlite_api, event(cc=["route.index.x"]))
    assert verdict["verdict"] == "rejected"
    assert await reports(sqlite_api) == []
    assert await sqlite_api.letters() == []


async def test_unsigned_is_a_401(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.post("/events/tasks", {"events": [event()]}), 401)


async def test_a_commit_that_fails_is_no_202(api: Api) -> None:
    with api.commits_fail():
        answer = await api.signed("/events/tasks", {"events": [event()]})
    assert answer.status_code == 500
    assert await reports(api) == []


async def test_a_dead_letter_of_a_task_event_can_be_replayed_once_it_is_understood(sqlite_api: Api) -> None:
    await take(sqlite_api, event(body="no json"))
    (letter,) = await sqlite_api.letters()
    is_problem(await sqlite_api.post(f"/dead-letters/{letter.id}/replay"), 422, "no JSON")
    async with sqlite_api.database.writing() as session:
        letter.payload = json.dumps(event()).encode()
        session.add(letter)
    answer = await sqlite_api.post(f"/dead-letters/{letter.id}/replay")
    assert answer.status_code == 202
    assert len(await reports(sqlite_api)) == 2
    assert await sqlite_api.letters() == []


async def test_a_buried_report_can_be_replayed(sqlite_api: Api) -> None:
    await take(sqlite_api, event())
    async with sqlite_api.database.writing() as session:
        row, _ = await session.exec(select(JobReport))
        row.state, row.due_at = "failed", None  # type: ignore[assignment]  # as the database has it
        session.add(row.dead_letter("refused"))
    (letter,) = await sqlite_api.letters()
    assert (await sqlite_api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    again = await reports(sqlite_api)
    assert {each.state for each in again} == {"pending"}
    assert all(each.due_at is not None for each in again)


@pytest.mark.parametrize("found", ["deleted", "there"])
async def test_a_deleted_queue_of_task_events_makes_all_runs_due_for_a_check(api: Api, found: str) -> None:
    await take(api, event())
    answer = await api.signed("/listeners/report", {"queue": "queue/u/q/tasks", "events": "tasks", "found": found})
    assert answer.status_code == 200, answer.text
    async with api.database.reading() as session:
        checks = (await session.exec(select(GroupCheck.task_group_id))).all()
    # the worker goes through them piece by piece: there can be a million
    assert checks == ([reconcile.EVERYTHING] if found == "deleted" else [])
