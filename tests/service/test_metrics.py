"""Metrics that Prometheus reads."""

import re

import pytest

from service import metrics
from service.clients.http import Http
from service.engine.worker import Worker
from service.errors import Unavailable
from service.store.database import Database
from service.store.models import StepKind
from tests.service.asgi import Api
from tests.service.harness import FlowHarness, push_event
from tests.service.samples import sample


async def test_an_attempt_and_every_call_upstream_are_counted(harness: FlowHarness) -> None:
    await harness.add_repository()
    await harness.store(push_event(1))
    requests_before = await sample(harness.database, "upstream_seconds_count", system="hg", method="raw-file")
    attempts_before = await sample(harness.database, "work_attempts_total", work="graph")
    await Worker(harness.services)._do(await harness.lease(StepKind.GRAPH))
    assert (
        await sample(harness.database, "upstream_seconds_count", system="hg", method="raw-file") == requests_before + 1
    )
    assert await sample(harness.database, "work_attempts_total", work="graph") == attempts_before + 1


async def test_calls_of_taskcluster_are_counted_by_what_they_are_and_how_they_were_answered(
    harness: FlowHarness,
) -> None:
    labels = {"system": "taskcluster", "method": "GET task status", "status": "404"}
    before = await sample(harness.database, "upstream_seconds_count", **labels)
    assert await harness.services.queue.status("Q47ciBXISJ-kc4l49EAI-A") is None
    assert await sample(harness.database, "upstream_seconds_count", **labels) == before + 1


def test_labels_hold_no_ids() -> None:
    task = "Q47ciBXISJ-kc4l49EAI-A"
    method = metrics.method_of("taskcluster", "GET", f"/api/queue/v1/task/{task}/runs/0/artifacts")
    assert method == "GET task runs artifacts"
    assert metrics.method_of("taskcluster", "PUT", f"/api/queue/v1/task/{task}") == "PUT task"
    assert metrics.method_of("treeherder", "POST", "/api/project/try/resultset/") == "POST resultset"
    assert metrics.method_of("hg", "GET", "/try/raw-file/" + "a" * 40 + "/.taskcluster.yml") == "raw-file"


async def test_a_request_without_an_answer_is_counted_as_an_error(sqlite: Database) -> None:
    labels = {"system": "treeherder", "method": "GET jobs", "status": "error"}
    before = await sample(sqlite, "upstream_seconds_count", **labels)
    async with Http("treeherder") as http:
        with pytest.raises(Unavailable):
            await http.send("GET", "http://127.0.0.1:1/api/project/try/jobs/", seconds=5, limit=1)
    assert await sample(sqlite, "upstream_seconds_count", **labels) == before + 1


async def test_metrics_are_open_and_in_prometheus_form(sqlite_api: Api) -> None:
    answer = await sqlite_api.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert re.search(r"^# TYPE tc_treeherder_events_total counter$", answer.text, re.MULTILINE)
