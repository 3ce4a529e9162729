"""Retriggers: what is copied, how the copies look, and what becomes of them when Taskcluster does not play along."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select, update

from sandbox.taskcluster import Client, Taskcluster
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Task
from service.clients.taskcluster import TaskclusterQueue
from service.clock import now
from service.engine.leases import Lease
from service.engine.worker import Worker
from service.errors import Unavailable
from service.flow.actions import dependents, retrigger, search
from service.flow.actions.copies import MAX_NOTES
from service.flow.actions.kinds import Plan
from service.flow.actions.subject import ActionRejectedError, Subject
from service.flow.tasks import create, plan
from service.flow.tasks.definition import format_date
from service.flow.tasks.ids import copy_ids
from service.services import Services
from service.settings import Settings, TaskclusterSettings
from service.store.database import Database
from service.store.models import Action, PlannedTask, Repository, Source
from tests.service.engine.test_worker import until
from tests.service.flow.graph_factory import (
    GROUP,
    WORKER,
    Definition,
    Direct,
    action_on,
    build,
    carry_out,
    claimed,
    copies,
    definition_of,
    end,
    moment,
    slug,
    stored,
    work_until_done,
)
from tests.service.harness import FlowHarness, open_harness

DIAMOND = {"group": [], "a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "other": []}


@pytest.fixture
async def monitored(harness: FlowHarness) -> FlowHarness:
    await harness.add_repository()
    return harness


@asynccontextmanager
async def world_with(sqlite_url: str, **settings: Any) -> AsyncIterator[FlowHarness]:
    async with open_harness(sqlite_url, **settings) as harness:
        await harness.add_repository()
        yield harness


def there(harness: FlowHarness, task_id: str) -> Definition:
    return harness.tc.queue.task(task_id)


async def make_plan(harness: FlowHarness, lease: Lease[Action]) -> list[PlannedTask]:
    """Plan and store all, and create nothing."""
    planning = retrigger.PlanWriter(harness.services, lease, [])
    async for _ in planning.stored_parts():
        pass
    return planning.tasks


# --- what is copied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["unscheduled", "pending", "running", "completed"])
async def test_a_task_that_has_not_failed_is_copied_alone(monitored: FlowHarness, state: str) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": ["group"] if state == "unscheduled" else [], "b": ["a"]})
    if state == "running":
        queue.claim_task(slug("a"), 0, {"workerGroup": "g", "workerId": "w"})
    elif state == "completed":
        end(queue, "a", "completed")
    assert queue.find(slug("a")).state == state
    action = await carry_out(monitored, slug("a"))
    assert (action.state, action.error) == ("done", None)
    made = await copies(monitored, action)
    assert list(made) == ["a"]
    assert there(monitored, made["a"])["taskGroupId"] == GROUP


@pytest.mark.parametrize("state", ["failed", "exception"])
async def test_a_task_that_failed_is_copied_with_all_that_depends_on_it(monitored: FlowHarness, state: str) -> None:
    queue = monitored.tc.queue
    build(queue, DIAMOND)
    end(queue, "a", state)
    action = await carry_out(monitored, slug("a"), run_id=0)
    assert action.state == "done"
    made = await copies(monitored, action)
    assert set(made) == {"a", "b", "c", "d"}
    assert next(iter(made)) == "a"
    shape = {name: there(monitored, task_id)["dependencies"] for name, task_id in made.items()}
    assert shape == {"a": [], "b": [made["a"]], "c": [made["a"]], "d": [made["b"], made["c"]]}
    # a new graph: named by the first copy, of the same scheduler
    assert {there(monitored, task_id)["taskGroupId"] for task_id in made.values()} == {made["a"]}
    assert {there(monitored, task_id)["schedulerId"] for task_id in made.values()} == {"test"}
    assert queue.find(made["a"]).state == "pending"
    assert len(queue.tasks) == len(DIAMOND) + 4


async def test_the_scheduler_stays_though_it_is_called_like_a_task(monitored: FlowHarness) -> None:
    build(monitored.tc.queue, {"group": [], "a": [], "b": ["a"]}, schedulerId=slug("a"))
    end(monitored.tc.queue, "a")
    made = await copies(monitored, await carry_out(monitored, slug("a")))
    assert {there(monitored, each)["schedulerId"] for each in made.values()} == {slug("a")}


async def test_the_state_of_the_named_run_decides_and_one_that_was_rerun_no_longer_counts(
    monitored: FlowHarness,
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    queue.rerun_task(slug("a"))
    end(queue, "a")
    earlier = await carry_out(monitored, slug("a"), run_id=0)
    assert list(await copies(monitored, earlier)) == ["a"]
    for run_id in (1, None):
        latest = await carry_out(monitored, slug("a"), run_id=run_id)
        assert list(await copies(monitored, latest)) == ["a", "b"]
    unknown = await carry_out(monitored, slug("a"), run_id=2)
    assert unknown.state == "rejected"
    assert "no run 2" in str(unknown.error)


async def test_a_failed_leaf_stays_in_its_group_and_costs_few_calls(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(30)}})
    end(queue, "a", "completed")
    end(queue, "t7")
    action = await carry_out(monitored, slug("t7"))
    made = await copies(monitored, action)
    assert there(monitored, made["t7"])["taskGroupId"] == GROUP
    calls = monitored.tc.journal.calls
    assert calls["listDependentTasks"] == 1
    assert not calls["listTaskGroup"]
    assert sum(calls.values()) <= 7


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_decision_task_is_copied_alone_into_a_group_of_its_own(monitored: FlowHarness, state: str) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": ["group"]})
    end(queue, "group", state)
    action = await carry_out(monitored, slug("group"))
    made = await copies(monitored, action)
    assert list(made) == ["group"]
    assert there(monitored, made["group"])["taskGroupId"] == made["group"]
    assert [each["task_id"] for each in action.left_out] == [slug("a")]
    assert "decision task" in action.notes[0]
    action = await carry_out(monitored, slug("group"), run_id=7)
    assert action.state == "rejected"
    assert "no run 7" in str(action.error)


async def test_a_copy_that_fails_too_is_copied_with_all_that_depends_on_it(monitored: FlowHarness) -> None:
    """The first copy's id is that of its task group, and yet it is no decision task."""
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"], "c": ["b"]})
    end(queue, "a")
    before = await copies(monitored, await carry_out(monitored, slug("a")))
    for state in ("failed", "completed"):
        assert there(monitored, before["a"])["taskGroupId"] == before["a"]
        queue.claim_task(before["a"], 0, WORKER)
        getattr(queue, f"report_{state}")(before["a"], 0)
        action = await carry_out(monitored, before["a"])
        assert (action.notes, action.left_out) == ([], [])
        made = await copies(monitored, action)
        group = made["a"] if state == "failed" else before["a"]
        assert list(made) == (["a", "b", "c"] if state == "failed" else ["a"])
        assert {there(monitored, task_id)["taskGroupId"] for task_id in made.values()} == {group}
        before = made


async def test_the_copy_of_a_decision_task_is_one_too(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    copy = (await copies(monitored, await carry_out(monitored, GROUP)))["group"]
    queue.create_task(slug("a"), definition_of("a", [], taskGroupId=copy) | {"dependencies": [copy]})
    queue.claim_task(copy, 0, WORKER)
    queue.report_failed(copy, 0)
    action = await carry_out(monitored, copy)
    assert list(await copies(monitored, action)) == ["group"]
    assert [each["task_id"] for each in action.left_out] == [slug("a")]


async def test_that_more_depend_on_a_decision_task_than_are_listed_is_said(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], **{f"t{n}": ["group"] for n in range(1_001)}})
    action = await carry_out(monitored, GROUP)
    assert len(action.left_out) == 1_000
    assert "more than 1,000 tasks depend on it" in action.notes[1]


async def test_dependents_in_other_groups_are_left_out(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    queue.create_task(slug("foreign"), definition_of("foreign", ["a"], taskGroupId=slug("elsewhere")))
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert list(await copies(monitored, action)) == ["a", "b"]
    (left,) = action.left_out
    assert left["task_id"] == slug("foreign")
    assert slug("elsewhere") in left["reason"]


async def test_that_other_groups_were_not_searched_is_said(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"], "c": ["b"]})
    queue.create_task(slug("near"), definition_of("near", ["a"], taskGroupId=slug("elsewhere")))
    queue.create_task(slug("far"), definition_of("far", ["c"], taskGroupId=slug("elsewhere")))
    end(queue, "a")
    monkeypatch.setattr(dependents, "WALK_CALLS", 1)
    action = await carry_out(monitored, slug("a"))
    assert set(await copies(monitored, action)) == {"a", "b", "c"}
    assert [each["name"] for each in action.left_out] == ["near"], "which the walk came across"
    assert any("other task groups were not searched for dependents" in note for note in action.notes)
    monkeypatch.setattr(dependents, "WALK_CALLS", 20)
    action = await carry_out(monitored, slug("a"))
    assert {each["name"] for each in action.left_out} == {"near", "far"}
    assert action.notes == []


async def test_an_earlier_copy_of_a_task_in_the_plan_is_not_copied_again(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    single = await copies(monitored, await carry_out(monitored, slug("b")))  # unscheduled: alone, and still needs a
    again = await copies(monitored, await carry_out(monitored, single["b"]))  # a copy of the copy
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert list(await copies(monitored, action)) == ["a", "b"]
    assert {each["task_id"] for each in action.left_out} == {single["b"], again["b"]}
    assert all("earlier copy" in each["reason"] for each in action.left_out)


async def test_the_copy_of_a_task_that_is_not_in_the_plan_is_copied(sqlite_url: str) -> None:
    async with world_with(sqlite_url, retrigger_group="same") as harness:
        queue = harness.tc.queue
        build(queue, {"group": [], "a": [], "x": [], "b": ["a", "x"], "c": ["b"]})
        end(queue, "x")
        earlier = await copies(harness, await carry_out(harness, slug("x")))
        queue.claim_task(earlier["x"], 0, WORKER)
        queue.report_completed(earlier["x"], 0)
        end(queue, "a")
        action = await carry_out(harness, slug("a"))
        async with harness.database.reading() as session:
            rows = await session.exec(select(PlannedTask.copy_of).where(PlannedTask.action_id == action.id))
            assert set(rows) == {slug("a"), earlier["b"], earlier["c"]}
        reasons = {each["task_id"]: each["reason"] for each in action.left_out}
        assert reasons == {
            slug("b"): f"it needs {slug('x')}, which is failed and not copied",
            slug("c"): "it depends only on tasks that are left out",
        }


async def test_what_could_never_run_is_left_out(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "x": [], "b": ["a", "x"], "after": ["b"], "c": ["a"], "both": ["b", "c"]})
    queue.create_task(slug("any"), definition_of("any", ["a", "x"], requires="all-resolved"))
    end(queue, "a")
    end(queue, "x", "exception")
    action = await carry_out(monitored, slug("a"))
    assert set(await copies(monitored, action)) == {"a", "any", "c"}
    reasons = {each["name"]: each["reason"] for each in action.left_out}
    assert set(reasons) == {"b", "after", "both"}
    assert slug("x") in reasons["b"]
    assert "exception" in reasons["b"]
    assert "left out" in reasons["after"]
    assert f"needs {slug('b')}, which is left out" in reasons["both"]


async def test_that_the_copy_itself_waits_for_a_failed_task_is_said(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    action = await carry_out(monitored, slug("b"))
    made = await copies(monitored, action)
    assert queue.find(made["b"]).state == "unscheduled"
    assert slug("a") in action.notes[0]


async def test_no_more_than_a_few_such_notes_are_made(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    names = [f"t{n}" for n in range(30)]
    build(queue, {"group": [], **dict.fromkeys(names, ()), "b": names})
    for name in names:
        queue.cancel_task(slug(name))
    assert len((await carry_out(monitored, slug("b"))).notes) == MAX_NOTES


# --- cycles ------------------------------------------------------------------------------------------------------


def tie(queue: Queue, name: str, needs: str) -> None:
    """Let a task need another one, which the real queue would never allow afterwards."""
    task = queue.find(slug(name))
    task.definition = {**task.definition, "dependencies": [*task.definition["dependencies"], slug(needs)]}
    queue.find(slug(needs)).dependents.append(slug(name))


async def test_a_task_that_depends_on_itself_is_rejected(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "self": ["self"], "a": [], "b": ["a", "b"]})
    action = await carry_out(monitored, slug("self"))
    assert action.state == "rejected"
    assert f"{slug('self')} (self) depends on itself" in str(action.error)
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "rejected"
    assert "depends on itself" in str(action.error)
    assert len(queue.tasks) == 4


@pytest.mark.parametrize("calls", [0, 20])
async def test_a_cycle_is_rejected(monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    monkeypatch.setattr(dependents, "WALK_CALLS", calls)
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"], "c": ["b"], "d": ["c"]})
    end(queue, "a")
    tie(queue, "b", "d")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "rejected"
    assert "cycle" in str(action.error)
    assert all(slug(name) in str(action.error) for name in "bcd")
    assert slug("a") not in str(action.error)


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [20, 0])
async def test_dependents_that_hold_too_much_are_not_copied(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Whoever may define tasks decides how much is held for a retrigger of one of them."""
    monkeypatch.setattr(dependents, "WALK_CALLS", calls)
    monkeypatch.setattr(dependents, "MAX_VALUES", 1_000)
    build(monitored.tc.queue, {"root": [], "small": ["root"]})
    end(monitored.tc.queue, "root")
    assert (await carry_out(monitored, slug("root"))).state == "done"
    build(monitored.tc.queue, {"large": ["small"]}, payload={"a": [{}] * 1_000})
    action = await carry_out(monitored, slug("root"))
    assert action.state == "failed"
    assert "have more than 1,000 values, too many to copy" in str(action.error)


async def test_the_copy_of_a_single_task_leaves_a_sealed_group(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    queue.seal_task_group(GROUP)
    action = await carry_out(monitored, slug("a"))
    made = await copies(monitored, action)
    assert there(monitored, made["a"])["taskGroupId"] == made["a"]
    assert "sealed" in action.notes[0]


async def test_a_group_that_is_sealed_after_the_plan_was_made_is_planned_anew(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    action = await action_on(monitored, slug("a"))
    lease = await claimed(monitored)
    planned = await make_plan(monitored, lease)
    queue.seal_task_group(GROUP)
    await retrigger.run(monitored.services, lease)
    action = await stored(monitored, action)
    assert (action.state, action.plan_attempt) == ("done", 1)
    made = await copies(monitored, action)
    assert made["a"] != planned[0].task_id
    assert there(monitored, made["a"])["taskGroupId"] == made["a"]
    assert len(queue.tasks) == 3


@pytest.mark.parametrize(("mode", "single", "whole"), [("same", True, True), ("new", False, False)])
async def test_the_setting_decides_on_the_group(sqlite_url: str, mode: str, single: bool, whole: bool) -> None:
    async with world_with(sqlite_url, retrigger_group=mode) as harness:
        queue = harness.tc.queue
        build(queue, {"group": [], "a": [], "b": ["a"], "c": []})
        end(queue, "a")
        alone = await copies(harness, await carry_out(harness, slug("c")))
        assert there(harness, alone["c"])["taskGroupId"] == (GROUP if single else alone["c"])
        graph = await copies(harness, await carry_out(harness, slug("a")))
        assert {there(harness, each)["taskGroupId"] for each in graph.values()} == {GROUP if whole else graph["a"]}
        queue.seal_task_group(GROUP)
        action = await carry_out(harness, slug("c"))
        assert action.state == ("failed" if single else "done")
        assert not single or "sealed" in str(action.error)


# --- how a copy looks --------------------------------------------------------------------------------------------


async def test_only_ids_and_dates_of_a_copy_differ(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    a, b = slug("a"), slug("b")
    past = now() - timedelta(hours=5)
    queue.clock.advance(-5 * 3600)
    payload = {
        "numbers": [1, 2.5, -0.0, 1e300, True, False, None],
        "url": f"https://queue/v1/task/{a}/runs/0/artifacts/public/x?and={b}#{a}",
        "glued": f"x{a}y-{b}_{a}{b}",
        a: {f"by-{b}": [a, None, {b: 0}]},
        "own": b,
        "group": GROUP,
        "near": a[:-1],
        "hash": "0123456789abcdef" * 4,
        "empty": ["", {}, []],
        "artifacts": {"public/x": {"type": "file", "path": "/x", "expires": format_date(past + timedelta(days=2))}},
    }
    old = definition_of(
        "b",
        ["a"],
        created=format_date(past),
        deadline=format_date(past + timedelta(days=1)),
        expires=format_date(past + timedelta(days=3)),
        payload=payload,
        extra={"parent": GROUP, "upstream": {a: b}},
        routes=[f"tc-treeherder.v2.mc.{'ab' * 20}.1", f"index.by-task.{b}"],
        tags={"for": a},
        scopes=[],
    )
    queue.create_task(slug("b"), old)
    queue.clock.reset()
    old = queue.task(b)
    end(queue, "a")
    repository = {"scopes": ["queue:create-task:*", "queue:scheduler-id:*", "queue:route:*"]}
    async with monitored.database.writing() as session:
        (await session.get_one(Repository, 1)).scopes = repository["scopes"]
    made = await copies(monitored, await carry_out(monitored, a))
    assert list(made) == ["a", "b"]
    copy = there(monitored, made["b"])
    back = json.loads(json.dumps(copy).replace(made["a"], a).replace(made["b"], b))
    for name in ("created", "deadline", "expires", "taskGroupId"):
        back.pop(name), old.pop(name)
    assert re.search(f"{a}|{b}", json.dumps(copy)) is None
    back["payload"]["artifacts"], old["payload"] = None, {**old["payload"], "artifacts": None}
    assert back == old
    assert copy["payload"]["group"] == GROUP
    assert copy["taskGroupId"] == made["a"]
    assert timedelta() <= now() - moment(copy["created"]) < timedelta(minutes=1)
    assert moment(copy["deadline"]) - moment(copy["created"]) == timedelta(days=1)
    assert moment(copy["expires"]) - moment(copy["created"]) == timedelta(days=3)
    artifact = moment(copy["payload"]["artifacts"]["public/x"]["expires"])
    assert artifact - moment(copy["created"]) == timedelta(days=2)


IDS = st.text("AbcdefgQRST-_0123", min_size=8, max_size=8)


# --- dates and dependencies --------------------------------------------------------------------------------------


async def test_a_dependency_that_expires_soon_shortens_the_deadline(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    soon = format_date(now() + timedelta(hours=25))
    queue.create_task(slug("group"), definition_of("group"))
    queue.create_task(slug("short"), definition_of("short", expires=soon))
    early = now() - timedelta(hours=23)
    queue.clock.advance(-23 * 3600)
    dates = {"created": format_date(early), "deadline": format_date(early + timedelta(hours=47))}
    queue.create_task(slug("a"), definition_of("a", ["short"], **dates))
    queue.clock.reset()
    action = await carry_out(monitored, slug("a"))
    assert (action.state, action.error) == ("done", None)
    made = await copies(monitored, action)
    assert there(monitored, made["a"])["deadline"] == soon
    assert any(slug("short") in note for note in action.notes)


async def test_a_dependency_that_expires_within_the_hour_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    queue.create_task(slug("group"), definition_of("group"))
    at = now()
    soon = {"deadline": format_date(at + timedelta(minutes=20)), "expires": format_date(at + timedelta(minutes=50))}
    queue.create_task(slug("short"), definition_of("short", **soon))
    queue.create_task(slug("a"), definition_of("a", ["short"], deadline=format_date(at + timedelta(minutes=40))))
    queue.clock.advance(30 * 60)  # what the copy's deadline is counted from is our own clock
    task = queue.find(slug("a"))
    task.definition = {**task.definition, "deadline": format_date(at + timedelta(hours=3))}
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert slug("short") in str(action.error)
    assert "expires" in str(action.error)
    assert len(queue.tasks) == 3


async def test_dates_that_no_calendar_has_fail_the_action_or_stay_in_artifacts(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    last = "9999-12-31T23:59:59.000Z"
    artifacts = {"artifacts": {"public/x": {"expires": last}, "public/y": {"expires": "never"}}}
    past = {"created": format_date(now() - timedelta(minutes=10))}
    queue.create_task(slug("artifact"), definition_of("artifact", payload=artifacts, **past))
    queue.create_task(slug("task"), definition_of("task", **past))
    task = queue.find(slug("task"))
    task.definition = {**task.definition, "expires": last}
    made = await copies(monitored, await carry_out(monitored, slug("artifact")))
    assert there(monitored, made["artifact"])["payload"] == artifacts
    action = await carry_out(monitored, slug("task"))
    assert action.state == "failed"
    assert last in str(action.error)


async def test_a_definition_from_before_some_fields_were_known_is_completed(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    task = queue.find(slug("a"))
    task.definition = {k: v for k, v in task.definition.items() if k not in {"tags", "retries"}}
    action = await action_on(monitored, slug("a"))
    (planned,) = await make_plan(monitored, lease := await claimed(monitored))
    assert planned.definition is not None
    assert (planned.definition["tags"], planned.definition["retries"]) == ({}, 5)
    await retrigger.run(monitored.services, lease)
    assert (await stored(monitored, action)).state == "done"


async def test_a_dependency_that_has_expired_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "gone": [], "a": ["gone"]})
    del queue.tasks[slug("gone")]
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert slug("gone") in str(action.error)


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
    made = await copies(monitored, action)
    for word in ("403", "queue:route:index.secret.thing", "its route", "refuses task c "):
        assert word in str(action.error), action.error
    assert "```" not in str(action.error)
    assert made["c"] not in queue.tasks
    assert made["a"] in queue.tasks
    states = {name: queue.tasks[task_id].runs[-1]["reasonResolved"] for name, task_id in made.items() if name != "c"}
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
    made = await copies(monitored, action)
    assert {queue.find(made[name]).runs[-1]["reasonResolved"] for name in ("a", "b")} == {"canceled"}


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp, of any megabyte
async def test_a_copy_that_is_too_large_to_be_sent_fails_the_action(monitored: FlowHarness) -> None:
    """What is no ASCII is sent as escapes, so a copy can be too large of what the queue once took."""
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    queue.create_task(slug("b"), definition_of("b", ["a"], payload={"text": "\u4e2d" * 1_750_000}))
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert "refuses task b" in str(action.error)
    assert "10,485,760 bytes at most" in str(action.error)
    made = await copies(monitored, action)
    assert queue.find(made["a"]).runs[-1]["reasonResolved"] == "canceled"


async def test_a_task_that_stands_under_a_planned_id_and_is_not_ours_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    action = await action_on(monitored, slug("a"))
    lease = await claimed(monitored)
    planned = await make_plan(monitored, lease)
    queue.create_task(planned[0].task_id, definition_of("foreign", routes=["index.mallory"]))
    await retrigger.run(monitored.services, lease)
    action = await stored(monitored, action)
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
    async with world_with(sqlite_url, work=WORK) as harness:
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
            queue.find(task_id).runs == [] or name == "a" for name, task_id in (await copies(harness, action)).items()
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
        monkeypatch.setattr(Task, "status", lambda each: whole(each) | (odd if each is task else {}))
    else:
        task.definition = task.definition | odd
    await action_on(monitored, slug("a"))
    lease = await claimed(monitored)
    with pytest.raises(Unavailable, match="Taskcluster's answer has"):
        await retrigger.run(monitored.services, lease)


async def test_many_throttled_calls_do_not_make_the_waits_long(sqlite_url: str) -> None:
    async with world_with(sqlite_url, work={**WORK, "max_retry": 600}) as harness:
        build(harness.tc.queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(60)}})
        end(harness.tc.queue, "a")
        harness.tc.faults.add("throttle", "createTask", probability=0.6)
        action = await work_until_done(harness, await action_on(harness, slug("a")))
        assert action.state == "done"
        assert len(harness.tc.queue.tasks) == 62 + 61


async def test_how_long_taskcluster_asks_to_be_left_alone_is_obeyed(sqlite_url: str) -> None:
    async with world_with(sqlite_url, work=WORK) as harness:
        build(harness.tc.queue, {"group": [], "a": []})
        harness.tc.faults.add("throttle", "createTask", retry_after=600)
        action = await action_on(harness, slug("a"))
        worker = Worker(harness.services)
        running = asyncio.create_task(worker.run())

        async def is_postponed() -> bool:
            return (await stored(harness, action)).error is not None

        await until(is_postponed)
        worker.stop()
        await running
        action = await stored(harness, action)
        assert action.due_at is not None
        assert action.due_at - now() > timedelta(minutes=9)
        assert harness.tc.journal.calls["createTask"] == 1


async def test_a_restart_goes_on_with_the_stored_plan(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, DIAMOND)
    end(queue, "a")
    action = await action_on(monitored, slug("a"))
    lease = await claimed(monitored)
    planned = [task.task_id for task in await make_plan(monitored, lease)]
    monitored.tc.faults.add("after", "createTask", times=1)
    with pytest.raises(Unavailable):
        await retrigger.run(monitored.services, lease)
    build(queue, {"late": ["a"]})  # came too late for the plan
    await retrigger.run(monitored.services, lease)
    action = await stored(monitored, action)
    assert action.state == "done"
    assert list((await copies(monitored, action)).values()) == planned
    assert len(queue.tasks) == len(DIAMOND) + 1 + 4


async def test_a_late_restart_stamps_anew_only_what_is_not_there(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "x": [], "a": ["x"], "b": ["a"]})
    end(queue, "x", "completed")
    end(queue, "a")
    action = await action_on(monitored, slug("a"))
    lease = await claimed(monitored)
    first, second = await make_plan(monitored, lease)
    assert first.definition is not None
    queue.create_task(first.task_id, first.definition)
    queue.clock.advance(3600)
    real = now()
    monkeypatch.setattr(create, "now", lambda: real + timedelta(hours=1))
    await retrigger.run(monitored.services, lease)
    assert (await stored(monitored, action)).state == "done"
    assert queue.task(first.task_id)["created"] == first.definition["created"]
    assert moment(queue.task(second.task_id)["created"]) >= real + timedelta(minutes=59)


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
    lease = await claimed(monitored)
    await make_plan(monitored, lease)
    async with monitored.database.writing() as session:
        (await session.get_one(Repository, 1)).enabled = False
    await retrigger.run(monitored.services, lease)
    action = await stored(monitored, action)
    assert action.state == "failed"
    assert "disabled" in str(action.error)
    assert len(queue.tasks) == 2


async def test_reads_that_are_not_allowed_fail_readably(sqlite_url: str) -> None:
    client = Client("poor", "poor-token", ("queue:get-task:*", "queue:status:*"))
    async with world_with(sqlite_url) as harness:
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


@pytest.fixture
async def streaming(monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> FlowHarness:
    """A task that failed, and a dozen that depend on it in two layers, planned in small parts."""
    monkeypatch.setattr(retrigger, "FIRST_PART", 3)
    monkeypatch.setattr(retrigger, "PART", 3)
    build(monitored.tc.queue, {"group": [], "a": [], **STREAMED})
    end(monitored.tc.queue, "a")
    return monitored


STREAMED = {**{f"t{n}": ["a"] for n in range(6)}, **{f"u{n}": [f"t{n}"] for n in range(6)}}


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
    assert set(await copies(streaming, action)) == {"a", *STREAMED}


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize(("limit", "calls"), [(1, 20), (1, 0), (100, 20)])
async def test_however_few_dependents_are_looked_at_first_all_are_copied(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch, limit: int, calls: int
) -> None:
    monkeypatch.setattr(search, "FIRST_PAGE", limit)
    monkeypatch.setattr(dependents, "WALK_CALLS", calls)
    streaming.tc.queue.create_task(slug("foreign"), definition_of("foreign", ["a"], taskGroupId=slug("elsewhere")))
    action = await carry_out(streaming, slug("a"))
    assert set(await copies(streaming, action)) == {"a", *STREAMED}
    if calls:
        assert [each["task_id"] for each in action.left_out] == [slug("foreign")]


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
        planned.append(len([each for each in rows.values() if each is not None]))
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


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("where", "at"), [*(("store", n) for n in range(1, 6)), *(("create_task", n) for n in (1, 2, 5, 9, 13))]
)
async def test_a_crash_at_any_point_goes_on_with_the_same_tasks(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch, where: str, at: int, after: bool
) -> None:
    """The parts: the first copy, the outline, and three times definitions."""
    queue = streaming.tc.queue
    crash = Crash(at, after=after)
    with pytest.MonkeyPatch.context() as patch:
        if where == "store":
            patch.setattr(retrigger, "store_plan", crash(plan.store_plan))
            patch.setattr(retrigger, "store_definitions", crash(plan.store_definitions))
        else:
            patch.setattr(streaming.services.queue, "create_task", crash(streaming.services.queue.create_task))
        action = await action_on(streaming, slug("a"))
        crash.running = asyncio.create_task(retrigger.run(streaming.services, await claimed(streaming)))
        with pytest.raises(asyncio.CancelledError):
            await crash.running
    before = {task.task_id: task.definition for task in await streaming.planned()}
    outlined = (await stored(streaming, action)).planned_at is not None
    there = {task_id: task.definition for task_id, task in queue.tasks.items()}
    build(queue, {"late": ["a"]})
    async with streaming.database.writing() as session:
        await session.exec(update(Action).values(due_at=now()))
    await retrigger.run(streaming.services, await claimed(streaming))
    action = await stored(streaming, action)
    assert (action.state, action.error) == ("done", None)

    made = await copies(streaming, action)
    names = {"a", *STREAMED} | (set() if outlined else {"late"})
    new_id = copy_ids(streaming.services.secret, action, 0)
    assert made == {name: new_id(slug(name)) for name in made}
    assert set(made) == names
    rows = await streaming.planned()
    assert [task.position for task in rows] == list(range(len(names)))
    assert all(task.created and not task.adopted for task in rows)
    assert {task.task_id: queue.task(task.task_id) for task in rows} == {task.task_id: task.definition for task in rows}
    for task in rows:
        assert before.get(task.task_id) is None or before[task.task_id] == task.definition
    assert set(queue.tasks) == there.keys() | {slug("late")} | set(made.values())
    shape = {name: queue.task(task_id)["dependencies"] for name, task_id in made.items()}
    wanted = {"a": [], **STREAMED, "late": ["a"]}
    assert shape == {name: [made[each] for each in wanted[name]] for name in names}
    assert {queue.task(task_id)["taskGroupId"] for task_id in made.values()} == {made["a"]}


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
    (copy,) = (await copies(monitored, action)).values()
    assert queue.find(copy).runs[-1]["reasonResolved"] == "canceled"
    assert [task.created for task in await monitored.planned()] == [True]


async def test_a_task_that_expires_while_its_copy_is_planned_fails_the_action(streaming: FlowHarness) -> None:
    queue = streaming.tc.queue
    crash = Crash(3, after=False)  # with the outline stored, and the first definitions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrigger, "store_plan", crash(plan.store_plan))
        patch.setattr(retrigger, "store_definitions", crash(plan.store_definitions))
        action = await action_on(streaming, slug("a"))
        crash.running = asyncio.create_task(retrigger.run(streaming.services, await claimed(streaming)))
        with pytest.raises(asyncio.CancelledError):
            await crash.running
    del queue.tasks[slug("u5")]
    async with streaming.database.writing() as session:
        await session.exec(update(Action).values(due_at=now()))
    await retrigger.run(streaming.services, await claimed(streaming))
    action = await stored(streaming, action)
    assert action.state == "failed"
    assert f"u5 ({slug('u5')}) has expired" in str(action.error)
    made = [task.task_id for task in await streaming.planned() if task.created]
    assert len(made) >= 1
    assert {queue.find(task_id).runs[-1]["reasonResolved"] for task_id in made} == {"canceled"}


async def test_the_copy_of_a_task_that_names_a_dependent_waits_until_that_is_planned(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    queue.create_task(slug("a"), definition_of("a", payload={"later": slug("b"), "hash": "0123456789abcdef" * 4}))
    build(queue, {"b": ["a"]})
    end(queue, "a")
    made = await copies(monitored, await carry_out(monitored, slug("a")))
    assert there(monitored, made["a"])["payload"]["later"] == made["b"]


@pytest.mark.parametrize(
    ("other", "requires", "early"),
    [
        ("completed", "all-completed", True),
        ("pending", "all-completed", False),
        ("failed", "all-completed", False),
        ("pending", "all-resolved", True),
    ],
)
async def test_the_first_copy_is_early_only_if_others_are_copied_for_sure(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch, other: str, requires: str, early: bool
) -> None:
    """Otherwise it may be a single copy, which stays in its group."""
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "x": [], "free": []})
    queue.create_task(slug("b"), definition_of("b", ["a", "x"], requires=requires))
    end(queue, "a")
    if other != "pending":
        end(queue, "x", other)
    stores: list[int] = []
    store_plan = plan.store_plan

    async def count(lease: Any, tasks: list[PlannedTask], **values: Any) -> Any:
        stores.append(len(tasks))
        return await store_plan(lease, tasks, **values)

    monkeypatch.setattr(retrigger, "store_plan", count)
    action = await carry_out(monitored, slug("a"))
    made = await copies(monitored, action)
    assert set(made) == ({"a"} if other == "failed" else {"a", "b"})
    assert there(monitored, made["a"])["taskGroupId"] == (GROUP if other == "failed" else made["a"])
    assert stores == ([1, 1] if early else [len(made)])


# --- large graphs ------------------------------------------------------------------------------------------------


@pytest.fixture
def direct(harness: FlowHarness) -> Direct:
    """The world's queue without HTTP between."""
    made = Direct(harness.tc.queue)
    harness.services.queue = made  # type: ignore[assignment]  # its lists are the Protocol's
    return made


async def plan_for(services: Any, queue: Queue, name: str) -> Plan:
    task_id = slug(name)
    subject = Subject(
        Repository(alias="mc", url="u", host="h", level="1", last_push_id=0),
        queue.task(task_id),
        queue.status(task_id)["status"],
        [],
    )
    action = Action(kind="retrigger", project="mc", task_id=task_id, requester="me", source=Source.API, lane="x")
    return await retrigger.plan(services, subject, action)


async def test_a_chain_of_a_thousand(monitored: FlowHarness, direct: Direct) -> None:
    names = [f"t{n}" for n in range(1000)]
    build(monitored.tc.queue, {"group": [], "t0": [], **{names[n]: [names[n - 1]] for n in range(1, 1000)}})
    end(monitored.tc.queue, "t0")
    action = await carry_out(monitored, slug("t0"))
    assert (action.state, action.error) == ("done", None)
    made = await copies(monitored, action)
    assert list(made) == names
    for before, after in itertools.pairwise(names):
        assert there(monitored, made[after])["dependencies"] == [made[before]]
    assert sum(direct.calls.values()) <= 1000 + 1 + 30


async def test_a_fan_of_five_thousand(harness: FlowHarness, direct: Direct) -> None:
    build(harness.tc.queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(4999)}})
    end(harness.tc.queue, "a")
    made = await plan_for(harness.services, harness.tc.queue, "a")
    assert len(made.copies) == 5000
    assert {copy.definition["dependencies"][0] for copy in made.copies[1:]} == {made.copies[0].new_id}
    assert len({copy.new_id for copy in made.copies}) == 5000
    assert sum(direct.calls.values()) <= 5 + 30


async def test_a_wide_graph_that_is_deep_too_fetches_what_it_had_not_kept(harness: FlowHarness, direct: Direct) -> None:
    rows = {f"r{row}-{n}": [f"r{row - 1}-{n}"] if row else ["a"] for row in range(40) for n in range(60)}
    build(harness.tc.queue, {"group": [], "a": [], **rows})
    end(harness.tc.queue, "a")
    made = await plan_for(harness.services, harness.tc.queue, "a")
    assert {copy.name for copy in made.copies} == {"a", *rows}
    assert direct.calls["tasks"] in {1, 2, 3}
    assert sum(direct.calls.values()) <= 3 + 30


# --- any graph ---------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 14))
    graph: dict[str, list[str]] = {}
    for number in range(size):
        names = list(graph)
        graph[f"t{number}"] = draw(st.lists(st.sampled_from(names), unique=True, max_size=4)) if names else []
    return graph


@pytest.fixture
def parts_of(sqlite: Database) -> Any:
    def made(queue: Queue) -> Any:
        chosen = Settings(database_url="sqlite+aiosqlite:///unused")
        nothing: Any = None
        direct: Any = Direct(queue)
        return Services(chosen, sqlite, nothing, direct, {}, None, nothing, b"")

    return made


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixture has no state
)
@given(graph=graphs(), data=st.data())
async def test_exactly_the_dependents_are_copied_in_their_shape(
    parts_of: Any, graph: dict[str, list[str]], data: Any
) -> None:
    queue = Taskcluster().queue
    build(queue, {"group": []})
    for name, dependencies in graph.items():
        mentions = {"note": " ".join(f"<{slug(each)}>" for each in [*dependencies, name]), "group": GROUP}
        queue.create_task(slug(name), definition_of(name, dependencies, payload=mentions))
    failed = data.draw(st.sampled_from(list(graph)))
    needed = {failed}
    for name in reversed(graph):  # each before its dependencies
        if name in needed:
            needed.update(graph[name])
    for name in graph:
        if name in needed:
            end(queue, name, "failed" if name == failed else "completed")
    before = {task_id: json.dumps(task.definition) for task_id, task in queue.tasks.items()}

    reached = {failed}
    for name, dependencies in graph.items():  # in dependency order
        if reached & set(dependencies):
            reached.add(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dependents, "WALK_CALLS", data.draw(st.integers(0, 20)))
        made = await plan_for(parts_of(queue), queue, failed)

    names = [copy.name for copy in made.copies]
    assert set(names) == reached
    assert len(names) == len(reached)
    new = {copy.name: copy.new_id for copy in made.copies}
    seen: set[str] = set()
    for copy in made.copies:
        wanted = [new.get(each, slug(each)) for each in graph[copy.name]]
        assert copy.definition["dependencies"] == wanted
        assert {each for each in graph[copy.name] if each in new} <= seen, "before what it depends on"
        seen.add(copy.name)
        text = json.dumps(copy.definition)
        assert not any(slug(name) in text for name in reached)
        note = " ".join(f"<{new.get(each, slug(each))}>" for each in [*graph[copy.name], copy.name])
        assert copy.definition["payload"] == {"note": note, "group": GROUP}
        queue.create_task(copy.new_id, copy.definition)  # the queue takes them, in this order
    assert {task_id: json.dumps(queue.tasks[task_id].definition) for task_id in before} == before


async def test_a_cycle_raises_before_anything_is_computed(parts_of: Any) -> None:
    queue = Taskcluster().queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    tie(queue, "a", "b")
    with pytest.raises(ActionRejectedError, match="cycle"):
        await asyncio.wait_for(plan_for(parts_of(queue), queue, "a"), 5)
