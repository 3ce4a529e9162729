"""Retriggers: refusals and failures of Taskcluster, restarts, and plans that are built while they are carried out."""

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlmodel import select, update

from sandbox.taskcluster import Client
from sandbox.taskcluster.tasks import Task
from service.clients.taskcluster import TaskclusterQueue
from service.clock import now
from service.engine.worker import Worker
from service.errors import Unavailable
from service.flow.actions import dependents, retrigger
from service.flow.tasks import create, plan
from service.flow.tasks.ids import copy_ids
from service.settings import TaskclusterSettings
from service.store.models import Action, PlannedTask, Repository
from tests.service.engine.test_worker import until
from tests.service.flow.actions.support import DIAMOND, STREAMED, existing_task, open_monitored, store_whole_plan
from tests.service.flow.graph_factory import (
    GROUP,
    Definition,
    action_on,
    build,
    carry_out,
    claim_work,
    definition_of,
    end,
    parse_moment,
    read_copies,
    read_notices,
    reload_action,
    slug,
    work_until_done,
)
from tests.service.harness import FlowHarness

# --- groups ------------------------------------------------------------------------------------------------------


async def test_a_group_that_is_sealed_after_the_plan_was_made_is_planned_anew(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    action = await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    planned = await store_whole_plan(monitored, lease)
    queue.seal_task_group(GROUP)
    await retrigger.run(monitored.services, lease)
    action = await reload_action(monitored, action)
    assert (action.state, action.plan_attempt) == ("done", 1)
    new_ids = await read_copies(monitored, action)
    assert new_ids["a"] != planned[0].task_id
    assert existing_task(monitored, new_ids["a"])["taskGroupId"] == new_ids["a"]
    assert len(queue.tasks) == 3


# --- rejected ----------------------------------------------------------------------------------------------------


async def test_what_is_not_to_be_done_is_rejected_with_the_reason(monitored: FlowHarness) -> None:
    await monitored.add_repository("off", enabled=False)
    await monitored.add_repository("other")
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    queue.create_task(slug("bare"), definition_of("bare", routes=["index.x"]))
    queue.create_task(slug("old"), definition_of("old", routes=[f"tc-treeherder.mc.{'cd' * 20}"]))
    for task_id, project, words in (
        (slug("a"), "nowhere", ["'nowhere'", "monitored"]),
        (slug("a"), "off", ["off", "disabled"]),
        (slug("a"), "other", ["routes", "other", slug("a")]),
        (slug("bare"), "mc", ["routes", slug("bare")]),
        (slug("missing"), "mc", ["no task", slug("missing")]),
        ("A" * 22, "mc", ["no task", "A" * 22]),  # a UUID, and no slugid
    ):
        action = await carry_out(monitored, task_id, project=project)
        assert action.state == "rejected"
        for word in words:
            assert word in str(action.error), action.error
    assert len(queue.tasks) == 4
    action = await carry_out(monitored, slug("old"))  # a version 1 route names the project too
    assert action.state == "done"


# --- Taskcluster does not play along -----------------------------------------------------------------------------


async def test_a_missing_scope_is_named_and_what_was_made_is_cancelled(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    queue.create_task(slug("c"), definition_of("c", ["a"], routes=["index.secret.thing"]))
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    new_ids = await read_copies(monitored, action)
    for word in ("403", "queue:route:index.secret.thing", "its route", "refuses task c "):
        assert word in str(action.error), action.error
    assert "```" not in str(action.error)
    assert new_ids["c"] not in queue.tasks
    assert new_ids["a"] in queue.tasks
    states = {name: queue.tasks[task_id].runs[-1]["reasonResolved"] for name, task_id in new_ids.items() if name != "c"}
    assert set(states.values()) == {"canceled"}


async def test_what_was_made_without_an_answer_is_listed_as_made(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    queue.create_task(slug("c"), definition_of("c", ["a"], routes=["index.secret.thing"]))
    end(queue, "a")
    create_task = monitored.services.queue.create_task

    async def lost(task_id: str, definition: Definition, scopes: list[str]) -> Any:
        status = await create_task(task_id, definition, scopes)
        if definition["metadata"]["name"] == "b":
            raise Unavailable("taskcluster", "the answer was lost")
        return status

    monkeypatch.setattr(monitored.services.queue, "create_task", lost)
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    async with monitored.database.reading() as session:
        rows = await session.exec(select(PlannedTask.name, PlannedTask.created))
        assert dict(rows.all()) == {"a": True, "b": True, "c": False}
    new_ids = await read_copies(monitored, action)
    assert {queue.find(new_ids[name]).runs[-1]["reasonResolved"] for name in ("a", "b")} == {"canceled"}


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp, of any megabyte
async def test_a_copy_that_is_too_large_to_be_sent_fails_the_action(monitored: FlowHarness) -> None:
    """Non-ASCII text is sent as escapes, so the copy of a task that the queue took can be too large."""
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    queue.create_task(slug("b"), definition_of("b", ["a"], payload={"text": "\u4e2d" * 1_750_000}))
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert "refuses task b" in str(action.error)
    assert "10,485,760 bytes at most" in str(action.error)
    new_ids = await read_copies(monitored, action)
    assert queue.find(new_ids["a"]).runs[-1]["reasonResolved"] == "canceled"


async def test_a_task_that_stands_under_a_planned_id_and_is_not_ours_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    action = await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    planned = await store_whole_plan(monitored, lease)
    queue.create_task(planned[0].task_id, definition_of("foreign", routes=["index.mallory"]))
    await retrigger.run(monitored.services, lease)
    action = await reload_action(monitored, action)
    assert action.state == "failed"
    assert "a task that this service did not make has the id that was planned for a" in str(action.error)
    assert "its routes are not the plan's" in str(action.error)
    assert planned[0].task_id not in str(action.error)
    assert [task.created for task in await monitored.planned()] == [False]
    assert queue.find(planned[0].task_id).state == "pending", "a foreign task was cancelled"


WORK = {"first_retry": 0.01, "max_retry": 0.03, "idle": 0.02}
READS = ["task", "status", "listDependentTasks", "listTaskGroup", "statuses", "tasks", "getTaskGroup", "createTask"]


@pytest.mark.parametrize("kind", ["throttle", "before", "after", "drop"])
@pytest.mark.parametrize("method", READS)
async def test_whatever_call_fails_for_a_while_it_is_carried_out_once(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    monkeypatch.setattr(dependents, "WALK_CALLS", 1 if method in {"listTaskGroup", "tasks"} else 20)
    async with open_monitored(sqlite_url, work=WORK) as harness:
        queue = harness.tc.queue
        graph = {"group": [], "outside": [], "a": ["outside"]}
        if method != "getTaskGroup":
            # a chain, which a group's pages have in no order: of some the definition is not kept at first
            graph |= {"t0": ["a"], **{f"t{n}": [f"t{n - 1}"] for n in range(1, 12 if method == "tasks" else 3)}}
        build(queue, graph)
        end(queue, "outside", "completed")
        end(queue, "a")
        fault = harness.tc.faults.add(kind, method, status=502, times=3)
        action = await work_until_done(harness, await action_on(harness, slug("a")))
        assert (action.state, action.error) == ("done", None)
        assert fault.left == 0, "the call that was to fail was never made"
        assert len(queue.tasks) == len(graph) + len(graph) - 2
        assert all(
            queue.find(task_id).runs == [] or name == "a"
            for name, task_id in (await read_copies(harness, action)).items()
        )


ODD_DEFINITIONS: list[dict[str, Any]] = [
    {"routes": None},
    {"routes": [1]},
    {"dependencies": None},
    {"dependencies": [{"an": "object"}]},
    {"requires": None},
    {"created": 0},
]
ODD_STATUSES: list[dict[str, Any]] = [{"runs": [None]}, {"runs": [{}]}, {"state": None}]


@pytest.mark.parametrize("calls", [0, 20])
@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *itertools.product("ab", ODD_DEFINITIONS),
        *itertools.product(["a", "b", "outside"], ODD_STATUSES),
    ],
    ids=str,
)
async def test_an_answer_that_is_no_task_postpones_it(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any], name: str, calls: int
) -> None:
    monkeypatch.setattr(dependents, "WALK_CALLS", calls)
    queue = monitored.tc.queue
    build(queue, {"group": [], "outside": [], "a": [], "b": ["a", "outside"]})
    end(queue, "a")
    task, whole = queue.find(slug(name)), Task.status
    if odd in ODD_STATUSES:
        monkeypatch.setattr(Task, "status", lambda other: whole(other) | (odd if other is task else {}))
    else:
        task.definition = task.definition | odd
    await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    with pytest.raises(Unavailable, match="Taskcluster's answer has"):
        await retrigger.run(monitored.services, lease)


async def test_many_throttled_calls_do_not_make_the_waits_long(sqlite_url: str) -> None:
    async with open_monitored(sqlite_url, work={**WORK, "max_retry": 600}) as harness:
        build(harness.tc.queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(60)}})
        end(harness.tc.queue, "a")
        harness.tc.faults.add("throttle", "createTask", probability=0.6)
        action = await work_until_done(harness, await action_on(harness, slug("a")))
        assert action.state == "done"
        assert len(harness.tc.queue.tasks) == 62 + 61


async def test_how_long_taskcluster_asks_to_be_left_alone_is_obeyed(sqlite_url: str) -> None:
    async with open_monitored(sqlite_url, work=WORK) as harness:
        build(harness.tc.queue, {"group": [], "a": []})
        harness.tc.faults.add("throttle", "createTask", retry_after=600)
        action = await action_on(harness, slug("a"))
        worker = Worker(harness.services)
        running = asyncio.create_task(worker.run())

        async def is_postponed() -> bool:
            return (await reload_action(harness, action)).error is not None

        await until(is_postponed)
        worker.stop()
        await running
        action = await reload_action(harness, action)
        assert action.due_at is not None
        assert action.due_at - now() > timedelta(minutes=9)
        assert harness.tc.journal.calls["createTask"] == 1


async def test_a_restart_goes_on_with_the_stored_plan(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, DIAMOND)
    end(queue, "a")
    action = await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    planned = [task.task_id for task in await store_whole_plan(monitored, lease)]
    monitored.tc.faults.add("after", "createTask", times=1)
    with pytest.raises(Unavailable):
        await retrigger.run(monitored.services, lease)
    build(queue, {"late": ["a"]})  # came too late for the plan
    await retrigger.run(monitored.services, lease)
    action = await reload_action(monitored, action)
    assert action.state == "done"
    assert list((await read_copies(monitored, action)).values()) == planned
    assert len(queue.tasks) == len(DIAMOND) + 1 + 4


async def test_a_late_restart_stamps_anew_only_what_is_not_there(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "x": [], "a": ["x"], "b": ["a"]})
    end(queue, "x", "completed")
    end(queue, "a")
    action = await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    first, second = await store_whole_plan(monitored, lease)
    assert first.definition is not None
    queue.create_task(first.task_id, first.definition)
    queue.clock.advance(3600)
    real = now()
    monkeypatch.setattr(create, "now", lambda: real + timedelta(hours=1))
    await retrigger.run(monitored.services, lease)
    assert (await reload_action(monitored, action)).state == "done"
    assert queue.task(first.task_id)["created"] == first.definition["created"]
    assert parse_moment(queue.task(second.task_id)["created"]) >= real + timedelta(minutes=59)


async def test_scopes_are_the_projects_and_what_is_no_ascii_is_left_out(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    queue.create_task(slug("group"), definition_of("group"))
    routes = [f"tc-treeherder.v2.mc.{'ab' * 20}.1", "notify.email.somebody@example.com.on-failed"]
    queue.create_task(slug("a"), definition_of("a", routes=routes))
    async with monitored.database.writing() as session:
        repository = await session.get_one(Repository, 1)
        repository.scopes = [*repository.scopes, "queue:route:\u00e9"]
    assert (await carry_out(monitored, slug("a"))).state == "done"
    async with monitored.database.writing() as session:
        (await session.get_one(Repository, 1)).scopes = ["queue:route:\u00e9"]
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert "queue:scheduler-id:test" in str(action.error)


async def test_a_repository_that_is_disabled_meanwhile_stops_the_plan(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    action = await action_on(monitored, slug("a"))
    lease = await claim_work(monitored)
    await store_whole_plan(monitored, lease)
    async with monitored.database.writing() as session:
        (await session.get_one(Repository, 1)).enabled = False
    await retrigger.run(monitored.services, lease)
    action = await reload_action(monitored, action)
    assert action.state == "failed"
    assert "disabled" in str(action.error)
    assert len(queue.tasks) == 2


async def test_reads_that_are_not_allowed_fail_readably(sqlite_url: str) -> None:
    client = Client("poor", "poor-token", ("queue:get-task:*", "queue:status:*"))
    async with open_monitored(sqlite_url) as harness:
        build(harness.tc.queue, {"group": [], "a": []})
        end(harness.tc.queue, "a")
        harness.tc.auth.add_client(client.client_id, client.access_token, client.scopes)
        root = harness.settings.taskcluster.root
        poor = TaskclusterQueue(
            TaskclusterSettings(root_url=root, client_id=client.client_id, access_token=client.access_token)
        )
        rich, harness.services.queue = harness.services.queue, poor
        action = await carry_out(harness, slug("a"))
        harness.services.queue = rich
        await poor.close()
        assert action.state == "failed"
        assert f"queue:list-dependent-tasks:{slug('a')}" in str(action.error)


# --- the plan is made while it is carried out -----------------------------------------------------------------------


def is_copied(harness: FlowHarness, name: str) -> bool:
    return any(
        task.definition["metadata"]["name"] == name and task_id != slug(name)
        for task_id, task in harness.tc.queue.tasks.items()
    )


async def test_the_first_copy_is_created_while_the_others_are_looked_for(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    dependents = streaming.services.queue.dependents

    async def wait_for_the_copy(task_id: str, *more: Any, **options: Any) -> Any:
        if task_id != slug("a"):
            await until(lambda: _is(is_copied(streaming, "a")))
        return await dependents(task_id, *more, **options)

    monkeypatch.setattr(streaming.services.queue, "dependents", wait_for_the_copy)
    action = await carry_out(streaming, slug("a"))
    assert (action.state, action.error) == ("done", None)
    assert set(await read_copies(streaming, action)) == {"a", *STREAMED}


async def _is(value: bool) -> bool:
    return value


async def test_copies_are_created_while_others_are_planned(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_definitions, services = plan.store_definitions, 0

    async def wait_for_copies(*arguments: Any, **values: Any) -> None:
        nonlocal services
        await until(lambda: _is(len(streaming.tc.queue.tasks) == 2 + len(STREAMED) + 4 + 3 * services))
        await store_definitions(*arguments, **values)
        services += 1

    monkeypatch.setattr(retrigger, "store_definitions", wait_for_copies)
    action = await carry_out(streaming, slug("a"))
    assert (action.state, action.error) == ("done", None)
    assert services == 3


async def test_what_is_created_was_stored_before(streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    create_task = streaming.services.queue.create_task
    planned: list[int] = []

    async def look(task_id: str, definition: Definition, scopes: list[str]) -> Any:
        rows = {task.task_id: task.definition for task in await streaming.planned()}
        planned.append(len([copy_id for copy_id in rows.values() if copy_id is not None]))
        assert rows[task_id] == definition
        return await create_task(task_id, definition, scopes)

    monkeypatch.setattr(streaming.services.queue, "create_task", look)
    action = await carry_out(streaming, slug("a"))
    assert (action.state, action.error) == ("done", None)
    assert planned[0] == 1
    assert len(planned) == 1 + len(STREAMED)


class Crash:
    """Ends a retrigger at the `at`th time that one of these is called, before or after it has done its work."""

    def __init__(self, at: int, *, after: bool) -> None:
        self._left, self._after = at, after
        self.running: asyncio.Task[None] | None = None

    def __call__(self, real: Any) -> Any:
        async def crash(*arguments: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left != 0 or self.running is None:
                return await real(*arguments, **more)
            if self._after:
                await real(*arguments, **more)
            self.running.cancel()
            await asyncio.Event().wait()

        return crash


def crash_in(where: str, streaming: FlowHarness, crash: Crash, patch: pytest.MonkeyPatch) -> None:
    """Have the process crash where a part of the plan is stored, or where a task is created."""
    if where == "store":
        patch.setattr(retrigger, "store_plan", crash(plan.store_plan))
        patch.setattr(retrigger, "store_definitions", crash(plan.store_definitions))
    else:
        patch.setattr(streaming.services.queue, "create_task", crash(streaming.services.queue.create_task))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("where", "at"), [*(("store", n) for n in range(1, 6)), *(("create_task", n) for n in (1, 2, 5, 9, 13))]
)
async def test_a_crash_at_any_point_goes_on_with_the_same_tasks(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch, where: str, at: int, after: bool
) -> None:
    """Crash at each part of the plan: the first copy, the outline, and three parts of definitions."""
    queue = streaming.tc.queue
    crash = Crash(at, after=after)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(where, streaming, crash, patch)
        action = await action_on(streaming, slug("a"))
        crash.running = asyncio.create_task(retrigger.run(streaming.services, await claim_work(streaming)))
        with pytest.raises(asyncio.CancelledError):
            await crash.running
    before = {task.task_id: task.definition for task in await streaming.planned()}
    outlined = (await reload_action(streaming, action)).planned_at is not None
    existing = {task_id: task.definition for task_id, task in queue.tasks.items()}
    build(queue, {"late": ["a"]})
    async with streaming.database.writing() as session:
        await session.exec(update(Action).values(due_at=now()))
    await retrigger.run(streaming.services, await claim_work(streaming))
    action = await reload_action(streaming, action)
    assert (action.state, action.error) == ("done", None)

    new_ids = await read_copies(streaming, action)
    names = {"a", *STREAMED} | (set() if outlined else {"late"})
    new_id = copy_ids(streaming.services.secret, action, 0)
    assert new_ids == {name: new_id(slug(name)) for name in new_ids}
    assert set(new_ids) == names
    rows = await streaming.planned()
    assert [task.position for task in rows] == list(range(len(names)))
    assert all(task.created and not task.adopted for task in rows)
    assert {task.task_id: queue.task(task.task_id) for task in rows} == {task.task_id: task.definition for task in rows}
    for task in rows:
        assert before.get(task.task_id) is None or before[task.task_id] == task.definition
    assert set(queue.tasks) == existing.keys() | {slug("late")} | set(new_ids.values())
    shape = {name: queue.task(task_id)["dependencies"] for name, task_id in new_ids.items()}
    wanted = {"a": [], **STREAMED, "late": ["a"]}
    assert shape == {name: [new_ids[dependency] for dependency in wanted[name]] for name in names}
    assert {queue.task(task_id)["taskGroupId"] for task_id in new_ids.values()} == {new_ids["a"]}


async def test_a_plan_that_fails_on_its_way_is_given_up_and_what_was_made_of_it_cancelled(
    monitored: FlowHarness,
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "gone": [], "a": [], "b": ["a"], "c": ["b", "gone"]})
    end(queue, "a")
    del queue.tasks[slug("gone")]
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert f"c depends on {slug('gone')}, which expired" in str(action.error)
    (copy,) = (await read_copies(monitored, action)).values()
    assert queue.find(copy).runs[-1]["reasonResolved"] == "canceled"
    assert [task.created for task in await monitored.planned()] == [True]


async def test_a_task_that_expires_while_its_copy_is_planned_fails_the_action(streaming: FlowHarness) -> None:
    queue = streaming.tc.queue
    crash = Crash(3, after=False)  # with the outline stored, and the first definitions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrigger, "store_plan", crash(plan.store_plan))
        patch.setattr(retrigger, "store_definitions", crash(plan.store_definitions))
        action = await action_on(streaming, slug("a"))
        crash.running = asyncio.create_task(retrigger.run(streaming.services, await claim_work(streaming)))
        with pytest.raises(asyncio.CancelledError):
            await crash.running
    del queue.tasks[slug("u5")]
    async with streaming.database.writing() as session:
        await session.exec(update(Action).values(due_at=now()))
    await retrigger.run(streaming.services, await claim_work(streaming))
    action = await reload_action(streaming, action)
    assert action.state == "failed"
    assert f"u5 ({slug('u5')}) has expired" in str(action.error)
    created_ids = [task.task_id for task in await streaming.planned() if task.created]
    assert len(created_ids) >= 1
    assert {queue.find(task_id).runs[-1]["reasonResolved"] for task_id in created_ids} == {"canceled"}


# --- several copies of a task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 7])
async def test_copies_of_a_leaf_are_in_its_group(monitored: FlowHarness, times: int) -> None:
    build(monitored.tc.queue, {"group": [], "a": [], "b": ["a"]})
    end(monitored.tc.queue, "a", "completed")
    action = await carry_out(monitored, slug("a"), input={"times": times})
    assert (action.state, action.error) == ("done", None)
    copies = [task for task in monitored.tc.queue.tasks.values() if task.definition["metadata"]["name"] == "a"]
    assert len(copies) == times + 1
    assert {task.definition["taskGroupId"] for task in copies} == {GROUP}
    planned = await monitored.planned()
    assert [(task.copy_of, task.created) for task in planned] == [(slug("a"), True)] * times


@pytest.mark.parametrize("times", [1, 3])
async def test_copies_of_a_task_with_dependents_are_graphs_of_their_own(monitored: FlowHarness, times: int) -> None:
    build(monitored.tc.queue, DIAMOND)
    end(monitored.tc.queue, "a")
    published: Any = object()
    monitored.services.publisher = published  # it is only asked whether there is one
    action = await carry_out(monitored, slug("a"), input={"times": times})
    assert (action.state, action.error) == ("done", None)
    planned = await monitored.planned()
    assert len(planned) == 4 * times
    groups: dict[str, set[str]] = {}
    for start in range(0, len(planned), 4):
        copies = {task.name: task.task_id for task in planned[start : start + 4]}
        for name, task_id in copies.items():
            definition = monitored.tc.queue.task(task_id)
            assert definition["dependencies"] == [copies[needed] for needed in DIAMOND[name]]
            groups.setdefault(definition["taskGroupId"], set()).add(name)
    assert list(groups.values()) == [{"a", "b", "c", "d"}] * times
    announced = [notice.body["taskGroupId"] for notice in await read_notices(monitored)]
    assert announced == list(groups)


@pytest.mark.parametrize(
    ("where", "at"), [*(("store", n) for n in range(1, 8)), *(("create_task", n) for n in (2, 20))]
)
async def test_copies_of_several_graphs_go_on_after_a_crash(streaming: FlowHarness, where: str, at: int) -> None:
    """Crash at parts of a plan of three graphs, where the definitions of one graph end within a part."""
    queue = streaming.tc.queue
    crash = Crash(at, after=True)
    with pytest.MonkeyPatch.context() as patch:
        crash_in(where, streaming, crash, patch)
        action = await action_on(streaming, slug("a"), input={"times": 3})
        crash.running = asyncio.create_task(retrigger.run(streaming.services, await claim_work(streaming)))
        with pytest.raises(asyncio.CancelledError):
            await crash.running
    async with streaming.database.writing() as session:
        await session.exec(update(Action).values(due_at=now()))
    await retrigger.run(streaming.services, await claim_work(streaming))
    action = await reload_action(streaming, action)
    assert (action.state, action.error) == ("done", None)
    rows = await streaming.planned()
    assert all(task.created and not task.adopted for task in rows)
    assert len(queue.tasks) == 2 + len(STREAMED) + len(rows)
    new_id = copy_ids(streaming.services.secret, action, 0)
    size = len(rows) // 3
    for number in range(3):
        copies = {task.name: task for task in rows[number * size : (number + 1) * size]}
        assert copies.keys() == {"a", *STREAMED}
        for name, task in copies.items():
            assert task.task_id == new_id(f"{slug(name)} {number}" if number else slug(name))
            definition = queue.task(task.task_id)
            assert definition == task.definition
            assert definition["taskGroupId"] == copies["a"].task_id
            needed = {"a": [], **STREAMED}[name]
            assert definition["dependencies"] == [copies[dependency].task_id for dependency in needed]


async def test_a_plan_of_too_many_copies_is_rejected_with_the_setting(monitored: FlowHarness) -> None:
    build(monitored.tc.queue, {"group": [], "a": []})
    monitored.settings.max_copies = 9
    action = await carry_out(monitored, slug("a"), input={"times": 10})
    assert action.state == "rejected"
    assert "would have 10 tasks, and the setting max_copies allows 9: retrigger fewer tasks" in str(action.error)
    assert len(monitored.tc.queue.tasks) == 2
    assert (await carry_out(monitored, slug("a"), input={"times": 9})).state == "done"


@pytest.mark.parametrize("times", [0, 101, -1, "2", 1.5, True, None])
def test_the_number_of_copies_is_1_to_100(times: Any) -> None:
    with pytest.raises(ValidationError, match="times"):
        retrigger.RetriggerInput(times=times)
    assert [retrigger.RetriggerInput(times=number).times for number in (1, 100)] == [1, 100]
