"""Pushes become graphs, with real processes that are killed and upstreams that fail.

Each test ends with exactly one resultset per environment and exactly one graph, with the same task ids.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import make_url

from sandbox.stack import free_port
from tests.proxy import TcpProxy
from tests.published_schemas import read_published
from tests.pushlog_examples import TEN
from tests.system.conftest import PATH, REPOSITORY, System, mostly_postgresql

Systems = Callable[..., System]


def test_a_push_becomes_a_resultset_and_a_graph(systems: Systems, database_url: str) -> None:
    system = systems(database_url)
    service, listener = system.stack.service(), system.stack.listener()
    system.add_repository()
    push_id = system.push(tasks=3)
    (push,) = system.expect_exactly_once(pushes=1, tasks=3)
    assert push["push_id"] == push_id
    assert push["user"] == "dev@example.com"
    repository = system.api.get(f"/repositories/{REPOSITORY}").json()
    assert repository["last_push_id"] == push_id
    assert repository["last_changeset"] == push["revision"]
    assert listener.stop(5) == 0
    assert service.stop(10) == 0


def test_pushes_in_the_form_of_2013_give_ten_resultsets(systems: Systems, sqlite_url: str) -> None:
    ten_resultsets(systems, sqlite_url, TEN)


@pytest.mark.published
def test_the_real_pushes_of_2013_give_ten_resultsets(systems: Systems, sqlite_url: str) -> None:
    ten_resultsets(systems, sqlite_url, read_published("hg/json-pushes-ten-full.json"))


def ten_resultsets(systems: Systems, sqlite_url: str, listing: dict[str, Any]) -> None:
    system = systems(sqlite_url, settings={"TC_TREEHERDER_MAX_PUSH_AGE": "P10000D"})
    recorded = listing["pushes"]
    system.stack.service()
    system.stack.listener()
    recording = {"repository": "inbound", "answer": listing}
    system.hg.post("/load", json=recording).raise_for_status()
    url = f"{system.stack.sandbox['hg']}/inbound"
    system.treeherder.post("/repositories", json={"name": "inbound", "url": url}).raise_for_status()
    first = min(map(int, recorded))
    answer = system.api.post(
        "/repositories", json={"alias": "inbound", "url": url, "level": "3", "last_push_id": first - 1}
    )
    assert answer.status_code == 201
    system.wait(lambda: system.settled(10))
    pushes = system.pushes()
    assert sorted(push["push_id"] for push in pushes) == list(range(first, first + 10))
    assert all(push["graph"]["state"] == "skipped" for push in pushes)
    assert all("no .taskcluster.yml" in push["graph"]["reason"] for push in pushes)
    # the stand-in is strict about every field: what it stored has passed
    resultsets = system.treeherder.get("/state").json()["resultsets"]
    tips = {push["changesets"][-1]["node"] for push in recorded.values()}
    assert {resultset["resultset"]["revision"] for resultset in resultsets} == tips
    assert len(resultsets) == 10


# --- kill -9 -----------------------------------------------------------------------------------------------------


def test_killed_before_the_commit(
    systems: Systems, database_url: str, locked: Callable[[str], AbstractContextManager[None]]
) -> None:
    system = systems(database_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    with forwarding(system, database_url, locked):
        service.kill()
    system.stack.service()
    system.expect_exactly_once(pushes=3, tasks=2)


@contextmanager
def forwarding(
    system: System, database_url: str, locked: Callable[[str], AbstractContextManager[None]]
) -> Iterator[None]:
    """Hold the listener after it has sent three pushes that the service cannot commit while inside."""
    slow = {"repository": PATH, "kind": "delay", "seconds": 0.7, "command": "json-pushes"}
    system.hg.post("/faults", json=slow).raise_for_status()
    for _ in range(3):
        system.push()
    begun, answered = system.polls("requests"), system.polls("statuses")
    system.wait(lambda: system.polls("requests") > max(begun, answered))  # it was leased, and is asked for now
    with locked(database_url):
        answered = system.polls("statuses")
        system.wait(lambda: system.polls("statuses") > answered)
        time.sleep(0.3)  # the request is on its way, or waits for the lock
        assert system.hg.get("/requests").json()["listed"].get(f"{PATH} 3"), "the pushes were not listed"
        system.hg.delete("/faults")
        yield


def test_killed_after_the_commit(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    system.treeherder.patch("/behaviour", json={"delay": 5}).raise_for_status()
    system.hg.post("/faults", json={"repository": PATH, "kind": "delay", "seconds": 5, "command": "raw-file"})
    push_id = system.push()
    system.wait(lambda: system.push_stored(push_id))
    service.kill()
    system.treeherder.delete("/behaviour")
    system.hg.delete("/faults")
    system.stack.service()
    system.expect_exactly_once(pushes=1, tasks=2)


def test_killed_between_resultset_and_graph(systems: Systems, postgres_url: str) -> None:
    system = systems(postgres_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    system.hg.post("/faults", json={"repository": PATH, "kind": "delay", "seconds": 5, "command": "raw-file"})
    system.push()
    system.wait(lambda: bool(system.treeherder.get("/state").json()["resultsets"]))
    assert system.creations() == 0
    service.kill()
    system.hg.delete("/faults")
    system.stack.service()
    system.expect_exactly_once(pushes=1, tasks=2)


@mostly_postgresql
def test_killed_in_the_middle_of_a_graph_of_fifty(systems: Systems, database_url: str) -> None:
    system = systems(database_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    system.taskcluster.post("/latency", json={"seconds": 0.1}).raise_for_status()
    system.push(tasks=50)
    system.wait(lambda: system.creations() >= 15)
    service.kill()
    before = {task["status"]["taskId"] for task in system.taskcluster.get("/tasks").json()["tasks"]}
    assert 0 < len(before) < 50
    system.taskcluster.post("/latency", json={"seconds": 0})
    system.stack.service()
    (push,) = system.expect_exactly_once(pushes=1, tasks=50)
    assert before <= {task["task_id"] for task in push["graph"]["tasks"]}


def test_a_listener_killed_in_the_middle_of_a_batch(
    systems: Systems, postgres_url: str, locked: Callable[[str], AbstractContextManager[None]]
) -> None:
    system = systems(postgres_url)
    system.stack.service()
    listener = system.stack.listener()
    system.add_repository()
    with forwarding(system, postgres_url, locked):
        listener.kill()
    system.stack.listener()
    system.expect_exactly_once(pushes=3, tasks=2)


# --- upstreams that break ----------------------------------------------------------------------------------------


def test_taskcluster_answers_500_after_creating(systems: Systems, postgres_url: str) -> None:
    system = systems(postgres_url)
    system.stack.service()
    system.stack.listener()
    system.add_repository()
    for kind in ("after", "drop-after", "before", "throttle", "crash"):
        system.taskcluster.post("/faults", json={"kind": kind, "method": "createTask", "times": 2}).raise_for_status()
    system.push(tasks=12)
    system.expect_exactly_once(pushes=1, tasks=12)
    # what a crash left unscheduled was healed: everything runs to its end
    system.wait(lambda: system.task_states() == {"completed"})


def test_treeherder_is_down_for_a_while(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    system.stack.service()
    system.stack.listener()
    system.add_repository()
    system.treeherder.patch("/behaviour", json={"down": -1}).raise_for_status()
    for _ in range(3):
        system.push()
    # the graphs do not wait for it
    system.wait(lambda: [push["graph"]["state"] for push in system.pushes()] == ["done"] * 3)
    waiting = [resultset for push in system.pushes() for resultset in push["resultsets"]]
    assert all(resultset["state"] == "pending" for resultset in waiting)
    system.wait(lambda: all("503" in (r["error"] or "") for push in system.pushes() for r in push["resultsets"]))
    system.treeherder.delete("/behaviour")
    system.expect_exactly_once(pushes=3, tasks=2)


def test_a_resultset_whose_answer_was_lost_is_one_resultset(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    system.stack.service()
    system.stack.listener()
    system.add_repository()
    system.treeherder.patch("/behaviour", json={"fail_after": 2}).raise_for_status()
    system.push()
    system.expect_exactly_once(pushes=1, tasks=2)


def test_the_database_goes_away_for_a_while(systems: Systems, postgres_url: str) -> None:
    url = make_url(postgres_url)
    with TcpProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        system = systems(through)
        service = system.stack.service()
        system.stack.listener()
        system.add_repository()
        system.taskcluster.post("/latency", json={"seconds": 0.05}).raise_for_status()
        for _ in range(3):
            system.push(tasks=10)
        system.wait(lambda: system.creations() >= 5)
        proxy.refuse()
        proxy.cut()
        system.push(tasks=10)
        time.sleep(1.5)
        heartbeat = httpx.get(f"{system.stack.service_url}/__heartbeat__", timeout=10)
        assert heartbeat.status_code == 503
        assert heartbeat.json()["checks"][0]["name"] == "database"
        proxy.accept()
        system.expect_exactly_once(pushes=4, tasks=10)
        assert service.running()


# --- many at once ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_two_listeners_and_two_services_one_killed_again_and_again(systems: Systems, postgres_url: str) -> None:
    system = systems(postgres_url)
    system.stack.service()
    other_port = free_port()
    other = system.stack.service("other", port=other_port)
    system.stack.listener()
    second = system.stack.listener("second", TC_TREEHERDER_SERVICE_URL=f"http://127.0.0.1:{other_port}")
    system.add_repository()
    system.taskcluster.post("/latency", json={"seconds": 0.02})
    for round_ in range(3):
        for _ in range(10):
            system.push(tasks=5)
        system.wait(lambda stored=10 * round_: len(system.pushes()) > stored)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        other.kill()
        second.kill()
        other = system.stack.service("other", port=other_port)
        second = system.stack.listener("second", TC_TREEHERDER_SERVICE_URL=f"http://127.0.0.1:{other_port}")
    system.expect_exactly_once(pushes=30, tasks=5)


@pytest.mark.timeout(180)
def test_a_rolling_update_under_load_loses_and_doubles_nothing(systems: Systems, postgres_url: str) -> None:
    """As in the chart, a new replica is ready before an old one is told to end what it has begun."""
    system = systems(postgres_url)
    system.stack.service()  # the address that listener and API ask stays; behind it replicas come and go
    ports = [free_port(), free_port()]
    old = system.stack.service("old", port=ports[0])
    system.stack.listener()
    system.stack.listener("second", TC_TREEHERDER_SERVICE_URL=f"http://127.0.0.1:{ports[0]}")
    system.add_repository()
    system.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    for _ in range(15):
        system.push(tasks=5)
    new = system.stack.service("new", port=ports[1])
    system.wait(lambda: system.creations() > 5)
    assert old.stop(25) == 0
    for _ in range(5):
        system.push(tasks=5)
    system.expect_exactly_once(pushes=20, tasks=5)
    assert new.stop(25) == 0
    assert not [line for line in old.log.read_text().splitlines() if "Traceback" in line]


def test_the_service_is_stopped_and_started_while_pushes_come(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    for _ in range(3):
        for _ in range(5):
            system.push(tasks=3)
        assert service.stop(25) == 0
        service = system.stack.service()
    system.expect_exactly_once(pushes=15, tasks=3)


# --- what people see ---------------------------------------------------------------------------------------------


def test_a_broken_file_becomes_an_error_task_on_the_push(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    system.stack.service()
    system.stack.listener()
    system.add_repository()
    files = {".taskcluster.yml": "version: 1\ntasks: {$eval: 'no_such_thing'}"}
    system.hg.post(
        "/push", json={"repository": PATH, "user": "bob", "changesets": [{"message": "oops", "files": files}]}
    )
    system.wait(lambda: system.settled(1))
    (push,) = system.pushes()
    assert push["graph"]["state"] == "failed"
    assert "no_such_thing" in push["graph"]["reason"]
    (task,) = system.taskcluster.get("/tasks").json()["tasks"]
    assert task["status"]["taskId"] == push["graph"]["error_task"]
    assert "no_such_thing" in json.dumps(task)
    assert f"tc-treeherder.v2.{REPOSITORY}.{push['revision']}.{push['push_id']}" in json.dumps(task)


def test_the_answer_to_nonsense_names_it(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    system.stack.service()
    answer = system.api.post("/repositories", json={"alias": "x", "url": "https://example.org/x", "level": "1"})
    assert answer.status_code == 422
    assert "example.org" in answer.json()["detail"]
    answer = httpx.get(f"{system.stack.service_url}/api/v1/repositories")
    assert answer.status_code == 401
