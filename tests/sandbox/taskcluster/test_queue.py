"""Tasks and groups are scheduled, rerun, cancelled, sealed and reprioritized."""

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import iso
from sandbox.taskcluster.queue import MAX_RUNS
from sandbox.taskcluster.tasks import Message
from tests.sandbox.taskcluster.support import WORKER, Api, create, finish, kinds, refused

# --- groups ---


async def test_a_sealed_group_takes_no_task_and_no_repeat(api: Api, messages: list[Message]) -> None:
    definition = api.define()
    group = slugId()
    await api("createTask", group, body=definition)
    sealed = await api("sealTaskGroup", group)
    api.tc.clock.advance(60)
    assert await api("sealTaskGroup", group) == sealed
    assert (await api("listTaskGroup", group))["sealed"] == sealed["sealed"]
    await refused(create(api, taskGroupId=group), 409, "RequestConflict", "sealed")
    await refused(api("createTask", group, body=definition), 409, "RequestConflict", "sealed")
    assert [m.exchange.rpartition("/")[2] for m in messages].count("task-group-sealed") == 1


async def test_cancelling_a_group_needs_it_sealed_and_takes_all_that_is_unresolved(api: Api) -> None:
    group = await create(api, priority="high")
    waiting = await create(api, taskGroupId=group, dependencies=[group])
    pending = await create(api, taskGroupId=group)
    await finish(api, group, "failed")
    await refused(api("cancelTaskGroup", group), 409, "RequestConflict", "sealed")
    await api("sealTaskGroup", group)
    answer = await api("cancelTaskGroup", group)
    assert (answer["taskGroupSize"], answer["cancelledCount"]) == (3, 2)
    assert set(answer["taskIds"]) == {waiting, pending}
    assert (await api("cancelTaskGroup", group))["taskIds"] == []


# --- schedule, rerun, cancel ---


async def test_schedule_task_does_not_ask_for_dependencies_and_repeats_harmlessly(api: Api) -> None:
    first = await create(api, workerType="x")
    task_id = await create(api, dependencies=[first])
    status = (await api("scheduleTask", task_id))["status"]
    assert (status["state"], status["runs"][0]["reasonCreated"]) == ("pending", "scheduled")
    assert (await api("scheduleTask", task_id))["status"] == status
    await finish(api, task_id)
    assert (await api("scheduleTask", task_id))["status"]["state"] == "completed"
    await finish(api, first, queue_id="prov/x")
    assert len((await api("status", task_id))["status"]["runs"]) == 1


async def test_cancel_ends_a_pending_a_running_and_an_unscheduled_task(api: Api, messages: list[Message]) -> None:
    pending = await create(api)
    waiting = await create(api, dependencies=[pending])
    (run,) = (await api("cancelTask", waiting))["status"]["runs"]
    now = iso(api.tc.clock.now())
    assert run == {
        "runId": 0,
        "state": "exception",
        "reasonCreated": "exception",
        "reasonResolved": "canceled",
        "scheduled": now,
        "resolved": now,
    }
    status = (await api("cancelTask", pending))["status"]
    assert (status["state"], status["runs"][0]["reasonCreated"]) == ("exception", "scheduled")
    assert (await api("claimWork", "prov/w", body={**WORKER, "tasks": 32}))["tasks"] == []
    running = await create(api)
    claim = await api.claim()
    await api("cancelTask", running)
    await refused(api("reportCompleted", running, claim["runId"]), 409, "RequestConflict")
    await refused(api("reclaimTask", running, claim["runId"]), 409, "RequestConflict")
    assert (
        kinds(messages, waiting)[-1] == kinds(messages, pending)[-1] == kinds(messages, running)[-1] == "task-exception"
    )


async def test_cancelling_a_resolved_task_changes_nothing(api: Api, messages: list[Message]) -> None:
    task_id = await create(api)
    await finish(api, task_id)
    before = await api("status", task_id)
    messages.clear()
    assert await api("cancelTask", task_id) == before
    assert messages == []


async def test_a_canceled_task_is_not_scheduled_but_can_be_rerun(api: Api) -> None:
    task_id = slugId()
    await create(api, task_id, dependencies=[task_id])
    await api("cancelTask", task_id)
    assert (await api("scheduleTask", task_id))["status"]["state"] == "exception"
    status = (await api("rerunTask", task_id))["status"]
    assert [run["reasonCreated"] for run in status["runs"]] == ["exception", "rerun"]
    await finish(api, task_id)


@pytest.mark.parametrize("method", ["scheduleTask", "rerunTask", "cancelTask"])
async def test_past_the_deadline_nothing_is_scheduled_rerun_or_canceled(api: Api, method: str) -> None:
    resolved = await create(api)
    await finish(api, resolved)
    open_task = await create(api)
    api.tc.clock.advance(3600)
    await api(method, resolved)
    api.tc.clock.advance(0.001)
    for task_id in (resolved, open_task):
        await refused(api(method, task_id), 409, "RequestConflict", "past its deadline")


async def test_a_rerun_begins_anew_with_all_retries(api: Api, messages: list[Message]) -> None:
    task_id = await create(api, retries=1)
    await finish(api, task_id, "exception:worker-shutdown")
    await finish(api, task_id, "failed")
    assert (await api("status", task_id))["status"]["retriesLeft"] == 0
    status = (await api("rerunTask", task_id))["status"]
    assert (status["retriesLeft"], status["state"], status["runs"][2]["reasonCreated"]) == (1, "pending", "rerun")
    assert (await api("rerunTask", task_id))["status"] == status
    assert kinds(messages, task_id)[-1] == "task-pending"


async def test_an_unscheduled_task_can_be_rerun(api: Api) -> None:
    task_id = slugId()
    await create(api, task_id, dependencies=[task_id])
    assert (await api("rerunTask", task_id))["status"]["runs"][0]["reasonCreated"] == "rerun"


async def test_a_task_has_at_most_50_runs(api: Api) -> None:
    task_id = await create(api)
    for run_id in range(MAX_RUNS):
        api.tc.queue.rerun_task(task_id)
        api.tc.queue.claim_work("prov/w", WORKER)
        api.tc.queue.report_completed(task_id, run_id)
    await refused(api("rerunTask", task_id), 409, "RequestConflict", "50 runs")


@pytest.mark.parametrize("verb", ["schedule", "rerun", "cancel"])
async def test_each_of_the_published_scopes_allows_it_and_404_comes_first(api: Api, verb: str) -> None:
    task_id = await create(api, projectId="proj")
    method = f"{verb}Task"
    rights = [
        [f"queue:{verb}-task:sched/{task_id}/{task_id}"],
        [f"queue:{verb}-task-in-project:proj"],
        [f"queue:{verb}-task", f"assume:scheduler-id:sched/{task_id}"],
    ]
    api.client = Client("c", "c")
    for right in rights:
        api.tc.auth.add_client("c", "c", right)
        await api(method, task_id)
        api.tc.auth.add_client("c", "c", right[1:])
        await refused(api(method, task_id), 403, "InsufficientScopes", f"queue:{verb}-task:sched/{task_id}/{task_id}")
    await refused(api(method, slugId()), 404, "ResourceNotFound")


# --- priority ---


async def test_a_new_priority_counts_at_once_and_makes_the_repeat_a_conflict(api: Api, messages: list[Message]) -> None:
    definition = api.define()
    task_id = slugId()
    await api("createTask", task_id, body=definition)
    other = await create(api, priority="medium")
    assert (await api("changeTaskPriority", task_id, body={"newPriority": "high"}))["status"]["priority"] == "high"
    changed = messages[-1]
    assert changed.payload.keys() == {"status", "oldPriority", "newPriority", "version"}
    assert (changed.payload["oldPriority"], changed.payload["newPriority"]) == ("lowest", "high")
    assert changed.routing_key == f"primary.{task_id}._._._.prov.w.sched.{task_id}._"
    await refused(api("createTask", task_id, body=definition), 409, "RequestConflict", "priority")
    claims = (await api("claimWork", "prov/w", body={**WORKER, "tasks": 32}))["tasks"]
    assert [claim["status"]["taskId"] for claim in claims] == [task_id, other]


async def test_the_priority_of_a_group_changes_for_what_is_unresolved(api: Api, messages: list[Message]) -> None:
    group = await create(api, priority="high")
    await finish(api, group)
    others = [await create(api, taskGroupId=group) for _ in range(2)]
    answer = await api("changeTaskGroupPriority", group, body={"newPriority": "medium"})
    assert (answer["tasksAffected"], sorted(answer["taskIds"])) == (2, sorted(others))
    assert messages[-1].exchange.endswith("/task-group-priority-changed")
    assert (await api("task", group))["priority"] == "high"
