"""Workers claim, reclaim and report runs."""

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import MINUTE, iso
from sandbox.taskcluster.tasks import Message
from tests.sandbox.taskcluster.support import WORKER, Api, create, finish, kinds, refused


async def test_work_is_claimed_by_priority_then_age(api: Api, messages: list[Message]) -> None:
    order = ["low", "highest", "low", "lowest", "medium"]
    ids = [await create(api, priority=priority) for priority in order]
    claims = (await api("claimWork", "prov/w", body={**WORKER, "tasks": 3}))["tasks"]
    claims += (await api("claimWork", "prov/w", body={**WORKER, "tasks": 32}))["tasks"]
    assert [ids.index(claim["status"]["taskId"]) for claim in claims] == [1, 4, 0, 2, 3]
    assert (await api("claimWork", "prov/w", body={**WORKER, "tasks": 1}))["tasks"] == []
    claim = claims[0]
    run = claim["status"]["runs"][0]
    assert (run["state"], run["workerGroup"], run["workerId"]) == ("running", "wg", "w1")
    assert claim["takenUntil"] == run["takenUntil"] == iso(api.tc.clock.now() + 20 * MINUTE)
    assert claim["task"] == await api("task", ids[1])
    assert kinds(messages, ids[1])[-1] == "task-running"


async def test_work_of_other_queues_is_left_alone(api: Api) -> None:
    await create(api, workerType="x")
    assert (await api("claimWork", "prov/w", body={**WORKER, "tasks": 32}))["tasks"] == []
    assert await api("taskQueueCounts", "prov/x") == {
        "provisionerId": "prov",
        "workerType": "x",
        "taskQueueId": "prov/x",
        "pendingTasks": 1,
        "claimedTasks": 0,
    }
    await api.claim("prov/x")
    counts = await api("taskQueueCounts", "prov/x")
    assert (counts["pendingTasks"], counts["claimedTasks"]) == (0, 1)
    assert (await api("pendingTasks", "prov/x"))["pendingTasks"] == 0


async def test_counts_follow_what_becomes_of_tasks(api: Api) -> None:
    canceled, retried = await create(api, priority="low"), await create(api)
    await api("changeTaskPriority", retried, body={"newPriority": "high"})
    counts = api.tc.queue.task_queue_counts
    assert counts("prov/w")["pendingTasks"] == 2
    await api("cancelTask", canceled)
    await finish(api, retried, "exception:worker-shutdown")
    assert (counts("prov/w")["pendingTasks"], counts("prov/w")["claimedTasks"]) == (1, 0)
    await finish(api, retried)
    assert (counts("prov/w")["pendingTasks"], counts("prov/w")["claimedTasks"]) == (0, 0)
    assert api.tc.queue.queues_with_work() == []


async def test_the_credentials_of_a_claim_allow_just_that_run_and_the_tasks_scopes(api: Api) -> None:
    task_id = await create(api, scopes=["auth:current-scopes"])
    credentials = (await api.claim())["credentials"]
    api.client = Client(credentials["clientId"], credentials["accessToken"])
    api.ext = {"certificate": credentials["certificate"]}
    scopes = (await api("currentScopes", service="auth"))["scopes"]
    assert set(scopes) - {"assume:anonymous"} == {
        "auth:current-scopes",
        *(f"queue:{what}:{task_id}/0" for what in ("reclaim-task", "resolve-task", "create-artifact")),
    }
    await refused(api("status", task_id), 403, "InsufficientScopes")
    await api("reclaimTask", task_id, 0)
    assert (await api("reportCompleted", task_id, 0))["status"]["state"] == "completed"


async def test_a_certain_run_can_be_claimed_and_claimed_again_by_the_same_worker(api: Api) -> None:
    task_id = await create(api)
    claim = await api("claimTask", task_id, 0, body=WORKER)
    assert (await api("claimTask", task_id, 0, body=WORKER))["takenUntil"] == claim["takenUntil"]
    await refused(api("claimTask", task_id, 0, body={**WORKER, "workerId": "w2"}), 409, "RequestConflict")
    await refused(api("claimTask", task_id, 1, body=WORKER), 404, "ResourceNotFound")


async def test_a_reclaim_holds_the_run_longer(api: Api) -> None:
    task_id = await create(api)
    await api.claim()
    api.tc.advance(19 * 60)
    again = await api("reclaimTask", task_id, 0)
    assert again["takenUntil"] == iso(api.tc.clock.now() + 20 * MINUTE)
    api.tc.advance(19 * 60)
    assert await api.state(task_id) == "running"


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("completed", "completed", "completed"),
        ("failed", "failed", "failed"),
        ("exception:malformed-payload", "exception", "malformed-payload"),
        ("exception:resource-unavailable", "exception", "resource-unavailable"),
        ("exception:internal-error", "exception", "internal-error"),
    ],
)
async def test_reports_resolve_the_run(api: Api, messages: list[Message], how: str, state: str, reason: str) -> None:
    task_id = await create(api)
    api.tc.clock.advance(3)
    await finish(api, task_id, how)
    (run,) = (await api("status", task_id))["status"]["runs"]
    assert (run["state"], run["reasonResolved"], run["resolved"]) == (state, reason, iso(api.tc.clock.now()))
    assert kinds(messages, task_id) == ["task-defined", "task-pending", "task-running", f"task-{state}"]


async def test_a_report_can_be_repeated_but_not_contradicted(api: Api) -> None:
    task_id = await create(api)
    await refused(api("reportCompleted", task_id, 0), 409, "RequestConflict", "not running")
    await finish(api, task_id)
    assert (await api("reportCompleted", task_id, 0))["status"]["state"] == "completed"
    await refused(api("reportFailed", task_id, 0), 409, "RequestConflict")
    await refused(api("reportException", task_id, 0, body={"reason": "internal-error"}), 409, "RequestConflict")
    await refused(api("reportCompleted", task_id, 1), 404, "ResourceNotFound", "Run 1 not found")
    await refused(api("reportCompleted", slugId(), 0), 404, "ResourceNotFound")
    await refused(api("reportException", task_id, 0, body={"reason": "canceled"}), 400, "InputValidationError")


async def test_past_the_deadline_a_run_is_not_reported(api: Api) -> None:
    task_id = await create(api, deadline=iso(api.tc.clock.now() + MINUTE))
    await api.claim()
    api.tc.clock.advance(61)
    await refused(api("reportCompleted", task_id, 0), 409, "RequestConflict", "past its deadline")
