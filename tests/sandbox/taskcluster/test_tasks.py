"""Status, group and routing keys of a task."""

from sandbox.taskcluster import checks
from sandbox.taskcluster.clock import HOUR, iso, parse
from sandbox.taskcluster.tasks import Group, Task, cc_keys, routing_key
from tests.sandbox.taskcluster.support import validate

NOW = parse("2026-11-24T12:00:00.000Z") or 0
TASK_ID = "VGQ1aNKBRaGLWb_o_S9cQA"


def a_task() -> Task:
    definition = {
        "taskQueueId": "prov/w",
        "schedulerId": "sched",
        "created": iso(NOW),
        "deadline": iso(NOW + HOUR),
        "routes": ["a.b", "c"],
        "payload": {},
        "metadata": {"name": "n", "description": "d", "owner": "o", "source": "https://x"},
    }
    return Task(TASK_ID, checks.complete(TASK_ID, definition, NOW), NOW + HOUR, NOW + 2 * HOUR)


def test_the_state_is_that_of_the_latest_run() -> None:
    task = a_task()
    assert (task.state, task.resolved) == ("unscheduled", False)
    task.runs += [{"runId": 0, "state": "failed"}, {"runId": 1, "state": "pending"}]
    assert (task.state, task.resolved) == ("pending", False)
    task.runs[1]["state"] = "exception"
    assert (task.state, task.resolved) == ("exception", True)


def test_a_status_does_not_change_with_the_task() -> None:
    task = a_task()
    task.runs.append({"runId": 0, "state": "pending", "reasonCreated": "scheduled", "scheduled": iso(NOW)})
    status = task.status()
    task.runs[0]["state"] = "running"
    task.retries_left = 0
    assert (status["runs"][0]["state"], status["state"], status["retriesLeft"]) == ("pending", "pending", 5)
    validate({"status": status}, "queue/v1/task-status-response.json")


def test_a_group_tells_when_it_was_sealed() -> None:
    group = Group(TASK_ID, "sched")
    group.expires = NOW
    assert group.describe() == {"taskGroupId": TASK_ID, "schedulerId": "sched", "expires": iso(NOW)}
    group.sealed = NOW
    assert group.describe()["sealed"] == iso(NOW)


def test_a_missing_part_of_a_routing_key_is_an_underscore() -> None:
    task = a_task()
    tail = f"prov.w.sched.{TASK_ID}._"
    assert routing_key(task, None) == f"primary.{TASK_ID}._._._.{tail}"
    assert routing_key(task, {"runId": 0}) == f"primary.{TASK_ID}.0._._.{tail}"
    run = {"runId": 1, "workerGroup": "wg", "workerId": "w1"}
    assert routing_key(task, run) == f"primary.{TASK_ID}.1.wg.w1.{tail}"
    assert cc_keys(task) == ("route.a.b", "route.c")
