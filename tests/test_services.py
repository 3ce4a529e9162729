import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import psycopg
import pytest
from sqlalchemy import make_url

from tests import services
from tests.private_servers import MissingServiceError, PrivateBroker, check_broker, conninfo, free_ports
from tests.services import (
    Amqp,
    Copies,
    Server,
    create_database,
    drop_database,
    find_broker,
    find_postgres,
    own_vhost,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_cached_engine() -> None:
    services._engine.cache_clear()


def test_a_server_that_is_named_is_used(postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_DATABASE_URL", postgres_server.url)
    assert find_postgres() == Server(postgres_server.url, "TEST_DATABASE_URL", stop=find_postgres().stop)


@pytest.mark.parametrize(
    ("variable", "url", "find"),
    [
        ("TEST_DATABASE_URL", "postgresql://127.0.0.1:{port}/x", find_postgres),
        ("TEST_AMQP_URL", "amqp://127.0.0.1:{port}/x", find_broker),
    ],
)
def test_a_server_that_is_named_but_away_is_not_replaced_by_another(
    variable: str, url: str, find: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, url.format(port=free_ports(1)[0]))
    assert callable(find)
    with pytest.raises(MissingServiceError, match=rf"{variable} is set, but .*127\.0\.0\.1.*does not answer.*unset"):
        find()


def test_the_first_step_that_has_one_wins_and_the_rest_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_DATABASE_URL", raising=False)

    def none() -> Server:
        raise MissingServiceError("nobody home")

    here = Server("postgresql://here", "here")
    assert services._find("X", "TEST_DATABASE_URL", print, [none, lambda: here, pytest.fail], "buy one") is here
    with pytest.raises(MissingServiceError) as caught:
        services._find("X", "TEST_DATABASE_URL", print, [none, none], "buy one")
    assert str(caught.value) == "no X: TEST_DATABASE_URL is not set; nobody home; nobody home. What to do: buy one"


def test_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the order: named, container, already here, bin/services, private."""
    tried: list[str] = []

    def step(name: str) -> Server:
        tried.append(name)
        raise MissingServiceError(name)

    for variable in ("TEST_DATABASE_URL", "TEST_AMQP_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(services, "_container_postgres", lambda: step("container"))
    monkeypatch.setattr(services, "_container_broker", lambda: step("container"))
    monkeypatch.setattr(services, "_at", lambda *_: lambda: step("here"))
    monkeypatch.setattr(services, "_running", lambda _: lambda: step("bin/services"))
    monkeypatch.setattr(services, "_own", lambda _: lambda: step("private"))
    for find in (find_postgres, find_broker):
        tried.clear()
        with pytest.raises(MissingServiceError, match="apt-get install"):
            find()
        assert tried == ["container", "here", "bin/services", "private"]


def test_no_engine_means_no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(MissingServiceError, match="no container engine answers"):
        services._container_postgres()


def test_an_engine_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ENGINE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(MissingServiceError, match="no container engine answers"):
            services._container_broker()
    assert time.monotonic() - start < 5


def databases(server: Server) -> set[str]:
    with psycopg.connect(conninfo(server.url)) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}


def test_a_database_is_made_copied_and_dropped_although_in_use(postgres_server: Server) -> None:
    first = create_database(postgres_server.url)
    with psycopg.connect(conninfo(first)) as connection:
        connection.execute("CREATE TABLE here AS SELECT 'é' AS a")
    second = create_database(postgres_server.url, first)
    names = {str(make_url(url).database) for url in (first, second)}
    assert len(names) == 2
    assert names < databases(postgres_server)
    user = psycopg.connect(conninfo(second))
    assert user.execute("SELECT a, current_setting('server_encoding') FROM here").fetchone() == ("é", "UTF8")
    drop_database(postgres_server.url, first)
    drop_database(postgres_server.url, second)
    assert not names & databases(postgres_server)
    with pytest.raises(psycopg.OperationalError):
        user.execute("SELECT 1")
    user.close()


@pytest.fixture
def copies(postgres_server: Server) -> Iterator[Copies]:
    template = create_database(postgres_server.url)
    with psycopg.connect(conninfo(template)) as connection:
        connection.execute("CREATE TABLE alembic_version AS SELECT '1' AS version_num")
        connection.execute("CREATE TABLE parent (id serial PRIMARY KEY)")
        connection.execute("CREATE TABLE child (parent integer NOT NULL REFERENCES parent)")
    copies = Copies(postgres_server.url, template)
    yield copies
    copies.close()
    drop_database(postgres_server.url, template)


def identity(url: str) -> object:
    """Return what stays of a database when its name changes."""
    with psycopg.connect(conninfo(url)) as connection:
        return connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()


def is_there(server: Server, database: object) -> bool:
    with psycopg.connect(conninfo(server.url)) as connection:
        return database in connection.execute("SELECT oid FROM pg_database").fetchall()


def test_a_copy_is_used_again_without_what_was_in_it_and_under_another_name(
    copies: Copies, postgres_server: Server
) -> None:
    first = copies.take()
    database = identity(first)
    user = psycopg.connect(conninfo(first), autocommit=True)
    assert user.execute("INSERT INTO parent DEFAULT VALUES RETURNING id").fetchone() == (1,)
    user.execute("INSERT INTO child VALUES (1)")
    copies.give_back(first)
    for again in (lambda: user.execute("SELECT 1"), lambda: psycopg.connect(conninfo(first))):
        with pytest.raises(psycopg.OperationalError):
            again()
    user.close()
    second = copies.take()
    assert identity(second) == database
    other = copies.take()
    assert identity(other) != database
    copies.give_back(other)
    with psycopg.connect(conninfo(second)) as connection:
        assert connection.execute("SELECT count(*) FROM child").fetchone() == (0,)
        assert connection.execute("INSERT INTO parent DEFAULT VALUES RETURNING id").fetchall() == [(1,)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("1",)]
    copies.give_back(second)
    assert is_there(postgres_server, database)
    copies.close()
    assert not is_there(postgres_server, database)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE child ADD other integer",
        "ALTER TABLE child ALTER parent DROP NOT NULL",
        "DROP TABLE child",
        "CREATE INDEX mine ON child (parent)",
        "CREATE SEQUENCE mine",
        "UPDATE alembic_version SET version_num = '2'",
        "DELETE FROM alembic_version",
        "INSERT INTO parent SELECT generate_series(1, 200000)",
    ],
)
def test_a_copy_that_is_not_what_it_was_is_dropped(copies: Copies, postgres_server: Server, change: str) -> None:
    first = copies.take()
    database = identity(first)
    with psycopg.connect(conninfo(first)) as connection:
        connection.execute(change)
    copies.give_back(first)
    assert not is_there(postgres_server, database)
    second = copies.take()
    with psycopg.connect(conninfo(second)) as connection:
        connection.execute("INSERT INTO parent VALUES (1)")
        connection.execute("INSERT INTO child VALUES (1)")
    copies.give_back(second)


def test_database_url_is_migrated(database_url: str) -> None:
    url = make_url(database_url)
    if url.drivername == "sqlite+aiosqlite":
        connection = sqlite3.connect(str(url.database))
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.close()
    else:
        assert url.drivername == "postgresql+psycopg"
        with psycopg.connect(conninfo(database_url)) as server:
            rows = server.execute("SELECT version_num FROM alembic_version").fetchall()
    assert len(rows) == 1


def test_empty_database_url_is_empty(empty_database_url: str) -> None:
    url = make_url(empty_database_url)
    if url.drivername == "sqlite+aiosqlite":
        assert not Path(str(url.database)).exists()
    else:
        with psycopg.connect(conninfo(empty_database_url)) as server:
            assert server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == []


def test_a_vhost_of_our_own_goes_with_all_that_is_in_it(amqp_server: Server) -> None:
    with own_vhost(amqp_server) as url:
        check_broker(url)
        if url == amqp_server.url:
            pytest.skip("the broker ends with this run, or lets us make no vhost: there is none to remove")
        connection = pika.BlockingConnection(pika.URLParameters(url))
        connection.channel().queue_declare("x", durable=True)
        connection.close()
    with pytest.raises(MissingServiceError, match="does not answer"):
        check_broker(url)


def test_amqp_names_its_own_and_clears_them(amqp_url: str) -> None:
    first, second = Amqp(amqp_url), Amqp(amqp_url)
    queue, exchange = first.queue("jobs"), first.exchange("jobs")
    assert queue.startswith(f"queue/{first.user}/")
    assert exchange.startswith(f"exchange/{first.user}/")
    assert queue != second.queue("jobs")
    first.exchanges.add(never_made := first.name)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.exchange_declare(exchange, "topic", durable=True)
    first.clear()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        connection.channel().queue_declare(queue, passive=True)
    for gone in (exchange, never_made):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            connection.channel().exchange_declare(gone, passive=True)
    connection.close()


def test_a_server_is_told_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateBroker, "program", lambda *_: "rabbitmq-server")
    broker = PrivateBroker([1, 2, 3, 4], tmp_path)
    loaded = Server.told(json.loads(json.dumps(Server("amqp://here", "here", False, broker, pytest.fail).tell())))
    assert (loaded.url, loaded.how, loaded.shared) == ("amqp://here", "here", False)
    assert isinstance(loaded.private, PrivateBroker)
    assert loaded.private.save() == broker.save()
    loaded.stop()  # is for who started it
    assert Server.told(Server("amqp://here", "here").tell()).private is None


@pytest.mark.parametrize(("required", "processes"), [("1", 0), ("", 2)])
def test_what_is_missing_is_said_loudly_and_fails_where_it_is_required(
    tmp_path: Path, required: str, processes: int
) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_database(database_url): assert database_url\ndef test_amqp(amqp): assert amqp.url\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import os\nfrom tests import conftest\n"
        "if 'PYTEST_XDIST_WORKER' in os.environ: conftest.find_postgres = conftest.find_broker = 'not looked for again'"
    )
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},  # this run's own
        "REQUIRE_SERVICES": required,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take seconds to import, in each process
        "TEST_DATABASE_URL": f"postgresql://{nowhere}/x",
        "TEST_AMQP_URL": f"amqp://{nowhere}/x",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    command += ["-p", "xdist", "-n", str(processes)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "NO POSTGRESQL: TEST_DATABASE_URL is set, but" in done.stdout, done.stdout + done.stderr
    assert "NO RABBITMQ: TEST_AMQP_URL is set, but" in done.stdout
    last = done.stdout.splitlines()[-1]
    if required:
        assert done.returncode == 1
        assert "1 passed, 2 errors" in last
        assert "REQUIRE_SERVICES is set" in done.stdout
    else:
        assert done.returncode == 0
        assert "1 passed, 2 skipped" in last
        assert done.stdout.count("SKIPPED 1 for want of it") == 2
