"""Search for what a retrigger copies: the task alone or with its dependents, and the task group of the copies."""

from typing import Any

import pytest

from service.flow.actions import dependents, retrigger, search
from service.flow.tasks import plan
from service.store.models import PlannedTask
from tests.service.flow.actions.support import DIAMOND, STREAMED, existing_task, open_monitored
from tests.service.flow.graph_factory import (
    GROUP,
    WORKER,
    build,
    carry_out,
    definition_of,
    end,
    read_copies,
    slug,
)
from tests.service.harness import FlowHarness


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
    copy_ids = await read_copies(monitored, action)
    assert list(copy_ids) == ["a"]
    assert existing_task(monitored, copy_ids["a"])["taskGroupId"] == GROUP


@pytest.mark.parametrize("state", ["failed", "exception"])
async def test_a_task_that_failed_is_copied_with_all_that_depends_on_it(monitored: FlowHarness, state: str) -> None:
    queue = monitored.tc.queue
    build(queue, DIAMOND)
    end(queue, "a", state)
    action = await carry_out(monitored, slug("a"), run_id=0)
    assert action.state == "done"
    copy_ids = await read_copies(monitored, action)
    assert set(copy_ids) == {"a", "b", "c", "d"}
    assert next(iter(copy_ids)) == "a"
    shape = {name: existing_task(monitored, task_id)["dependencies"] for name, task_id in copy_ids.items()}
    assert shape == {"a": [], "b": [copy_ids["a"]], "c": [copy_ids["a"]], "d": [copy_ids["b"], copy_ids["c"]]}
    # a new graph: named by the first copy, of the same scheduler
    assert {existing_task(monitored, task_id)["taskGroupId"] for task_id in copy_ids.values()} == {copy_ids["a"]}
    assert {existing_task(monitored, task_id)["schedulerId"] for task_id in copy_ids.values()} == {"test"}
    assert queue.find(copy_ids["a"]).state == "pending"
    assert len(queue.tasks) == len(DIAMOND) + 4


async def test_the_state_of_the_named_run_decides_and_one_that_was_rerun_no_longer_counts(
    monitored: FlowHarness,
) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    queue.rerun_task(slug("a"))
    end(queue, "a")
    earlier = await carry_out(monitored, slug("a"), run_id=0)
    assert list(await read_copies(monitored, earlier)) == ["a"]
    for run_id in (1, None):
        latest = await carry_out(monitored, slug("a"), run_id=run_id)
        assert list(await read_copies(monitored, latest)) == ["a", "b"]
    unknown = await carry_out(monitored, slug("a"), run_id=2)
    assert unknown.state == "rejected"
    assert "no run 2" in str(unknown.error)


async def test_a_failed_leaf_stays_in_its_group_and_costs_few_calls(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(30)}})
    end(queue, "a", "completed")
    end(queue, "t7")
    action = await carry_out(monitored, slug("t7"))
    copy_ids = await read_copies(monitored, action)
    assert existing_task(monitored, copy_ids["t7"])["taskGroupId"] == GROUP
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
    copy_ids = await read_copies(monitored, action)
    assert list(copy_ids) == ["group"]
    assert existing_task(monitored, copy_ids["group"])["taskGroupId"] == copy_ids["group"]
    assert [entry["task_id"] for entry in action.left_out] == [slug("a")]
    assert "decision task" in action.notes[0]
    action = await carry_out(monitored, slug("group"), run_id=7)
    assert action.state == "rejected"
    assert "no run 7" in str(action.error)


async def test_a_copy_that_fails_too_is_copied_with_all_that_depends_on_it(monitored: FlowHarness) -> None:
    """The first copy has the id of its task group, but it is no decision task."""
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"], "c": ["b"]})
    end(queue, "a")
    before = await read_copies(monitored, await carry_out(monitored, slug("a")))
    for state in ("failed", "completed"):
        assert existing_task(monitored, before["a"])["taskGroupId"] == before["a"]
        queue.claim_task(before["a"], 0, WORKER)
        getattr(queue, f"report_{state}")(before["a"], 0)
        action = await carry_out(monitored, before["a"])
        assert (action.notes, action.left_out) == ([], [])
        copy_ids = await read_copies(monitored, action)
        group = copy_ids["a"] if state == "failed" else before["a"]
        assert list(copy_ids) == (["a", "b", "c"] if state == "failed" else ["a"])
        assert {existing_task(monitored, task_id)["taskGroupId"] for task_id in copy_ids.values()} == {group}
        before = copy_ids


async def test_the_copy_of_a_decision_task_is_one_too(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    copy = (await read_copies(monitored, await carry_out(monitored, GROUP)))["group"]
    queue.create_task(slug("a"), definition_of("a", [], taskGroupId=copy) | {"dependencies": [copy]})
    queue.claim_task(copy, 0, WORKER)
    queue.report_failed(copy, 0)
    action = await carry_out(monitored, copy)
    assert list(await read_copies(monitored, action)) == ["group"]
    assert [entry["task_id"] for entry in action.left_out] == [slug("a")]


async def test_that_more_depend_on_a_decision_task_than_are_listed_is_said(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], **{f"t{n}": ["group"] for n in range(1_001)}})
    action = await carry_out(monitored, GROUP)
    assert len(action.left_out) == 1_000
    assert "more than 1,000 tasks depend on it" in action.notes[1]


async def test_the_copy_of_a_single_task_leaves_a_sealed_group(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    queue.seal_task_group(GROUP)
    action = await carry_out(monitored, slug("a"))
    copy_ids = await read_copies(monitored, action)
    assert existing_task(monitored, copy_ids["a"])["taskGroupId"] == copy_ids["a"]
    assert "sealed" in action.notes[0]


@pytest.mark.parametrize(("mode", "single", "whole"), [("same", True, True), ("new", False, False)])
async def test_the_setting_decides_on_the_group(sqlite_url: str, mode: str, single: bool, whole: bool) -> None:
    async with open_monitored(sqlite_url, retrigger_group=mode) as harness:
        queue = harness.tc.queue
        build(queue, {"group": [], "a": [], "b": ["a"], "c": []})
        end(queue, "a")
        alone = await read_copies(harness, await carry_out(harness, slug("c")))
        assert existing_task(harness, alone["c"])["taskGroupId"] == (GROUP if single else alone["c"])
        graph = await read_copies(harness, await carry_out(harness, slug("a")))
        assert {existing_task(harness, copy_id)["taskGroupId"] for copy_id in graph.values()} == {
            GROUP if whole else graph["a"]
        }
        queue.seal_task_group(GROUP)
        action = await carry_out(harness, slug("c"))
        assert action.state == ("failed" if single else "done")
        assert not single or "sealed" in str(action.error)


@pytest.mark.parametrize(("limit", "calls"), [(1, 20), (1, 0), (100, 20)])
async def test_however_few_dependents_are_looked_at_first_all_are_copied(
    streaming: FlowHarness, monkeypatch: pytest.MonkeyPatch, limit: int, calls: int
) -> None:
    monkeypatch.setattr(search, "FIRST_PAGE", limit)
    monkeypatch.setattr(dependents, "WALK_CALLS", calls)
    streaming.tc.queue.create_task(slug("foreign"), definition_of("foreign", ["a"], taskGroupId=slug("elsewhere")))
    action = await carry_out(streaming, slug("a"))
    assert set(await read_copies(streaming, action)) == {"a", *STREAMED}
    if calls:
        assert [entry["task_id"] for entry in action.left_out] == [slug("foreign")]


async def test_the_copy_of_a_task_that_names_a_dependent_waits_until_that_is_planned(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    queue.create_task(slug("a"), definition_of("a", payload={"later": slug("b"), "hash": "0123456789abcdef" * 4}))
    build(queue, {"b": ["a"]})
    end(queue, "a")
    copy_ids = await read_copies(monitored, await carry_out(monitored, slug("a")))
    assert existing_task(monitored, copy_ids["a"])["payload"]["later"] == copy_ids["b"]


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
    copy_ids = await read_copies(monitored, action)
    assert set(copy_ids) == ({"a"} if other == "failed" else {"a", "b"})
    assert existing_task(monitored, copy_ids["a"])["taskGroupId"] == (GROUP if other == "failed" else copy_ids["a"])
    assert stores == ([1, 1] if early else [len(copy_ids)])
