"""Retention takes away what is ended and old, and nothing else."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlmodel import SQLModel, col, func, select

from service.clock import now
from service.engine import retention
from service.settings import RetentionSettings
from service.store.database import Database
from service.store.models import (
    Action,
    AuditEntry,
    DeadLetter,
    Delivery,
    JobReport,
    Notice,
    NoticeKind,
    Origin,
    PlannedTask,
    Push,
    PushStep,
    Source,
    Stage,
    State,
    StepKind,
)
from tests.service.harness import add_repository, node

DAY = timedelta(days=1)


async def count(database: Database, model: type[SQLModel]) -> int:
    async with database.reading() as session:
        return (await session.exec(select(func.count()).select_from(model))).one()


async def push(
    database: Database, repository_id: int, push_id: int, age: timedelta, state: State = State.DONE
) -> PushStep:
    at = now() - age
    open_ = state is State.PENDING
    async with database.writing() as session:
        stored = Push(
            repository_id=repository_id,
            generation=0,
            push_id=push_id,
            user="u",
            date=at,
            noticed_at=at,
            revision=node(push_id),
            revision_hash=node(push_id),
            changesets=[],
            nodes=[node(push_id)],
        )
        session.add(stored)
        await session.flush()
        step = PushStep(
            push_id=stored.id or 0,
            kind=StepKind.GRAPH,
            lane="graph h",
            state=state,
            due_at=at if open_ else None,
            done_at=None if open_ else at,
        )
        session.add(step)
        await session.flush()
        session.add(
            PlannedTask(
                task_id=f"task-{push_id}",
                step_id=step.id,
                position=0,
                label="task",
                name="t",
                definition={"a": 1},
                created=True,
            )
        )
        session.add(step.dead_letter("why"))
    return step


async def definition(database: Database, task_id: str) -> object:
    async with database.reading() as session:
        return (await session.exec(select(PlannedTask.definition).where(PlannedTask.task_id == task_id))).one()


async def test_bodies_of_carried_out_plans_go_first_and_their_ids_stay(database: Database) -> None:
    repository = await add_repository(database, "mc", last_push_id=100)
    for number, (age, state) in enumerate([(8 * DAY, State.DONE), (6 * DAY, State.DONE), (8 * DAY, State.FAILED)]):
        await push(database, repository.id or 0, number, age, state)
    await push(database, repository.id or 0, 3, 8 * DAY, State.PENDING)
    await retention.sweep(database, RetentionSettings())
    assert await definition(database, "task-0") is None
    for kept in ("task-1", "task-2", "task-3"):
        assert await definition(database, kept) == {"a": 1}
    assert await count(database, Push) == 4


async def test_a_push_goes_after_a_year_with_all_that_is_its(database: Database) -> None:
    repository = await add_repository(database, "mc", last_push_id=3)
    await push(database, repository.id or 0, 1, 400 * DAY)
    await push(database, repository.id or 0, 2, 400 * DAY, State.PENDING)  # unfinished work is kept, however old
    await push(database, repository.id or 0, 3, 400 * DAY)  # at the cursor
    await push(database, repository.id or 0, 4, 300 * DAY)
    swept = await retention.sweep(database, RetentionSettings(dead_letters=timedelta(days=1000)))
    assert swept["pushes"] == 1
    async with database.reading() as session:
        assert sorted((await session.exec(select(Push.push_id))).all()) == [2, 3, 4]
    assert (
        await count(database, PushStep) == await count(database, PlannedTask) == await count(database, DeadLetter) == 3
    )


async def test_an_action_goes_with_its_notices_once_they_are_told(database: Database) -> None:
    old = now() - 400 * DAY
    async with database.writing() as session:
        for number, sent in enumerate([True, False]):
            action = Action(
                kind="retrigger",
                project="mc",
                task_id=f"t{number}",
                requester="r",
                source=Source.API,
                lane="action retrigger",
                state=State.DONE,
                due_at=None,
                done_at=old,
            )
            session.add(action)
            await session.flush()
            session.add(
                Notice(
                    kind=NoticeKind.PULSE,
                    action_id=action.id or 0,
                    target="x",
                    key="k",
                    body={},
                    lane="notice",
                    due_at=None if sent else old,
                )
            )
        session.add(Delivery(key="old", at=old))
        session.add(Delivery(key="new"))
    await retention.sweep(database, RetentionSettings())
    async with database.reading() as session:
        assert (await session.exec(select(Action.task_id))).all() == ["t1"]
        assert (await session.exec(select(Delivery.key))).all() == ["new"]


async def report(database: Database, task_id: str, age: timedelta, due: datetime | None = None) -> None:
    at = now() - age
    async with database.writing() as session:
        session.add(
            JobReport(
                task_id=task_id,
                run_id=0,
                environment="e",
                project="mc",
                task_group_id="g",
                stage=Stage.RESOLVED,
                run={},
                lane="job e mc",
                due_at=due,
                done_at=at,
                last_event_at=at,
                state=State.DONE,
            )
        )


async def test_job_reports_go_a_batch_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    for number in range(8):
        await report(database, f"old{number}", 31 * DAY)
    await report(database, "young", 29 * DAY)
    await report(database, "waiting", 31 * DAY, due=now())
    swept = await retention.sweep(database, RetentionSettings())
    assert swept["job_reports"] == 8
    async with database.reading() as session:
        assert sorted((await session.exec(select(JobReport.task_id))).all()) == ["waiting", "young"]


async def test_a_push_with_many_tasks_goes_a_batch_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    repository = await add_repository(database, "mc", last_push_id=3)
    step = await push(database, repository.id or 0, 1, 400 * DAY, State.FAILED)
    await add_tasks(database, 25, step_id=step.id)
    for left in (17, 7):  # the dead letter goes first
        async with database.writing() as session:
            assert await retention._pushes(session, now() - 365 * DAY) == (0, True)
        assert await count(database, PlannedTask) == left
        assert await count(database, Push) == await count(database, PushStep) == 1
        async with database.reading() as session:  # what is left of its plan is not to be carried out any more
            kept = (await session.exec(select(PushStep))).one()
            assert (kept.state, kept.error) == (State.SKIPPED, retention.TAKEN_AWAY)
    swept = await retention.sweep(database, RetentionSettings())
    assert swept["pushes"] == 1
    assert await count(database, PlannedTask) == await count(database, Push) == 0


async def add_tasks(database: Database, number: int, **owner: int | None) -> None:
    common: dict[str, Any] = {"label": "task", "name": "t", "created": True, "definition": {"a": 1}, **owner}
    async with database.writing() as session:
        for position in range(1, number + 1):
            session.add(PlannedTask(task_id=f"more-{position}", position=position, **common))


async def test_an_action_with_many_deliveries_goes_a_batch_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    old = now() - 400 * DAY
    who: dict[str, Any] = {"kind": "cancel", "project": "mc", "task_id": "t", "requester": "r", "source": Source.PULSE}
    async with database.writing() as session:
        action = Action(**who, lane="action cancel", state=State.DONE, due_at=None, done_at=old)
        session.add(action)
        await session.flush()
        session.add_all([Delivery(key=str(number), action_id=action.id, at=old) for number in range(25)])
    async with database.writing() as session:
        assert await retention._actions(session, now() - 365 * DAY) == (0, True)
    assert await count(database, Delivery) == 15
    assert (await retention.sweep(database, RetentionSettings()))["actions"] == 1
    assert await count(database, Delivery) == await count(database, Action) == 0


async def test_bodies_of_large_plans_go_a_batch_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    monkeypatch.setattr(retention, "OWNERS", 2)
    repository = await add_repository(database, "mc", last_push_id=100)
    steps = [await push(database, repository.id or 0, number, 8 * DAY, State.FAILED) for number in range(3)]
    steps += [await push(database, repository.id or 0, number, 8 * DAY) for number in range(3, 8)]
    await add_tasks(database, 25, step_id=steps[-1].id)
    assert (await retention.sweep(database, RetentionSettings()))["plan_bodies"] == 5 + 25
    async with database.reading() as session:
        kept = select(PlannedTask.step_id).where(col(PlannedTask.definition).is_not(None))
        assert set(await session.exec(kept)) == {step.id for step in steps[:3]}


async def test_the_audit_is_kept_as_long_as_pushes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    async with database.writing() as session:
        for age in (366, 370, 400, 364, 0):
            at = now() - age * DAY
            session.add(AuditEntry(at=at, event="signed-in", caller=str(age), origin=Origin.PAGE))
    assert (await retention.sweep(database, RetentionSettings()))["audit"] == 3
    async with database.reading() as session:
        assert set(await session.exec(select(AuditEntry.caller))) == {"364", "0"}


async def test_it_runs_now_and_then_and_outlives_an_error(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    thrice = asyncio.Event()

    async def breaks(*_: object) -> dict[str, int]:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OSError("the database is away")
        if runs == 3:
            thrice.set()
        return {}

    monkeypatch.setattr(retention, "sweep", breaks)
    sweeper = asyncio.create_task(retention.run(sqlite, RetentionSettings(every=timedelta(milliseconds=5))))
    await asyncio.wait_for(thrice.wait(), 5)
    sweeper.cancel()
