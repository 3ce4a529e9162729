"""Every client of ours goes through the proxy that the usual variables name, and past it where NO_PROXY says so."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.all_clients import HG, TASKCLUSTER, TREEHERDER
from tests.connect_proxy import ConnectProxy
from tests.listeners.fakes import Answer, Request, serving
from tests.proxy import TlsProxy, make_certificate

VARIABLES = {f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")}
TUNNELS = {f"CONNECT {host}:443 HTTP/1.1" for host in (HG, TASKCLUSTER, TREEHERDER)}


def answer(request: Request) -> Answer:
    """Answer as each of the systems does, by the path."""
    path = request.path.partition("?")[0]
    answers: dict[str, tuple[int, Any]] = {
        "json-pushes": (200, {"lastpushid": 7, "pushes": {}}),
        "status": (404, {"code": "ResourceNotFound", "message": "none"}),
        "authenticate-hawk": (200, {"status": "auth-failed", "message": "the mac is stale", "scheme": "hawk"}),
        "resultset": (200, {"message": "well-formed JSON stored"}),
        "announced": (200, {"leases": []}),
        "repositories": (200, {"items": [], "next": None}),
        "repository": (200, []),
    }
    status, body = answers[path.rstrip("/").rsplit("/", 1)[-1]]
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"DNS:{name}" for name in (HG, TASKCLUSTER, TREEHERDER)]
    return make_certificate(tmp_path_factory.mktemp("tls"), *names)


@pytest.fixture
def service() -> Iterator[str]:
    with serving(answer) as url:
        yield url


def ask(certificate: Path, service: str, **variables: str) -> dict[str, Any]:
    """Return what all clients got in a process with these proxy variables and no others."""
    environ = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
    environ |= {"SSL_CERT_FILE": str(certificate), **variables}
    command = [sys.executable, "-m", "tests.all_clients", service]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=60)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"outcomes"')]
    outcome: dict[str, Any] = json.loads(line)
    return outcome


GOOD = {
    "hg": "7",
    "queue": "None",
    "auth": "PermanentUpstreamError: the mac is stale",
    "treeherder": "None",
    "listing": "7",
    "forward": "[]",
    "command": "[]",
    "import": "[]",
}


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_every_client_goes_through_the_proxy(certificate: Path, service: str, variable: str) -> None:
    with ExitStack() as stack:
        port = int(service.rpartition(":")[2])
        tls = stack.enter_context(TlsProxy("127.0.0.1", port, certificate))
        proxy = stack.enter_context(ConnectProxy("127.0.0.1", tls.port))
        outcome = ask(certificate, service, NO_PROXY="127.0.0.1", **{variable: proxy.url})
    assert outcome["outcomes"] == GOOD
    assert set(proxy.asked) == TUNNELS, "and the service on loopback was asked directly"
    # each of hg, import and listing, queue and auth, treeherder has a connection of its own
    assert {line: proxy.asked.count(line) for line in TUNNELS} == dict.fromkeys(TUNNELS, 2)
    assert outcome["counted"] == {"hg 200": 1, "taskcluster 404": 1, "taskcluster 200": 1, "treeherder 200": 1}


def test_a_service_is_asked_through_the_proxy_unless_no_proxy_names_it(certificate: Path, service: str) -> None:
    with ConnectProxy("127.0.0.1", int(service.rpartition(":")[2])) as proxy:
        outcome = ask(certificate, "http://service.egress.test", HTTP_PROXY=proxy.url)
    assert {name: outcome["outcomes"][name] for name in ("forward", "command")} == {"forward": "[]", "command": "[]"}
    assert sorted(line.split()[1] for line in proxy.asked) == [
        "http://service.egress.test/api/v1/polls/announced",
        "http://service.egress.test/api/v1/repositories?limit=100",
    ]


def test_a_proxy_that_refuses_is_said_and_counted(certificate: Path, service: str) -> None:
    with ConnectProxy("127.0.0.1", 1, refusal="502 Bad Gateway") as proxy:
        outcome = ask(certificate, service, NO_PROXY="127.0.0.1", HTTPS_PROXY=proxy.url)
    assert outcome["outcomes"] | {"forward": "[]", "command": "[]"} == outcome["outcomes"]
    assert outcome["outcomes"]["hg"].endswith("the proxy answers 502 Bad Gateway")
    assert outcome["outcomes"]["queue"] == "Unavailable: the proxy before Taskcluster answers 502"
    assert outcome["outcomes"]["treeherder"].endswith("the proxy answers 502 Bad Gateway")
    assert outcome["outcomes"]["auth"] == outcome["outcomes"]["queue"]
    assert outcome["counted"] == {"hg error": 1, "taskcluster error": 2, "treeherder error": 1}
