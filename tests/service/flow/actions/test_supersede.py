"""A newer push supersedes an earlier one: what has not run yet is cancelled, and both say so."""

from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col, select

from service.clock import now
from service.engine.leases import Lease
from service.engine.registry import WORK
from service.errors import Unavailable
from service.flow.actions import supersede
from service.store.models import Action, Push, PushStep, Repository, Source, State, StepKind, Supersede
from tests.service.flow.actions.support import push_with_graph, record_copies, run_task, state_of
from tests.service.flow.graph_factory import GROUP, build, claim_work, end, reload_action, slug
from tests.service.harness import FlowHarness, push_event

ME, OTHER = "me@example.com", "other@example.com"


async def graph(
    harness: FlowHarness, push_id: int, user: str = ME, *, done: bool = True, since: int | None = None
) -> None:
    """Store a push with a decision task that has ended, a running, a pending and a waiting task.

    `since` is when its graph was asked for, in minutes; the default is its push id.
    """
    names = [f"{name} {push_id}" for name in ("decision", "running", "pending", "waiting")]
    tasks: dict[str, list[str]] = {names[0]: [], names[1]: [], names[2]: [], names[3]: [names[2]]}
    step = await push_with_graph(
        harness, tasks, push_id=push_id, planned=[names[0]], user=user, taskGroupId=slug(names[0])
    )
    end(harness.tc.queue, names[0], "completed")
    run_task(harness, names[1])
    async with harness.database.writing() as session:
        stored = await session.get_one(PushStep, step.id)
        stored.since = now() + timedelta(minutes=push_id if since is None else since)
        if not done:
            stored.state = State.PENDING


async def created(harness: FlowHarness, push_id: int, mode: str = Supersede.ALL) -> Action:
    """Carry out what follows from the creation of the push's graph; return the action as it ended."""
    action, lease = await begin(harness, push_id, mode)
    await WORK.run_of(lease.item)(harness.services, lease)
    return await reload_action(harness, action)


async def begin(harness: FlowHarness, push_id: int, mode: str = Supersede.ALL) -> tuple[Action, Lease[Action]]:
    async with harness.database.writing() as session:
        (await session.exec(select(Repository))).one().supersede = Supersede(mode)
        action = Action(
            kind="supersede",
            project="mc",
            push_id=push_id,
            generation=0,
            requester=ME,
            source=Source.SERVICE,
            lane="action supersede",
        )
        session.add(action)
    return action, await claim_work(harness)


async def superseded(harness: FlowHarness) -> dict[int, int | None]:
    query = select(Push.push_id, PushStep.superseded_by).join(PushStep, col(PushStep.push_id) == Push.id)
    async with harness.database.reading() as session:
        rows = await session.exec(query.where(PushStep.kind == StepKind.GRAPH))
        return dict(rows.all())


def states(harness: FlowHarness, push_id: int) -> list[str]:
    return [state_of(harness, f"{name} {push_id}") for name in ("decision", "running", "pending", "waiting")]


LEFT = ["completed", "running", "pending", "unscheduled"]
CANCELLED = ["completed", "running", "canceled", "canceled"]


@pytest.mark.parametrize(
    ("mode", "users", "expected"),
    [
        ("all", (ME, ME, ME), {1: None, 2: 3, 3: None}),
        ("all", (ME, OTHER, ME), {1: None, 2: 3, 3: None}),
        ("pusher", (ME, ME, ME), {1: None, 2: 3, 3: None}),
        ("pusher", (ME, OTHER, ME), {1: 3, 2: None, 3: None}),
        ("pusher", (OTHER, OTHER, ME), {1: None, 2: None, 3: None}),
        ("off", (ME, ME, ME), {1: None, 2: None, 3: None}),
    ],
)
async def test_the_nearest_earlier_graph_is_superseded(
    monitored: FlowHarness, mode: str, users: tuple[str, ...], expected: dict[int, int | None]
) -> None:
    for push_id, user in enumerate(users, 1):
        await graph(monitored, push_id, user)
    action = await created(monitored, 3, mode)
    assert await superseded(monitored) == expected
    for push_id, by in expected.items():
        assert states(monitored, push_id) == (LEFT if by is None else CANCELLED)
    if 3 in expected.values():
        (earlier,) = (push_id for push_id, by in expected.items() if by == 3)
        assert (action.state, action.error) == ("done", None)
        assert action.notes == [f"push {earlier} is superseded by push 3: 2 tasks are cancelled"]
        assert {entry["name"] for entry in action.cancels} == {f"pending {earlier}", f"waiting {earlier}"}
    else:
        assert action.state == "nothing-to-do"


async def test_graphs_that_are_created_in_another_order_find_each_other(monitored: FlowHarness) -> None:
    await graph(monitored, 3)
    for push_id in (1, 2):
        await graph(monitored, push_id, done=False)
    assert (await created(monitored, 3)).state == "nothing-to-do"
    for push_id in (1, 2):
        async with monitored.database.writing() as session:
            query = select(PushStep).join(Push, col(Push.id) == PushStep.push_id)
            step = (await session.exec(query.where(Push.push_id == push_id, PushStep.kind == StepKind.GRAPH))).one()
            step.state = State.DONE
        assert (await created(monitored, push_id)).state == "done"
    assert await superseded(monitored) == {1: 3, 2: 3, 3: None}
    assert [states(monitored, push_id) for push_id in (1, 2, 3)] == [CANCELLED, CANCELLED, LEFT]


async def test_a_graph_that_was_asked_for_again_after_the_newer_push_is_wanted(monitored: FlowHarness) -> None:
    await graph(monitored, 2)
    await graph(monitored, 1, since=5)
    assert (await created(monitored, 1)).state == "nothing-to-do"
    assert (await created(monitored, 2)).state == "nothing-to-do"
    assert states(monitored, 1) == LEFT


async def test_a_push_without_a_graph_supersedes_none_and_is_passed_over(monitored: FlowHarness) -> None:
    await graph(monitored, 1)
    await monitored.store(push_event(2, user=ME))
    await graph(monitored, 3)
    assert (await created(monitored, 2)).state == "nothing-to-do"
    assert states(monitored, 1) == LEFT
    await created(monitored, 3)
    assert (await superseded(monitored))[1] == 3


async def test_copies_are_left_alone(monitored: FlowHarness) -> None:
    await graph(monitored, 1)
    await graph(monitored, 2)
    build(monitored.tc.queue, {"same group": []}, taskGroupId=slug("decision 1"))
    build(monitored.tc.queue, {"own group": [], "beside it": []}, taskGroupId=slug("own group"))
    await record_copies(monitored, {"same group": "pending 1"})
    await record_copies(monitored, {"own group": "waiting 1"})
    assert (await created(monitored, 2)).state == "done"
    assert states(monitored, 1) == CANCELLED
    assert [state_of(monitored, name) for name in ("same group", "own group", "beside it")] == ["pending"] * 3


async def test_what_a_running_decision_task_creates_is_cancelled_once_it_has_ended(monitored: FlowHarness) -> None:
    group = {"taskGroupId": GROUP}
    await push_with_graph(monitored, {"group": [], "first": ["group"]}, push_id=1, user=ME, **group)
    run_task(monitored, "group")
    await graph(monitored, 2)
    action, lease = await begin(monitored, 2)
    with pytest.raises(Unavailable, match="the decision task of push 1 still runs"):
        await supersede.run(monitored.services, lease)
    assert [state_of(monitored, name) for name in ("group", "first")] == ["running", "canceled"]
    build(monitored.tc.queue, {"second": []}, **group)
    monitored.tc.queue.report_completed(GROUP, 0)
    lease.item = await reload_action(monitored, action)
    await supersede.run(monitored.services, lease)
    ended = await reload_action(monitored, action)
    assert (ended.state, {entry["name"] for entry in ended.cancels}) == ("done", {"first", "second"})
    assert [state_of(monitored, name) for name in ("group", "first", "second")] == ["completed", "canceled", "canceled"]


async def test_it_goes_on_after_a_call_that_failed_and_lists_all_that_it_cancelled(monitored: FlowHarness) -> None:
    await graph(monitored, 1)
    await graph(monitored, 2)
    action, lease = await begin(monitored, 2)
    monitored.tc.faults.add("after", "cancelTask", times=1)
    with pytest.raises(Unavailable):
        await supersede.run(monitored.services, lease)
    assert (await superseded(monitored))[1] == 2
    lease.item = await reload_action(monitored, action)
    await supersede.run(monitored.services, lease)
    ended = await reload_action(monitored, action)
    assert (ended.state, len(ended.cancels)) == ("done", 2)
    # and a push after that does not come back to it
    await graph(monitored, 3)
    assert (await created(monitored, 3)).notes == ["push 2 is superseded by push 3: 2 tasks are cancelled"]


async def test_what_may_not_be_cancelled_is_listed_and_told(monitored: FlowHarness) -> None:
    await graph(monitored, 1)
    await graph(monitored, 2)
    scopes = ["queue:get-task:*", "queue:status:*", "queue:list-task-group:*"]
    monitored.tc.auth.add_client("tc-treeherder", "service-secret", scopes)
    action = await created(monitored, 2)
    assert action.state == "failed"
    assert {entry["name"] for entry in action.left_out} == {"pending 1", "waiting 1"}
    expected: Any = f"queue:cancel-task:test/{slug('decision 1')}/"
    assert all(expected in entry["reason"] for entry in action.left_out)
