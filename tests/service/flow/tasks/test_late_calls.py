"""A call that outlives its lease is harmless: another has done the work by then, and it arrives upstream at last."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlmodel import col, select, update

from service.clock import now
from service.engine.leases import LeaseLostError
from service.engine.reporter import Reporter
from service.flow.actions import cancel
from service.flow.pushes import resultset
from service.flow.tasks.create import create_tasks
from service.store.models import Action, JobReport, PushStep, State, StepKind, Work
from tests.service.engine.test_worker import until
from tests.service.flow.graphs import action_on, build, claimed, slug, stored
from tests.service.flow.newsroom import PREFIX, Newsroom, newsroom, route
from tests.service.flow.tasks.test_create import plan_of, task_id
from tests.service.world import SCOPES, World, push_event

Call = Callable[..., Awaitable[Any]]


class FirstIsLate:
    """Holds the first call back until it is let go, and lets all others through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self._call: Call = getattr(owner, name)
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.arrived = 0
        monkeypatch.setattr(owner, name, self)

    async def __call__(self, *arguments: Any, **more: Any) -> Any:
        if not self.began.is_set():
            self.began.set()
            await self.go.wait()
        self.arrived += 1
        return await self._call(*arguments, **more)


async def end_leases(world: World, model: type[Work]) -> None:
    async with world.database.writing() as session:
        due = update(model).where(col(model.due_at).is_not(None)).values(due_at=now())
        await session.exec(due)


async def is_lost(late: asyncio.Task[Any]) -> None:
    with pytest.raises(LeaseLostError):
        await late


async def test_create_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await plan_of(world, {"d": [], "a": ["d"]})
    first = FirstIsLate(monkeypatch, world.services.queue, "create_task")
    late = asyncio.create_task(plan.create())
    await first.began.wait()
    await plan.again()
    await plan.create()
    await plan.lease.finish(State.DONE)
    before = world.tc.queue.status(task_id("d"))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 4
    assert world.tc.queue.status(task_id("d")) == before
    assert set(world.tc.queue.tasks) == {task_id("d"), task_id("a")}
    assert (await world.step(StepKind.GRAPH)).state == State.DONE


async def test_schedule_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await plan_of(world, {"d": []})
    world.tc.faults.add("crash", "createTask", times=1)
    with pytest.raises(Exception, match="500"):
        await plan.create()
    await plan.again()
    first = FirstIsLate(monkeypatch, world.services.queue, "schedule_task")
    late = asyncio.create_task(plan.create())
    await first.began.wait()
    await plan.again()
    await create_tasks(world.services, plan.lease, plan.tasks, SCOPES)
    await plan.lease.finish(State.DONE)
    assert plan.state("d") == "pending"
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert plan.state("d") == "pending"
    assert len(world.tc.queue.find(task_id("d")).runs) == 1


async def test_cancel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add_repository()
    build(world.tc.queue, {"a": []})
    action = await action_on(world, slug("a"), "cancel")
    first = FirstIsLate(monkeypatch, world.services.queue, "cancel_task")
    late = asyncio.create_task(cancel.run(world.services, await claimed(world)))
    await first.began.wait()
    await end_leases(world, Action)
    await cancel.run(world.services, await claimed(world))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert len(world.tc.queue.find(slug("a")).runs) == 1
    done = await stored(world, action)
    assert (done.state, done.error) == (State.DONE, None)


async def test_resultset_post(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add_repository()
    await world.store(push_event(1))
    (treeherder,) = world.services.treeherders.values()
    first = FirstIsLate(monkeypatch, treeherder, "post_resultset")
    late = asyncio.create_task(resultset.run(world.services, await world.lease(StepKind.RESULTSET)))
    await first.began.wait()
    await end_leases(world, PushStep)
    await resultset.run(world.services, await world.lease(StepKind.RESULTSET))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert len(world.th.store.pushes) == 1
    assert (await world.step(StepKind.RESULTSET)).state == State.DONE


async def test_pulse_publish(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at least once; the second time it says the same."""
    said: list[Any] = []

    class Publisher:
        async def publish(self, *message: Any) -> None:
            said.append(message)

    monkeypatch.setattr(world.services, "publisher", Publisher())
    await world.add_repository()
    await world.store(push_event(1))
    async with world.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
        step.kind = StepKind.ANNOUNCEMENT
    first = FirstIsLate(monkeypatch, world.services.publisher, "publish")
    late = asyncio.create_task(resultset.announce(world.services, await world.lease(StepKind.ANNOUNCEMENT)))
    await first.began.wait()
    await end_leases(world, PushStep)
    await resultset.announce(world.services, await world.lease(StepKind.ANNOUNCEMENT))
    first.go.set()
    await is_lost(late)
    assert len(said) == 2
    assert said[0] == said[1]
    assert (await world.step(StepKind.ANNOUNCEMENT)).state == State.DONE


async def test_job_post(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is older than what Treeherder was told since, and changes nothing."""
    async with newsroom(sqlite_url) as room:
        first = FirstIsLate(monkeypatch, room.services.treeherders[PREFIX], "post_jobs")
        task = room.create(routes=[route(PREFIX)])
        await room.take_all()
        late = Reporter(room.services)
        running = asyncio.create_task(late.run())
        await first.began.wait()
        room.end(task, "completed")
        await room.take_all()
        async with room.database.writing() as session:
            await session.exec(update(JobReport).values(due_at=now()))
        await until(lambda: _told(room))
        before = room.jobs()
        first.go.set()
        await until(lambda: _arrived(first, room))
        late.stop()
        await running
        assert before == room.jobs() == {f"{task}/0": ("completed", "success")}
        (report,) = await room.reports()
        assert (report.state, report.due_at) == (State.DONE, None)


async def _told(room: Newsroom) -> bool:
    return list(room.jobs().values()) == [("completed", "success")]


async def _arrived(first: FirstIsLate, room: Newsroom) -> bool:
    return first.arrived >= 2 and await room.unfinished() == 0
