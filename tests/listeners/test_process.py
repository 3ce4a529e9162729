"""Listeners as processes: signals, exit codes, and what they keep in memory."""

import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from listeners.pushlog import main
from sandbox.stack import free_port
from tests.listeners.broker_harness import ACTIONS, BrokerHarness, running_pulse_listener, wait_until
from tests.listeners.fakes import Answer, Request
from tests.listeners.processes import running_listener, terminate
from tests.listeners.pushlog_harness import PushlogHarness
from tests.otlp_collector import collecting
from tests.proxy import TcpProxy


def test_a_probe_port_in_use_has_an_exit_code_of_its_own(broker_harness: BrokerHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_pulse_listener(broker_harness, probe_port=str(port)) as running:
            output, _ = running.communicate(timeout=30)
    assert running.returncode == 5
    assert f"The probe of the Pulse listener cannot listen on port {port} of 127.0.0.1 (Address already in" in output
    assert "set TC_TREEHERDER_PROBE_PORT to another one" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_pulse_listener(broker_harness: BrokerHarness, number: signal.Signals) -> None:
    port = free_port()
    with running_pulse_listener(broker_harness, probe_port=str(port)) as running:
        wait_until(lambda: broker_harness.service.reports, 60)
        state = httpx.get(f"http://127.0.0.1:{port}/__heartbeat__").json()
        assert (state["status"], state["queues"][broker_harness.queue]["connected"]) == ("ok", True)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        # 55 MB on Python 3.11, 61 on 3.14: a leak or a heavy import would show
        assert psutil.Process(running.pid).memory_info().rss < (60e6 if sys.version_info < (3, 14) else 65e6)
        output = terminate(running, number, 3)
    assert '"stopped"' in output
    assert broker_harness.count_ready() == 0


def test_what_the_pulse_listener_forwards_is_a_span_that_the_service_continues(
    broker_harness: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[tuple[str, str | None]] = []

    def note(request: Request) -> None:
        carried.append((request.path, request.headers.get("traceparent")))

    broker_harness.service.override = note
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with running_pulse_listener(broker_harness) as running:
            wait_until(lambda: broker_harness.service.reports, 60)
            broker_harness.press("1")
            wait_until(lambda: broker_harness.service.bodies() == ["1"])
            terminate(running, signal.SIGTERM, 5)
    (forward,) = collector.named("forward job-actions")
    (post,) = collector.children(forward)
    assert (forward.service, forward.attributes) == ("tc-treeherder-listen-pulse", {"tc_treeherder.events": 1})
    posted = [(traceparent or "").split("-")[1:3] for path, traceparent in carried if path == ACTIONS]
    assert [post.trace.hex(), post.id.hex()] in posted
    assert {traceparent for path, traceparent in carried if path != ACTIONS} == {None}, "reports come all the time"


def test_an_endpoint_for_traces_that_is_none_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    with running_listener("pushlog", "http://127.0.0.1:1") as running:
        output, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is no URL of a collector: set it to http://HOST:4318" in output


def test_sigterm_stops_the_pulse_listener_within_5_seconds_while_nobody_answers(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    silent = threading.Event()

    def hang(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            silent.wait(20)
        return None

    broker_harness.service.override = hang
    with running_pulse_listener(broker_harness, pulse_url=broker_harness.broker) as running:
        wait_until(lambda: broker_harness.service.reports, 60)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.count_ready() == 0)
        proxy.hold()
        output = terminate(running, signal.SIGTERM, 5)
        silent.set()
    assert "abandoned" in output


def test_kill_9_loses_no_message(broker_harness: BrokerHarness) -> None:
    """The listener is killed several times while messages come in, and each message arrives."""
    broker_harness.channel.queue_declare(broker_harness.queue, durable=True)
    broker_harness.channel.queue_bind(broker_harness.queue, broker_harness.actions, "taskcluster.#")
    broker_harness.press(*map(str, range(400)))

    def slowly(request: Request) -> Answer | None:
        time.sleep(0.005)
        return None

    def all_arrived() -> bool:
        return len(set(broker_harness.service.bodies())) == 400

    def have_arrived(count: int) -> bool:
        return len(broker_harness.service.events()) >= count or all_arrived()

    broker_harness.service.override = slowly
    kills = 0
    while not all_arrived():
        kill_at = len(broker_harness.service.events()) + 1 + kills % 5 * 40
        with running_pulse_listener(broker_harness, pulse_batch="25", pulse_linger="0") as running:
            wait_until(partial(have_arrived, kill_at), 60)
            running.kill()
        kills += 1
    assert kills > 2
    assert set(broker_harness.service.bodies()) == set(map(str, range(400)))


def test_a_missing_pulse_url_is_a_settings_error(broker_harness: BrokerHarness) -> None:
    with running_pulse_listener(broker_harness, pulse_url="") as running:
        output, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "TC_TREEHERDER_PULSE__URL" in output
    assert "amqps://user:password@pulse.mozilla.org:5671/%2F" in output


ROOT = Path(__file__).parents[2]


def test_wrong_settings_exit_with_2_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TC_TREEHERDER_WEBHOOK_SECRETS", "[]")
    assert main() == 2
    assert (
        "webhook_secrets: the listener needs a secret to sign its requests: set TC_TREEHERDER_WEBHOOK_SECRETS"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_pushlog_listener(pushlog_harness: PushlogHarness, number: signal.Signals) -> None:
    pushlog_harness.pushlog.create("r")
    pushlog_harness.monitor()
    with running_listener("pushlog", pushlog_harness.url) as running:
        pushlog_harness.service.wait_for_polls("r", 2)
        output = terminate(running, number, 3)
    assert '"stopped"' in output
    assert f'"{number.name}"' in output
    assert pushlog_harness.service.repositories["r"].holder is None


def test_sigterm_stops_a_busy_pushlog_listener_within_5_seconds(pushlog_harness: PushlogHarness) -> None:
    """One pushlog is silent, pushes of another are being forwarded, and the service does not answer."""
    silent = threading.Event()
    pushlog_harness.pushlog.create("slow")
    pushlog_harness.pushlog.create("busy")
    pushlog_harness.pushlog.push("busy")
    pushlog_harness.fault("slow", "delay", seconds=5)
    pushlog_harness.monitor("slow")
    pushlog_harness.monitor("busy")

    def hang(request: Request) -> Answer | None:
        if "events" in request.path:
            silent.wait(10)
        return None

    pushlog_harness.service.override = hang
    with running_listener("pushlog", pushlog_harness.url) as running:
        pushlog_harness.service.wait_for(
            lambda: any("events" in request.path for request in pushlog_harness.service.requests)
        )
        output = terminate(running, signal.SIGTERM, 5)
        silent.set()
    assert "polls-abandoned" in output


@pytest.mark.parametrize(("listener", "own"), [("pushlog", []), ("pulse", ["broker"])])
def test_a_listener_imports_only_the_contract_of_the_service(listener: str, own: list[str]) -> None:
    code = f"""
import sys, listeners.{listener}
heavy = {{"fastapi", "sqlalchemy", "sqlmodel", "taskcluster", "aiohttp", "uvicorn", "starlette", "sandbox"}}
print(sorted(heavy & set(sys.modules)))
print(sorted(name for name in sys.modules if name.partition(".")[0] == "service"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    libraries, service_modules = done.stdout.splitlines()
    assert libraries == "[]"
    contract = sorted([*own, "build", "configuration", "events", "ports", "pushlog", "retry", "tracing", "validation"])
    assert service_modules == str(["service", "service.contract", *(f"service.contract.{name}" for name in contract)])
