"""A hook is triggered at most once: what is unclear is looked up, and then a person decides."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from service.clock import now
from service.engine.registry import WORK
from service.errors import Unavailable
from service.flow.actions.trigger import is_of
from service.store.models import Action, Source, State
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    CANCEL_ALL,
    DECISION,
    HOOK,
    HOOK_GROUP,
    add_decision,
    add_hook,
    add_push,
    add_task,
    allow,
    file_of,
)
from tests.service.flow.graph_factory import action_on, claim_work, reload_action, slug
from tests.service.harness import FlowHarness


@pytest.fixture
async def offering(monitored: FlowHarness) -> FlowHarness:
    add_decision(monitored, file_of(ACTION, CANCEL_ALL))
    add_task(monitored)
    add_hook(monitored)
    await add_push(monitored, DECISION)
    allow(monitored)
    return monitored


async def attempt(harness: FlowHarness, action: Action, later: timedelta = timedelta(0)) -> Action:
    """Let the action be tried once more, as by the next process, as if `later` had passed since the trigger."""
    async with harness.database.writing() as session:
        stored = await session.get_one(Action, action.id)
        stored.due_at = stored.received_at
        if stored.triggered_at is not None:
            stored.triggered_at -= later
    lease = await claim_work(harness)
    assert lease.item.id == action.id
    try:
        await WORK.run_of(lease.item)(harness.services, lease)
    except Unavailable as error:
        async with harness.database.writing() as session:
            stored = await session.get_one(Action, action.id)
            stored.error, stored.due_at = str(error), now() + timedelta(hours=1)
    return await reload_action(harness, action)


async def begin(harness: FlowHarness, kind: str = "backfill", **more: Any) -> Action:
    """Ask for an action, and try it once."""
    return await attempt(harness, await action_on(harness, slug("test"), kind, in_tree=True, **more))


async def triggered(harness: FlowHarness) -> list[str]:
    """Return the tasks that the hook created."""
    return [fire["taskId"] for fire in harness.tc.hooks.describe()[0]["lastFires"]]


LIMIT = timedelta(seconds=6)
"""More than the time limit of a call in the harness, and less than twice that."""

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("fault", ["after", "drop-after"])
async def test_done_without_an_answer_is_found_and_not_done_again(offering: FlowHarness, fault: str) -> None:
    offering.tc.faults.add(fault, "triggerHook", status=500, times=1)
    action = await begin(offering)
    assert action.state == State.PENDING
    assert action.triggered_at is not None
    assert "whether the hook project-mc/in-tree-action-1-generic/abc was triggered is looked up soon" in str(
        action.error
    )
    action = await attempt(offering, action)  # too early
    assert (action.state, action.action_task) == (State.PENDING, None)
    assert "its call may still be under way" in str(action.error)
    action = await attempt(offering, action, LIMIT)
    assert (action.state, [action.action_task]) == (State.DONE, await triggered(offering))
    assert offering.tc.journal.calls["triggerHook"] == 1


@pytest.mark.parametrize("fault", ["before", "drop"])
async def test_without_a_trace_a_person_decides(offering: FlowHarness, fault: str) -> None:
    offering.tc.faults.add(fault, "triggerHook", status=503, times=1)
    action = await attempt(offering, await begin(offering), LIMIT)
    assert action.state == State.PENDING
    assert "no task of the hook project-mc/in-tree-action-1-generic/abc is there yet" in str(action.error)
    action = await attempt(offering, action, MINUTE)
    assert action.state == State.FAILED
    root = offering.settings.taskcluster.root
    reason = str(action.error)
    assert reason.startswith(
        "it may have been triggered: Taskcluster gave no clear answer to triggerHook of project-mc/"
    )
    assert f"{root}/hooks/project-mc/in-tree-action-1-generic%2Fabc and {root}/tasks/groups/{slug(DECISION)}" in reason
    assert "no task that would be its own can be found" in reason
    assert action.failure_jobs
    assert await triggered(offering) == []
    assert offering.tc.journal.calls["triggerHook"] == 1


async def test_a_slow_hook_is_found_at_the_second_look(offering: FlowHarness) -> None:
    offering.tc.faults.add("before", "triggerHook", status=504, times=1)
    action = await attempt(offering, await begin(offering), LIMIT)
    assert action.state == State.PENDING
    payload = {
        "decision": {"action": {"name": "backfill"}},
        "user": {"input": {"depth": 9}, "taskId": slug("test"), "taskGroupId": slug(DECISION)},
    }
    late = await offering.services.hooks.trigger(HOOK_GROUP, HOOK, payload)
    action = await attempt(offering, action, MINUTE)
    assert (action.state, action.action_task) == (State.DONE, late)


async def test_killed_between_the_record_and_the_answer(offering: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    real = offering.services.hooks.trigger

    async def kill(*arguments: Any) -> None:
        await real(*arguments)
        raise KilledError

    action = await action_on(offering, slug("test"), "backfill", in_tree=True)
    with monkeypatch.context() as patched:
        patched.setattr(offering.services.hooks, "trigger", kill)
        with pytest.raises(KilledError):
            await attempt(offering, action)
    action = await attempt(offering, action, LIMIT)
    assert (action.state, [action.action_task]) == (State.DONE, await triggered(offering))


@pytest.mark.parametrize(("fault", "status"), [("before", 401), ("throttle", 429)])
async def test_what_was_certainly_not_done_is_tried_again(offering: FlowHarness, fault: str, status: int) -> None:
    offering.tc.faults.add(fault, "triggerHook", status=status, times=1)
    action = await begin(offering)
    assert (action.state, action.triggered_at) == (State.PENDING, None)
    action = await attempt(offering, action)
    assert (action.state, [action.action_task]) == (State.DONE, await triggered(offering))
    assert offering.tc.journal.calls["triggerHook"] == 2


async def test_hooks_that_cannot_be_reached_are_tried_again(
    offering: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = offering.settings.taskcluster.model_copy(update={"root_url": "http://127.0.0.1:9"})
    with monkeypatch.context() as patched:
        patched.setattr(offering.services.hooks, "_settings", away)
        action = await begin(offering)
    assert (action.state, action.triggered_at) == (State.PENDING, None)
    assert "cannot be reached" in str(action.error)
    assert (await attempt(offering, action)).state == State.DONE
    assert len(await triggered(offering)) == 1


async def test_a_hook_that_does_not_exist(offering: FlowHarness) -> None:
    offering.tc.hooks.remove(HOOK_GROUP, HOOK)
    action = await begin(offering)
    expected = f"Taskcluster has no hook {HOOK_GROUP}/{HOOK}, which the tree's action backfill names"
    assert (action.state, action.error) == (State.FAILED, expected)


async def test_a_payload_that_the_hook_refuses(offering: FlowHarness) -> None:
    add_hook(offering, schema={"type": "object", "required": ["more"]})
    action = await begin(offering)
    assert action.state == State.FAILED
    assert f"Taskcluster refuses to trigger the hook {HOOK_GROUP}/{HOOK} with 400:" in str(action.error)
    assert "more" in str(action.error)


async def test_what_the_hook_s_role_lacks_is_said_of_the_role(offering: FlowHarness) -> None:
    offering.tc.auth.set_roles({f"hook-id:{HOOK_GROUP}/*": []})
    action = await begin(offering)
    assert action.state == State.FAILED
    assert str(action.error).startswith(f"the role hook-id:{HOOK_GROUP}/{HOOK} lacks queue:")


async def test_a_hook_that_creates_no_task_has_nothing_to_do(offering: FlowHarness) -> None:
    add_hook(offering, task={"$if": "false"})
    action = await begin(offering)
    assert action.state == State.NOTHING_TO_DO
    assert "creates no task for this" in str(action.error)


async def test_without_the_scope_to_look_an_unclear_answer_stays_unclear(offering: FlowHarness) -> None:
    allow(offering, fires=False)
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    action = await attempt(offering, await begin(offering), LIMIT)
    assert action.state == State.FAILED
    assert f"lacks hooks:list-last-fires:{HOOK_GROUP}/{HOOK}: grant that to the client" in str(action.error)
    assert str(action.error).startswith("it may have been triggered")


async def test_while_it_cannot_be_looked_up_it_waits(offering: FlowHarness) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    action = await begin(offering)
    fault = offering.tc.faults.add("before", "listLastFires", status=500)
    action = await attempt(offering, action, MINUTE)
    assert action.state == State.PENDING
    offering.tc.faults.remove(fault.fault_id)
    assert (await attempt(offering, action)).state == State.DONE


async def test_another_action_s_task_is_not_taken(offering: FlowHarness) -> None:
    other = await begin(offering)
    assert other.state == State.DONE
    offering.tc.faults.add("before", "triggerHook", status=500, times=1)
    action = await attempt(offering, await begin(offering), MINUTE)
    assert action.state == State.FAILED
    assert "no task that would be its own can be found" in str(action.error)


async def test_equal_actions_that_are_both_unclear_are_for_a_person(offering: FlowHarness) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    first = await begin(offering)
    offering.tc.faults.add("before", "triggerHook", status=500, times=1)
    second = await begin(offering)
    first = await attempt(offering, first, LIMIT)
    assert first.state == State.PENDING, "the other one may find its task first"
    first = await attempt(offering, first, MINUTE)
    assert first.state == State.FAILED
    assert f"it is equal to action {second.id}, which has no clear answer either" in str(first.error)
    assert f"/tasks/{(await triggered(offering))[0]} and " in str(first.error)


async def test_actions_with_other_input_do_not_disturb_each_other(offering: FlowHarness) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=2)
    actions = [await begin(offering, input={"depth": depth}) for depth in (2, 3)]
    ended = [await attempt(offering, action, LIMIT) for action in actions]
    assert [action.state for action in ended] == [State.DONE] * 2
    found = [
        offering.tc.queue.task(action.action_task or "")["extra"]["action"]["context"]["input"] for action in ended
    ]
    assert found == [{"depth": 2}, {"depth": 3}]


async def test_two_tasks_that_may_be_its_own_are_named(offering: FlowHarness) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    action = await begin(offering)
    payload = {
        "decision": {"action": {"name": "backfill"}},
        "user": {"input": {"depth": 9}, "taskId": slug("test"), "taskGroupId": slug(DECISION)},
    }
    await offering.services.hooks.trigger(HOOK_GROUP, HOOK, payload)
    action = await attempt(offering, action, LIMIT)
    assert action.state == State.FAILED
    assert "2 tasks may be its own" in str(action.error)
    assert all(f"/tasks/{task_id}" in str(action.error) for task_id in await triggered(offering))


async def test_a_task_of_the_group_is_found_though_no_fire_is_listed(offering: FlowHarness) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    action = await begin(offering)
    (task_id,) = await triggered(offering)
    offering.tc.hooks.clear()
    action = await attempt(offering, action, LIMIT)
    assert (action.state, action.action_task) == (State.DONE, task_id)


async def test_tasks_that_are_compared_are_not_held(offering: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    offering.tc.faults.add("after", "triggerHook", status=500, times=1)
    action = await begin(offering)
    (task_id,) = await triggered(offering)
    definition = await offering.services.queue.task(task_id)
    assert definition is not None
    foreign = {**definition, "extra": {"action": {"name": "other"}}, "payload": {"text": "x" * 100_000}}
    held: list[int] = []

    class Large(dict[str, Any]):
        """A definition that says when it is no longer held."""

        def __init__(self) -> None:
            super().__init__(foreign)
            held.append(1)

        def __del__(self) -> None:
            held.pop()

    most = 0

    async def group(_: str) -> AsyncIterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
        nonlocal most
        for number in range(20):
            yield [({"taskId": slug(f"{number} {name}")}, Large()) for name in range(5)]
            most = max(most, len(held))
        yield [({"taskId": task_id}, definition)]

    monkeypatch.setattr(offering.services.queue, "group", group)
    action = await attempt(offering, action, LIMIT)
    assert (action.state, action.action_task) == (State.DONE, task_id)
    assert most <= 10  # of 100: those of a page, and of the one before


# --- which task is whose ------------------------------------------------------------------------------------------


def of_gecko(**context: Any) -> dict[str, Any]:
    told = {"taskGroupId": "G", "taskId": "T", "input": {"depth": 3}, **context}
    return {"extra": {"action": {"name": "backfill", "context": told}}}


OTHER_FORM = {"payload": {"env": {"GROUP": "G", "TASK": '"T"', "INPUT": '{"depth": 3}'}}}


@pytest.mark.parametrize(
    ("definition", "its"),
    [
        (of_gecko(), True),
        (of_gecko(clientId="us"), True),
        (of_gecko(clientId="them"), False),
        (of_gecko(input={"depth": 4}), False),
        (of_gecko(input={"depth": True}), False),
        (of_gecko(taskId="U"), False),
        (of_gecko(taskGroupId="H"), False),
        ({"extra": {"action": {**of_gecko()["extra"]["action"], "name": "retrigger"}}}, False),
        (OTHER_FORM, True),
        ({"payload": {"env": {**OTHER_FORM["payload"]["env"], "INPUT": "{"}}}, False),
        ({"extra": None}, False),
        ({"extra": {"action": {"context": "G"}}}, False),
    ],
)
def test_a_task_is_the_action_s_if_it_holds_what_the_action_has(definition: Any, its: bool) -> None:
    values: dict[str, Any] = {"kind": "backfill", "project": "mc", "requester": "me", "source": Source.API, "lane": "x"}
    action = Action(**values, task_id="T", decision_task="G", input={"depth": 3})
    assert is_of(definition, action, "us") is its


@pytest.mark.parametrize(
    ("told", "its"), [(["a"], True), ([], True), ("text", False), (3, False), (True, False), (None, False)]
)
def test_a_list_is_found_as_an_object_is_and_a_single_value_tells_nothing(told: Any, its: bool) -> None:
    values: dict[str, Any] = {"kind": "backfill", "project": "mc", "requester": "me", "source": Source.API, "lane": "x"}
    action = Action(**values, task_id="T", decision_task="G", input=told)
    env = {"GROUP": "G", "TASK": "T"}
    assert is_of({"payload": {"env": {**env, "INPUT": json.dumps(told)}}}, action, "us") is its
    assert is_of(of_gecko(input=told), action, "us") is its
    assert not is_of({"payload": {"env": {**env, "INPUT": json.dumps({"other": "input"})}}}, action, "us")


def test_an_action_on_a_push_without_input_is_known_by_its_group() -> None:
    values: dict[str, Any] = {
        "kind": "cancel-all",
        "project": "mc",
        "requester": "me",
        "source": Source.API,
        "lane": "x",
    }
    action = Action(**values, push_id=7, decision_task="G")
    assert is_of({"taskGroupId": "G"}, action, "us")
    assert not is_of({"taskGroupId": "H"}, action, "us")
    assert not is_of({"taskGroupId": "G", **of_gecko()}, action, "us")
