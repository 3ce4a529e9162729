"""Actions on whole pushes with real processes that are killed: what was begun is done, once."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox.stack import free_port
from service.flow.tasks.definition import format_date
from tests.system.conftest import REPOSITORY, System, mostly_postgresql
from tests.system.test_actions import became, task_id

Systems = Callable[..., System]

LONG = 600
"""Seconds that tasks take which nobody waits for."""


def begin(systems: Systems, database_url: str, **repository: Any) -> System:
    system = systems(database_url)
    system.stack.service()
    system.add_repository(**repository)
    system.stack.listener()
    return system


def push(system: System, tasks: int, seconds: float = LONG, **more: Any) -> int:
    """Push a graph of so many tasks that take so long, and wait until it is created."""
    push_id = system.push(tasks, seconds=seconds, **more)
    system.wait(lambda: graph_of(system, push_id).get("state") == "done", 60)
    return push_id


def graph_of(system: System, push_id: int) -> dict[str, Any]:
    answer = system.api.get(f"/pushes/{REPOSITORY}/{push_id}")
    return answer.json()["graph"] if answer.is_success else {}


def ask(system: System, action: str, push_id: int, **told: Any) -> int:
    body = {"action": action, "project": REPOSITORY, "push": push_id, "input": told}
    answer = system.api.post("/actions", json=body)
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def calls(system: System, method: str) -> int:
    return int(system.taskcluster.get("/calls").json()["calls"].get(method, 0))


def unfinished(system: System) -> int:
    """Return the number of tasks in Taskcluster that have not ended."""
    tasks = system.taskcluster.get("/tasks").json()["tasks"]
    return sum(task["status"]["state"] in {"unscheduled", "pending", "running"} for task in tasks)


@pytest.mark.timeout(180)
@mostly_postgresql
def test_killed_in_the_middle_of_a_cancel_of_three_hundred(systems: Systems, database_url: str) -> None:
    system = begin(systems, database_url)
    first, other = push(system, 300), push(system, 3)
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    action_id = ask(system, "cancel-push", first)
    for reached in (60, 150):
        system.wait(lambda reached=reached: calls(system, "cancelTask") >= reached)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        system.stack.processes["service"].kill()
        assert unfinished(system) > 3
        system.stack.service()
    action = became(system, action_id)
    assert (action["state"], action["reason"], action["cancels_count"]) == ("done", None, 300)
    tasks = {task["task_id"] for task in graph_of(system, first)["tasks"]}
    assert {task["task_id"] for task in action["cancels"]} == tasks
    assert unfinished(system) == 3
    assert {task["name"] for task in graph_of(system, other)["tasks"]} == {"t0", "t1", "t2"}


def fail(system: System, push_id: int, failing: int) -> dict[str, list[str]]:
    """Create tasks in a push's group as its decision task would, and wait until `failing` of them have failed.

    Each two neighbours have a dependent together. Returns the names of all with those that they depend on.
    """
    group = graph_of(system, push_id)["tasks"][0]["task_id"]
    names: dict[str, list[str]] = {f"f{number}": [] for number in range(failing)}
    names |= {f"d{number}": [f"f{number}", f"f{number + 1}"] for number in range(failing - 1)}
    at = datetime.now(UTC)
    tasks = [
        {
            "taskId": task_id(name),
            "task": {
                "taskQueueId": "sandbox/test",
                "schedulerId": "sandbox-level-3",
                "taskGroupId": group,
                "dependencies": [task_id(needed) for needed in dependencies],
                "created": format_date(at),
                "deadline": format_date(at + timedelta(days=1)),
                "routes": [f"tc-treeherder.v2.{REPOSITORY}.{'ab' * 20}.{push_id}"],
                "payload": {"sandbox": {"seconds": 0, "once": "completed" if dependencies else "failed"}},
                "metadata": {"name": name, "description": "d", "owner": "d@example.com", "source": "https://x.org/"},
            },
        }
        for name, dependencies in names.items()
    ]
    system.taskcluster.post("/tasks", json={"tasks": tasks}).raise_for_status()
    system.wait(lambda: states(system).count("failed") == failing, 60)
    return names


def states(system: System) -> list[str]:
    return [task["status"]["state"] for task in system.taskcluster.get("/tasks").json()["tasks"]]


@pytest.mark.timeout(180)
@mostly_postgresql
def test_killed_while_two_hundred_failed_tasks_are_retriggered(systems: Systems, database_url: str) -> None:
    system = begin(systems, database_url)
    push_id = push(system, 1, seconds=0)
    names = fail(system, push_id, 200)
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    before = system.creations()
    action_id = ask(system, "retrigger-failed", push_id)
    for reached in (100, 250):
        system.wait(lambda reached=reached: system.creations() - before >= reached)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        system.stack.processes["service"].kill()
        system.stack.service()
    action = became(system, action_id)
    assert (action["state"], action["reason"], action["tasks_created"]) == ("done", None, len(names))
    copies = {task["name"]: task["task_id"] for task in action["tasks"]}
    assert copies.keys() == names.keys()
    tasks = {task["status"]["taskId"]: task["task"] for task in system.taskcluster.get("/tasks").json()["tasks"]}
    assert len(tasks) == 1 + 2 * len(names)
    for name, dependencies in names.items():
        assert tasks[copies[name]]["dependencies"] == [copies[needed] for needed in dependencies]
    # and they run: what failed does not fail again
    system.wait(lambda: states(system).count("completed") == 1 + len(names), 60)
    again = became(system, ask(system, "retrigger-failed", push_id))
    assert (again["state"], again["reason"]) == ("nothing-to-do", f"no task of push {push_id} of try has failed")


@pytest.mark.timeout(180)
def test_two_services_that_cancel_the_same_push_at_once(systems: Systems, postgres_url: str) -> None:
    system = begin(systems, postgres_url)
    system.stack.service("other", port=free_port())
    push_id = push(system, 100)
    system.taskcluster.post("/latency", json={"seconds": 0.01}).raise_for_status()
    actions = [became(system, action_id) for action_id in [ask(system, "cancel-push", push_id) for _ in range(2)]]
    assert {action["state"] for action in actions} <= {"done", "nothing-to-do"}
    assert "done" in {action["state"] for action in actions}
    assert unfinished(system) == 0


@pytest.mark.timeout(180)
def test_a_graph_that_is_being_created_is_stopped(systems: Systems, sqlite_url: str) -> None:
    system = begin(systems, sqlite_url)
    system.taskcluster.post("/latency", json={"seconds": 0.05}).raise_for_status()
    push_id = system.push(400, seconds=LONG)
    system.wait(lambda: system.creations() >= 50)
    action = became(system, ask(system, "cancel-push", push_id))
    assert (action["state"], action["reason"]) == ("done", None)
    time.sleep(0.5)  # what is created in spite of it would be created now
    graph = graph_of(system, push_id)
    assert graph["state"] == "failed"
    assert "cancelled by" in graph["reason"]
    assert 0 < graph["tasks_created"] < 400
    assert unfinished(system) == 0


def action_on(system: System, push_id: int) -> dict[str, Any]:
    (action,) = system.api.get("/actions", params={"push": push_id}).json()["items"]
    return dict(action)


@pytest.mark.timeout(180)
@mostly_postgresql
def test_newer_pushes_supersede_earlier_ones_in_spite_of_kills(systems: Systems, database_url: str) -> None:
    system = begin(systems, database_url, supersede="pusher")
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    ids = [push(system, 120, user=f"{user}@example.com") for user in ("me", "other", "me")]
    system.wait(lambda: calls(system, "cancelTask") >= 20)
    system.stack.processes["service"].kill()
    system.stack.service()
    system.wait(lambda: states(system).count("exception") == 119, 60)
    # the decision task of the earlier push still runs, and may create more
    system.wait(lambda: "decision task" in (action_on(system, ids[2])["reason"] or ""))
    action = action_on(system, ids[2])
    assert (action["action"], action["state"], action["source"]) == ("supersede", "planned", "service")
    assert action["cancels_count"] == 119
    graphs = [graph_of(system, push_id) for push_id in ids]
    assert [graph["superseded_by"] for graph in graphs] == [ids[2], None, None]
    assert [graph["supersedes"] for graph in graphs] == [[], [], [ids[0]]]
    assert unfinished(system) == 1 + 2 * 120


@pytest.mark.timeout(180)
@mostly_postgresql
def test_pushes_from_before_the_cursor_are_processed_once_in_spite_of_kills(
    systems: Systems, database_url: str
) -> None:
    system = systems(database_url)
    system.stack.service()
    ids = [system.push(3) for _ in range(4)]
    system.add_repository(last_push_id=ids[-1])
    system.stack.listener()
    asked = [ask(system, "ingest", push_id) for push_id in [*ids[:2], *ids[:2]]]
    system.stack.processes["service"].kill()
    system.stack.service()
    asked += [ask(system, "ingest", push_id) for push_id in ids[:2]]
    ended = [became(system, action_id) for action_id in asked]
    assert {action["state"] for action in ended} <= {"done", "nothing-to-do"}
    assert sum(action["state"] == "done" for action in ended) == 2
    system.expect_exactly_once(pushes=2, tasks=3)
    # the cursor is where it was: the next push comes by itself, and is asked for at the same time
    newest = system.push(3)
    became(system, ask(system, "ingest", newest))
    assert sorted(push["push_id"] for push in system.expect_exactly_once(pushes=3, tasks=3)) == [*ids[:2], newest]
    assert system.api.get(f"/repositories/{REPOSITORY}").json()["last_push_id"] == newest
