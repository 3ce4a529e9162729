"""Fixtures for databases and message brokers, and a summary of what a run went without.

postgres_url            an empty-of-data PostgreSQL database of the test's own, migrated to the newest schema
sqlite_url              the same in SQLite
database_url            both in turn
empty_database_url      both in turn, without any table: for the migrations
amqp                    a RabbitMQ for the test: `amqp.url`, and names that are its own
amqp_url                just the URL
private_broker          a RabbitMQ that a test may break: one for the run, which each test leaves as it was
faketime                a library that fakes the time of a process
promtool                Prometheus' checker of rules and metrics
browser_program         a browser of Chromium's kind

A server that cannot be had skips the tests that need it, or fails them with REQUIRE_SERVICES=1; tests/services.py says
where servers are looked for.
"""

import contextlib
import gc
import json
import os
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
import taskcluster  # noqa: F401 - whole, before `service.lean` leaves out of it what the service does not use

from tests.private_servers import MissingServiceError, PrivateBroker, find_browser, find_faketime, find_promtool
from tests.published_schemas import VARIABLE, has_published_schemas, published_folder
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

Found = TypeVar("Found")

FULL = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}
EMPTY = {"sqlite": "empty_sqlite_url", "postgresql": "empty_postgres_url"}


# Servers: found once a run, before the first test; where processes share the tests, by the one that starts them


class Services:
    """Servers of this run; each is looked for once, at its first use. `found` is the `tell()` of another process."""

    def __init__(self, state: str | None = None) -> None:
        self.used: dict[str, Server] = {}
        self.missing: dict[str, str] = {}
        if state is not None:
            saved = json.loads(state)
            self.used = {name: Server.told(server) for name, server in saved["used"].items()}
            self.missing = saved["missing"]

    def get(self, name: str, find: Callable[[], Server]) -> Server:
        """Return a server. Raises MissingServiceError, each time with the same text."""
        if name in self.missing:
            raise MissingServiceError(self.missing[name])
        if name not in self.used:
            try:
                self.used[name] = find()
            except MissingServiceError as why:
                self.missing[name] = str(why)
                raise
        return self.used[name]

    def postgres(self) -> Server:
        return self.get("PostgreSQL", find_postgres)

    def broker(self) -> Server:
        return self.get("RabbitMQ", find_broker)

    def tell(self) -> str:
        """Find all servers; return them as JSON for a process that shares the tests."""
        for find in (self.postgres, self.broker):
            with contextlib.suppress(MissingServiceError):
                find()
        return json.dumps(
            {"used": {name: server.tell() for name, server in self.used.items()}, "missing": self.missing}
        )

    def close(self) -> None:
        while self.used:
            self.used.popitem()[1].stop()


SERVICES = pytest.StashKey[Services]()
LEFT_OUT = pytest.StashKey[int]()
"""Number of comparisons with other projects' published files that the run goes without."""


def pytest_configure(config: pytest.Config) -> None:
    # who tests behind a proxy reaches it for packages; everything that tests start is on loopback
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    config.stash[SERVICES] = Services(getattr(config, "workerinput", {}).get("services"))
    config.stash[LEFT_OUT] = 0
    # CI ends a run with SIGTERM: as Ctrl-C it lets fixtures and servers end in good order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that shares the tests (pytest-xdist) which servers there are."""
    node.workerinput["services"] = node.config.stash[SERVICES].tell()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_comparisons(config, items)
    _leave_out_long(config, items)
    _gather_sharing(items)


def _leave_out_comparisons(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the comparisons with other projects' published files if their folder is missing."""
    if has_published_schemas():
        return
    left_out = [item for item in items if item.get_closest_marker("published")]
    items[:] = [item for item in items if not item.get_closest_marker("published")]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note what a process that shares the tests (pytest-xdist) left out: each collects all of them."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt everything that is imported and collected from garbage collection, because it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


SHARED = ("system", "private_broker", "site")
"""Fixtures that take seconds to start, and that several modules share."""


def _leave_out_long(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `bin/soak` runs."""
    if os.environ.get("LONG"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)


def _gather_sharing(items: list[pytest.Item]) -> None:
    """Gather the tests that share an expensive fixture at the place of the first one.

    pytest-randomly has shuffled all modules before. A package's fixture ends when a test of another package comes, and
    would start anew for almost every module; a session's would start in every process that shares the tests.
    """
    for name in SHARED:
        sharing = [item for item in items if name in getattr(item, "fixturenames", ())]
        if sharing:
            first = items.index(sharing[0])
            others = [item for item in items[first:] if item not in sharing]
            items[first:] = [*sharing, *others]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVICES].close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Find the servers that the selected tests need in advance: a start may take longer than a test's timeout."""
    if session.config.option.collectonly:
        return
    services = session.config.stash[SERVICES]
    needed: set[str] = set()
    for item in session.items:
        needed.update(getattr(item, "fixturenames", ()))
        if callspec := getattr(item, "callspec", None):
            needed.update(value for value in callspec.params.values() if value == "postgresql")
    for names, find in (
        ({"postgres_server", "postgresql"}, services.postgres),
        ({"amqp_server"}, services.broker),
    ):
        if names & needed:
            with contextlib.suppress(MissingServiceError):  # each test that needs it says so, and the summary
                find()


def _had(find: Callable[[], Found]) -> Found:
    try:
        return find()
    except MissingServiceError as why:
        if os.environ.get("REQUIRE_SERVICES", "") not in {"", "0"}:
            pytest.fail(f"REQUIRE_SERVICES is set, so this must not be skipped: {why}", pytrace=False)
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Server:
    return _had(request.config.stash[SERVICES].postgres)


@pytest.fixture(scope="session")
def amqp_server(request: pytest.FixtureRequest) -> Server:
    return _had(request.config.stash[SERVICES].broker)


@pytest.fixture(scope="session")
def faketime() -> Path:
    """Return the library that fakes the time of a process that preloads it."""
    return _had(find_faketime)


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Return Prometheus' checker of rules and metrics."""
    return _had(find_promtool)


@pytest.fixture(scope="session")
def browser_program() -> Path:
    """Return a browser of Chromium's kind."""
    return _had(find_browser)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    services = config.stash[SERVICES]
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    left_out = config.stash[LEFT_OUT]
    if not (services.used or services.missing or skipped or left_out):
        return
    terminalreporter.section("services")
    for name, server in services.used.items():
        terminalreporter.line(f"{name}: {server.how}")
    for name, why in services.missing.items():
        terminalreporter.line(f"NO {name.upper()}: {why.removeprefix(f'no {name}: ')}", red=True, bold=True)
    for reason, count in skipped.items():
        if reason not in services.missing.values():
            terminalreporter.line(f"SKIPPED {count}: {reason}", yellow=True, bold=True)
        else:
            terminalreporter.line(
                f"SKIPPED {count} for want of it: this run does not show that the project works", red=True
            )
    if left_out:
        terminalreporter.line(
            f"LEFT OUT {left_out} of the comparisons with other projects' published files: there is no"
            f" {published_folder()}; set {VARIABLE} to a folder that has them",
            yellow=True,
        )


def _reason(report: object) -> str:
    where = getattr(report, "longrepr", None)
    return str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")


@pytest.fixture(autouse=True)
def _unchanged_logging() -> Iterator[None]:
    """Fail a test that configures the logging of this process: the loggers of all tests that follow would go by it."""
    before = structlog.get_config()
    yield
    assert structlog.get_config() == before, "the test, or a command that it called, has configured logging"


# Databases: migrated once a run, then copied; PostgreSQL's copies are used again


def _migrate(url: str) -> None:
    from service.store.database import upgrade

    upgrade(url)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server) -> Iterator[str]:
    """Yield the URL of a migrated database to copy. Nothing may connect to it."""
    url = create_database(postgres_server.url)
    try:
        _migrate(url)
        yield url
    finally:
        drop_database(postgres_server.url, url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database file to copy."""
    path = tmp_path_factory.mktemp("template") / "template.sqlite"
    _migrate(_sqlite(path))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it in the one file that is copied
    return path


def _sqlite(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(scope="session")
def postgres_copies(postgres_server: Server, postgres_template: str) -> Iterator[Copies]:
    copies = Copies(postgres_server.url, postgres_template)
    yield copies
    copies.close()


@pytest.fixture
def postgres_url(postgres_copies: Copies) -> Iterator[str]:
    url = postgres_copies.take()
    yield url
    postgres_copies.give_back(url)


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    path = tmp_path / "x.sqlite"
    shutil.copy(sqlite_template, path)
    return _sqlite(path)


@pytest.fixture
def empty_postgres_url(postgres_server: Server) -> Iterator[str]:
    url = create_database(postgres_server.url)
    yield url
    drop_database(postgres_server.url, url)


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    return _sqlite(tmp_path / "empty.sqlite")


@pytest.fixture(params=FULL)
def database_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(FULL[request.param]))


@pytest.fixture(params=EMPTY)
def empty_database_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(EMPTY[request.param]))


# Brokers: a vhost a run where one can be made, names of its own for each test


@pytest.fixture(scope="session")
def amqp_url(amqp_server: Server) -> Iterator[str]:
    with own_vhost(amqp_server) as url:
        yield url


@pytest.fixture
def amqp(amqp_url: str) -> Iterator[Amqp]:
    broker = Amqp(amqp_url)
    yield broker
    if broker.queues or broker.exchanges:
        broker.clear()


def _started_broker() -> PrivateBroker:
    broker = PrivateBroker()
    broker.start()
    return broker


@pytest.fixture(scope="session")
def private_broker_process() -> Iterator[PrivateBroker]:
    broker = _had(_started_broker)
    yield broker
    broker.close()


@pytest.fixture
def private_broker(private_broker_process: PrivateBroker) -> PrivateBroker:
    private_broker_process.start()  # a test may have stopped it
    return private_broker_process
