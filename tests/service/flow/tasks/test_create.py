"""Creation of the tasks of a stored plan, each exactly once, with the stand-in and through the real client."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col, select, update

from sandbox.taskcluster.clock import parse
from sandbox.taskcluster.queue import Queue as Stand
from service.clock import now
from service.engine import fair
from service.engine.leases import Lease, LeaseLostError
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.tasks import create
from service.flow.tasks.create import MAX_CANCEL_ATTEMPTS, PlanRefusedError, cancel_created, create_tasks
from service.flow.tasks.definition import authority_differences, complete, format_date
from service.flow.tasks.ids import slugid
from service.flow.tasks.plan import mark_created
from service.store.models import PlannedTask, PushStep, StepKind
from tests.service.engine.test_worker import until
from tests.service.harness import SCOPES, FlowHarness, open_harness, push_event

MINUTE = timedelta(minutes=1)


def task_id(name: object) -> str:
    return slugid(b"k", str(name))


class Plan:
    """A stored plan and its holder; `graph` has the dependencies of each task."""

    def __init__(self, harness: FlowHarness, lease: Lease[PushStep], tasks: list[PlannedTask]) -> None:
        self.harness, self.lease, self.tasks = harness, lease, tasks

    async def create(self, scopes: Sequence[str] = SCOPES) -> None:
        created = await create_tasks(self.harness.services, self.lease, self.tasks, list(scopes))
        await self.lease.commit(mark_created(created))

    async def again(self) -> None:
        """Claim the plan as the next holder, which reads it anew after a crash or a wait."""
        async with self.harness.database.writing() as session:
            await session.exec(update(PushStep).values(due_at=now()))
        self.lease = await self.harness.lease(StepKind.GRAPH)
        self.tasks = await self.harness.planned()

    def __getitem__(self, name: object) -> PlannedTask:
        return next(task for task in self.tasks if task.task_id == task_id(name))

    def stands(self, name: object) -> dict[str, Any]:
        """Return the definition of the task in Taskcluster."""
        return self.harness.tc.queue.task(task_id(name))

    def state(self, name: object) -> str:
        return str(self.harness.tc.queue.status(task_id(name))["status"]["state"])

    async def created(self) -> set[str]:
        return {task.task_id for task in await self.harness.planned() if task.created}


async def plan_of(
    harness: FlowHarness, graph: dict[str, list[str]], *, age: timedelta = timedelta(), **fields: Any
) -> Plan:
    """Store a plan that was made `age` ago; the first task's id is the group's."""
    await harness.add_repository()
    await harness.store(push_event(1))
    lease = await harness.lease(StepKind.GRAPH)
    created = now() - age
    tasks = []
    for position, (name, dependencies) in enumerate(graph.items()):
        definition = {
            "taskQueueId": "prov/w",
            "schedulerId": "test",
            "taskGroupId": task_id(next(iter(graph))),
            "dependencies": [task_id(dependency) for dependency in dependencies],
            "created": format_date(created),
            "deadline": format_date(created + timedelta(days=1)),
            "payload": {"artifacts": {"a": {"expires": format_date(created + timedelta(days=2))}}, "none": None},
            "metadata": {"name": name, "description": "d", "owner": "o", "source": "https://example.com"},
            **fields,
        }
        tasks.append(
            PlannedTask(
                task_id=task_id(name),
                step_id=lease.item.id or 0,
                position=position,
                label="task",
                name=name,
                definition=complete(task_id(name), definition),
            )
        )
    async with lease.writing() as session:
        session.add_all(tasks)
    return Plan(harness, lease, await harness.planned())


@pytest.fixture
async def fast(sqlite_url: str) -> AsyncIterator[FlowHarness]:
    """Open a harness whose calls time out soon."""
    async with open_harness(sqlite_url) as harness:
        harness.settings.taskcluster.timeout = timedelta(seconds=0.3)
        yield harness


GRAPH: dict[str, list[str]] = {"d": [], "a": ["d"], "b": ["d"], "c": ["a", "b"]}


async def test_a_plan_is_created_in_dependency_order(harness: FlowHarness) -> None:
    plan = await plan_of(harness, GRAPH)
    await plan.create()
    order = [creation.task_id for creation in harness.tc.journal.creations]
    assert order[0] == task_id("d")
    assert order[3] == task_id("c")
    assert {creation.status for creation in harness.tc.journal.creations} == {200}
    assert await plan.created() == {task_id(name) for name in GRAPH}
    for planned in plan.tasks:
        assert harness.tc.queue.task(planned.task_id) == planned.definition
    assert plan.state("d") == "pending"
    assert plan.state("c") == "unscheduled"
    assert harness.tc.journal.calls == {"createTask": 4}, "no call more than needed"


class Held:
    """Holds `createTask` of certain tasks back until they are let go, and counts how many are under way."""

    def __init__(self, harness: FlowHarness, monkeypatch: pytest.MonkeyPatch, *names: object) -> None:
        self._call = harness.services.queue.create_task
        self._held = {task_id(name): asyncio.Event() for name in names}
        self.begun: list[str] = []
        self.under_way = self.most = 0
        monkeypatch.setattr(harness.services.queue, "create_task", self)

    async def __call__(self, name: str, *arguments: Any) -> Any:
        self.begun.append(name)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if name in self._held:
                await self._held[name].wait()
            return await self._call(name, *arguments)
        finally:
            self.under_way -= 1

    def let_go(self) -> None:
        for event in self._held.values():
            event.set()


async def test_tasks_that_do_not_need_each_other_are_created_at_the_same_time(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(19)}})
    held = Held(harness, monkeypatch, *range(19))
    creating = asyncio.create_task(plan.create())
    await until(lambda: _is(len(held.begun) == 10))
    await asyncio.sleep(0.05)  # in which no more may begin
    assert (held.begun[0], len(held.begun)) == (task_id("d"), 10), "the last connection is nobody's"
    held.let_go()
    await creating
    assert held.most == 9
    assert len(harness.tc.queue.tasks) == 20


async def _is(value: bool) -> bool:
    return value


async def test_a_task_waits_for_what_it_needs_and_for_nothing_else(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {f"deep{n}": [f"deep{n - 1}" if n else "d"] for n in range(20)}
    plan = await plan_of(harness, {"d": [], "hangs": ["d"], "other": ["d"], **deep, "last": ["hangs", "deep19"]})
    held = Held(harness, monkeypatch, "hangs")
    creating = asyncio.create_task(plan.create())
    await until(lambda: _is(task_id("deep19") in harness.tc.queue.tasks))
    assert task_id("hangs") not in harness.tc.queue.tasks
    assert task_id("last") not in held.begun
    held.let_go()
    await creating
    assert held.begun[-1] == task_id("last")
    assert await plan.created() == {task.task_id for task in plan.tasks}


async def test_no_more_is_unrecorded_than_a_crash_may_leave(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "RECORD_TASKS", 6)
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(29)}})
    real, go = plan.lease.commit, asyncio.Event()
    unrecorded: list[int] = []

    async def commit(*arguments: Any, **values: Any) -> None:
        await go.wait()
        unrecorded.append(len(harness.tc.queue.tasks) - len(await plan.created()))
        await real(*arguments, **values)

    monkeypatch.setattr(plan.lease, "commit", commit)
    creating = asyncio.create_task(plan.create())
    await until(lambda: _is(len(harness.tc.queue.tasks) == 6))  # and goes on while the first are being recorded
    await asyncio.sleep(0.05)  # in which no more may begin
    assert len(harness.tc.queue.tasks) == 6
    assert await plan.created() == set()
    go.set()
    await creating
    assert max(unrecorded) == 6
    assert len(unrecorded) > 29 // 6
    assert await plan.created() == set(harness.tc.queue.tasks) == {task.task_id for task in plan.tasks}


async def test_a_crash_while_it_was_being_recorded(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "RECORD_TASKS", 6)
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(29)}})
    held = Held(harness, monkeypatch, 20)
    creating = asyncio.create_task(plan.create())
    await until(lambda: _is(task_id(20) in held.begun))
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert held.under_way == 0, "nothing is left running"
    assert len(set(harness.tc.queue.tasks) - await plan.created()) <= 6
    held.let_go()
    await plan.again()
    await plan.create()
    assert await plan.created() == set(harness.tc.queue.tasks) == {task.task_id for task in plan.tasks}


async def test_a_creation_that_cannot_be_recorded_ends(harness: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "RECORD_TASKS", 6)
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(29)}})
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(fencing_token=col(PushStep.fencing_token) + 1))
    with pytest.raises(LeaseLostError):
        await plan.create()
    assert 3 <= len(harness.tc.queue.tasks) <= 6
    assert await plan.created() == set()


async def test_what_was_created_is_not_created_again(harness: FlowHarness) -> None:
    plan = await plan_of(harness, GRAPH)
    await plan.create()
    harness.tc.journal.clear()
    await plan.again()
    await plan.create()
    assert harness.tc.journal.calls == {}


async def test_a_crash_before_it_was_recorded(harness: FlowHarness) -> None:
    plan = await plan_of(harness, GRAPH)
    await create_tasks(harness.services, plan.lease, plan.tasks, SCOPES)  # and then nothing more
    assert await plan.created() == set()
    before = {name: plan.stands(name) for name in GRAPH}
    await plan.again()
    await plan.create()
    assert await plan.created() == {task_id(name) for name in GRAPH}
    assert {name: plan.stands(name) for name in GRAPH} == before


@pytest.mark.parametrize("kind", ["after", "before", "throttle"])
@pytest.mark.parametrize("number", [1, 2, 4])
async def test_a_failure_at_any_task_is_gone_on_with(harness: FlowHarness, kind: str, number: int) -> None:
    plan = await plan_of(harness, GRAPH)
    calls = 0
    real = harness.tc.faults.strike

    def strike(method: str) -> list[Any]:
        nonlocal calls
        calls += method == "createTask"
        if method == "createTask" and calls == number:
            harness.tc.faults.add(kind, "createTask", times=1)
        return real(method)

    harness.tc.faults.strike = strike  # type: ignore[method-assign]  # sets the fault at a certain call
    with pytest.raises(Unavailable):
        await plan.create()
    harness.tc.faults.remove()
    assert await plan.created() <= set(harness.tc.queue.tasks)
    await plan.again()
    await plan.create()
    assert await plan.created() == {task_id(name) for name in GRAPH}
    assert len(harness.tc.queue.tasks) == 4
    for planned in plan.tasks:
        assert harness.tc.queue.task(planned.task_id) == planned.definition


async def test_a_call_that_hangs_ends(fast: FlowHarness) -> None:
    plan = await plan_of(fast, GRAPH)
    fast.tc.faults.add("hang", "createTask")
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await plan.create()
    fast.tc.faults.remove()
    await plan.again()
    await plan.create()
    assert len(fast.tc.queue.tasks) == 4


async def test_a_task_that_was_never_scheduled_is_healed(harness: FlowHarness) -> None:
    """A crash inside createTask leaves it, and the repeated call does not schedule it either."""
    plan = await plan_of(harness, {"d": []})
    harness.tc.faults.add("crash", "createTask", times=1)
    with pytest.raises(Unavailable):
        await plan.create()
    assert plan.state("d") == "unscheduled"
    await plan.again()
    await plan.create()
    assert plan.state("d") == "pending"
    assert harness.tc.journal.calls["scheduleTask"] == 1


async def test_healed_too_where_the_first_attempt_was_given_back(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    harness.tc.faults.add("crash", "createTask", times=1)
    with pytest.raises(Unavailable):
        await plan.create()
    await plan.lease.release()
    await plan.again()
    assert plan.lease.item.attempts == 1
    await plan.create()
    assert plan.state("d") == "pending"


async def test_only_what_waits_for_nothing_is_scheduled(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]})
    await create_tasks(harness.services, plan.lease, plan.tasks, SCOPES)
    await plan.again()
    await plan.create()
    assert plan.state("a") == "unscheduled"
    assert harness.tc.journal.calls["scheduleTask"] == 0


@pytest.mark.parametrize(
    ("requires", "outcome", "state"),
    [
        ("all-completed", "completed", "pending"),
        ("all-completed", "failed", "unscheduled"),
        ("all-resolved", "failed", "pending"),
        ("all-resolved", "exception", "pending"),
    ],
)
async def test_whether_dependencies_are_met(harness: FlowHarness, requires: str, outcome: str, state: str) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]}, requires=requires)
    queue: Stand = harness.tc.queue
    first = plan["d"].definition
    assert first is not None
    queue.create_task(task_id("d"), first)
    queue.claim_task(task_id("d"), 0, {"workerGroup": "g", "workerId": "w"})
    if outcome == "exception":
        queue.report_exception(task_id("d"), 0, {"reason": "malformed-payload"})
    else:
        (queue.report_completed if outcome == "completed" else queue.report_failed)(task_id("d"), 0)
    harness.tc.faults.add("crash", "createTask", times=1)
    second = plan["a"].definition
    assert second is not None
    queue.create_task(task_id("a"), second, crash=True)
    harness.tc.faults.remove()
    await plan.again()
    await plan.create()
    assert plan.state("a") == state


@pytest.mark.parametrize("kind", ["throttle", "before", "after", "drop"])
async def test_a_queue_that_has_too_much_to_do_gets_fewer_calls_at_a_time(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(60)}})
    harness.tc.faults.add(kind, "createTask", times=2 if kind == "drop" else 1)  # aiohttp itself tries that once more
    with pytest.raises(Unavailable):
        await plan.create()
    assert harness.services.connections.slots == 5
    harness.tc.faults.remove()
    await plan.again()
    held = Held(harness, monkeypatch)
    await plan.create()
    assert held.most <= harness.services.connections.slots
    assert len(harness.tc.queue.tasks) == 61


async def test_a_queue_that_answers_fast_gets_more_calls_at_a_time(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.tc.latency = 0.02  # beside which nothing else counts
    monkeypatch.setattr(fair, "SLOW", 1_000.0)
    harness.services.connections = fair.AdaptiveSlots(30)
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(150)}})
    held = Held(harness, monkeypatch)
    await plan.create()
    assert harness.services.connections.slots == 30
    assert held.most == 29, "the last one is nobody's"


# Stale dates


async def test_a_late_plan_is_stamped_anew_before_it_is_sent(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]}, age=timedelta(hours=30))
    sent: list[dict[str, Any] | None] = []
    real = harness.services.queue.create_task

    async def create_task(name: str, definition: dict[str, Any], scopes: list[str]) -> dict[str, Any]:
        stored = next(task for task in await harness.planned() if task.task_id == name)
        sent.append(stored.definition)
        assert stored.definition == definition, "what is sent must be committed before"
        return await real(name, definition, scopes)

    monkeypatch.setattr(harness.services.queue, "create_task", create_task)
    old = plan["a"].definition
    await plan.create()
    assert len(sent) == 2
    new = plan.stands("a")
    assert old is not None
    assert authority_differences(old, new) == []
    moved = _moment(new["created"]) - _moment(old["created"])
    assert abs(moved - 30 * 3600_000) < 60_000
    for key in ("deadline", "expires"):
        assert _moment(new[key]) - _moment(old[key]) == moved
    artifact = [definition["payload"]["artifacts"]["a"]["expires"] for definition in (old, new)]
    assert _moment(artifact[1]) - _moment(artifact[0]) == moved
    assert new["payload"]["none"] is None
    assert await plan.created() == {task_id("d"), task_id("a")}


def _moment(text: str) -> int:
    moment = parse(text)
    assert moment is not None
    return moment


@pytest.mark.parametrize("age", [timedelta(minutes=12), timedelta(minutes=20), timedelta(days=2)])
async def test_a_late_plan_whose_tasks_are_there_is_left_as_it_is(harness: FlowHarness, age: timedelta) -> None:
    """The queue answers 400 to the same body by then, although the task exists."""
    plan = await plan_of(harness, {"d": [], "a": ["d"]}, age=age)
    harness.tc.clock.advance(-age.total_seconds())
    for planned in plan.tasks:
        assert planned.definition is not None
        harness.tc.queue.create_task(planned.task_id, planned.definition)
    harness.tc.clock.reset()
    before = [plan.stands(name) for name in ("d", "a")]
    await plan.again()
    await plan.create()
    assert [plan.stands(name) for name in ("d", "a")] == before
    assert [task.definition for task in await harness.planned()] == before
    assert harness.tc.journal.creations == []
    assert await plan.created() == {task_id("d"), task_id("a")}


async def test_a_plan_that_goes_stale_on_its_way(harness: FlowHarness) -> None:
    """If the two clocks differ, the queue refuses a body that this service takes for recent enough."""
    plan = await plan_of(harness, {"d": []}, age=timedelta(minutes=9))
    harness.tc.clock.advance(8 * 60)
    await plan.create()
    assert [creation.status for creation in harness.tc.journal.creations] == [400, 200]
    assert plan.stands("d") == (await harness.planned())[0].definition


async def test_what_an_earlier_holder_stamped_anew_is_sent(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []}, age=timedelta(minutes=8))
    stale = plan.tasks
    definition = stale[0].definition
    assert definition is not None
    newer = {**definition, "created": format_date(now())}
    async with harness.database.writing() as session:
        await session.exec(update(PlannedTask).values(definition=newer))
    harness.tc.queue.create_task(task_id("d"), newer)
    await plan.create()  # with the plan as it was read before
    assert plan.stands("d") == newer
    assert await plan.created() == {task_id("d")}


async def test_a_dependency_that_expires_too_soon_shortens_the_life(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]}, age=timedelta(hours=2))
    first = plan["d"].definition
    assert first is not None
    soon = now() + timedelta(hours=23)
    harness.tc.clock.advance(-2 * 3600)
    harness.tc.queue.create_task(task_id("d"), {**first, "expires": format_date(soon)})
    harness.tc.clock.reset()
    await plan.create()
    assert plan.stands("a")["deadline"] == format_date(soon)


# Refused for good


AUTHORITY: dict[str, Any] = {
    "schedulerId": "mallory",
    "taskGroupId": task_id("somebody's"),
    "projectId": "mallory",
    "taskQueueId": "prov/other",
    "routes": ["index.mallory"],
    "scopes": ["secrets:get:mallory"],
}


@pytest.mark.parametrize("key", AUTHORITY)
async def test_another_task_under_our_id_is_neither_recorded_nor_touched(harness: FlowHarness, key: str) -> None:
    plan = await plan_of(harness, {"d": []})
    definition = plan["d"].definition
    assert definition is not None
    theirs = {**definition, key: AUTHORITY[key], "tags": {"a": "b"}}
    if key == "taskQueueId":
        theirs["workerType"] = "other"
    harness.tc.queue.create_task(task_id("d"), theirs)
    with pytest.raises(
        PlanRefusedError, match=rf"has the id that was planned for d: its {key} are not the plan's"
    ) as why:
        await plan.create()
    assert task_id("d") not in str(why.value)
    assert plan.stands("d") == theirs
    assert await plan.created() == set()
    await cancel_created(harness.services, plan.lease, plan.tasks)
    assert plan.state("d") == "pending"
    assert await plan.created() == set()


async def test_an_earlier_attempts_task_is_adopted_whatever_else_differs(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    definition = plan["d"].definition
    assert definition is not None
    earlier = {**definition, "tags": {"a": "b"}, "payload": {}, "priority": "high", "created": format_date(now())}
    harness.tc.queue.create_task(task_id("d"), earlier)
    await plan.create()
    assert plan.stands("d") == earlier
    (planned,) = await harness.planned()
    assert (planned.created, planned.adopted) == (True, True)
    await cancel_created(harness.services, plan.lease, await harness.planned())
    assert plan.state("d") == "pending", "what a plan finds it does not cancel"


async def test_a_task_that_was_cancelled_meanwhile_fails_the_plan(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    await create_tasks(harness.services, plan.lease, plan.tasks, SCOPES)  # and the answer is lost
    harness.tc.queue.cancel_task(task_id("d"))
    for age in (0, 12 * 60):  # createTask says it is there; or it is asked for
        harness.tc.clock.advance(age)
        await plan.again()
        if age:
            old = {**(plan["d"].definition or {}), "created": format_date(now() - timedelta(minutes=12))}
            plan["d"].definition = old
        with pytest.raises(PlanRefusedError, match="task d was created before, and somebody has cancelled it"):
            await plan.create()
        assert await plan.created() == set()


async def test_a_task_that_has_expired_meanwhile_fails_the_plan(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    definition = plan["d"].definition
    assert definition is not None
    past = {
        name: format_date(now() - timedelta(days=days))
        for name, days in (("created", 9), ("deadline", 8), ("expires", 1))
    }
    harness.tc.clock.advance(-9 * 24 * 3600)
    harness.tc.queue.create_task(task_id("d"), {**definition, **past})
    harness.tc.clock.reset()
    with pytest.raises(PlanRefusedError, match="task d was created before, and expired on"):
        await plan.create()
    assert await plan.created() == set()


async def test_an_id_that_is_named_by_a_task_that_does_not_wait_for_it_is_not_adopted(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "x": ["d"], "y": ["d"], "z": ["y"]})
    plan["z"].definition = {**(plan["z"].definition or {}), "payload": {"named": task_id("x")}}
    definition = plan["x"].definition
    assert definition is not None
    harness.tc.queue.create_task(task_id("d"), plan["d"].definition or {})
    harness.tc.queue.create_task(task_id("x"), {**definition, "tags": {"a": "b"}})
    with pytest.raises(PlanRefusedError, match="planned for x, which an earlier task of the plan names"):
        await plan.create()


async def test_an_id_is_adopted_that_is_named_by_what_comes_behind_it(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "x": ["d"], "y": ["x"], "z": ["y"]})
    for name in ("y", "z"):
        plan[name].definition = {**(plan[name].definition or {}), "payload": {"named": task_id("x")}}
    for name in ("d", "x"):
        definition = plan[name].definition or {}
        harness.tc.queue.create_task(task_id(name), {**definition, "tags": {"a": "b"}})
    await plan.create()
    assert {task.name for task in await harness.planned() if task.adopted} == {"d", "x"}


async def test_an_id_that_an_earlier_task_names_is_not_adopted(harness: FlowHarness) -> None:
    """Whoever reads the earlier task can make a task under that id, with the same authority and another payload."""
    plan = await plan_of(harness, {"d": [], "a": ["d"]}, payload={"later": task_id("a")})
    first, second = plan["d"].definition, plan["a"].definition
    assert first is not None
    assert second is not None
    harness.tc.queue.create_task(task_id("d"), first)
    harness.tc.queue.create_task(task_id("a"), {**second, "payload": {"evil": True}})
    with pytest.raises(PlanRefusedError, match="planned for a, which an earlier task of the plan names"):
        await plan.create()
    assert await plan.created() == {task_id("d")}
    assert plan.state("a") == "unscheduled"


async def test_the_first_task_of_a_group_is_created_alone_before_the_others(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"group": [], **{str(n): [] for n in range(5)}})
    harness.tc.faults.add("before", "createTask", status=500, times=1)
    with pytest.raises(Unavailable):
        await plan.create()
    assert harness.tc.queue.tasks == {}, "a task that names the group would have told its id"


async def test_the_existing_tasks_own_dependencies_decide_whether_it_is_scheduled(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]})
    for name in ("d", "a"):
        definition = {**(plan[name].definition or {}), "tags": {"x": "y"}}
        harness.tc.queue.create_task(task_id(name), definition)
    # the plan was made anew, and says that nothing is waited for
    async with harness.database.writing() as session:
        changed = {**(plan["a"].definition or {}), "dependencies": []}
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task_id("a")).values(definition=changed)
        )
    await plan.again()
    await plan.create()
    assert plan.state("a") == "unscheduled"
    assert harness.tc.journal.calls["scheduleTask"] == 0


async def test_another_priority_is_still_ours(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    await create_tasks(harness.services, plan.lease, plan.tasks, SCOPES)
    harness.tc.queue.change_task_priority(task_id("d"), {"newPriority": "high"})
    await plan.again()
    await plan.create()
    assert await plan.created() == {task_id("d")}
    assert [creation.status for creation in harness.tc.journal.creations] == [200, 409]


async def test_a_sealed_group(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "a": ["d"]})
    first = plan["d"].definition
    assert first is not None
    harness.tc.queue.create_task(task_id("d"), first)
    harness.tc.queue.seal_task_group(task_id("d"))
    with pytest.raises(PlanRefusedError, match=r"refuses task a with 409: .*sealed"):
        await plan.create()
    assert await plan.created() == {task_id("d")}, "what is there is ours, sealed or not"


async def test_missing_scopes_are_named_with_what_asks_for_them(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []}, scopes=["secrets:get:x"], routes=["index.y"])
    with pytest.raises(PlanRefusedError) as refused:
        await plan.create([])
    for word in (
        "refuses task d",
        "403",
        "queue:create-task:project:none (for its projectId)",
        "queue:scheduler-id:test (for its schedulerId)",
        "queue:route:index.y (for its route)",
        "secrets:get:x (for the task's own scopes)",
        "queue:create-task:lowest:prov/w (for its priority and task queue)",
        "Add them to its role",
    ):
        assert word in str(refused.value)
    assert "```" not in str(refused.value)


async def test_what_the_schema_refuses_is_told_in_the_queues_words(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    assert plan.tasks[0].definition is not None
    plan.tasks[0].definition = {**plan.tasks[0].definition, "retries": 99}
    async with harness.database.writing() as session:
        await session.exec(update(PlannedTask).values(definition=plan.tasks[0].definition))
    with pytest.raises(PlanRefusedError, match=r"refuses task d with 400: Schema Validation Failed"):
        await plan.create()


async def test_a_refusal_decides_whatever_else_went_wrong(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(8)}})
    first = plan["d"].definition
    assert first is not None
    harness.tc.queue.create_task(task_id("d"), first)
    definition = plan["5"].definition
    assert definition is not None
    harness.tc.queue.create_task(task_id("5"), {**definition, "projectId": "mallory"})
    harness.tc.faults.add("delay", "createTask", seconds=0.02)
    harness.tc.faults.add("before", "createTask", status=500, times=4)
    for planned in plan.tasks:
        planned.created = planned.name == "d"
    with pytest.raises(PlanRefusedError, match="not the plan's"):
        await plan.create()


async def test_reads_that_are_refused_are_tried_again_and_leave_nothing_running(harness: FlowHarness) -> None:
    """An operator can mend that; the plan is as good as before."""
    plan = await plan_of(harness, {str(n): [] for n in range(5)}, age=timedelta(minutes=12))
    first = plan["0"].definition
    assert first is not None
    harness.tc.clock.advance(-12 * 60)
    harness.tc.queue.create_task(task_id("0"), first)
    harness.tc.clock.reset()
    await plan.lease.commit(mark_created([plan["0"]]))
    harness.tc.faults.add("before", "task", status=403, times=1)
    harness.tc.faults.add("delay", "createTask", seconds=0.1)
    with pytest.raises(PermanentUpstreamError) as refused:
        await plan.create()
    assert refused.value.status == 403
    assert await plan.created() == set(harness.tc.queue.tasks), "the others are through, and on record"
    assert len(harness.tc.queue.tasks) == 4
    harness.tc.faults.remove()
    await plan.again()
    await plan.create()
    assert len(harness.tc.queue.tasks) == 5


async def test_who_lost_the_lease_judges_nothing(harness: FlowHarness) -> None:
    plan = await plan_of(harness, GRAPH, age=timedelta(minutes=30))
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(fencing_token=col(PushStep.fencing_token) + 1))
    before = [task.definition for task in await harness.planned()]
    with pytest.raises(LeaseLostError):
        await plan.create()
    assert [task.definition for task in await harness.planned()] == before
    assert harness.tc.queue.tasks == {}


async def test_what_was_made_is_on_record_though_another_failed(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], **{str(n): ["d"] for n in range(12)}})
    harness.tc.faults.add("delay", "createTask", seconds=0.01)
    real = harness.tc.faults.strike
    calls = 0

    def strike(method: str) -> list[Any]:
        nonlocal calls
        calls += method == "createTask"
        if calls == 4:
            harness.tc.faults.add("before", "createTask", status=503, times=1)
        return real(method)

    harness.tc.faults.strike = strike  # type: ignore[method-assign]  # sets the fault at a certain call
    with pytest.raises(Unavailable):
        await plan.create()
    assert await plan.created() == set(harness.tc.queue.tasks)
    assert len(await plan.created()) >= 3
    async with harness.database.reading() as session:
        assert (await session.exec(select(PushStep.attempts).where(PushStep.kind == StepKind.GRAPH))).one() == 1


# Cancelling


async def test_what_was_made_of_a_plan_is_cancelled(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {**GRAPH, "e": [], "never": []})
    missing = plan["never"]
    created = await create_tasks(
        harness.services, plan.lease, [task for task in plan.tasks if task is not missing], SCOPES
    )
    await plan.lease.commit(mark_created(created))
    queue: Stand = harness.tc.queue
    queue.claim_task(task_id("e"), 0, {"workerGroup": "g", "workerId": "w"})
    queue.report_completed(task_id("e"), 0)
    harness.tc.journal.clear()
    assert await cancel_created(harness.services, plan.lease, plan.tasks) == ([], [])
    assert {name: plan.state(name) for name in ("d", "a", "b", "c")} == dict.fromkeys("dabc", "exception")
    assert plan.state("e") == "completed"
    assert harness.tc.journal.calls == {"statuses": 1, "cancelTask": 4}
    await cancel_created(harness.services, plan.lease, plan.tasks)
    assert harness.tc.journal.calls["cancelTask"] == 4


async def test_what_was_made_without_an_answer_is_cancelled_and_to_be_recorded(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "e": []})
    await create_tasks(harness.services, plan.lease, plan.tasks[:1], SCOPES)  # and nothing of it was recorded
    unrecorded, not_cancelled = await cancel_created(harness.services, plan.lease, await harness.planned())
    assert [task.name for task in unrecorded] == ["d"]
    assert not_cancelled == []
    assert plan.state("d") == "exception"


async def test_what_is_not_to_the_letter_what_was_sent_is_not_cancelled(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    definition = plan["d"].definition
    assert definition is not None
    harness.tc.queue.create_task(task_id("d"), {**definition, "tags": {"a": "b"}})
    assert await cancel_created(harness.services, plan.lease, plan.tasks) == ([], [])
    assert plan.state("d") == "pending"


async def test_a_cancel_that_is_refused_keeps_nobody_from_the_others_and_is_told(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": [], "e": []})
    await plan.create()
    harness.tc.faults.add("before", "cancelTask", status=409, times=1)
    _, (why,) = await cancel_created(harness.services, plan.lease, plan.tasks)
    assert sorted(plan.state(name) for name in ("d", "e")) == ["exception", "pending"]
    assert "could not be cancelled: " in why


async def test_giving_up_goes_on_though_our_client_may_not_cancel(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    await plan.create()
    harness.tc.auth.add_client("tc-treeherder", "service-secret", ["auth:current-scopes", "queue:status:*"])
    _, (why,) = await cancel_created(harness.services, plan.lease, plan.tasks)
    scope = f"queue:cancel-task:test/{task_id('d')}/{task_id('d')}"
    assert f"the service's Taskcluster client (tc-treeherder) lacks {scope}: grant that to the client" in why
    assert "auth:current-scopes" not in why


async def test_cancelling_waits_for_a_taskcluster_that_is_away_but_not_for_ever(harness: FlowHarness) -> None:
    plan = await plan_of(harness, {"d": []})
    await plan.create()
    fault = harness.tc.faults.add("before", status=503)
    with pytest.raises(Unavailable):
        await cancel_created(harness.services, plan.lease, plan.tasks)
    fault.method = "cancelTask"
    with pytest.raises(Unavailable):
        await cancel_created(harness.services, plan.lease, plan.tasks)
    plan.lease.item.attempts = MAX_CANCEL_ATTEMPTS
    _, (why,) = await cancel_created(harness.services, plan.lease, plan.tasks)
    assert "could not be cancelled: Taskcluster answers 503" in why
