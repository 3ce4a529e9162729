"""Traces of a process: each test that sends some runs one, because they are set up once for each."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.contract import tracing
from service.contract.configuration import SettingsError
from tests.listeners.fakes import Answer, Request, serving
from tests.otlp_collector import Collector, collecting

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ROOT = Path(__file__).parents[3]


def run(script: str, **variables: str) -> list[Any]:
    """Run a script with these variables, and return what it printed: JSON, a document a line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"OTEL_BSP_SCHEDULE_DELAY": "50", **variables}
    command = [sys.executable, "-c", f"import json\nfrom service.contract import tracing\n{script}"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


NOTHING = """
import sys
tracing.start("x")
with tracing.span("a", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", n=1), tracing.quiet():
    tracing.fail("why")
    tracing.describe(id=7)
    print(json.dumps([tracing.current_traceparent(), tracing.trace_id(), tracing.aiohttp_configs()]))
assert not tracing.app_config(())["tracing"]
tracing.hide_query()
tracing.instrument_httpx(None)
tracing.stop()
print(json.dumps([name for name in sys.modules if name.startswith(("opentelemetry", "google"))]))
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_where_no_endpoint_is_named_nothing_is_loaded(variables: dict[str, str]) -> None:
    assert run(NOTHING, **variables) == [[None, None, []], []]


@pytest.mark.parametrize("wrong", ["collector:4317", "grpc://collector:4317", "http://", "http://c:99999999", "hush"])
@pytest.mark.parametrize("variable", tracing.ENDPOINTS)
def test_an_endpoint_that_is_no_url_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, wrong: str) -> None:
    monkeypatch.setenv(variable, wrong.replace("//", "//user:hush@"))
    with pytest.raises(SettingsError) as refused:
        tracing.configured()
    assert str(refused.value).startswith(f"{variable} is no URL of a collector: set it to http://HOST:4318")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("variable", tracing.PROTOCOLS)
def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv(variable, "http/protobuf")
    assert tracing.configured()
    monkeypatch.setenv(variable, "grpc")
    with pytest.raises(SettingsError, match=f"{variable} is 'grpc', .* set it to http/protobuf, and {ENDPOINT}"):
        tracing.configured()


SPANS = """
tracing.start("mine")
with tracing.span("made", lane="graph hg", id=0):
    tracing.describe(id=7)
    traceparent = tracing.current_traceparent()
    assert tracing.trace_id() == traceparent.split("-")[1]
with tracing.span("continued", traceparent):
    with tracing.span("inner"):
        tracing.fail("an upstream is away")
try:
    with tracing.span("broken", "nonsense"):
        raise ValueError("no good")
except ValueError:
    pass
tracing.stop()
print(json.dumps(traceparent))
"""


def sent(script: str, **variables: str) -> tuple[Collector, list[Any]]:
    with collecting() as collector:
        printed = run(script, **{ENDPOINT: collector.url, **variables})
    return collector, printed


def test_a_span_continues_the_trace_that_its_parent_names() -> None:
    collector, (traceparent,) = sent(SPANS)
    (made,), (continued,) = collector.named("made"), collector.named("continued")
    assert traceparent.split("-")[1:3] == [made.trace.hex(), made.id.hex()]
    assert (continued.trace, continued.parent) == (made.trace, made.id)
    assert made.attributes == {"tc_treeherder.lane": "graph hg", "tc_treeherder.id": 7}
    (inner,), (broken,) = collector.named("inner"), collector.named("broken")
    assert (inner.parent, inner.failed, continued.failed) == (continued.id, True, False)
    assert (broken.parent, broken.failed) == (b"", True), "a traceparent that cannot be read begins a trace"
    assert broken.trace != made.trace
    assert {span.service for span in collector.spans} == {"mine"}


def test_open_telemetrys_own_variables_hold() -> None:
    collector, _ = sent(SPANS, OTEL_SERVICE_NAME="theirs")
    assert {span.service for span in collector.spans} == {"theirs"}
    collector, _ = sent(SPANS, OTEL_TRACES_SAMPLER="always_off")
    assert collector.spans == []


APP = """
import httpx, asyncio
from fastapi import FastAPI, Request
tracing.start("mine")
app = FastAPI(telemetry=tracing.app_config(("/__", "/often/")))

@app.get("/items/{item}")
async def item(request: Request):
    tracing.hide_query()
    return {"carried": tracing.current_traceparent()}

@app.get("/often/{item}")
async def often():
    return {"carried": tracing.current_traceparent()}

async def main():
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://user:hush@here.test") as client:
        headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "baggage": "a=hush"}
        for path in ("/items/1?bewit=hush", "/often/1"):
            print(json.dumps((await client.get(path, headers=headers)).json()))

asyncio.run(main())
tracing.stop()
"""


def test_a_request_is_a_span_of_the_callers_trace_without_its_query() -> None:
    """A bewit in the query is a credential."""
    collector, (asked, often) = sent(APP)
    (span,) = collector.spans
    assert (span.name, span.trace.hex(), span.parent.hex()) == ("GET /items/{item}", "1" * 32, "2" * 16)
    assert asked["carried"].split("-")[1:3] == ["1" * 32, span.id.hex()]
    assert often["carried"] is None
    assert "hush" not in str(span.attributes)
    assert "/items/1" in str(span.attributes)


CLIENTS = """
import asyncio, aiohttp, httpx
tracing.start("mine")

async def main():
    async with aiohttp.ClientSession(trace_configs=tracing.aiohttp_configs()) as session:
        async with session.get(url + "/aiohttp?signature=hush"):
            pass

with tracing.span("outer"):
    asyncio.run(main())
    with httpx.Client() as client:
        tracing.instrument_httpx(client)
        client.get(url + "/httpx")
        with tracing.quiet():
            client.get(url + "/quiet")
tracing.stop()
"""


def test_requests_of_ours_are_spans_and_carry_the_trace() -> None:
    asked: dict[str, list[str]] = {}

    def answer(request: Request) -> Answer:
        asked[request.path.partition("?")[0]] = request.headers.get("traceparent", "").split("-")[1:3]
        return Answer()

    with serving(answer) as url:
        collector, _ = sent(f"url = {url!r}\n{CLIENTS}")
    (outer,) = collector.named("outer")
    calls = {span.url.removeprefix(url): span for span in collector.children(outer)}
    assert calls.keys() == {"/aiohttp", "/httpx"}, "without the query, and without what was to be quiet"
    for path, span in calls.items():
        assert asked[path] == [outer.trace.hex(), span.id.hex()]
    assert asked["/quiet"] == []


def test_traces_go_through_the_proxy_that_the_usual_variables_name() -> None:
    collector = Collector()

    def answer(request: Request) -> Answer:
        assert request.path.startswith("http://collector.test:4318/")
        return collector.answer(replace(request, path=request.path.removeprefix("http://collector.test:4318")))

    with serving(answer) as proxy:
        variables = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
        run(SPANS, **{ENDPOINT: "http://collector.test:4318"}, **variables)
    assert len(collector.named("made")) == 1


OUTAGE = """
import time, structlog
from structlog.testing import capture_logs
with capture_logs() as lines:
    tracing.start("mine")
    end = time.monotonic() + 30
    while len(lines) < 2 and time.monotonic() < end:
        with tracing.span("a"):
            time.sleep(0.01)
    tracing.stop()
print(json.dumps([(line["event"], line["log_level"], line["endpoint"]) for line in lines]))
"""


def test_an_outage_is_logged_when_it_begins_and_when_it_ends() -> None:
    refused: list[Request] = []

    def answer(request: Request) -> Answer:
        refused.append(request)
        return Answer(400 if len(refused) <= 3 else 200)

    with serving(answer) as url:
        (lines,) = run(OUTAGE, **{ENDPOINT: url.replace("//", "//user:hush@")})
    host = url.removeprefix("http://")
    assert lines == [["traces-not-sent", "warning", host], ["traces-sent-again", "info", host]]
