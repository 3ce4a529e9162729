"""Tasks of a push: its graph with all that a decision task created, and copies of these."""

from typing import Any

import pytest
from sqlmodel import update

from service.flow.actions import push_tasks
from service.flow.actions.push_tasks import PushTasks, collect_tasks
from service.flow.tasks.subject import ActionFailedError, find_push
from service.store.models import Action, PlannedTask, Source, State
from tests.service.flow.actions.support import push_with_graph, record_copies
from tests.service.flow.graph_factory import GROUP, build, definition_of, slug
from tests.service.harness import FlowHarness, push_event

GRAPH = {"group": [], "a": ["group"], "b": ["a"]}


async def collect(harness: FlowHarness, push_id: int = 7, *, dependencies: bool = True) -> PushTasks:
    about: dict[str, Any] = {"kind": "look", "project": "mc", "requester": "me", "source": Source.API, "lane": "x"}
    subject = await find_push(harness.services, Action(**about, push_id=push_id, generation=0))
    return await collect_tasks(harness.services, subject, dependencies=dependencies)


def names(collected: PushTasks) -> set[str]:
    return {task.name for task in collected.tasks.values()}


async def test_the_group_that_the_decision_task_began_is_read(monitored: FlowHarness) -> None:
    await push_with_graph(monitored, GRAPH)
    build(monitored.tc.queue, {"elsewhere": []}, taskGroupId=slug("elsewhere"))
    collected = await collect(monitored)
    assert names(collected) == {"group", "a", "b"}
    assert {task.name: task.dependencies for task in collected.tasks.values()}["b"] == [slug("a")]
    assert all(task.authorised and task.unfinished for task in collected.tasks.values())


async def test_a_push_without_a_graph_has_no_tasks(monitored: FlowHarness) -> None:
    await monitored.store(push_event(7))
    assert (await collect(monitored)).tasks == {}
    assert not monitored.tc.journal.calls


async def test_copies_and_their_copies_and_their_groups_are_among_them(monitored: FlowHarness) -> None:
    await push_with_graph(monitored, GRAPH)
    own_group = {"taskGroupId": slug("a2")}
    build(monitored.tc.queue, {"a2": [], "made by a2": ["a2"], "other of a2": []}, **own_group)
    build(monitored.tc.queue, {"a3": []}, taskGroupId=slug("a3"))
    build(monitored.tc.queue, {"b2": []})  # in the group of the original
    await record_copies(monitored, {"a2": "a"})
    await record_copies(monitored, {"a3": "a2"})
    await record_copies(monitored, {"b2": "b"})
    await record_copies(monitored, {"b3": "b2"}, created=False, state=State.PENDING)
    collected = await collect(monitored)
    assert names(collected) == {"group", "a", "b", "a2", "made by a2", "other of a2", "a3", "b2"}
    assert [(copy.task_id, copy.created, copy.pending) for copy in collected.copies] == [
        (slug("a2"), True, False),
        (slug("a3"), True, False),
        (slug("b2"), True, False),
        (slug("b3"), False, True),
    ]


async def test_a_group_that_others_began_is_not_read(monitored: FlowHarness) -> None:
    """A `.taskcluster.yml` can name the task group of any other push."""
    build(monitored.tc.queue, {"theirs": [], "more of theirs": ["theirs"]}, taskGroupId=slug("theirs"))
    await push_with_graph(monitored, {"intruder": []}, planned=["intruder"], taskGroupId=slug("theirs"))
    assert names(await collect(monitored)) == {"intruder"}


@pytest.mark.parametrize(
    ("route", "authorised"),
    [
        (f"tc-treeherder.v2.mc.{'a1' * 20}.7", True),
        (f"tc-treeherder.mc.{'a1' * 20}", True),
        (f"tc-treeherder.v2.someone/mc.{'a1' * 20}.7", False),
        (f"tc-treeherder.v2.mcx.{'a1' * 20}.7", False),
        (f"tc-treeherder-elsewhere.v2.mc.{'a1' * 20}.7", False),
        ("index.gecko.v2.mc.latest", False),
    ],
)
async def test_a_route_must_name_the_project_exactly(monitored: FlowHarness, route: str, authorised: bool) -> None:
    await push_with_graph(monitored, GRAPH)
    monitored.tc.queue.create_task(slug("c"), definition_of("c", routes=[route]))
    collected = await collect(monitored)
    assert collected.tasks[slug("c")].authorised is authorised


@pytest.mark.parametrize(("adopted", "authorised"), [(False, True), (True, False)])
async def test_our_own_task_needs_no_route_unless_it_was_found(
    monitored: FlowHarness, adopted: bool, authorised: bool
) -> None:
    await push_with_graph(monitored, GRAPH, routes=[])
    build(monitored.tc.queue, {"a2": []}, routes=[])
    await record_copies(monitored, {"a2": "a"})
    async with monitored.database.writing() as session:
        await session.exec(update(PlannedTask).values(adopted=adopted))
    collected = await collect(monitored)
    expected = {"group": authorised, "a": False, "b": False, "a2": authorised}
    assert {task.name: task.authorised for task in collected.tasks.values()} == expected


async def test_what_taskcluster_refuses_fails_with_its_reason(monitored: FlowHarness) -> None:
    await push_with_graph(monitored, GRAPH)
    monitored.tc.auth.add_client("tc-treeherder", "service-secret", ["queue:status:*"])
    with pytest.raises(ActionFailedError, match=r"refuses to list the tasks of push 7 of mc \(403\).*list-task-group"):
        await collect(monitored)
    assert GROUP not in monitored.tc.journal.calls


async def test_dependencies_are_limited_and_left_out_where_nobody_needs_them(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_with_graph(monitored, {"group": [], "a": ["group"], "b": ["group", "a"]})
    tasks = (await collect(monitored)).tasks
    assert tasks[slug("a")].dependencies[0] is tasks[slug("b")].dependencies[0]  # each id is in memory once
    monkeypatch.setattr(push_tasks, "MAX_DEPENDENCIES", 2)
    with pytest.raises(ActionFailedError, match="have more than 2 dependencies, too many for one action"):
        await collect(monitored)
    without = await collect(monitored, dependencies=False)
    assert [task.dependencies for task in without.tasks.values()] == [[], [], []]
