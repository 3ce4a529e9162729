import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import psutil
import psycopg
import pytest

from tests import private_servers
from tests.private_servers import (
    MissingServiceError,
    PrivateBroker,
    PrivatePostgres,
    PrivateServer,
    check_broker,
    check_postgres,
    conninfo,
    free_ports,
)
from tests.services import Server, own_vhost

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed() -> Callable[[type[PrivateServer]], None]:
    """Skip the test if a server is not installed; a run that needs one has installed it before."""

    def check(kind: type[PrivateServer]) -> None:
        try:
            kind.install()
        except MissingServiceError as why:
            if os.environ.get("REQUIRE_SERVICES", "") not in {"", "0"}:
                raise
            pytest.skip(f"no {kind.name} of our own to stop and kill: {why}")

    return check


def left_in(folder: Path) -> list[str]:
    """Return the processes that use a folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            words = [process.cwd(), *process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(folder) in word for word in words):
            processes.append(repr(process))
    return processes


def test_postgres_survives_stop_and_kill_and_leaves_nothing(
    installed: Callable[[type[PrivateServer]], None],
) -> None:
    installed(PrivatePostgres)
    with PrivatePostgres() as server:
        with psycopg.connect(conninfo(server.url)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
        with psycopg.connect(conninfo(server.url)) as connection:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert not server.running
        with pytest.raises(MissingServiceError, match="does not answer"):
            check_postgres(server.url)
        server.start()
        server.restart()
        with psycopg.connect(conninfo(server.url)) as connection:
            assert connection.execute("SELECT a FROM kept").fetchall() == [(1,)]
        assert left_in(server.folder)
    assert not server.folder.exists()
    assert left_in(server.folder) == []


@pytest.mark.long
def test_broker_survives_kill_and_leaves_nothing(
    installed: Callable[[type[PrivateServer]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(PrivateBroker)
    monkeypatch.setattr(PrivateBroker, "management", True)
    with PrivateBroker() as broker:
        channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        channel.basic_publish("", "kept", b"word", pika.BasicProperties(delivery_mode=2))
        broker.kill()
        with pytest.raises(pika.exceptions.AMQPError):
            channel.queue_declare("kept", passive=True)
        with pytest.raises(MissingServiceError, match="does not answer"):
            check_broker(broker.url)

        broker.start()
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        assert connection.channel().basic_get("kept", auto_ack=True)[2] == b"word"
        connection.close()

        monkeypatch.setenv("TEST_AMQP_MANAGEMENT_URL", broker.management_url)
        by_api = Server(broker.url, "a broker with a management API")
        monkeypatch.setattr("tests.services.run_ctl", None)
        with own_vhost(by_api) as url:
            assert url != broker.url
            assert url.rpartition("/")[2] in broker.ctl("list_vhosts", "name").split()
            check_broker(url)
        assert broker.ctl("list_vhosts", "name").split() == ["name", "/"]
    assert not broker.folder.exists()
    assert left_in(broker.folder) == []


def test_a_start_that_fails_says_why_and_leaves_nothing(
    installed: Callable[[type[PrivateServer]], None],
) -> None:
    installed(PrivatePostgres)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = PrivatePostgres([taken.getsockname()[1]])
        taken.close()
        (server.folder / "data").mkdir()  # which initdb never saw
        with pytest.raises(MissingServiceError, match=r"postgresql did not start .* its log ends: .*postgresql\.conf"):
            server.start()
    assert not server.folder.exists()
    assert left_in(server.folder) == []


@pytest.fixture
def bin_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run bin/services for PostgreSQL only, with a state of its own, in a process of its own."""
    state = tmp_path / ".services" / "state.json"
    monkeypatch.setattr(private_servers, "STATE", state)
    program = (
        "import sys, pathlib; from tests import private_servers as p; p.KINDS = {'postgresql': p.PrivatePostgres}; "
        f"p.STATE = pathlib.Path({str(state)!r}); sys.exit(p.main(sys.argv[1:]))"
    )

    def run(word: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, word]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.mark.long
def test_services_start_status_stop(
    installed: Callable[[type[PrivateServer]], None],
    bin_services: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    installed(PrivatePostgres)
    folders = []
    try:
        done = bin_services("start")
        assert done.returncode == 0, done.stderr
        server = private_servers.load_state()["postgresql"]
        folders.append(server.folder)
        line = f"export TEST_DATABASE_URL={server.url}"
        assert done.stdout.splitlines() == [line]
        check_postgres(server.url)
        assert bin_services("start").stdout.splitlines() == [line], "a second start starts nothing"
        done = bin_services("status")
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, line)

        server.kill()
        done = bin_services("status")
        assert done.returncode == 1
        assert "postgresql is not running; 'bin/services start'" in done.stderr
        assert bin_services("start").returncode == 0
        assert not server.folder.exists(), "what died is cleared away"
        folders.append(private_servers.load_state()["postgresql"].folder)
    finally:
        assert bin_services("stop").returncode == 0
    assert len(set(folders)) == 2
    for folder in folders:
        assert left_in(folder) == []
        assert not folder.exists()
    assert not private_servers.STATE.parent.exists()
    assert private_servers.main(["stop"]) == 0


def test_services_refuses_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert private_servers.main(["begin"]) == 2
    assert "start|stop|status" in capsys.readouterr().err


def test_a_pid_that_is_another_process_by_now_is_left_alone(
    installed: Callable[[type[PrivateServer]], None], tmp_path: Path
) -> None:
    installed(PrivatePostgres)
    me = psutil.Process()
    saved: dict[str, Any] = {"ports": [1], "folder": str(tmp_path / "gone"), "processes": [None, None]}
    saved["processes"][0] = (me.pid, me.create_time() - 60)
    server = PrivatePostgres.load(json.loads(json.dumps(saved)))
    assert not server.running
    server.close()  # which would end these tests


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace apt-get and update-rc.d by programs that record their calls and the answer of policy-rc.d."""
    monkeypatch.setattr(private_servers, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    update = tmp_path / "update-rc.d"
    update.write_text(f'#!/bin/sh\necho "update-rc.d $*" >>"{tmp_path}/calls"\n')
    update.chmod(0o755)
    program = tmp_path / "apt-get"
    program.write_text(
        "#!/bin/sh\n"
        f'"{tmp_path}/policy-rc.d"; echo "$? $DEBIAN_FRONTEND $*" >>"{tmp_path}/calls"\n'
        'case "$*" in *no-such-package*) echo "E: Unable to locate package no-such-package" >&2; exit 100 ;; esac\n'
    )
    program.chmod(0o755)
    return program


def test_installs_without_starting_the_service(apt: Path, tmp_path: Path) -> None:
    private_servers._apt_install(str(apt), ["postgresql"])
    assert (tmp_path / "calls").read_text().splitlines() == [
        "101 noninteractive --quiet update",
        "101 noninteractive --quiet install --yes --no-install-recommends postgresql",
        "update-rc.d postgresql disable",
    ]
    assert not private_servers.POLICY.exists()


def test_leaves_a_policy_that_was_there(apt: Path, tmp_path: Path) -> None:
    private_servers.POLICY.write_text("#!/bin/sh\nexit 104\n")
    private_servers.POLICY.chmod(0o755)
    private_servers._apt_install(str(apt), ["postgresql"])
    assert private_servers.POLICY.read_text() == "#!/bin/sh\nexit 104\n"


def test_an_installation_that_fails_says_so(apt: Path) -> None:
    with pytest.raises(MissingServiceError, match=r"apt-get install .* failed \(E: Unable to locate package"):
        private_servers._apt_install(str(apt), ["no-such-package"])
    assert not private_servers.POLICY.exists()


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise MissingServiceError("initdb is not installed")

    monkeypatch.setattr(PrivatePostgres, "program", absent)
    monkeypatch.setattr(private_servers, "_apt_install", lambda *_: pytest.fail("not root"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingServiceError, match="initdb is not installed"):
        PrivatePostgres.install()


def test_a_browser_is_the_one_that_is_named_or_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(private_servers, "_BROWSER_OF_MACOS", tmp_path / "none")
    monkeypatch.delenv("TEST_BROWSER", raising=False)
    with pytest.raises(MissingServiceError, match=r"install Chromium .* or set TEST_BROWSER"):
        private_servers.find_browser()
    for name in ("google-chrome", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert private_servers.find_browser() == tmp_path / "google-chrome"
    monkeypatch.setenv("TEST_BROWSER", "mine")
    assert private_servers.find_browser() == tmp_path / "mine"
    monkeypatch.setenv("TEST_BROWSER", "other")
    with pytest.raises(MissingServiceError, match="TEST_BROWSER is set, but other is no program"):
        private_servers.find_browser()


def test_the_newest_installed_version_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, programs in {"9.6": ("initdb", "postgres"), "15": ("initdb", "postgres"), "17": ("initdb",)}.items():
        for program in programs:
            path = tmp_path / version / "bin" / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o755)
    folders = [f"{tmp_path}/*/bin"]
    assert private_servers._installed("initdb", folders, "postgres") == f"{tmp_path}/15/bin/initdb"
    assert private_servers._installed("initdb", folders) == f"{tmp_path}/17/bin/initdb"
    monkeypatch.setenv("PATH", f"{tmp_path}/9.6/bin")
    assert private_servers._installed("initdb", ["/nowhere"]) == f"{tmp_path}/9.6/bin/initdb"
    with pytest.raises(MissingServiceError, match=r"rabbitmq-server is not installed .*/nowhere"):
        private_servers._installed("rabbitmq-server", ["/nowhere"])


def test_free_ports_can_be_listened_on() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_messages_show_no_password() -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_ports(1)[0]}/db?password=secret"
    with pytest.raises(MissingServiceError, match=r"me@127\.0\.0\.1") as caught:
        check_postgres(url)
    assert "secret" not in str(caught.value)


def test_something_else_on_the_port_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(private_servers, "GREETING_TIMEOUT", 0.1)
            with pytest.raises(MissingServiceError, match="does not answer"):
                check_broker(f"amqp://guest:guest@127.0.0.1:{port}/%2F")
