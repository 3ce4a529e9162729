"""Cancels: the state first, then the one scope for the one task."""

from datetime import timedelta
from typing import Any

import pytest

from sandbox.taskcluster import Client
from service.clients.taskcluster import TaskclusterQueue
from service.clock import now
from service.errors import Unavailable
from service.flow.actions import cancel
from service.flow.tasks.definition import format_date
from service.settings import TaskclusterSettings
from service.store.models import Action
from tests.service.flow.graph_factory import (
    GROUP,
    action_on,
    build,
    carry_out,
    claim_work,
    definition_of,
    end,
    read_notices,
    reload_action,
    slug,
)
from tests.service.harness import FlowHarness


@pytest.fixture
async def monitored(harness: FlowHarness) -> FlowHarness:
    await harness.add_repository()
    build(harness.tc.queue, {"group": [], "a": [], "b": ["a"]})
    return harness


def reason_of(harness: FlowHarness, name: str) -> Any:
    return harness.tc.queue.find(slug(name)).runs[-1].get("reasonResolved")


@pytest.mark.parametrize("state", ["unscheduled", "pending", "running"])
async def test_a_task_that_has_not_ended_is_cancelled(monitored: FlowHarness, state: str) -> None:
    name = "b" if state == "unscheduled" else "a"
    if state == "running":
        monitored.tc.queue.claim_task(slug("a"), 0, {"workerGroup": "g", "workerId": "w"})
    action = await carry_out(monitored, slug(name), "cancel")
    assert (action.state, action.error) == ("done", None)
    assert reason_of(monitored, name) == "canceled"
    assert monitored.tc.journal.calls["cancelTask"] == 1


@pytest.mark.parametrize("kind", ["cancel", "retrigger"])
async def test_a_route_of_another_users_repository_does_not_name_ours(harness: FlowHarness, kind: str) -> None:
    """`someone/try` is not `try`: a route names a repository exactly."""
    route = f"tc-treeherder.v2.someone/mc.{'a1' * 20}.7"
    harness.tc.queue.create_task(slug("theirs"), definition_of("theirs", routes=[route]))
    await harness.add_repository()
    action = await carry_out(harness, slug("theirs"), kind)
    assert action.state == "rejected"
    assert "names mc: it is not a task of that project" in str(action.error)
    assert harness.tc.queue.find(slug("theirs")).state == "pending"
    assert len(harness.tc.queue.tasks) == 1
    # ...and the repository that says so is named by it
    await harness.add_repository("theirs", route_project="someone/mc")
    assert (await carry_out(harness, slug("theirs"), kind, project="theirs")).state == "done"


async def test_a_scope_that_our_client_lacks_fails_the_cancel(monitored: FlowHarness) -> None:
    """Taskcluster answers 401, and lists all that the client has."""
    monitored.tc.auth.add_client("tc-treeherder", "service-secret", ["queue:get-task:*", "queue:status:*", "x:secret"])
    action = await carry_out(monitored, slug("a"), "cancel")
    assert (action.state, action.due_at) == ("failed", None)
    assert f"its client needs the scope queue:cancel-task:test/{GROUP}/{slug('a')}" in str(action.error)
    assert "x:secret" not in str(action.error)
    assert reason_of(monitored, "a") is None


@pytest.mark.parametrize("state", ["completed", "failed", "exception"])
async def test_what_has_ended_is_nothing_to_do(monitored: FlowHarness, state: str) -> None:
    end(monitored.tc.queue, "a", state)
    action = await carry_out(monitored, slug("a"), "cancel")
    assert action.state == "nothing-to-do"
    assert f"{slug('a')} (a) is already {state}" in str(action.error)
    assert not monitored.tc.journal.calls["cancelTask"]


async def test_what_ends_before_the_cancel_arrives_is_nothing_to_do(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_task = monitored.services.queue.cancel_task

    async def late(task_id: str, scope: str) -> Any:
        end(monitored.tc.queue, "a", "completed")
        return await cancel_task(task_id, scope)

    monkeypatch.setattr(monitored.services.queue, "cancel_task", late)
    action = await carry_out(monitored, slug("a"), "cancel")
    assert action.state == "nothing-to-do"
    assert f"{slug('a')} (a) is already completed" in str(action.error)


async def test_what_ended_long_past_its_deadline_is_nothing_to_do_too(monitored: FlowHarness) -> None:
    end(monitored.tc.queue, "a")
    monitored.tc.queue.clock.advance(2 * 86400)
    assert (await carry_out(monitored, slug("a"), "cancel")).state == "nothing-to-do"


async def test_a_task_past_its_deadline_cannot_be_cancelled_any_more(monitored: FlowHarness) -> None:
    at = now()
    monitored.tc.queue.create_task(slug("late"), definition_of("late", deadline=format_date(at + timedelta(minutes=1))))
    monitored.tc.queue.clock.advance(120)  # nobody has looked at deadlines yet
    action = await carry_out(monitored, slug("late"), "cancel")
    assert action.state == "failed"
    assert "past its deadline" in str(action.error)
    assert slug("late") in str(action.error)


async def test_the_one_scope_for_the_one_task_is_enough_and_is_named_when_it_is_missing(monitored: FlowHarness) -> None:
    reads = ("queue:get-task:*", "queue:status:*")
    exact = f"queue:cancel-task:test/{GROUP}/{slug('a')}"
    real = monitored.services.queue
    for name, scopes, wanted in (("poor", reads, "failed"), ("exact", (*reads, exact), "done")):
        client = Client(name, f"{name}-token", scopes)
        monitored.tc.auth.add_client(client.client_id, client.access_token, client.scopes)
        root = monitored.settings.taskcluster.root
        queue = TaskclusterQueue(
            TaskclusterSettings(root_url=root, client_id=client.client_id, access_token=client.access_token)
        )
        monitored.services.queue = queue
        try:
            action = await carry_out(monitored, slug("a"), "cancel")
        finally:
            monitored.services.queue = real
            await queue.close()
        assert action.state == wanted
        assert wanted == "done" or f"its client needs the scope {exact}" in str(action.error)
    assert reason_of(monitored, "a") == "canceled"
    assert not monitored.tc.queue.find(slug("b")).runs


@pytest.mark.parametrize("kind", ["throttle", "before", "after", "hang"])
async def test_a_call_that_fails_is_made_again_and_what_we_did_is_done(monitored: FlowHarness, kind: str) -> None:
    monitored.tc.faults.add(kind, "cancelTask", times=1)
    monitored.settings.taskcluster.timeout = timedelta(seconds=0.3)
    action = await action_on(monitored, slug("a"), "cancel")
    lease = await claim_work(monitored)
    with pytest.raises(Unavailable):
        await cancel.run(monitored.services, lease)
    assert (await reload_action(monitored, action)).state == "pending"
    lease.item = await reload_action(monitored, action)  # as the next holder reads it
    await cancel.run(monitored.services, lease)
    assert (await reload_action(monitored, action)).state == "done"
    assert reason_of(monitored, "a") == "canceled"


async def test_it_is_rejected_like_every_action_and_shows_no_job(monitored: FlowHarness) -> None:
    await monitored.add_repository("other")
    for task_id, project in ((slug("a"), "other"), (slug("a"), "nowhere"), (slug("missing"), "mc")):
        action: Action = await carry_out(monitored, task_id, "cancel", project=project)
        assert action.state == "rejected"
    assert not monitored.tc.queue.find(slug("a")).resolved
    assert await read_notices(monitored) == []
