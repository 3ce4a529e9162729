"""Search for dependents: in other groups, in cycles, in large graphs, and in any graph."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.taskcluster import Taskcluster
from service.flow.actions import dependents
from service.flow.tasks.subject import ActionRejectedError
from tests.service.flow.actions.support import add_dependency, existing_task, plan_retrigger
from tests.service.flow.graph_factory import (
    GROUP,
    Direct,
    build,
    carry_out,
    definition_of,
    end,
    read_copies,
    slug,
)
from tests.service.harness import FlowHarness


async def test_dependents_in_other_groups_are_left_out(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    queue.create_task(slug("foreign"), definition_of("foreign", ["a"], taskGroupId=slug("elsewhere")))
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert list(await read_copies(monitored, action)) == ["a", "b"]
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
    assert set(await read_copies(monitored, action)) == {"a", "b", "c"}
    assert [entry["name"] for entry in action.left_out] == ["near"], "which the walk came across"
    assert any("other task groups were not searched for dependents" in note for note in action.notes)
    monkeypatch.setattr(dependents, "WALK_CALLS", 20)
    action = await carry_out(monitored, slug("a"))
    assert {entry["name"] for entry in action.left_out} == {"near", "far"}
    assert action.notes == []


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
    add_dependency(queue, "b", "d")
    action = await carry_out(monitored, slug("a"))
    assert action.state == "rejected"
    assert "cycle" in str(action.error)
    assert all(slug(name) in str(action.error) for name in "bcd")
    assert slug("a") not in str(action.error)


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


async def test_a_chain_of_a_thousand(monitored: FlowHarness, direct: Direct) -> None:
    names = [f"t{n}" for n in range(1000)]
    build(monitored.tc.queue, {"group": [], "t0": [], **{names[n]: [names[n - 1]] for n in range(1, 1000)}})
    end(monitored.tc.queue, "t0")
    action = await carry_out(monitored, slug("t0"))
    assert (action.state, action.error) == ("done", None)
    copy_ids = await read_copies(monitored, action)
    assert list(copy_ids) == names
    for before, after in itertools.pairwise(names):
        assert existing_task(monitored, copy_ids[after])["dependencies"] == [copy_ids[before]]
    assert sum(direct.calls.values()) <= 1000 + 1 + 30


async def test_a_fan_of_five_thousand(harness: FlowHarness, direct: Direct) -> None:
    build(harness.tc.queue, {"group": [], "a": [], **{f"t{n}": ["a"] for n in range(4999)}})
    end(harness.tc.queue, "a")
    planned = await plan_retrigger(harness.services, harness.tc.queue, "a")
    assert len(planned.copies) == 5000
    assert {copy.definition["dependencies"][0] for copy in planned.copies[1:]} == {planned.copies[0].new_id}
    assert len({copy.new_id for copy in planned.copies}) == 5000
    assert sum(direct.calls.values()) <= 5 + 30


async def test_a_wide_graph_that_is_deep_too_fetches_what_it_had_not_kept(harness: FlowHarness, direct: Direct) -> None:
    rows = {f"r{row}-{n}": [f"r{row - 1}-{n}"] if row else ["a"] for row in range(40) for n in range(60)}
    build(harness.tc.queue, {"group": [], "a": [], **rows})
    end(harness.tc.queue, "a")
    planned = await plan_retrigger(harness.services, harness.tc.queue, "a")
    assert {copy.name for copy in planned.copies} == {"a", *rows}
    assert direct.calls["tasks"] in {1, 2, 3}
    assert sum(direct.calls.values()) <= 3 + 30


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 14))
    graph: dict[str, list[str]] = {}
    for number in range(size):
        names = list(graph)
        graph[f"t{number}"] = draw(st.lists(st.sampled_from(names), unique=True, max_size=4)) if names else []
    return graph


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixture has no state
)
@given(graph=graphs(), data=st.data())
async def test_exactly_the_dependents_are_copied_in_their_shape(
    services_with: Any, graph: dict[str, list[str]], data: Any
) -> None:
    queue = Taskcluster().queue
    build(queue, {"group": []})
    for name, dependencies in graph.items():
        mentions = {"note": " ".join(f"<{slug(dependency)}>" for dependency in [*dependencies, name]), "group": GROUP}
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
        planned = await plan_retrigger(services_with(queue), queue, failed)

    names = [copy.name for copy in planned.copies]
    assert set(names) == reached
    assert len(names) == len(reached)
    new = {copy.name: copy.new_id for copy in planned.copies}
    seen: set[str] = set()
    for copy in planned.copies:
        wanted = [new.get(dependency, slug(dependency)) for dependency in graph[copy.name]]
        assert copy.definition["dependencies"] == wanted
        assert {dependency for dependency in graph[copy.name] if dependency in new} <= seen, "before what it depends on"
        seen.add(copy.name)
        text = json.dumps(copy.definition)
        assert not any(slug(name) in text for name in reached)
        note = " ".join(f"<{new.get(dependency, slug(dependency))}>" for dependency in [*graph[copy.name], copy.name])
        assert copy.definition["payload"] == {"note": note, "group": GROUP}
        queue.create_task(copy.new_id, copy.definition)  # the queue takes them, in this order
    assert {task_id: json.dumps(queue.tasks[task_id].definition) for task_id in before} == before


async def test_a_cycle_raises_before_anything_is_computed(services_with: Any) -> None:
    queue = Taskcluster().queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    add_dependency(queue, "a", "b")
    with pytest.raises(ActionRejectedError, match="cycle"):
        await asyncio.wait_for(plan_retrigger(services_with(queue), queue, "a"), 5)
