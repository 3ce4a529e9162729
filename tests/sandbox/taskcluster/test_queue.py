"""What the queue's methods do and refuse, called as a client calls them."""

from typing import Any

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import DAY, HOUR, MINUTE, SECOND, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.queue import MAX_RUNS, Queue
from sandbox.taskcluster.tasks import Message
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.support import Api, Refused

WORKER = {"workerGroup": "wg", "workerId": "w1"}


async def create(api: Api, task_id: str | None = None, **more: Any) -> str:
    task_id = task_id or str(slugId())
    await api("createTask", task_id, body=api.define(**more))
    return task_id


async def refused(call: Any, status: int, code: str, message: str | None = None) -> None:
    with pytest.raises(Refused, match=message) as why:
        await call
    assert (why.value.status, why.value.code) == (status, code)


async def finish(api: Api, task_id: str, how: str = "completed", queue_id: str = "prov/w") -> None:
    claim = await api.claim(queue_id)
    assert claim["status"]["taskId"] == task_id
    if how.startswith("exception:"):
        await api("reportException", task_id, claim["runId"], body={"reason": how.partition(":")[2]})
    else:
        await api("reportCompleted" if how == "completed" else "reportFailed", task_id, claim["runId"])


def kinds(messages: list[Message], task_id: str) -> list[str]:
    """The exchanges, without their prefix, of the messages about a task."""
    return [m.exchange.rpartition("/")[2] for m in messages if m.payload.get("status", {}).get("taskId") == task_id]


# --- createTask ---


async def test_a_task_is_kept_completed_and_pending_at_once(api: Api) -> None:
    definition = api.define(expires=None, priority="low", tags={"kind": "x"}, extra={"a": [1, {"b": None}]})
    task_id = slugId()
    status = (await api("createTask", task_id, body=definition))["status"]
    assert status["state"] == "pending"
    assert status["runs"] == [
        {"runId": 0, "state": "pending", "reasonCreated": "scheduled", "scheduled": iso(api.tc.clock.now())}
    ]
    assert (await api("status", task_id))["status"] == status
    task = await api("task", task_id)
    assert {key: task[key] for key in definition} == definition
    assert (task["taskGroupId"], task["taskQueueId"], task["projectId"]) == (task_id, "prov/w", "none")
    assert task["expires"][:4] == str(int(task["deadline"][:4]) + 1)


async def test_the_same_body_again_is_the_same_answer_and_the_same_messages(api: Api, messages: list[Message]) -> None:
    definition = api.define(created=iso(api.tc.clock.now())[:-1] + "+00:00")
    task_id = slugId()
    first = await api("createTask", task_id, body=definition)
    api.tc.clock.advance(14 * 60)
    assert await api("createTask", task_id, body=definition) == first
    assert kinds(messages, task_id) == ["task-defined", "task-pending"] * 2
    assert len(api.tc.queue.tasks) == 1


async def test_the_repeat_of_a_running_task_tells_of_its_definition_only(api: Api, messages: list[Message]) -> None:
    definition = api.define()
    task_id = slugId()
    await api("createTask", task_id, body=definition)
    await api.claim()
    messages.clear()
    assert (await api("createTask", task_id, body=definition))["status"]["state"] == "running"
    assert kinds(messages, task_id) == ["task-defined"]
    assert messages[0].payload["status"]["state"] == "unscheduled"


@pytest.mark.parametrize(
    "change",
    [
        {"routes": ["b", "a"]},
        {"payload": {"x": 1}},
        {"retries": 4},
        {"priority": "low"},
        {"metadata": {"name": "other", "description": "", "owner": "o", "source": "https://x"}},
    ],
)
async def test_another_body_for_the_same_id_is_409(api: Api, change: dict[str, Any]) -> None:
    task_id = await create(api, routes=["a", "b"])
    await refused(create(api, task_id, **{"routes": ["a", "b"], **change}), 409, "RequestConflict", "already used")


async def test_a_date_one_millisecond_off_is_409(api: Api) -> None:
    task_id = await create(api)
    await refused(create(api, task_id, created=iso(api.tc.clock.now() - 1)), 409, "RequestConflict", "created")


async def test_the_same_body_is_400_once_it_is_old_although_the_task_exists(api: Api) -> None:
    definition = api.define()
    task_id = slugId()
    await api("createTask", task_id, body=definition)
    api.tc.clock.advance(15 * 60 + 1)
    await refused(api("createTask", task_id, body=definition), 400, "InputError", "`created`")
    assert await api.state(task_id) == "pending"


async def test_dates_are_judged_before_scopes_and_scopes_before_the_group(api: Api) -> None:
    api.tc.auth.add_client("poor", "p")
    api.client = Client("poor", "p")
    await refused(create(api, created=iso(api.tc.clock.now() - HOUR)), 400, "InputError")
    await refused(create(api, dependencies=[slugId()]), 403, "InsufficientScopes")
    assert not api.tc.queue.groups


@pytest.mark.parametrize("task_id", ["x", "VGQ1aNKBRaGLWb_o_S9cQB", "AGQ1aNKBAaGLWb_o_S9cQA"])
async def test_a_task_id_is_a_slugid(api: Api, task_id: str) -> None:
    await refused(create(api, task_id), 400, "InvalidRequestArguments", "taskId")


async def test_a_body_that_the_schema_refuses_is_400(api: Api) -> None:
    await refused(create(api, metadata=None), 400, "InputValidationError", "metadata")
    await refused(create(api, routes=[f"r{n}" for n in range(65)]), 400, "InputValidationError", "64 items")
    await create(api, routes=[f"r{n}" for n in range(64)])


async def test_a_nul_in_the_payload_is_500_each_time(api: Api) -> None:
    task_id = slugId()
    for _ in range(2):
        await refused(create(api, task_id, payload={"x": "a\0"}), 500, "InternalServerError")
    await refused(api("status", task_id), 404, "ResourceNotFound")


@pytest.mark.parametrize("priority", ["highest", "medium", "lowest"])
async def test_the_scopes_of_create_task_are_exactly_the_published_ones(api: Api, priority: str) -> None:
    definition = api.define(
        priority=priority, scopes=["s:a", "s:b*"], routes=["r.1", "r.2"], projectId="proj/x", schedulerId="sched"
    )
    needed = [
        *("s:a", "s:b*", "queue:route:r.1", "queue:route:r.2"),
        *("queue:create-task:project:proj/x", "queue:scheduler-id:sched", f"queue:create-task:{priority}:prov/w"),
    ]
    for left_out in needed:
        api.tc.auth.add_client("c", "c", [scope for scope in needed if scope != left_out])
        api.client = Client("c", "c")
        await refused(api("createTask", slugId(), body=definition), 403, "InsufficientScopes", "missing the following")
    api.tc.auth.add_client("c", "c", needed)
    await api("createTask", slugId(), body=definition)


async def test_the_project_none_needs_its_scope_too_and_a_higher_priority_covers_a_lower(api: Api) -> None:
    scopes = ["queue:scheduler-id:sched", "queue:create-task:high:prov/w"]
    api.tc.auth.add_client("c", "c", scopes)
    api.client = Client("c", "c")
    await refused(create(api, priority="low"), 403, "InsufficientScopes", "queue:create-task:project:none")
    api.tc.auth.add_client("c", "c", [*scopes, "queue:create-task:project:none"])
    await create(api, priority="low")
    await refused(create(api, priority="very-high"), 403, "InsufficientScopes", "queue:create-task:highest:prov/w")


# --- dependencies ---


async def test_dependencies_must_exist(api: Api) -> None:
    there, missing = await create(api), slugId()
    task_id = slugId()
    await refused(create(api, task_id, dependencies=[there, missing]), 400, "InputError", missing)
    await refused(api("status", task_id), 404, "ResourceNotFound")
    assert (await api("listDependentTasks", there))["tasks"] == []


async def test_dependencies_must_not_expire_before_the_deadline(api: Api) -> None:
    now = api.tc.clock.now()
    short = await create(api, expires=iso(now + HOUR))
    await create(api, dependencies=[short], deadline=iso(now + HOUR))
    await refused(
        create(api, dependencies=[short], deadline=iso(now + HOUR + 1)), 400, "InputError", f"expire before .*{short}"
    )


async def test_a_task_waits_for_all_its_dependencies(api: Api, messages: list[Message]) -> None:
    first, second = await create(api, workerType="a"), await create(api, workerType="b")
    task_id = await create(api, dependencies=[first, second])
    assert await api.state(task_id) == "unscheduled"
    assert kinds(messages, task_id) == ["task-defined"]
    await finish(api, first, queue_id="prov/a")
    assert await api.state(task_id) == "unscheduled"
    await finish(api, second, queue_id="prov/b")
    assert await api.state(task_id) == "pending"
    assert kinds(messages, task_id) == ["task-defined", "task-pending"]


async def test_completed_dependencies_are_no_reason_to_wait(api: Api) -> None:
    first = await create(api)
    await finish(api, first)
    assert await api.state(await create(api, dependencies=[first])) == "pending"


@pytest.mark.parametrize("how", ["failed", "exception:malformed-payload"])
async def test_a_failed_dependency_holds_dependents_back_unless_resolved_is_enough(api: Api, how: str) -> None:
    first = await create(api)
    strict = await create(api, dependencies=[first], workerType="x")
    lenient = await create(api, dependencies=[first], requires="all-resolved", workerType="x")
    await finish(api, first, how)
    assert await api.state(strict) == "unscheduled"
    assert await api.state(lenient) == "pending"
    assert await api.state(await create(api, dependencies=[first], workerType="x")) == "unscheduled"
    assert (
        await api.state(await create(api, dependencies=[first], requires="all-resolved", workerType="x")) == "pending"
    )
    await api("rerunTask", first)
    await finish(api, first)
    assert await api.state(strict) == "pending"


async def test_a_task_that_depends_on_itself_waits_for_schedule_task(api: Api) -> None:
    task_id = slugId()
    await create(api, task_id, dependencies=[task_id])
    assert await api.state(task_id) == "unscheduled"
    await api("scheduleTask", task_id)
    await finish(api, task_id)
    assert await api.state(task_id) == "completed"


async def test_dependents_are_listed_in_pages_whatever_their_group(api: Api) -> None:
    root = await create(api)
    expected = {await create(api, dependencies=[root]) for _ in range(5)}
    found: list[str] = []
    token: dict[str, str] = {}
    pages = 0
    while True:
        page = await api("listDependentTasks", root, query={"limit": 2, **token})
        assert page["taskId"] == root
        found += [each["status"]["taskId"] for each in page["tasks"]]
        pages += 1
        if "continuationToken" not in page:
            break
        token = {"continuationToken": page["continuationToken"]}
    assert (pages, len(found), set(found)) == (3, 5, expected)
    await refused(api("listDependentTasks", slugId()), 404, "ResourceNotFound")


# --- groups ---


async def test_a_group_is_listed_in_pages_of_tasks_with_status_in_no_order(api: Api) -> None:
    group = slugId()
    ids = [slugId() for _ in range(1005)]
    for task_id in ids:
        api.tc.queue.create_task(task_id, api.define(taskGroupId=group))
    queue = api.tc.queue
    large = queue.list_task_group(group)
    assert len(large["tasks"]) == 1000
    assert len(queue.list_task_group(group, None, large["continuationToken"])["tasks"]) == 5
    found: list[str] = []
    token: dict[str, str] = {}
    for _ in range(3):
        page = await api("listTaskGroup", group, query={"limit": 50, **token})
        found += [each["status"]["taskId"] for each in page["tasks"]]
        token = {"continuationToken": page["continuationToken"]}
    assert found == [each["status"]["taskId"] for each in large["tasks"][:150]]
    assert found != ids[:150]
    first = page
    assert first["tasks"][0]["task"]["taskGroupId"] == group
    group_facts = {key: first[key] for key in ("taskGroupId", "schedulerId", "expires")}
    assert await api("getTaskGroup", group) == group_facts
    assert group_facts["expires"] == iso((parse(first["tasks"][0]["task"]["expires"]) or 0) + HOUR)


async def test_a_group_that_is_not_there_is_404_and_a_strange_token_400(api: Api) -> None:
    for method in ("listTaskGroup", "getTaskGroup", "sealTaskGroup", "cancelTaskGroup"):
        await refused(api(method, slugId()), 404, "ResourceNotFound", "No task-group")
    group = await create(api)
    for query in ({"continuationToken": "x"}, {"limit": "many"}):
        await refused(api("listTaskGroup", group, query=query), 400, "InvalidRequestArguments")


async def test_a_group_has_one_scheduler(api: Api) -> None:
    group = await create(api, schedulerId="one")
    await refused(create(api, schedulerId="two", taskGroupId=group), 409, "RequestConflict", "same schedulerId")


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


async def test_a_group_is_told_to_be_resolved_when_its_last_task_is(api: Api, messages: list[Message]) -> None:
    group = await create(api)
    other = await create(api, taskGroupId=group, workerType="x")

    def resolved() -> int:
        return sum(m.exchange.endswith("/task-group-resolved") for m in messages)

    await finish(api, group)
    assert resolved() == 0
    await api("cancelTask", other)
    assert resolved() == 1
    await api("rerunTask", group)
    await finish(api, group)
    assert resolved() == 2
    recorded = read_published("pulse/queue-messages/task-group-resolved-0.json")
    assert messages[-1].payload.keys() == recorded["payload"].keys()
    assert messages[-1].routing_key == f"primary.{group}.sched._"


# --- many at once ---


async def test_definitions_and_statuses_come_for_many_without_those_that_are_missing(api: Api) -> None:
    ids = [await create(api) for _ in range(3)]
    asked = [*ids, ids[0], slugId(), "no slugid"]
    tasks = await api("tasks", body={"taskIds": asked})
    assert {each["taskId"]: each["task"]["metadata"]["name"] for each in tasks["tasks"]} == dict.fromkeys(ids, "a task")
    assert len(tasks["tasks"]) == 3
    statuses = await api("statuses", body={"taskIds": asked})
    assert {each["taskId"] for each in statuses["statuses"]} == set(ids)
    assert {each["status"]["state"] for each in statuses["statuses"]} == {"pending"}
    assert await api("statuses", body={}) == {"statuses": []}


async def test_reading_many_asks_for_the_scope_of_each(api: Api) -> None:
    ids = [await create(api) for _ in range(2)]
    api.tc.auth.add_client("c", "c", [f"queue:status:{ids[0]}", f"queue:get-task:{ids[0]}"])
    api.client = Client("c", "c")
    for method, scope in (("statuses", "queue:status"), ("tasks", "queue:get-task")):
        await api(method, body={"taskIds": ids[:1]})
        await refused(api(method, body={"taskIds": ids}), 403, "InsufficientScopes", f"{scope}:{ids[1]}")


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


# --- working ---


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


@pytest.mark.parametrize(("reason", "created"), [("worker-shutdown", "retry"), ("intermittent-task", "task-retry")])
async def test_some_exceptions_are_retried_while_retries_are_left(
    api: Api, messages: list[Message], reason: str, created: str
) -> None:
    task_id = await create(api, retries=1)
    await finish(api, task_id, f"exception:{reason}")
    status = (await api("status", task_id))["status"]
    assert (status["state"], status["retriesLeft"]) == ("pending", 0)
    assert status["runs"][1]["reasonCreated"] == created
    exception = messages[-2]
    assert kinds(messages, task_id)[-2:] == ["task-exception", "task-pending"]
    assert (exception.payload["runId"], exception.payload["status"]["state"]) == (0, "pending")
    assert len(exception.payload["status"]["runs"]) == 2
    await finish(api, task_id, f"exception:{reason}")
    status = (await api("status", task_id))["status"]
    assert (status["state"], len(status["runs"])) == ("exception", 2)


async def test_past_the_deadline_a_run_is_not_reported(api: Api) -> None:
    task_id = await create(api, deadline=iso(api.tc.clock.now() + MINUTE))
    await api.claim()
    api.tc.clock.advance(61)
    await refused(api("reportCompleted", task_id, 0), 409, "RequestConflict", "past its deadline")


# --- time ---


async def test_a_claim_that_is_not_renewed_is_retried_then_given_up(api: Api, messages: list[Message]) -> None:
    task_id = await create(api, retries=1)
    for _ in range(2):
        await api.claim()
        api.tc.advance(20 * 60 - 1)
        assert await api.state(task_id) == "running"
        api.tc.advance(1)
    status = (await api("status", task_id))["status"]
    assert [(run["reasonCreated"], run["reasonResolved"]) for run in status["runs"]] == [
        ("scheduled", "claim-expired"),
        ("retry", "claim-expired"),
    ]
    assert status["state"] == "exception"
    assert kinds(messages, task_id).count("task-exception") == 2


async def test_at_the_deadline_what_is_open_is_resolved(api: Api, messages: list[Message]) -> None:
    soon = iso(api.tc.clock.now() + 10 * MINUTE)
    done = await create(api, deadline=soon)
    await finish(api, done)
    running = await create(api, deadline=soon)
    await api.claim()
    pending = await create(api, deadline=soon)
    waiting = await create(api, dependencies=[pending], deadline=soon)
    after = await create(api, dependencies=[pending], requires="all-resolved")
    api.tc.advance(10 * 60 - 1)
    assert await api.state(pending) == "pending"
    api.tc.advance(1)
    for task_id in (running, pending, waiting):
        run = (await api("status", task_id))["status"]["runs"][-1]
        assert (run["state"], run["reasonResolved"]) == ("exception", "deadline-exceeded")
        assert kinds(messages, task_id)[-1] == "task-exception"
    assert (await api("status", waiting))["status"]["runs"][0]["reasonCreated"] == "exception"
    assert await api.state(done) == "completed"
    assert await api.state(after) == "pending"


async def test_what_has_expired_is_forgotten(api: Api) -> None:
    first = await create(api, expires=iso(api.tc.clock.now() + 2 * HOUR))
    second = await create(api, dependencies=[first], taskGroupId=first, expires=iso(api.tc.clock.now() + DAY))
    third = await create(api, dependencies=[second], expires=iso(api.tc.clock.now() + HOUR))
    api.tc.advance(HOUR / SECOND)
    await refused(api("status", third), 404, "ResourceNotFound")
    assert (await api("listDependentTasks", second))["tasks"] == []
    api.tc.advance(HOUR / SECOND)
    await refused(api("status", first), 404, "ResourceNotFound")
    assert [each["status"]["taskId"] for each in (await api("listTaskGroup", first))["tasks"]] == [second]
    api.tc.advance(DAY / SECOND)
    await refused(api("listTaskGroup", first), 404, "ResourceNotFound")
    assert (api.tc.queue.tasks, api.tc.queue.groups) == ({}, {})


# --- priority ---


async def test_a_new_priority_counts_at_once_and_makes_the_repeat_a_conflict(api: Api, messages: list[Message]) -> None:
    definition = api.define()
    task_id = slugId()
    await api("createTask", task_id, body=definition)
    other = await create(api, priority="medium")
    assert (await api("changeTaskPriority", task_id, body={"newPriority": "high"}))["status"]["priority"] == "high"
    changed = messages[-1]
    recorded = read_published("pulse/queue-messages/task-priority-changed-0.json")
    assert changed.payload.keys() == recorded["payload"].keys()
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


# --- messages ---


def shape(value: Any) -> Any:
    """The value's form: its keys and kinds, without what is in them."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key != "tags"}
    if isinstance(value, list):
        return [shape(each) for each in value]
    if isinstance(value, str) and parse(value) is not None:
        return "+00:00" if value.endswith("+00:00") else "Z"
    return type(value).__name__


@pytest.mark.parametrize(
    "name",
    [
        *(f"task-defined-{n}" for n in range(4)),
        *(f"task-pending-{n}" for n in range(4)),
        *(f"task-running-{n}" for n in range(4)),
        *(f"task-completed-{n}" for n in range(3)),
        *(f"task-exception-{n}" for n in range(4)),
        "task-failed-0",
    ],
)
async def test_messages_have_the_form_of_recorded_ones(api: Api, messages: list[Message], name: str) -> None:
    recorded = read_published(f"pulse/queue-messages/{name}.json")
    status = recorded["payload"]["status"]
    group, task_id = status["taskGroupId"], status["taskId"]
    routes = [key.removeprefix("route.") for key in recorded["CC"]]
    await create(
        api,
        task_id,
        taskGroupId=group,
        schedulerId="local-sched",
        provisionerId="local-prov",
        workerType="wt-a349c0",
        routes=routes,
        retries=2 if task_id.startswith("WcU") else 5,
    )
    for run in status["runs"]:
        if run["reasonCreated"] == "rerun":
            await api("rerunTask", task_id)
        if "workerId" in run:
            await api.claim("local-prov/wt-a349c0")
        reason = run.get("reasonResolved")
        if reason == "canceled":
            await api("cancelTask", task_id)
        elif reason in ("completed", "failed"):
            await api(f"report{reason.title()}", task_id, run["runId"])
        elif reason is not None:
            await api("reportException", task_id, run["runId"], body={"reason": reason})
    ours = [m for m in messages if (m.exchange, m.routing_key) == (recorded["exchange"], recorded["routingKey"])]
    assert shape(recorded["payload"]) in [shape(m.payload) for m in ours]
    assert list(ours[-1].cc) == recorded["CC"]


# --- a crash in the middle ---


async def test_a_task_whose_creation_crashed_is_healed_by_schedule_task_alone(
    api: Api, messages: list[Message]
) -> None:
    definition = api.define()
    task_id = slugId()
    api.tc.faults.add("crash", "createTask", times=1)
    await refused(api("createTask", task_id, body=definition), 500, "InternalServerError")
    assert (await api("createTask", task_id, body=definition))["status"]["state"] == "unscheduled"
    assert messages == []
    assert (await api("claimWork", "prov/w", body={**WORKER, "tasks": 1}))["tasks"] == []
    await api("scheduleTask", task_id)
    assert kinds(messages, task_id) == ["task-pending"]
    await finish(api, task_id)


async def test_a_task_whose_creation_crashed_is_not_scheduled_by_its_dependencies(api: Api) -> None:
    first, task_id = await create(api), slugId()
    api.tc.queue.create_task(task_id, api.define(dependencies=[first], workerType="x"), crash=True)
    await finish(api, first)
    assert await api.state(task_id) == "unscheduled"
    await api("rerunTask", task_id)
    assert await api.state(task_id) == "pending"


# --- no work per task that is there ---


def test_a_group_of_20000_is_created_in_seconds(api: Api) -> None:
    import time

    queue: Queue = api.tc.queue
    queue.listeners.clear()
    group = slugId()
    definition = api.define(taskGroupId=group)
    ids = [slugId() for _ in range(20_000)]
    begun = time.process_time()
    for task_id in ids:
        queue.create_task(task_id, definition)
    assert time.process_time() - begun < 20  # 1,000 a second, with a machine's worth of room
    root = ids[0]
    begun = time.process_time()
    for _ in range(5_000):
        queue.create_task(slugId(), api.define(dependencies=[root], workerType="x"))
    claim = queue.claim_work("prov/w", {**WORKER, "tasks": 1})["tasks"][0]
    assert claim["status"]["taskId"] == root
    queue.report_completed(root, 0)
    assert queue.pending_counts["prov/x"] == 5_000
    assert time.process_time() - begun < 5


def test_the_program_itself_needs_no_scopes_but_keeps_the_rules(api: Api) -> None:
    with pytest.raises(ApiError, match="ResourceNotFound"):
        api.tc.queue.status(slugId())
