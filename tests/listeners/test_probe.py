import json
import socket
import time
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from listeners.probe import ProbeServer


def test_both_paths_answer_and_an_error_is_a_503() -> None:
    state: dict[str, Any] = {"status": "ok", "queues": {"q": {"waiting": 1}}}
    with ProbeServer("127.0.0.1", 0, lambda: state) as probe:
        url = f"http://127.0.0.1:{probe.port}"
        for status, code in (("ok", 200), ("warning", 200), ("error", 503)):
            state["status"] = status
            short, long = httpx.get(f"{url}/__lbheartbeat__"), httpx.get(f"{url}/__heartbeat__")
            assert (short.status_code, short.json()) == (code, {"status": status})
            assert (long.status_code, long.json()) == (code, state)
        assert httpx.get(f"{url}/").status_code == 404
        assert "/metrics" in httpx.get(f"{url}/").text
        assert httpx.post(f"{url}/__heartbeat__").status_code == 501


def test_metrics_are_what_is_true_at_the_request() -> None:
    scrapes = iter([b"first 1\n", b"second 1\n"])
    with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok"}, lambda: next(scrapes)) as probe:
        answers = [httpx.get(f"http://127.0.0.1:{probe.port}/metrics") for _ in range(2)]
    assert [answer.content for answer in answers] == [b"first 1\n", b"second 1\n"]
    assert answers[0].headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_version_is_that_of_the_package() -> None:
    with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok"}) as probe:
        answer = httpx.get(f"http://127.0.0.1:{probe.port}/__version__")
    assert answer.json()["version"] == version("tc-treeherder")


def test_silent_clients_do_not_block_others() -> None:
    with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok"}) as probe:
        silent = [socket.create_connection(("127.0.0.1", probe.port)) for _ in range(5)]
        assert httpx.get(f"http://127.0.0.1:{probe.port}/__lbheartbeat__").status_code == 200
        for connection in silent:
            connection.close()


def test_the_server_stops_at_once() -> None:
    durations = []
    for _ in range(4):
        began = time.monotonic()
        with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok"}):
            pass
        durations.append(time.monotonic() - began)
    assert min(durations) < 0.45, "`serve_forever` looks every 0.5 s by itself"


def test_a_port_in_use_raises_an_error() -> None:
    with ProbeServer("127.0.0.1", 0, lambda: {}) as probe, pytest.raises(OSError, match="in use"):
        ProbeServer("127.0.0.1", probe.port, lambda: {})


def test_the_answer_is_json() -> None:
    with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok", "ü": "é"}) as probe:
        answer = httpx.get(f"http://127.0.0.1:{probe.port}/__heartbeat__")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content) == {"status": "ok", "ü": "é"}
