"""In-tree actions: what is rendered and triggered, with whose scopes, and what this service does itself."""

from typing import Any

import pytest
from sqlmodel import select

from service.engine.registry import WORK
from service.errors import Unavailable
from service.flow.actions import in_tree
from service.flow.tasks.action_kinds import Plan
from service.store.models import Action, Repository, Source, State, TreeActions
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    CANCEL_ALL,
    DECISION,
    HOOK,
    HOOK_ACTION,
    HOOK_GROUP,
    RETRIGGER,
    TASK_ACTION,
    add_decision,
    add_hook,
    add_push,
    add_task,
    allow,
    file_of,
)
from tests.service.flow.actions.support import carry_out_on_push
from tests.service.flow.graph_factory import action_on, carry_out, claim_work, read_copies, reload_action, slug
from tests.service.harness import FlowHarness

CREATE = ["queue:create-task:lowest:sandbox/test", "queue:create-task:project:none", "queue:scheduler-id:test"]


@pytest.fixture
async def offering(monitored: FlowHarness) -> FlowHarness:
    """Prepare a push whose decision task offers actions, one task of it, the hook, and what our client needs."""
    scopes = (HOOK_ACTION, *CREATE)
    add_decision(monitored, file_of(ACTION, CANCEL_ALL, RETRIGGER, TASK_ACTION), scopes=scopes)
    add_task(monitored)
    add_hook(monitored)
    await add_push(monitored, DECISION)
    allow(monitored, *CREATE, HOOK_ACTION, "queue:list-dependent-tasks:*", "queue:cancel-task:*")
    return monitored


async def set_actions(harness: FlowHarness, actions: TreeActions) -> None:
    async with harness.database.writing() as session:
        (await session.exec(select(Repository))).one().actions = actions


async def done(harness: FlowHarness, kind: str = "backfill", task: str = "test", **more: Any) -> Action:
    return await carry_out(harness, slug(task), kind, in_tree=True, **more)


async def planned(harness: FlowHarness, kind: str = "backfill", task: str | None = "test", **more: Any) -> Plan:
    values: dict[str, Any] = {"kind": kind, "project": "mc", "requester": "me", "source": Source.API, "in_tree": True}
    task_id = None if task is None else slug(task)
    return await in_tree.plan(harness.services, Action(**values, lane="x", task_id=task_id, **more))


# --- by a hook ----------------------------------------------------------------------------------------------------


async def test_a_hook_is_triggered_and_its_task_is_the_action_s(offering: FlowHarness) -> None:
    action = await done(offering, input={"depth": 3})
    assert (action.state, action.error) == (State.DONE, None)
    assert action.action_task is not None
    definition = offering.tc.queue.task(action.action_task)
    assert definition["taskGroupId"] == slug(DECISION)
    assert definition["extra"]["action"] == {
        "name": "backfill",
        "context": {
            "taskGroupId": slug(DECISION),
            "taskId": slug("test"),
            "input": {"depth": 3},
            "clientId": "tc-treeherder",
        },
    }
    assert (action.decision_task, action.hook) == (slug(DECISION), f"{HOOK_GROUP}/{HOOK}")
    assert action.triggered_at is not None
    assert offering.tc.journal.calls["triggerHook"] == 1


async def test_defaults_are_filled_in_and_kept(offering: FlowHarness) -> None:
    action = await done(offering)
    assert action.input == {"depth": 9}
    assert offering.tc.queue.task(action.action_task or "")["extra"]["action"]["context"]["input"] == {"depth": 9}


async def test_an_action_on_a_push_has_no_task(offering: FlowHarness) -> None:
    action = await carry_out_on_push(offering, "cancel-all", in_tree=True)
    assert (action.state, action.error) == (State.DONE, None)
    context = offering.tc.queue.task(action.action_task or "")["extra"]["action"]["context"]
    assert (context["taskId"], context["input"]) == (None, None)


async def test_the_plan_shows_the_payload_and_does_nothing(offering: FlowHarness) -> None:
    tree = (await planned(offering, input={"depth": 2})).tree
    assert tree is not None
    assert (tree.decision_task, tree.hook, tree.told) == (slug(DECISION), f"{HOOK_GROUP}/{HOOK}", {"depth": 2})
    assert tree.rendered["user"] == {"input": {"depth": 2}, "taskId": slug("test"), "taskGroupId": slug(DECISION)}
    assert tree.rendered["decision"]["owner"] == "dev@example.com"
    assert tree.missing == []
    assert not offering.tc.journal.calls["triggerHook"]


@pytest.mark.parametrize(
    ("kind", "told", "why"),
    [
        ("backfill", {"depth": 26}, "input of backfill: depth 26 is too large: it must be at most 25"),
        ("backfill", {"deep": 2}, "input of backfill: unknown key deep (depth?)"),
        ("explode", {}, "there is no action 'explode' for this task: it offers backfill, retrigger, clone"),
        ("retriger", {}, "there is no action 'retriger' for this task (retrigger?)"),
        ("cancel-all", {}, "there is no action 'cancel-all' for this task"),
    ],
)
async def test_what_does_not_fit_is_rejected_before_anything_is_triggered(
    offering: FlowHarness, kind: str, told: Any, why: str
) -> None:
    action = await done(offering, kind, input=told)
    assert action.state == State.REJECTED
    assert why in str(action.error)
    assert action.triggered_at is None
    assert not offering.tc.journal.calls["triggerHook"]
    assert action.failure_jobs, "it is shown on the push"


async def test_without_a_file_the_action_is_rejected(monitored: FlowHarness) -> None:
    add_decision(monitored, None)
    add_task(monitored)
    action = await done(monitored)
    assert action.state == State.REJECTED
    assert str(action.error).startswith("the tree offers no action 'backfill': the decision task of task")
    action = await done(monitored, "retriger")
    assert str(action.error).startswith("the tree offers no action 'retriger' (retrigger?): the decision task of task")


async def test_an_action_that_does_not_render_is_failed(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of({**ACTION, "hookPayload": {"a": {"$eval": "nobody"}}}))
    add_task(monitored)
    action = await done(monitored)
    assert action.state == State.FAILED
    assert "the tree's action backfill cannot be used: public/actions.json of the decision task" in str(action.error)
    assert "does not render: at a" in str(action.error)


# --- scopes -------------------------------------------------------------------------------------------------------


async def test_the_decision_task_s_scope_comes_before_ours(offering: FlowHarness) -> None:
    foreign = {**ACTION, "hookId": "in-tree-action-3-release/abc"}
    add_decision(offering, file_of(foreign), "other")
    add_task(offering, "of other", group="other")
    scope, ours = (
        f"{kind}:{HOOK_GROUP}/in-tree-action-3-release/abc" for kind in ("in-tree:hook-action", "hooks:trigger-hook")
    )
    action = await done(offering, task="of other")
    assert action.state == State.FAILED
    expected = f"the tree's action backfill is misconfigured: the decision task {slug('other')} lacks {scope}"
    assert action.error == expected
    tree = (await planned(offering, task="of other")).tree
    assert tree is not None
    assert tree.missing == [
        (scope, f"the decision task {slug('other')}"),
        (ours, "the service's Taskcluster client (tc-treeherder)"),
    ]


async def test_our_own_missing_scope_is_named_and_nothing_is_triggered(offering: FlowHarness) -> None:
    allow(offering, trigger=False)
    action = await done(offering)
    scope = f"hooks:trigger-hook:{HOOK_GROUP}/{HOOK}"
    expected = f"the service's Taskcluster client (tc-treeherder) lacks {scope}: grant that to the client"
    assert (action.state, action.error) == (State.FAILED, expected)
    assert not offering.tc.journal.calls["triggerHook"]


async def test_a_scope_that_was_granted_just_now_counts(offering: FlowHarness) -> None:
    allow(offering, trigger=False)
    assert (await planned(offering)).tree.missing  # type: ignore[union-attr]  # there is one
    allow(offering)
    assert (await done(offering)).state == State.DONE


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "the service's Taskcluster client (tc-treeherder) lacks auth:expand-scopes: grant that to the client"),
        (400, f"Taskcluster refuses to expand the scopes of the decision task {slug(DECISION)} (400): a fault was set"),
    ],
)
async def test_without_the_scopes_of_the_decision_task_it_fails_at_once(
    offering: FlowHarness, status: int, reason: str
) -> None:
    offering.tc.faults.add("before", "expandScopes", status=status)
    action = await done(offering)
    assert action.state == State.FAILED
    assert str(action.error).startswith(reason)
    assert not offering.tc.journal.calls["triggerHook"]


async def test_scopes_of_roles_count_for_the_decision_task(offering: FlowHarness) -> None:
    add_decision(offering, file_of(ACTION), "by role", scopes=("assume:mc",))
    add_task(offering, "of role", group="by role")
    roles = {f"hook-id:{HOOK_GROUP}/*": CREATE, "mc": [HOOK_ACTION]}
    offering.tc.auth.set_roles(roles)
    assert (await done(offering, task="of role")).state == State.DONE


# --- by a task ----------------------------------------------------------------------------------------------------


async def test_a_task_is_created_with_the_scopes_of_the_decision_task(offering: FlowHarness) -> None:
    action = await done(offering, "clone")
    assert (action.state, action.error, action.triggered_at) == (State.DONE, None, None)
    definition = offering.tc.queue.task(action.action_task or "")
    assert (definition["payload"], definition["taskGroupId"]) == ({"of": "test"}, slug(DECISION))
    assert await read_copies(offering, action) == {"clone": action.action_task}


async def test_a_task_beyond_the_scopes_of_the_decision_task_is_refused(offering: FlowHarness) -> None:
    add_decision(offering, file_of(TASK_ACTION), "poor")
    add_task(offering, "of poor", group="poor")
    tree = (await planned(offering, "clone", "of poor")).tree
    assert tree is not None
    assert {holder for _, holder in tree.missing} == {f"the decision task {slug('poor')}"}
    action = await done(offering, "clone", "of poor")
    assert action.state == State.FAILED
    assert f"is misconfigured: the decision task {slug('poor')} lacks queue:" in str(action.error)
    assert not offering.tc.journal.calls["createTask"]


async def test_a_task_whose_answer_was_lost_is_created_once(offering: FlowHarness) -> None:
    fault = offering.tc.faults.add("after", "createTask", status=500)
    action = await action_on(offering, slug("test"), "clone", in_tree=True)
    lease = await claim_work(offering)
    with pytest.raises(Unavailable):
        await WORK.run_of(lease.item)(offering.services, lease)
    offering.tc.faults.remove(fault.fault_id)
    add_decision(offering, file_of(), "unused")
    lease = await again(offering, action)
    await WORK.run_of(lease.item)(offering.services, lease)
    action = await reload_action(offering, action)
    clones = [task for task in offering.tc.queue.tasks.values() if task.definition["metadata"]["name"] == "clone"]
    assert (action.state, [task.task_id for task in clones]) == (State.DONE, [action.action_task])


async def again(harness: FlowHarness, action: Action) -> Any:
    """Make an action due, and hold it as the next process does."""
    async with harness.database.writing() as session:
        stored = await session.get_one(Action, action.id)
        stored.due_at = stored.received_at
    return await claim_work(harness)


async def test_a_task_that_is_no_definition_is_refused(offering: FlowHarness) -> None:
    broken = {**TASK_ACTION, "task": {**TASK_ACTION["task"], "metadata": {"name": "x"}}}
    add_decision(offering, file_of(broken), "broken")
    add_task(offering, "of broken", group="broken")
    action = await done(offering, "clone", "of broken")
    assert action.state == State.FAILED
    assert "its task is no definition: metadata.description is missing" in str(action.error)


# --- in place of our own ------------------------------------------------------------------------------------------


async def test_in_tree_takes_the_tree_s_retrigger(offering: FlowHarness) -> None:
    await set_actions(offering, TreeActions.IN_TREE)
    action = await done(offering, "retrigger")
    assert (action.state, action.in_tree, await read_copies(offering, action)) == (State.DONE, True, {})
    assert action.action_task is not None
    rejected = await done(offering, "cancel")
    assert (rejected.state, rejected.in_tree) == (State.REJECTED, True)
    assert "there is no action 'cancel' for this task" in str(rejected.error)


async def test_auto_takes_the_tree_s_where_it_is_offered_and_ours_otherwise(offering: FlowHarness) -> None:
    await set_actions(offering, TreeActions.AUTO)
    assert (await done(offering, "retrigger")).action_task is not None
    cancelled = await done(offering, "cancel")
    assert (cancelled.state, cancelled.in_tree, cancelled.error) == (State.DONE, False, None)
    assert offering.tc.queue.find(slug("test")).state == "exception"


@pytest.mark.parametrize("content", [None, b"nonsense"])
async def test_auto_makes_copies_where_the_tree_s_file_is_no_good(
    monitored: FlowHarness, content: bytes | None
) -> None:
    await set_actions(monitored, TreeActions.AUTO)
    add_decision(monitored, content)
    add_task(monitored)
    assert (await planned(monitored, "retrigger")).copies
    action = await done(monitored, "retrigger")
    assert (action.state, action.in_tree) == (State.DONE, False)
    assert list(await read_copies(monitored, action)) == ["test"]
    rejected = await done(monitored, "retrigger", input={"downstream": True})
    assert rejected.state == State.REJECTED
    assert "input of retrigger: unknown key downstream" in str(rejected.error)
