"""A call that outlives its lease and arrives late, after another process has done the work, is harmless."""

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
from tests.service.flow.graph_factory import action_on, build, claim_work, reload_action, slug
from tests.service.flow.report_harness import PREFIX, ReportHarness, open_report_harness, route
from tests.service.flow.tasks.test_create import plan_of, task_id
from tests.service.harness import SCOPES, FlowHarness, push_event

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


async def end_leases(harness: FlowHarness, model: type[Work]) -> None:
    async with harness.database.writing() as session:
        due = update(model).where(col(model.due_at).is_not(None)).values(due_at=now())
        await session.exec(due)


async def is_lost(late: asyncio.Task[Any]) -> None:
    with pytest.raises(LeaseLostError):
        await late


async def test_create_task(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]})
    first = FirstIsLate(monkeypatch, harness.services.queue, "create_task")
    late = asyncio.create_task(plan.create())
    await first.began.wait()
    await plan.again()
    await plan.create()
    await plan.lease.finish(State.DONE)
    before = harness.tc.queue.status(task_id("d"))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 4
    assert harness.tc.queue.status(task_id("d")) == before
    assert set(harness.tc.queue.tasks) == {task_id("d"), task_id("a")}
    assert (await harness.step(StepKind.GRAPH)).state == State.DONE


async def test_schedule_task(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await plan_of(harness, {"d": []})
    harness.tc.faults.add("crash", "createTask", times=1)
    with pytest.raises(Exception, match="500"):
        await plan.create()
    await plan.again()
    first = FirstIsLate(monkeypatch, harness.services.queue, "schedule_task")
    late = asyncio.create_task(plan.create())
    await first.began.wait()
    await plan.again()
    await create_tasks(harness.services, plan.lease, plan.tasks, SCOPES)
    await plan.lease.finish(State.DONE)
    assert plan.state("d") == "pending"
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert plan.state("d") == "pending"
    assert len(harness.tc.queue.find(task_id("d")).runs) == 1


async def test_cancel(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    await harness.add_repository()
    build(harness.tc.queue, {"a": []})
    action = await action_on(harness, slug("a"), "cancel")
    first = FirstIsLate(monkeypatch, harness.services.queue, "cancel_task")
    late = asyncio.create_task(cancel.run(harness.services, await claim_work(harness)))
    await first.began.wait()
    await end_leases(harness, Action)
    await cancel.run(harness.services, await claim_work(harness))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert len(harness.tc.queue.find(slug("a")).runs) == 1
    done = await reload_action(harness, action)
    assert (done.state, done.error) == (State.DONE, None)


async def test_resultset_post(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    await harness.add_repository()
    await harness.store(push_event(1))
    (treeherder,) = harness.services.treeherders.values()
    first = FirstIsLate(monkeypatch, treeherder, "post_resultset")
    late = asyncio.create_task(resultset.run(harness.services, await harness.lease(StepKind.RESULTSET)))
    await first.began.wait()
    await end_leases(harness, PushStep)
    await resultset.run(harness.services, await harness.lease(StepKind.RESULTSET))
    first.go.set()
    await is_lost(late)
    assert first.arrived == 2
    assert len(harness.th.store.pushes) == 1
    assert (await harness.step(StepKind.RESULTSET)).state == State.DONE


async def test_pulse_publish(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announcement is sent at least once; a second one is equal."""
    said: list[Any] = []

    class Publisher:
        async def publish(self, *message: Any) -> None:
            said.append(message)

    monkeypatch.setattr(harness.services, "publisher", Publisher())
    await harness.add_repository()
    await harness.store(push_event(1))
    async with harness.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
        step.kind = StepKind.ANNOUNCEMENT
    first = FirstIsLate(monkeypatch, harness.services.publisher, "publish")
    late = asyncio.create_task(resultset.announce(harness.services, await harness.lease(StepKind.ANNOUNCEMENT)))
    await first.began.wait()
    await end_leases(harness, PushStep)
    await resultset.announce(harness.services, await harness.lease(StepKind.ANNOUNCEMENT))
    first.go.set()
    await is_lost(late)
    assert len(said) == 2
    assert said[0] == said[1]
    assert (await harness.step(StepKind.ANNOUNCEMENT)).state == State.DONE


async def test_job_post(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late job is older than the one that Treeherder has since, and changes nothing."""
    async with open_report_harness(sqlite_url) as harness:
        first = FirstIsLate(monkeypatch, harness.services.treeherders[PREFIX], "post_jobs")
        task = harness.create(routes=[route(PREFIX)])
        await harness.take_all()
        late = Reporter(harness.services)
        running = asyncio.create_task(late.run())
        await first.began.wait()
        harness.end(task, "completed")
        await harness.take_all()
        async with harness.database.writing() as session:
            await session.exec(update(JobReport).values(due_at=now()))
        await until(lambda: _told(harness))
        before = harness.jobs()
        first.go.set()
        await until(lambda: _arrived(first, harness))
        late.stop()
        await running
        assert before == harness.jobs() == {f"{task}/0": ("completed", "success")}
        (report,) = await harness.reports()
        assert (report.state, report.due_at) == (State.DONE, None)


async def _told(harness: ReportHarness) -> bool:
    return list(harness.jobs().values()) == [("completed", "success")]


async def _arrived(first: FirstIsLate, harness: ReportHarness) -> bool:
    return first.arrived >= 2 and await harness.unfinished() == 0
