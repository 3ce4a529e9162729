"""Find a real PostgreSQL and a real RabbitMQ for the tests, and create what tests need in them.

A server is looked for in this order; the first that answers is used:

1. the environment: `TEST_DATABASE_URL`, `TEST_AMQP_URL` (nothing else is tried when these are set);
2. a container, where a Docker-compatible engine answers within 2 s;
3. one that listens on this machine: 127.0.0.1:5432 (user postgres, no password), 127.0.0.1:5672 (guest/guest);
4. one that `bin/services start` left running;
5. a private one on free ports for this run only, from installed programs; as root on Debian they are installed first.
"""

import contextlib
import functools
import gc
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx
import pika
import psycopg
from psycopg import sql
from sqlalchemy import make_url

from tests.private_servers import (
    KINDS,
    MissingServiceError,
    PrivateBroker,
    PrivatePostgres,
    PrivateServer,
    check_broker,
    check_postgres,
    conninfo,
    load_state,
    one_line,
    run_ctl,
)

LOCAL_DATABASE = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
LOCAL_BROKER = "amqp://guest:guest@127.0.0.1:5672/%2F"
ENGINE_TIMEOUT = 2  # seconds a container engine has to answer


@dataclass(frozen=True)
class Server:
    """A running server.

    `url` is SQLAlchemy's (`postgresql+psycopg://…`) or AMQP's; `how` tells people where it comes from. `shared` is
    false when it ends with this run, so that nothing in it needs to be tidied. `private` is our own process behind it,
    if any; `stop` ends what was started for this run.
    """

    url: str
    how: str
    shared: bool = True
    private: PrivateServer | None = None
    stop: Callable[[], None] = lambda: None

    def tell(self) -> dict[str, Any]:
        """Return this server as JSON for another process of the same run, where `stop` does nothing."""
        private = self.private and [self.private.name, self.private.save()]
        return {"url": self.url, "how": self.how, "shared": self.shared, "private": private}

    @classmethod
    def told(cls, server: dict[str, Any]) -> "Server":
        private = server["private"] and KINDS[server["private"][0]].load(server["private"][1])
        return cls(**{**server, "private": private})


# Finding them


def find_postgres() -> Server:
    """Return a PostgreSQL server whose user may create databases. Raises MissingServiceError."""
    return _find(
        "PostgreSQL",
        "TEST_DATABASE_URL",
        check_postgres,
        [_container_postgres, _at(LOCAL_DATABASE, check_postgres), _running(PrivatePostgres), _own(PrivatePostgres)],
        "start a Docker-compatible engine, or install PostgreSQL 13 or newer "
        "(Debian: apt-get install postgresql; macOS: brew install postgresql@17), "
        "or set TEST_DATABASE_URL=postgresql://user:password@host/database of a user that may create databases",
    )


def find_broker() -> Server:
    """Return a RabbitMQ broker. Raises MissingServiceError."""
    return _find(
        "RabbitMQ",
        "TEST_AMQP_URL",
        check_broker,
        [_container_broker, _at(LOCAL_BROKER, check_broker), _running(PrivateBroker), _own(PrivateBroker)],
        "start a Docker-compatible engine, or install RabbitMQ (Debian: apt-get install rabbitmq-server; "
        "macOS: brew install rabbitmq), or set TEST_AMQP_URL=amqp://user:password@host/vhost",
    )


def _find(
    name: str, variable: str, check: Callable[[str], None], steps: Sequence[Callable[[], Server]], remedy: str
) -> Server:
    if url := os.environ.get(variable):
        try:
            check(url)
        except MissingServiceError as why:
            # Whoever names a server means that one: another must not stand in for it.
            raise MissingServiceError(f"{variable} is set, but {why}. Start it, or unset {variable}") from why
        return Server(url, variable)
    tried = []
    for step in steps:
        try:
            return step()
        except MissingServiceError as why:
            tried.append(str(why))
    raise MissingServiceError(f"no {name}: {variable} is not set; {'; '.join(tried)}. What to do: {remedy}")


def _at(url: str, check: Callable[[str], None]) -> Callable[[], Server]:
    def local() -> Server:
        check(url)
        return Server(url, f"already running at {urlsplit(url).netloc.rpartition('@')[2]}")

    return local


def _running(kind: type[PrivateServer]) -> Callable[[], Server]:
    def started() -> Server:
        server = load_state().get(kind.name)
        if server is None or not server.running:
            raise MissingServiceError("bin/services has none running")
        return Server(server.url, "started by bin/services", private=server)

    return started


def _own(kind: type[PrivateServer]) -> Callable[[], Server]:
    def private() -> Server:
        installed = kind.install()
        server = kind()
        server.start()
        return Server(server.url, f"a private one, for this run{installed}", False, server, server.close)

    return private


# Containers


@functools.cache
def _engine() -> str:
    """Return the reason why there is no container engine, or an empty text if there is one."""
    from docker.errors import DockerException  # type: ignore[import-untyped] # it ships no types
    from requests import RequestException
    from testcontainers.core.docker_client import DockerClient

    try:
        engine = DockerClient(timeout=ENGINE_TIMEOUT).client
    except (DockerException, RequestException, OSError, ValueError):
        return "no container engine answers"
    try:
        engine.ping()
    except (DockerException, RequestException, OSError) as error:
        return f"the container engine does not answer ({one_line(error)})"
    finally:
        engine.close()
    return ""


def _in_container(start: Callable[[], tuple[Any, str]]) -> Server:
    from docker.errors import DockerException
    from requests import RequestException
    from testcontainers.core.exceptions import ContainerConnectException, ContainerStartException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what testcontainers deprecates is none of our tests' business
        why = _engine()
        if not why:
            try:
                container, url = start()
            except (
                ContainerConnectException,
                ContainerStartException,
                DockerException,
                RequestException,
                OSError,
                RuntimeError,
            ) as error:
                why = f"a container could not be started ({one_line(error)})"
        # A failing Docker client leaves sockets open: collected here they warn nobody, later they would fail a test.
        gc.collect()
    if why:
        raise MissingServiceError(why)
    return Server(url, f"a container of {container.image}", False, stop=container.stop)


def _container_postgres() -> Server:
    def start() -> tuple[Any, str]:
        from testcontainers.community.postgres import PostgresContainer

        container = PostgresContainer("postgres:17-alpine", driver="psycopg")
        _start_or_remove(container)
        return container, container.get_connection_url()

    return _in_container(start)


def _container_broker() -> Server:
    def start() -> tuple[Any, str]:
        from testcontainers.community.rabbitmq import RabbitMqContainer

        container = RabbitMqContainer("rabbitmq:4-alpine")
        _start_or_remove(container)
        host, port = container.get_container_host_ip(), container.get_exposed_port(container.port)
        return container, f"amqp://{container.username}:{container.password}@{host}:{port}/%2F"

    return _in_container(start)


def _start_or_remove(container: Any) -> None:
    """Start a container; remove it if it does not get ready."""
    try:
        container.start()
    except BaseException:
        container.stop()
        raise


def unique_name() -> str:
    """Return a name that no other run uses, valid for databases, vhosts, queues and exchanges."""
    return f"tct_{secrets.token_hex(6)}"


# Databases


def create_database(server: str, template: str | None = None, encoding: str = "UTF8") -> str:
    """Create the database `tct_<random>`, empty or as a copy of the database at `template`; return its URL.

    Nothing may be connected to the template meanwhile: PostgreSQL refuses to copy a database that is in use.
    """
    name = unique_name()
    # An empty one is the same on every server, whatever the locale that the server was set up with.
    origin = "TEMPLATE {}" if template else f"TEMPLATE {{}} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    statement = sql.SQL("CREATE DATABASE {} " + origin).format(
        sql.Identifier(name), sql.Identifier((template and make_url(template).database) or "template0")
    )
    with psycopg.connect(conninfo(server), autocommit=True) as connection:
        connection.execute(statement)
    return make_url(server).set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)


def drop_database(server: str, url: str) -> None:
    """Drop a database of `create_database`, and end the connections to it."""
    name = make_url(url).database or ""
    with psycopg.connect(conninfo(server), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def rename_database(server: str, url: str) -> str:
    """End the connections to a database and give it another name; return its new URL."""
    old, new = make_url(url).database or "", unique_name()
    with psycopg.connect(conninfo(server), autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [old])
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")  # it waits up to 5 s for those that are about to end
        connection.execute(rename.format(sql.Identifier(old), sql.Identifier(new)))
    return make_url(url).set(database=new).render_as_string(hide_password=False)


class Copies:
    """Copies of a migrated database, for one test at a time: to make one takes longer than most tests, to empty it not.

    What a test gives back gets a new name first, so that nothing which still runs can reach it any more. It is used
    again only when its schema was left alone and it has stayed small; otherwise it is dropped.
    """

    SMALL = 4 << 20  # bytes in all tables: beyond, dead rows would slow down the tests to come
    SCHEMA = (
        *("pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_enum", "pg_event_trigger", "pg_extension"),
        *("pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite", "pg_sequence", "pg_statistic_ext"),
        *("pg_trigger", "pg_type", "alembic_version"),
    )

    def __init__(self, server: str, template: str) -> None:
        self._server, self._template = server, template
        self._schema: Any = None
        self._idle: list[str] = []

    def take(self) -> str:
        """Return the URL of a copy that nobody else uses."""
        if self._idle:
            return self._idle.pop()
        url = create_database(self._server, self._template)
        with psycopg.connect(conninfo(url), autocommit=True) as connection:
            self._schema = self._schema or self._look(connection)
            # Nobody crashes a server that tests share. Set here, for a template hands no setting of its own on.
            name = sql.Identifier(make_url(url).database or "")
            connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        return url

    def give_back(self, url: str) -> None:
        """Take back a copy, in whatever state it is, and end the connections to it."""
        try:
            url = rename_database(self._server, url)
        except psycopg.errors.ObjectInUse:  # by something that connects anew faster than it is thrown out
            return drop_database(self._server, url)
        self._idle.append(url)  # at once: it is dropped in the end, even when Ctrl-C comes now
        with psycopg.connect(conninfo(url), autocommit=True) as connection:
            reusable = self._look(connection) == self._schema and self._empty(connection)
        if not reusable:
            self._idle.remove(url)
            drop_database(self._server, url)

    def close(self) -> None:
        while self._idle:
            drop_database(self._server, self._idle.pop())

    def _look(self, connection: psycopg.Connection) -> Any:
        """Return the number of rows that describe the schema, and their newest transaction.

        Every change of the schema alters one of the two.
        """
        counts = sql.SQL("SELECT count(*), max(xmin::text::bigint) FROM {}")
        parts = sql.SQL(" UNION ALL ").join(counts.format(sql.Identifier(name)) for name in self.SCHEMA)
        return connection.execute(parts).fetchall()

    def _empty(self, connection: psycopg.Connection) -> bool:
        """Delete every row and reset the sequences; return False if there are too many rows to make that worth it."""
        counts = connection.execute(
            "SELECT tablename, pg_table_size(quote_ident(tablename)::regclass) FROM pg_tables "
            "WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        ).fetchall()
        if sum(size for _, size in counts) > self.SMALL:
            return False
        # In one statement, at the end of which the foreign keys are looked at.
        deletes = [sql.SQL("{0} AS (DELETE FROM {0})").format(sql.Identifier(name)) for name, _ in counts]
        connection.execute(
            sql.SQL("WITH {} SELECT setval(seqrelid, seqstart, false) FROM pg_sequence").format(
                sql.SQL(", ").join(deletes)
            )
        )
        return True


# Virtual hosts


@contextlib.contextmanager
def own_vhost(server: Server) -> Iterator[str]:
    """Yield the URL of a vhost of our own; remove it with everything in it at the end.

    It is created through the management API (`TEST_AMQP_MANAGEMENT_URL`, otherwise port 15672 of the same host) or with
    rabbitmqctl. If neither is available, or if the broker ends with this run anyway, it is the server's own URL.
    """
    if not server.shared:
        yield server.url
        return
    name = unique_name()
    url = urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    for make in (_vhost_by_api, _vhost_by_ctl):
        remove = make(server, name)
        if remove is None:
            continue
        try:
            check_broker(url)
        except MissingServiceError:  # rabbitmqctl reached another broker than the one that the URL names
            remove()
            continue
        try:
            yield url
        finally:
            remove()
        return
    yield server.url


def _vhost_by_api(server: Server, name: str) -> Callable[[], None] | None:
    parts = urlsplit(server.url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    api = os.environ.get("TEST_AMQP_MANAGEMENT_URL", f"http://{parts.hostname}:15672").rstrip("/") + "/api"

    def ask(method: str, path: str, body: dict[str, str] | None = None) -> httpx.Response:
        answer = httpx.request(method, api + path, json=body, auth=(user, password), timeout=5)
        return answer.raise_for_status()

    def remove() -> None:
        ask("DELETE", f"/vhosts/{name}")

    try:
        ask("PUT", f"/vhosts/{name}", {})
    except httpx.HTTPError:
        return None
    try:
        ask("PUT", f"/permissions/{name}/{quote(user, safe='')}", {"configure": ".*", "write": ".*", "read": ".*"})
    except httpx.HTTPError:
        remove()
        return None
    return remove


def _vhost_by_ctl(server: Server, name: str) -> Callable[[], None] | None:
    parts = urlsplit(server.url)
    user = unquote(parts.username or "guest")
    if isinstance(server.private, PrivateBroker):
        ctl = server.private.ctl
    elif parts.hostname in {"127.0.0.1", "localhost", "::1"} and (program := shutil.which("rabbitmqctl")):
        ctl = functools.partial(run_ctl, program)
    else:
        return None

    def remove() -> None:
        ctl("delete_vhost", name)

    try:
        ctl("add_vhost", name)
    except MissingServiceError:
        return None
    try:
        ctl("set_permissions", "--vhost", name, user, ".*", ".*", ".*")
    except MissingServiceError:
        remove()
        return None
    return remove


# Queues and exchanges


@dataclass
class Amqp:
    """A broker to test with, and names of the test's own. What is in `queues` and `exchanges` is deleted afterwards."""

    url: str
    name: str = field(default_factory=unique_name)
    queues: set[str] = field(default_factory=set)
    exchanges: set[str] = field(default_factory=set)

    @functools.cached_property
    def user(self) -> str:
        return unquote(urlsplit(self.url).username or "guest")

    def queue(self, name: str = "q") -> str:
        """Return a queue name in Pulse's form, `queue/<user>/<name>`, that no other test has."""
        queue = f"queue/{self.user}/{self.name}/{name}"
        self.queues.add(queue)
        return queue

    def exchange(self, name: str = "x") -> str:
        """Return an exchange name in Pulse's form, `exchange/<user>/<name>`, that no other test has."""
        exchange = f"exchange/{self.user}/{self.name}/{name}"
        self.exchanges.add(exchange)
        return exchange

    def clear(self) -> None:
        """Delete all of them; one that does not exist is no error."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        channel = connection.channel()
        for queue in self.queues:
            channel.queue_delete(queue)
        for exchange in self.exchanges:
            channel.exchange_delete(exchange)
        connection.close()
