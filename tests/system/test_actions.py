"""Actions with real processes that are killed, and a Taskcluster that breaks: each is carried out exactly once."""

import json
import time
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from sandbox.stack import free_port
from tests.system.conftest import REPOSITORY, System, mostly_postgresql

Systems = Callable[..., System]

FAILED = "failed"
"""The name of the task that fails at first; its copy does not."""


def task_id(name: str) -> str:
    drawn = uuid.UUID(bytes=uuid.uuid5(uuid.NAMESPACE_OID, name).bytes, version=4)
    return urlsafe_b64encode(drawn.bytes).decode()[:22]


def graph(size: int) -> dict[str, list[str]]:
    """Return a decision task, and `size` tasks: one fails, and the others wait for it, two by two in chains."""
    names = [f"t{number}" for number in range(size - 1)]
    tasks: dict[str, list[str]] = {"decision": [], FAILED: ["decision"]}
    for number, name in enumerate(names):
        tasks[name] = [FAILED] if number % 2 == 0 else [names[number - 1], FAILED]
    return tasks


def put(system: System, tasks: dict[str, list[str]], seconds: float = 0) -> None:
    """Create the tasks in Taskcluster, as a push would, and wait until the one has failed."""
    at = datetime.now(UTC)
    definitions = [
        {
            "taskId": task_id(name),
            "task": {
                "taskQueueId": "sandbox/test",
                "schedulerId": "sandbox-level-3",
                "taskGroupId": task_id("decision"),
                "dependencies": [task_id(name) for name in dependencies],
                "created": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "deadline": (at + timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "routes": [f"tc-treeherder.v2.{REPOSITORY}.{'ab' * 20}.1"],
                "payload": {
                    "sandbox": {"seconds": seconds, "once": "failed" if name == FAILED else "completed"},
                    "needs": [task_id(name) for name in dependencies],
                },
                "metadata": {"name": name, "description": "d", "owner": "d@example.com", "source": "https://x.org/"},
            },
        }
        for name, dependencies in tasks.items()
    ]
    system.taskcluster.post("/tasks", json={"tasks": definitions}).raise_for_status()
    if FAILED in tasks:
        system.wait(lambda: state(system, task_id(FAILED)) == "failed")


def state(system: System, task_id: str) -> str:
    (task,) = system.taskcluster.get("/tasks", params={"taskId": task_id}).json()["tasks"]
    return str(task["status"]["state"])


def ask(system: System, name: str = FAILED, action: str = "retrigger", **headers: str) -> int:
    body = {"action": action, "project": REPOSITORY, "task_id": task_id(name)}
    answer = system.api.post("/actions", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def became(system: System, action_id: int, seconds: float = 60) -> dict[str, Any]:
    """Return an action, once it has ended."""
    action: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal action
        try:
            answer = system.api.get(f"/actions/{action_id}")
        except httpx.TransportError:  # killed just now
            return False
        action = answer.json() if answer.is_success else {}
        return action.get("state") not in {None, "received", "planned"}

    try:
        system.wait(ended, seconds)
    except Exception as error:
        raise AssertionError(f"action {action_id} has not ended: { {**action, 'tasks': None} }") from error
    return action


def expect_copied(system: System, tasks: dict[str, list[str]], *actions: dict[str, Any]) -> None:
    """Assert that Taskcluster has exactly the originals and the copies."""
    time.sleep(0.3)  # what is done twice would be done now
    created = {copy["status"]["taskId"]: copy["task"] for copy in system.taskcluster.get("/tasks").json()["tasks"]}
    originals = {task_id(name) for name in tasks}
    copies = [copy["task_id"] for action in actions for copy in action["tasks"]]
    assert len(set(copies)) == len(copies)
    assert created.keys() == originals | set(copies)
    for action in actions:
        assert (action["state"], action["reason"]) == ("done", None)
        new = {copy["copy_of"]: copy["task_id"] for copy in action["tasks"]}
        assert new.keys() == originals - {task_id("decision")}
        assert all(copy["created"] for copy in action["tasks"])
        for copy in action["tasks"]:
            expected = [new.get(task_id(old), task_id(old)) for old in tasks[copy["name"]]]
            assert created[copy["task_id"]]["dependencies"] == expected
            assert created[copy["task_id"]]["payload"]["needs"] == expected
            assert created[copy["task_id"]]["taskGroupId"] == new[task_id(FAILED)]


@pytest.fixture
def tasks() -> dict[str, list[str]]:
    return graph(500)


def begin(systems: Systems, database_url: str, tasks: dict[str, list[str]]) -> System:
    system = systems(database_url)
    system.stack.service()
    system.add_repository()
    put(system, tasks)
    return system


@pytest.mark.timeout(180)
@mostly_postgresql
def test_killed_in_the_middle_of_a_plan_of_five_hundred(
    systems: Systems, database_url: str, tasks: dict[str, list[str]]
) -> None:
    system = begin(systems, database_url, tasks)
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    before = system.creations()
    action_id = ask(system)
    for reached in (150, 300):
        system.wait(lambda reached=reached: system.creations() - before >= reached)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        system.stack.processes["service"].kill()
        created = len(system.taskcluster.get("/tasks").json()["tasks"]) - len(tasks)
        assert 0 < created < 500
        system.stack.service()
    action = became(system, action_id)
    assert len(action["tasks"]) == 500
    expect_copied(system, tasks, action)
    # and they run: what failed does not fail again
    system.wait(lambda: system.task_states() == {"completed", "failed", "unscheduled"}, 60)
    assert all(state(system, copy["task_id"]) == "completed" for copy in action["tasks"][:5])


@pytest.mark.timeout(180)
@mostly_postgresql
def test_killed_before_the_plan_is_stored(systems: Systems, database_url: str) -> None:
    tasks = graph(60)
    system = begin(systems, database_url, tasks)
    slow = system.taskcluster.post("/faults", json={"kind": "delay", "method": "listTaskGroup", "seconds": 5})
    slow.raise_for_status()
    action_id = ask(system)
    system.wait(lambda: system.taskcluster.get("/calls").json()["calls"].get("listTaskGroup", 0) > 0)
    system.stack.processes["service"].kill()
    system.taskcluster.delete("/faults")
    system.stack.service()
    expect_copied(system, tasks, became(system, action_id))


@pytest.mark.timeout(180)
def test_stopped_in_the_middle_it_goes_on_afterwards(systems: Systems, sqlite_url: str) -> None:
    tasks = graph(300)
    system = begin(systems, sqlite_url, tasks)
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    before = system.creations()
    action_id = ask(system)
    system.wait(lambda: system.creations() - before >= 50)
    assert system.stack.processes["service"].stop(25) == 0
    system.stack.service()
    expect_copied(system, tasks, became(system, action_id))


@pytest.mark.timeout(180)
def test_a_taskcluster_that_fails_after_having_done_the_work(systems: Systems, sqlite_url: str) -> None:
    tasks = graph(120)
    system = begin(systems, sqlite_url, tasks)
    for kind, probability in (("after", 0.05), ("drop-after", 0.05), ("throttle", 0.05), ("crash", 0.02)):
        fault = {"kind": kind, "method": "createTask", "probability": probability}
        system.taskcluster.post("/faults", json=fault).raise_for_status()
    action_id = ask(system)
    action = became(system, action_id, 120)
    system.taskcluster.delete("/faults")
    expect_copied(system, tasks, action)
    for copy in action["tasks"]:
        system.wait(lambda wanted=copy["task_id"]: state(system, wanted) == "completed", 60)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults


@pytest.mark.timeout(180)
def test_two_services_one_killed_again_and_again(systems: Systems, postgres_url: str) -> None:
    tasks = graph(40)
    system = systems(postgres_url)
    system.stack.service()
    other_port = free_port()
    other = system.stack.service("other", port=other_port)
    system.add_repository()
    put(system, tasks)
    system.taskcluster.post("/latency", json={"seconds": 0.01}).raise_for_status()
    action_ids: list[int] = []
    for round_ in range(3):
        action_ids += [ask(system, **{"Idempotency-Key": f"{round_}-{number}"}) for number in range(4)]
        time.sleep(0.3)
        other.kill()
        other = system.stack.service("other", port=other_port)
        # the caller did not hear of it, and asks again
        again = [ask(system, **{"Idempotency-Key": f"{round_}-{number}"}) for number in range(4)]
        assert again == action_ids[-4:]
    expect_copied(system, tasks, *(became(system, action_id) for action_id in action_ids))


# --- from a listener ---------------------------------------------------------------------------------------------


def message(press: int, channel: int, *, redelivered: bool = False, action: str = "retrigger") -> dict[str, Any]:
    raw = task_id(FAILED)
    guid = uuid.UUID(bytes=urlsafe_b64decode(raw + "=="))
    body = {"version": 1, "project": REPOSITORY, "job_guid": f"{guid}/0", "action": action, "requester": "a@b.c"}
    return {
        "delivery": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{press} {channel}")),
        "channel": str(uuid.uuid5(uuid.NAMESPACE_OID, f"channel {channel}")),
        "redelivered": redelivered,
        "stamp": time.time(),
        "exchange": "exchange/treeherder/v1/job-actions",
        "routing_key": f"taskcluster.{REPOSITORY}.{action}",
        "body": json.dumps(body),
    }


def post(system: System, *messages: dict[str, Any]) -> list[str]:
    """Post a batch as the Pulse listener does; return the verdicts."""
    (secret,) = json.loads(system.stack.environment["TC_TREEHERDER_WEBHOOK_SECRETS"])
    raw, at = json.dumps({"events": messages}), datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", at, raw),
        "webhook-route-signature": Webhook(secret).sign("msg_1", at, "POST /api/v1/events/job-actions"),
    }
    answer = httpx.post(f"{system.stack.service_url}/api/v1/events/job-actions", content=raw, headers=headers)
    assert answer.status_code == 202, answer.text
    return [verdict["verdict"] for verdict in answer.json()["verdicts"]]


@mostly_postgresql
def test_a_message_that_comes_again_after_a_crash_is_one_action(systems: Systems, database_url: str) -> None:
    tasks = graph(5)
    system = begin(systems, database_url, tasks)
    presses = [message(1, channel=1), message(2, channel=1)]  # the button twice
    assert post(system, *presses) == ["accepted", "accepted"]
    system.stack.processes["service"].kill()  # the 202 is lost
    system.stack.service()
    assert post(system, *presses) == ["duplicate", "duplicate"]
    # then the listener dies, and the broker delivers both to another one
    again = [message(number, channel=2, redelivered=True) for number in (1, 2)]
    assert post(system, *again) == ["duplicate", "duplicate"]
    listed = system.api.get("/actions").json()["items"]
    assert len(listed) == 2
    expect_copied(system, tasks, *(became(system, action["id"]) for action in listed))


def test_a_task_is_cancelled(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    system.stack.service()
    system.add_repository()
    put(system, {"decision": [], "long": ["decision"]}, seconds=60)
    system.wait(lambda: state(system, task_id("decision")) == "running")
    for name in ("long", "decision"):
        assert became(system, ask(system, name, "cancel"))["state"] == "done"
        assert state(system, task_id(name)) == "exception"
    assert became(system, ask(system, "long", "cancel"))["state"] == "nothing-to-do"
