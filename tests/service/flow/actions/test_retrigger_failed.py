"""All failed tasks of a push are retriggered as one graph; of a task and its copies, the latest counts."""

from collections.abc import Mapping
from typing import Any

import pytest
from sqlmodel import select

from service.flow.actions import retrigger_failed
from service.flow.actions.push_tasks import NO_ROUTE
from service.flow.tasks.action_kinds import Plan
from service.flow.tasks.subject import ActionFailedError, ActionRejectedError, NothingToDoError
from service.store.models import Action, PushStep, Source, State, StepKind
from tests.service.flow.actions.support import carry_out_on_push, push_with_graph, record_copies, run_task
from tests.service.flow.graph_factory import (
    GROUP,
    WORKER,
    build,
    definition_of,
    end,
    read_copies,
    read_notices,
    slug,
)
from tests.service.harness import FlowHarness

Graph = dict[str, list[str]]

BUILDS: Graph = {
    "group": [],
    "build": ["group"],
    "other": ["group"],
    "test": ["build"],
    "both": ["build", "other"],
    "report": ["test", "both"],
    "alone": ["group"],
}
"""A decision task, two builds, a test of one, one of both, what depends on both tests, and a task by itself."""


async def plan(harness: FlowHarness) -> Plan:
    about: dict[str, Any] = {"kind": "retrigger-failed", "project": "mc", "requester": "me", "source": Source.API}
    return await retrigger_failed.plan(harness.services, Action(**about, lane="x", push_id=7, generation=0))


def needs(planned: Plan) -> dict[str, set[str]]:
    """Return what each copy depends on, by name: `copy of x` for another copy of the plan."""
    names = {slug(name): name for name in NAMES} | {copy.new_id: f"copy of {copy.name}" for copy in planned.copies}
    return {copy.name: {names[dependency] for dependency in copy.definition["dependencies"]} for copy in planned.copies}


NAMES = [*BUILDS, "build 2", "test 2", "both 2", "report 2", "other 2", "build 3"]


async def prepare(harness: FlowHarness, ends: Mapping[str, str], graph: Graph = BUILDS) -> None:
    await push_with_graph(harness, graph)
    for name, state in ends.items():
        end(harness.tc.queue, name, state)


DONE = {"group": "completed"}


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        # what depends on two failed tasks is copied once
        (
            {**DONE, "build": "failed", "other": "failed", "alone": "completed"},
            {
                "build": {"group"},
                "other": {"group"},
                "test": {"copy of build"},
                "both": {"copy of build", "copy of other"},
                "report": {"copy of test", "copy of both"},
            },
        ),
        # what has not failed is not copied, and is depended on as it is
        (
            {**DONE, "build": "failed", "other": "completed"},
            {
                "build": {"group"},
                "test": {"copy of build"},
                "both": {"copy of build", "other"},
                "report": {"copy of test", "copy of both"},
            },
        ),
        # a failed task and a failed task that depends on it are each copied once
        (
            {**DONE, "build": "completed", "other": "completed", "test": "failed", "both": "exception"},
            {"test": {"build"}, "both": {"build", "other"}, "report": {"copy of test", "copy of both"}},
        ),
        ({**DONE, "alone": "failed"}, {"alone": {"group"}}),
    ],
)
async def test_failed_tasks_are_copied_with_what_depends_on_them(
    monitored: FlowHarness, ends: dict[str, str], expected: dict[str, set[str]]
) -> None:
    await prepare(monitored, ends)
    planned = await plan(monitored)
    assert needs(planned) == expected
    groups = {copy.definition["taskGroupId"] for copy in planned.copies}
    # one copy goes into the group of its original, several into a new one
    assert groups == {GROUP if len(expected) == 1 else planned.copies[0].new_id}
    assert len({copy.new_id for copy in planned.copies}) == len(expected)


async def test_it_is_carried_out_and_announced_and_then_nothing_has_failed(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "build": "failed", "other": "failed"})
    published: Any = object()
    monitored.services.publisher = published  # it is only asked whether there is one
    action = await carry_out_on_push(monitored, "retrigger-failed")
    assert (action.state, action.error) == ("done", None)
    copies = await read_copies(monitored, action)
    assert copies.keys() == {"build", "other", "test", "both", "report"}
    for name, task_id in copies.items():
        definition = monitored.tc.queue.task(task_id)
        assert definition["taskGroupId"] == next(iter(copies.values()))
        assert definition["metadata"]["name"] == name
    announced = {(notice.key, notice.body["newTaskId"]) for notice in await read_notices(monitored)}
    assert announced == {(slug(name), copies[name]) for name in ("build", "other")}
    again = await carry_out_on_push(monitored, "retrigger-failed")
    assert (again.state, again.error) == ("nothing-to-do", "no task of push 7 of mc has failed")
    for name in ("build", "other"):
        monitored.tc.queue.claim_task(copies[name], 0, WORKER)
        monitored.tc.queue.report_failed(copies[name], 0)
    third = await carry_out_on_push(monitored, "retrigger-failed")
    new = await read_copies(monitored, third)
    assert (third.state, new.keys()) == ("done", copies.keys())
    assert set(monitored.tc.queue.task(new["both"])["dependencies"]) == {new["build"], new["other"]}


@pytest.mark.parametrize(
    ("state", "failed"), [("completed", set()), ("failed", {"alone 2"}), ("pending", set()), ("running", set())]
)
async def test_of_a_task_and_its_copies_the_latest_counts(monitored: FlowHarness, state: str, failed: set[str]) -> None:
    await prepare(monitored, {**DONE, "alone": "failed"})
    build(monitored.tc.queue, {"alone 2": ["group"]})
    await record_copies(monitored, {"alone 2": "alone"})
    if state == "running":
        run_task(monitored, "alone 2")
    elif state != "pending":
        end(monitored.tc.queue, "alone 2", state)
    if failed:
        assert {copy.name for copy in (await plan(monitored)).copies} == failed
    else:
        with pytest.raises(NothingToDoError, match="no task of push 7 of mc has failed"):
            await plan(monitored)


@pytest.mark.parametrize(("state", "failed"), [(State.PENDING, False), (State.FAILED, True)])
async def test_a_copy_that_is_still_to_be_created_counts_while_its_action_is_at_work(
    monitored: FlowHarness, state: State, failed: bool
) -> None:
    await prepare(monitored, {**DONE, "alone": "failed"})
    await record_copies(monitored, {"alone 2": "alone"}, created=False, state=state)
    if failed:
        assert {copy.name for copy in (await plan(monitored)).copies} == {"alone"}
    else:
        with pytest.raises(NothingToDoError):
            await plan(monitored)


async def test_the_last_of_many_copies_counts_and_the_first_made_is_not_the_last(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "alone": "failed"})
    for number, state in ((2, "completed"), (3, "failed"), (4, "failed")):
        build(monitored.tc.queue, {f"alone {number}": ["group"]})
        await record_copies(monitored, {f"alone {number}": "alone" if number == 2 else f"alone {number - 1}"})
        end(monitored.tc.queue, f"alone {number}", state)
    assert [copy.name for copy in (await plan(monitored)).copies] == ["alone 4"]


async def test_a_dependent_names_the_latest_copy_of_what_it_needs(monitored: FlowHarness) -> None:
    """`both` waited for two failed builds, so a retrigger of one alone left it out."""
    await prepare(monitored, {**DONE, "build": "failed", "other": "failed"})
    own = {"taskGroupId": slug("build 2")}
    build(monitored.tc.queue, {"build 2": ["group"], "test 2": ["build 2"]}, **own)
    await record_copies(monitored, {"build 2": "build", "test 2": "test"})
    end(monitored.tc.queue, "build 2", "completed")
    end(monitored.tc.queue, "test 2", "completed")
    planned = await plan(monitored)
    assert needs(planned) == {
        "other": {"group"},
        "both": {"build 2", "copy of other"},
        "report": {"test 2", "copy of both"},
    }
    both = next(copy for copy in planned.copies if copy.name == "both")
    assert slug("build") not in str(both.definition)


async def test_what_waits_for_a_task_whose_copy_failed_too_is_copied_with_that(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "build": "failed", "other": "failed"})
    own = {"taskGroupId": slug("build 2")}
    build(monitored.tc.queue, {"build 2": ["group"], "test 2": ["build 2"]}, **own)
    build(monitored.tc.queue, {"other 2": ["group"]})
    await record_copies(monitored, {"build 2": "build", "test 2": "test"})
    await record_copies(monitored, {"other 2": "other"})
    for name, state in (("build 2", "completed"), ("test 2", "completed"), ("other 2", "failed")):
        end(monitored.tc.queue, name, state)
    assert needs(await plan(monitored)) == {
        "other 2": {"group"},
        "both": {"build 2", "copy of other 2"},
        "report": {"test 2", "copy of both"},
    }


async def test_cancelled_tasks_have_not_failed(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "build": "failed"})
    for name in ("other", "both", "alone"):
        monitored.tc.queue.cancel_task(slug(name))
    planned = await plan(monitored)
    assert {copy.name for copy in planned.copies} == {"build", "test"}
    assert "3 tasks were cancelled, which is no failure: of these, only dependents are copied" in planned.notes
    assert {task["name"]: task["reason"] for task in planned.left_out}["both"] == (
        f"it needs {slug('other')}, which is exception and not copied"
    )


async def test_a_failed_decision_task_is_copied_alone(monitored: FlowHarness) -> None:
    await prepare(monitored, {"group": "failed"}, {"group": [], "free": [], "test": ["group"]})
    end(monitored.tc.queue, "free")
    planned = await plan(monitored)
    (copy,) = planned.copies
    assert (copy.name, copy.definition["taskGroupId"]) == ("group", copy.new_id)
    assert [(task["name"], task["reason"]) for task in planned.left_out] == [
        ("free", "the decision task failed, and its copy creates the other tasks anew")
    ]
    action = await carry_out_on_push(monitored, "retrigger-failed")
    assert (action.state, list(await read_copies(monitored, action))) == ("done", ["group"])


async def test_a_task_whose_routes_name_another_project_is_left_out(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "alone": "failed"})
    route = f"tc-treeherder.v2.someone/mc.{'a1' * 20}.7"
    monitored.tc.queue.create_task(slug("theirs"), definition_of("theirs", routes=[route]))
    end(monitored.tc.queue, "theirs")
    planned = await plan(monitored)
    assert [copy.name for copy in planned.copies] == ["alone"]
    assert [(task["name"], task["reason"]) for task in planned.left_out] == [("theirs", NO_ROUTE)]


async def test_where_none_may_be_copied_it_fails(monitored: FlowHarness) -> None:
    await prepare(monitored, DONE)
    monitored.tc.queue.create_task(slug("theirs"), definition_of("theirs", routes=[]))
    end(monitored.tc.queue, "theirs")
    with pytest.raises(ActionFailedError, match="1 tasks of push 7 of mc have failed, and none may be copied"):
        await plan(monitored)


async def test_while_the_graph_is_still_being_created_that_is_told(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "build": "failed"})
    assert (await plan(monitored)).notes == []
    async with monitored.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
        step.state, step.due_at = State.PENDING, step.since
    (note,) = (await plan(monitored)).notes
    assert note == "the task graph is still being created: retrigger again for what is created from now on"


async def test_a_plan_that_is_too_large_is_rejected_with_the_setting(monitored: FlowHarness) -> None:
    await prepare(monitored, {**DONE, "build": "failed", "other": "failed"})
    monitored.settings.max_copies = 4
    with pytest.raises(ActionRejectedError, match="would have 5 tasks, and the setting max_copies allows 4"):
        await plan(monitored)
    action = await carry_out_on_push(monitored, "retrigger-failed")
    assert (action.state, await read_copies(monitored, action)) == ("rejected", {})
    assert (await read_notices(monitored))[0].body["job"]["name"] == "retrigger-failed"
    monitored.settings.max_copies = 5
    assert len((await plan(monitored)).copies) == 5
