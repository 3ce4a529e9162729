"""createTask: idempotency, checks, scopes and dependencies."""

from typing import Any

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import HOUR, iso
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Message
from tests.sandbox.taskcluster.support import WORKER, Api, create, finish, kinds, refused


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


async def test_dependencies_must_exist(api: Api) -> None:
    existing, missing = await create(api), slugId()
    task_id = slugId()
    await refused(create(api, task_id, dependencies=[existing, missing]), 400, "InputError", missing)
    await refused(api("status", task_id), 404, "ResourceNotFound")
    assert (await api("listDependentTasks", existing))["tasks"] == []


async def test_dependencies_must_not_expire_before_the_deadline(api: Api) -> None:
    now = api.tc.clock.now()
    short = await create(api, expires=iso(now + HOUR))
    await create(api, dependencies=[short], deadline=iso(now + HOUR))
    await refused(
        create(api, dependencies=[short], deadline=iso(now + HOUR + 1)), 400, "InputError", f"expire before .*{short}"
    )


async def test_a_group_has_one_scheduler(api: Api) -> None:
    group = await create(api, schedulerId="one")
    await refused(create(api, schedulerId="two", taskGroupId=group), 409, "RequestConflict", "same schedulerId")


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


@pytest.mark.long
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
