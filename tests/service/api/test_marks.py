"""Marks of what people watch: they differ after each change, and cost a few statements."""

import re
from datetime import timedelta

import pytest
from sqlmodel import col, select

from service.api import marks
from service.api.marks import NEWEST, ROWS, Watched, WatchedSum, read_marks
from service.clock import now
from service.engine.registry import WORK
from service.store.models import (
    Action,
    AuditEntry,
    DeadLetter,
    JobReport,
    Origin,
    PlannedTask,
    PulseQueue,
    PushStep,
    Repository,
    Stage,
)
from tests.service.api.test_tasks import OURS, stored
from tests.service.asgi import Api, push_event
from tests.service.web.support import statements


async def marks_of(api: Api, watched: Watched) -> dict[tuple[str, object], object]:
    async with api.database.reading() as session:
        return await read_marks(session, watched)


async def test_a_mark_differs_after_a_change(api: Api) -> None:
    ids = await stored(api)
    (push,) = await api.pushes()
    watched = Watched(frozenset({push.id or 0}), frozenset({ids["first"]}), frozenset({OURS, "never reported"}))
    first = await marks_of(api, watched)
    assert set(first) == {("push", push.id), ("action", ids["first"]), ("task", OURS)}
    assert await marks_of(api, watched) == first
    async with api.database.writing() as session:
        report = (await session.exec(select(JobReport).where(JobReport.task_id == OURS, JobReport.run_id == 1))).one()
        report.stage = Stage.RESOLVED
    second = await marks_of(api, watched)
    assert {key for key in first if first[key] != second[key]} == {("task", OURS)}
    async with api.database.writing() as session:
        for step in await session.exec(select(PushStep)):
            step.attempts += 1
    third = await marks_of(api, watched)
    assert {key for key in first if second[key] != third[key]} == {("push", push.id)}
    async with api.database.writing() as session:
        planned = (await session.exec(select(PlannedTask).where(PlannedTask.created == False))).one()  # noqa: E712 - SQL
        planned.created = True
    fourth = await marks_of(api, watched)
    assert {key for key in first if third[key] != fourth[key]} == {("action", ids["first"])}
    async with api.database.writing() as session:
        (await session.get_one(Action, ids["first"])).fencing_token += 1
    assert (await marks_of(api, watched))[("action", ids["first"])] != fourth[("action", ids["first"])]


async def test_however_much_is_watched_there_are_few_statements_and_without_anything_none(api: Api) -> None:
    await stored(api)
    with statements(api) as sent:
        assert await marks_of(api, Watched()) == {}
    assert sent == []
    many = frozenset(range(1, 500))
    with statements(api) as sent:
        rows = frozenset((kind, str(n) if kind == "repository" else n) for kind in ROWS for n in many)
        tasks = frozenset(str(number) for number in many)
        await marks_of(api, Watched(many, many, tasks, rows, frozenset(NEWEST), waiting=True, pulse_queues=True))
    assert len([statement for statement in sent if re.match("SELECT|WITH", statement)]) == 8 + len(WORK.tables)


def test_what_several_pages_watch_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "MOST_TASKS", 3)
    together = WatchedSum()
    assert together.add(Watched(frozenset({1}), task_ids=frozenset("abcde")))  # one page alone is never too much
    assert not together.add(Watched(frozenset({2}), frozenset({3}), frozenset("x")))
    assert not together.add(Watched(task_ids=frozenset("a")))
    assert together.add(Watched(newest=frozenset({"push"})))
    other = Watched(rows=frozenset({("letter", 3)}), newest=frozenset({"audit"}), waiting=True, pulse_queues=True)
    assert together.add(other)
    assert together.watched.keys == {
        *(("push", 1), ("push", 2), ("action", 3), *(("task", each) for each in "abcde"), ("newest", "push")),
        *(("newest", "audit"), ("letter", 3), ("waiting", 0), ("pulse queues", 0)),
    }


async def test_what_is_added_changes_the_mark_of_the_newest(api: Api) -> None:
    await api.add()
    watched = Watched(newest=frozenset(NEWEST))
    before = await marks_of(api, watched)
    assert before["newest", "push"] is None
    await api.push(push_event(101))
    async with api.database.writing() as session:
        session.add(AuditEntry(event="signed-in", caller="c", origin=Origin.PAGE))
    after = await marks_of(api, watched)
    assert {key[1] for key in before if before[key] != after[key]} == {"push", "audit"}


async def test_rows_that_change_or_go_have_another_mark(api: Api) -> None:
    await stored(api)
    async with api.database.writing() as session:
        session.add(letter := DeadLetter(kind="push-event", subject="s", reason="r"))
        await session.flush()
        number = letter.id
    report = ("report", 1)
    watched = Watched(rows=frozenset({("letter", number), ("letter", 999), ("repository", "mc"), report}))
    first = await marks_of(api, watched)
    assert set(first) == set(watched.rows)
    assert first["letter", 999] is None
    async with api.database.writing() as session:
        await session.delete(await session.get_one(DeadLetter, number))
        (await session.get_one(JobReport, 1)).attempts += 1
    second = await marks_of(api, watched)
    assert {key for key in first if first[key] != second[key]} == {("letter", number), report}
    async with api.database.writing() as session:
        repository = (await session.exec(select(Repository))).one()
        repository.poll_failures += 1
    third = await marks_of(api, watched)
    assert {key for key in first if second[key] != third[key]} == {("repository", "mc")}
    async with api.database.writing() as session:
        (await session.exec(select(Repository))).one().deleted_at = now()
    assert (await marks_of(api, watched))["repository", "mc"] is None


async def test_what_waits_and_queues_have_a_mark_each(api: Api) -> None:
    await stored(api)
    watched = Watched(waiting=True, pulse_queues=True)
    first = await marks_of(api, watched)
    async with api.database.writing() as session:
        step = (await session.exec(select(PushStep).order_by(col(PushStep.id)).limit(1))).one()
        step.due_at = now() + timedelta(hours=1)
    second = await marks_of(api, watched)
    assert {key for key in first if first[key] != second[key]} == {("waiting", 0)}
    async with api.database.writing() as session:
        session.add(PulseQueue(name="q", events="tasks"))
    third = await marks_of(api, watched)
    assert {key for key in first if second[key] != third[key]} == {("pulse queues", 0)}
