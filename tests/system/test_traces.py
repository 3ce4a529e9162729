"""Traces of real processes, as a collector gets them."""

import socket
from collections.abc import Callable

import pytest

from tests.otlp_collector import CollectedSpan, Collector, collecting
from tests.system.conftest import REPOSITORY, System

Systems = Callable[..., System]

CLIENT, SERVER = 3, 2


def settings_for(endpoint: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def only(spans: list[CollectedSpan], **expected: str | int) -> CollectedSpan:
    """Return the one span that has these values."""
    (span,) = [each for each in spans if all(getattr(each, name) == value for name, value in expected.items())]
    return span


def check_trace_of_push(collector: Collector) -> None:
    """Follow a push from the listener through the service and its steps to the upstreams."""
    forward = only(collector.named("forward pushes"), service="tc-treeherder-listen-pushlog")
    assert forward.parent == b""
    assert forward.attributes["tc_treeherder.repository"] == "try"
    post = only(collector.children(forward), kind=CLIENT)
    request = only(collector.children(post), kind=SERVER)
    assert (request.service, request.name) == ("tc-treeherder", "POST /api/v1/events/pushes")
    graph, resultset = (only(collector.children(request), name=name) for name in ("graph", "resultset"))

    def sent(step: CollectedSpan) -> list[tuple[str, str]]:
        calls = [span for span in collector.children(step) if span.kind == CLIENT]
        assert not any(span.failed for span in [step, *calls])
        return [(span.name, span.url) for span in calls]

    (posted,) = sent(resultset)
    assert posted[0] == "POST"
    assert posted[1].endswith("/api/project/try/resultset/")
    calls = sent(graph)
    assert [method for method, url in calls if "/raw-file/" in url] == ["GET"]
    assert [method for method, url in calls if "/api/queue/v1/task/" in url] == ["PUT"] * 2
    in_trace = {span.service for span in collector.spans if span.trace == forward.trace}
    assert in_trace == {"tc-treeherder", "tc-treeherder-listen-pushlog"}


def test_a_push_is_one_trace_from_the_listener_to_the_upstreams(systems: Systems, sqlite_url: str) -> None:
    with collecting() as collector:
        system = systems(sqlite_url, settings=settings_for(collector.url))
        service, listener = system.stack.service(), system.stack.listener()
        system.add_repository()
        assert system.api.get("/pushes", params={"bewit": "hush-hush"}).is_error
        system.push(tasks=2)
        system.expect_exactly_once(pushes=1, tasks=2)
        assert listener.stop(5) == 0
        assert service.stop(10) == 0
        check_trace_of_push(collector)
        asked_often = ("/__", "/metrics", "/api/v1/polls/", "/api/v1/listeners/")
        paths = [str(span.attributes.get("url.path", "")) + span.url for span in collector.spans]
        assert "/api/v1/pushes" in paths
        assert "hush-hush" not in str(collector.spans)
        assert not [path for path in paths if any(part in path for part in asked_often)]
        lines = [line for line in service.log.read_text().splitlines() if '"push-stored"' in line]
        (forward,) = collector.named("forward pushes")
        assert [f'"trace": "{forward.trace.hex()}"' in line for line in lines] == [True]


def test_a_worker_of_its_own_continues_the_trace(systems: Systems, postgres_url: str) -> None:
    """The trace is stored with the work."""
    with collecting() as collector:
        system = systems(postgres_url, settings=settings_for(collector.url))
        service, listener = system.stack.service("service", "--no-worker"), system.stack.listener()
        system.add_repository()
        push_id = system.push(tasks=2)
        system.wait(lambda: system.push_stored(push_id))
        worker = system.stack.worker()
        system.expect_exactly_once(pushes=1, tasks=2)
        for process in (listener, service, worker):
            assert process.stop(10) == 0
        check_trace_of_push(collector)


def test_an_action_continues_the_trace_of_who_asked_for_it(systems: Systems, sqlite_url: str) -> None:
    with collecting() as collector:
        system = systems(sqlite_url, settings=settings_for(collector.url))
        service, listener = system.stack.service(), system.stack.listener()
        system.add_repository()
        push_id = system.push(tasks=1)
        system.expect_exactly_once(pushes=1, tasks=1)
        (task,) = system.api.get(f"/pushes/{REPOSITORY}/{push_id}").json()["graph"]["tasks"]
        asked = {"action": "cancel", "project": REPOSITORY, "task_id": task["task_id"]}
        headers = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        action = system.api.post("/actions", json=asked, headers=headers)
        assert action.is_success, action.text
        system.wait(lambda: system.api.get(f"/actions/{action.json()['id']}").json()["state"] != "pending")
        for process in (listener, service):
            assert process.stop(10) == 0
    cancel = only(collector.named("cancel"))
    request = only(collector.named("POST /api/v1/actions"))
    assert (request.trace.hex(), request.parent.hex()) == ("1" * 32, "2" * 16)
    assert (cancel.trace, cancel.parent) == (request.trace, request.id)
    assert {span.kind for span in collector.children(cancel)} == {CLIENT}


def test_a_step_that_fails_is_marked_and_its_retry_is_in_the_same_trace(systems: Systems, sqlite_url: str) -> None:
    with collecting() as collector:
        system = systems(sqlite_url, settings=settings_for(collector.url))
        service = system.stack.service()
        system.stack.listener()
        system.add_repository()
        fault = {"kind": "before", "method": "createTask", "status": 500, "times": 1}
        system.taskcluster.post("/faults", json=fault).raise_for_status()
        system.push(tasks=1)
        system.expect_exactly_once(pushes=1, tasks=1)
        assert service.stop(10) == 0
    attempts = collector.named("graph")
    assert sorted(span.failed for span in attempts) == [False, True]
    assert len({(span.trace, span.parent) for span in attempts}) == 1


@pytest.mark.parametrize("dead", ["refuses", "silent"])
def test_a_collector_that_is_away_delays_and_breaks_nothing(systems: Systems, sqlite_url: str, dead: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        port = 1 if dead == "refuses" else server.getsockname()[1]
        system = systems(sqlite_url, settings=settings_for(f"http://127.0.0.1:{port}"))
        service, listener = system.stack.service(), system.stack.listener()
        system.add_repository()
        for number in range(3):
            system.push(tasks=2, message=f"Bug {number} - a change")
        system.expect_exactly_once(pushes=3, tasks=2)
        assert listener.stop(5) == 0
        assert service.stop(5) == 0
        for process in (service, listener):
            assert "Traceback" not in process.log.read_text()
