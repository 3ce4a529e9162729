"""Errors of the tc-treeherder command, and the server in a process of its own."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs
from typer.testing import CliRunner

from service.cli import app
from service.store.database import check_schema
from tests.private_servers import free_ports
from tests.service.asgi import SECRETS, push_event, signature

PROGRAM = str(Path(sys.executable).with_name("tc-treeherder"))
SECRET = "never-to-be-shown"

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a command with these settings in this process. It returns exit code and output."""
    monkeypatch.setattr("service.log.configure", lambda *_: None)  # it would set up logging for all tests
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TC_TREEHERDER_")]:
        monkeypatch.delenv(name)

    def invoke(*arguments: str, **settings: str) -> tuple[int, str]:
        environment = {f"TC_TREEHERDER_{name}": value for name, value in settings.items()}
        result = CliRunner().invoke(app, arguments, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return invoke


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server.run", lambda _: pytest.fail("it was started"))


WRONG_SETTINGS: list[tuple[dict[str, str], list[str]]] = [
    ({"PORT": "x"}, ["port"]),
    ({"PORT": "70000"}, ["port", "65535"]),
    ({"TOKENS": json.dumps([{"name": "me", "value": SECRET[:9]}])}, ["tokens[0].value", "16"]),
    (
        {"TOKENS": json.dumps([{"name": "me", "value": SECRET, "scope": []}])},
        ["tokens[0].scope", "did you mean tokens[0].scopes?"],
    ),
    ({"TOKENS": f'[{{"name": "me", "value": "{SECRET}"'}, ["TC_TREEHERDER_TOKENS is not JSON"]),
    ({"WEBHOOK_SECRETS": json.dumps([SECRET])}, ["webhook_secrets[0]", "openssl"]),
    ({"DATABASE_URL": f"mysql://me:{SECRET}@db/x"}, ["database_url", "postgresql+psycopg://"]),
    ({"DATABASE_URL": f"postgresql://me:{SECRET}@db/x"}, ["database_url", "postgresql+psycopg://"]),
    ({"DATABASE_URL": f"sqlite:///{SECRET}"}, ["database_url", "sqlite+aiosqlite:///"]),
    ({"DATABASE_URL": SECRET}, ["database_url"]),
    ({"DATABASE_URL": f"postgresql+psycopg://me:{SECRET}@db:port/x"}, ["database_url"]),
    ({"ENVIRONMENTS": json.dumps({"x": {"url": "http://x", "secret": SECRET}})}, ["environments.x", "client_id"]),
    ({"CONFIG": "/nowhere/x.yml"}, ["/nowhere/x.yml"]),
    ({"LOG_LEVEL": "LOUD"}, ["log_level", "DEBUG"]),
]


@pytest.mark.parametrize("command", [["serve"], ["work"], ["db", "upgrade"]], ids=" ".join)
def test_wrong_settings_end_with_2_and_name_the_setting_without_its_secret(
    run: Run, no_server: None, command: list[str]
) -> None:
    for settings, words in WRONG_SETTINGS:
        code, output = run(*command, **settings)
        assert code == 2, (settings, output)
        for word in words:
            assert word in output, output
        assert SECRET not in output
        assert "Traceback" not in output


def test_beyond_loopback_it_serves_only_with_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("service.server.run", lambda config: started.append(config.host))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", ""):
        code, output = run("serve", HOST=host)
        assert code == 2
        assert "TC_TREEHERDER_TOKENS" in output
        assert "TC_TREEHERDER_HOST=127.0.0.1" in output
    assert started == []
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert run("serve", HOST=host)[0] == 0
    tokens = json.dumps([{"name": "me", "value": SECRET}])
    assert run("serve", HOST="0.0.0.0", TOKENS=tokens)[0] == 0
    assert started == ["127.0.0.1", "127.0.0.2", "::1", "localhost", "0.0.0.0"]


def test_settings_are_checked_as_serve_would(run: Run) -> None:
    good = {"WEBHOOK_SECRETS": json.dumps(SECRETS[:1])}
    for host in ("127.0.0.1", "::1", "localhost"):
        assert run("settings", "check", HOST=host, **good) == (0, "the settings are good\n")
    code, output = run("settings", "check", HOST="0.0.0.0", DATABASE_URI=SECRET, WEBHOOK_SECRETS=json.dumps([SECRET]))
    assert code == 2
    for words in (
        "listeners: invalid settings",
        "webhook_secrets[0]: a webhook secret is whsec_ and base64",
        f"and this one has {len(SECRET)} characters",
        "there is no setting TC_TREEHERDER_DATABASE_URI; did you mean TC_TREEHERDER_DATABASE_URL?",
    ):
        assert words in output
    assert SECRET not in output
    code, output = run("settings", "check", HOST="0.0.0.0", **good)
    assert (code, "host is 0.0.0.0, but no tokens are configured" in output) == (2, True)


def test_a_variable_that_is_no_setting_is_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server.run", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with capture_logs() as logs:
        assert run("serve", POL__INTERVAL=SECRET)[0] == 0
    (line,) = [line for line in logs if line["event"] == "setting-unknown"]
    assert line["variable"] == "TC_TREEHERDER_POL__INTERVAL"
    assert "TC_TREEHERDER_POLL" in line["remedy"]
    assert SECRET not in str(line)


@pytest.mark.parametrize("command", ["serve", "work"])
def test_on_postgresql_a_schema_that_is_behind_is_refused(
    run: Run, no_server: None, empty_postgres_url: str, command: str
) -> None:
    url = make_url(empty_postgres_url).set(password=SECRET).render_as_string(hide_password=False)
    code, output = run(command, DATABASE_URL=url)
    assert code == 2
    assert "tc-treeherder db upgrade" in output
    assert "schema none" in output
    assert SECRET not in output


@pytest.mark.parametrize(
    "command", [["serve"], ["work"], ["db", "upgrade"], ["db", "downgrade", "base", "--yes"]], ids=" ".join
)
def test_a_database_that_is_away_is_named_without_its_password(run: Run, no_server: None, command: list[str]) -> None:
    url = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/x?password={SECRET}"
    code, output = run(*command, DATABASE_URL=url)
    assert code == 2
    assert "127.0.0.1:9/x" in output
    assert "refused" in output
    assert SECRET not in output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", [["serve"], ["settings", "check"]], ids=" ".join)
def test_an_endpoint_for_traces_that_is_none_is_named(
    run: Run, no_server: None, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"me:{SECRET}@collector:4317")
    code, output = run(*command, WEBHOOK_SECRETS=json.dumps(SECRETS[:1]))
    assert code == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is no URL of a collector: set it to http://HOST:4318" in output
    assert SECRET not in output


def test_a_folder_that_is_not_there_is_named(run: Run, no_server: None) -> None:
    code, output = run("serve", DATABASE_URL="sqlite+aiosqlite:////nowhere/at/all/x.sqlite")
    assert code == 2
    assert "/nowhere/at/all/x.sqlite" in output
    assert "TC_TREEHERDER_DATABASE_URL" in output


def test_a_file_that_is_no_database_is_left_alone(run: Run, no_server: None, tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("my thesis" * 1000)
    code, output = run("serve", DATABASE_URL="sqlite+aiosqlite:///x.sqlite")
    assert code == 2
    assert "x.sqlite" in output
    assert (tmp_path / "x.sqlite").read_text() == "my thesis" * 1000


def test_db_goes_up_and_down(run: Run, empty_database_url: str) -> None:
    def go(*arguments: str) -> tuple[int, str]:
        return run("db", *arguments, DATABASE_URL=empty_database_url)

    assert go("upgrade") == (0, "the schema is at head\n")
    check_schema(empty_database_url)
    assert go("upgrade")[0] == 0, "once more does nothing"
    code, output = go("downgrade", "base")
    assert code == 2
    assert "cannot be undone: add --yes" in output
    check_schema(empty_database_url)
    assert go("downgrade", "0001", "--yes") == (0, "the schema is at 0001\n")
    assert go("downgrade", "base", "--yes")[0] == 0
    for arguments in (("upgrade", "splendid"), ("downgrade", "splendid", "--yes")):
        code, output = go(*arguments)
        assert code == 2
        assert "splendid" in output
        assert "Traceback" not in output


def test_without_a_command_it_shows_help(run: Run) -> None:
    for arguments in ((), ("db",), ("listen",)):
        code, output = run(*arguments)
        assert "Usage" in output
        assert code in {0, 2}
    assert run("unheard-of")[0] == 2


# --- processes


def error_output(log: Path) -> Path:
    """Return the file that a server's standard error goes to; `log` has its standard output."""
    return log.with_name(f"{log.name}-error")


@contextmanager
def serving(folder: Path, *arguments: str, **settings: str) -> Iterator[tuple[psutil.Popen, str, Path]]:
    """Start a server process, and yield it with its address and its log. It is killed afterwards if it still runs."""
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TC_TREEHERDER_")}
    environment |= {f"TC_TREEHERDER_{name}": value for name, value in {"PORT": str(port), **settings}.items()}
    log = folder / f"log-{secrets.token_hex(4)}"
    with log.open("wb") as out, error_output(log).open("wb") as error:
        process = psutil.Popen([PROGRAM, "serve", *arguments], cwd=folder, env=environment, stderr=error, stdout=out)
    try:
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(process: psutil.Popen, address: str, log: Path) -> httpx.Response:
    """Return the server's first answer."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{address}/__heartbeat__", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"no answer within 30 s: {log.read_text()}")


def test_on_sqlite_it_starts_on_nothing_takes_a_push_and_ends_well(tmp_path: Path) -> None:
    settings = {"WEBHOOK_SECRETS": json.dumps(SECRETS[:1]), "ALLOWED_HOSTS": '["127.0.0.1:9"]'}
    with serving(tmp_path, **settings) as (process, address, log):
        beat = wait_for(process, address, log)
        assert (beat.status_code, beat.json()["status"]) == (200, "ok")
        check_schema(f"sqlite+aiosqlite:///{tmp_path}/tc-treeherder.sqlite")
        with httpx.Client(base_url=address, trust_env=False) as client:
            body: dict[str, Any] = {
                "alias": "mc",
                "url": "http://127.0.0.1:9/mc",
                "level": "1",
                "last_push_id": 100,
                "graph": False,
            }
            assert client.post("/api/v1/repositories", json=body).status_code == 201
            raw = json.dumps({"events": [push_event(101)]}).encode()
            answer = client.post("/api/v1/events/pushes", content=raw, headers=signature(raw))
            assert (answer.status_code, answer.json()["verdicts"][0]["verdict"]) == (202, "accepted")
            for path, status in {
                "/nowhere": 404,
                "/api/v1/repositories/%00": 404,
                "/api/v1/pushes?after=x": 422,
            }.items():
                refused = client.get(path)
                assert (refused.status_code, refused.json()["status"]) == (status, status)
            large = client.post(
                "/api/v1/events/pushes", content=(b" " * 2**20 for _ in range(40)), headers=signature(b"")
            )
            assert large.status_code == 413
            odd = client.get("/nowhere", headers={"Host": "["})
            assert odd.status_code in {400, 403, 404}
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"repository-added", "push-stored"} <= {line["Type"] for line in lines}
    assert [line for line in lines if line["Severity"] < 4] == []
    summary = next(line for line in lines if line["Type"] == "request.summary" and line["Fields"]["code"] == 201)
    types: dict[str, type] = dict.fromkeys(("agent", "method", "path", "rid", "uid"), str)
    types |= dict.fromkeys(("errno", "code", "t"), int)
    assert {name: type(value) for name, value in summary["Fields"].items()} == types
    assert error_output(log).read_text() == ""
    assert not any(secret in log.read_text() for secret in SECRETS)


def test_on_postgresql_it_starts_once_the_schema_is_there(tmp_path: Path, postgres_url: str) -> None:
    with serving(tmp_path, "--no-worker", DATABASE_URL=postgres_url) as (process, address, log):
        assert wait_for(process, address, log).json()["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0, log.read_text()


def test_it_listens_on_dockerflows_port(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TC_TREEHERDER_")}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = psutil.Popen([PROGRAM, "serve"], cwd=tmp_path, env=environment | {"PORT": str(port)}, stdout=out)
    try:
        address = f"http://127.0.0.1:{port}"
        assert wait_for(process, address, log).status_code == 200
        for path in ("/__version__", "/__lbheartbeat__", "/docs", "/docs/swagger-ui.css"):
            assert httpx.get(address + path, trust_env=False).status_code == 200
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_ends_it_before_anything_is_made(tmp_path: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path, PORT=str(port), HOST=host) as (process, _, log):
            assert process.wait(30) == 5
            assert error_output(log).read_text() == (
                f"The API cannot listen on port {port} of {host} (Address already in use). "
                "Stop the program that uses it, or set TC_TREEHERDER_PORT to another one.\n"
            )
    assert not list(tmp_path.glob("*.sqlite"))


def test_the_installed_program_shows_its_commands() -> None:
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for command in ("serve", "work", "db", "listen"):
        assert command in done.stdout


def test_it_says_its_version() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"tc-treeherder \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("typed", "offered"), [("tc-treeherder pus", "pushes"), ("tc-treeherder settings ch", "check")]
)
def test_a_shell_completes_commands(typed: str, offered: str) -> None:
    position = str(len(typed.split()) - 1)
    variables = {"_TC_TREEHERDER_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": position}
    command = [PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | variables, check=False)
    assert offered in done.stdout.split()
