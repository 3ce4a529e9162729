"""Runs move from state to state: dependencies, retries, deadlines, expiry, and the messages about it."""

import asyncio
from typing import Any

import pytest
from taskcluster import slugId

from sandbox.taskcluster.clock import DAY, HOUR, MINUTE, SECOND, iso, parse
from sandbox.taskcluster.tasks import Message
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.message_examples import EXAMPLES, QUEUE_OF_EXAMPLES
from tests.sandbox.taskcluster.support import Api, create, finish, kinds, refused, validate_message


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
    assert messages[-1].payload.keys() == {"taskGroupId", "schedulerId", "expires", "version"}
    assert messages[-1].routing_key == f"primary.{group}.sched._"


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
    assert [task["status"]["taskId"] for task in (await api("listTaskGroup", first))["tasks"]] == [second]
    api.tc.advance(DAY / SECOND)
    await refused(api("listTaskGroup", first), 404, "ResourceNotFound")
    assert (api.tc.queue.tasks, api.tc.queue.groups) == ({}, {})


def shape(value: Any) -> Any:
    """Return the value's form: its keys and types, without its contents."""
    if isinstance(value, dict):
        return {key: shape(element) for key, element in value.items() if key != "tags"}
    if isinstance(value, list):
        return [shape(element) for element in value]
    if isinstance(value, str) and parse(value) is not None:
        return "+00:00" if value.endswith("+00:00") else "Z"
    return type(value).__name__


@pytest.mark.parametrize("recorded", EXAMPLES, ids=lambda recorded: recorded["exchange"].rpartition("/")[2])
async def test_messages_have_the_form_of_the_examples(api: Api, messages: list[Message], recorded: Any) -> None:
    validate_message(Message(recorded["exchange"], recorded["routingKey"], (), recorded["payload"]))
    await compare_with_recorded(api, messages, recorded)


@pytest.mark.published
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
    await compare_with_recorded(api, messages, read_published(f"pulse/queue-messages/{name}.json"))


async def compare_with_recorded(api: Api, messages: list[Message], recorded: Any) -> None:
    """Bring a task to the state that the recorded message tells, and compare the stand-in's message with it."""
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
            await api.claim(QUEUE_OF_EXAMPLES)
        reason = run.get("reasonResolved")
        if reason == "canceled":
            await api("cancelTask", task_id)
        elif reason in ("completed", "failed"):
            await api(f"report{reason.title()}", task_id, run["runId"])
        elif reason is not None:
            await api("reportException", task_id, run["runId"], body={"reason": reason})
    published = [m for m in messages if (m.exchange, m.routing_key) == (recorded["exchange"], recorded["routingKey"])]
    assert shape(recorded["payload"]) in [shape(m.payload) for m in published]
    assert list(published[-1].cc) == recorded["CC"]


async def test_who_waits_for_work_can_be_cancelled_while_work_arrives(api: Api) -> None:
    waiter = asyncio.create_task(api.tc.queue.arrival(60))
    for _ in range(3):
        await asyncio.sleep(0)
    api.tc.queue.create_task(slugId(), api.define())
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
