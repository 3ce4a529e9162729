"""Measure pages, lists, claims, sweeps and /metrics in a database that has grown: `bin/measure-growth`."""

import asyncio
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from sqlalchemy import Table, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlmodel import SQLModel
from standardwebhooks import Webhook

from listeners.forward import signed_headers
from service import log
from service.api import gauges
from service.app import create_app
from service.engine import batches, leases, retention
from service.engine.registry import WORK
from service.settings import RetentionSettings, Settings
from service.store.database import Database, sync_url, upgrade
from service.store.models import JobReport, PushStep, job_lane

Row = dict[str, Any]
Rows = Iterator[Row]

ENVIRONMENT = "tc-treeherder"
DAY = timedelta(days=1)
AGE = 400 * DAY
"""The oldest push and action; retention is a year."""

TOKEN = "measure-0123456789abcdef"
WEBHOOK_SECRET = "whsec_bWVhc3VyZSBtZWFzdXJlIG1lYXN1cmUgbWVhc3VyZSA="
LARGE_PLAN = 10_000
ENDED_RUN = {
    "state": "completed", "reason": "completed", "worker": "i-0123456789abcdef0", "scheduled": 1_700_000_000,
    "started": 1_700_000_100, "resolved": 1_700_001_000,
}  # fmt: skip


@dataclass
class Sizes:
    """Numbers of rows by kind."""

    pushes: int = 1_000_000
    reports: int = 1_000_000
    actions: int = 300_000
    letters: int = 20_000
    repositories: int = 10_000


def alias(number: int) -> str:
    """Return the alias of a repository."""
    return f"repo{number}"


def revision(number: int) -> str:
    """Return the revision of a push."""
    return f"{number:040x}"


def task_id(kind: str, number: int) -> str:
    """Return a task id of a kind."""
    return f"{kind}{number:021d}"


class Filling:
    """Rows as the service leaves them; of each kind, a few are unfinished, have failed, or are due."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.now = datetime.now(UTC)

    def age(self, number: int, of: int, oldest: timedelta = AGE) -> datetime:
        """Return the time of a row between `oldest` ago and now; the first row is the oldest."""
        return self.now - oldest * (1 - number / max(of, 1))

    def work(self, number: int, at: datetime, lane: str, share: str) -> Row:
        """Return the columns of work; 0.1 % of the rows is pending and 0.5 % has failed."""
        due, failed = number % 997 == 7, number % 200 == 3
        state = "pending" if due else "failed" if failed else "done"
        times = {"since": at, "due_at": at if due else None, "done_at": None if due else at}
        common = {"lane": lane, "share": share, "fencing_token": 1, "attempts": 1, "holder": None}
        return {**common, **times, "state": state, "error": "it did not work" if failed else None}

    def repositories(self) -> Rows:
        for number in range(self.sizes.repositories):
            times = dict.fromkeys(("created_at", "due_at", "turn", "last_good_poll_at"), self.now)
            yield {"id": number + 1, "alias": alias(number), "url": f"https://hg.example.com/{alias(number)}"} | {
                "host": "hg.example.com", "level": "1", "scopes": [], "graph": True, "enabled": True, "generation": 0,
                "last_push_id": self.sizes.pushes, "shift": 0, "poll_failures": 0, "reset_suspicions": 0, **times,
            }  # fmt: skip

    def pushes(self) -> Rows:
        for number in range(self.sizes.pushes):
            at = self.age(number, self.sizes.pushes)
            changeset = {"node": revision(number), "branch": "default", "author": "A <a@example.com>", "desc": "d" * 60}
            yield {
                "id": number + 1, "repository_id": number % self.sizes.repositories + 1, "generation": 0,
                "push_id": number, "user": f"user{number % 500}@example.com", "date": at, "noticed_at": at,
                "revision": revision(number), "revision_hash": revision(number), "changesets": [changeset],
                "nodes": [revision(number)],
            }  # fmt: skip

    def steps(self) -> Rows:
        for number in range(2 * self.sizes.pushes):
            push, graph = number // 2, number % 2
            at = self.age(push, self.sizes.pushes)
            share = f"{alias(push % self.sizes.repositories)}/user{push % 500}@example.com"
            lane = "graph hg.example.com" if graph else f"resultset {ENVIRONMENT}"
            yield {
                "id": number + 1, "push_id": push + 1, "kind": "graph" if graph else "resultset",
                "environment": "" if graph else ENVIRONMENT, "plan_attempt": 0, **self.work(number, at, lane, share),
            }  # fmt: skip

    def tasks(self) -> Rows:
        """Yield one task of each graph, and very many tasks of the oldest push."""
        for number in range(self.sizes.pushes):
            yield self.task(f"p{number:021d}", self.age(number, self.sizes.pushes), 0, step_id=2 * number + 2)
        for number in range(1, min(LARGE_PLAN, self.sizes.pushes)):
            yield self.task(task_id("l", number), self.age(0, 1), number, step_id=2)

    def copies(self) -> Rows:
        for number in range(self.sizes.actions):
            at = self.age(number, self.sizes.actions)
            yield self.task(task_id("c", number), at, 0, action_id=number + 1, copy_of=task_id("t", number % 5_000))

    def task(self, name: str, at: datetime, position: int, **owner: Any) -> Row:
        old = self.now - at > 8 * DAY  # definitions older than retention.plans by a day wait for the next sweep
        definition = None if old else {"payload": {"command": ["x" * 500]}, "taskGroupId": name}
        common = {"step_id": None, "action_id": None, "copy_of": None, "plan_attempt": 0, "label": "task"}
        return {**common, "task_id": name, "position": position, "name": name, "definition": definition} | {
            "created": True, "adopted": False, **owner,
        }  # fmt: skip

    def actions(self) -> Rows:
        for number in range(self.sizes.actions):
            at = self.age(number, self.sizes.actions)
            project, requester = alias(number % self.sizes.repositories), f"user{number % 500}@example.com"
            yield {
                "id": number + 1, "key": str(number), "kind": "retrigger", "project": project, "requester": requester,
                "task_id": task_id("t", number % 5_000), "source": "pulse", "received_at": at, "plan_attempt": 0,
                "planned_at": None if number % 3 == 0 else at, "left_out": [], "notes": [], "failure_jobs": [],
                **self.work(number, at, "action retrigger", f"{project}/{requester}"),
            }  # fmt: skip

    def deliveries(self) -> Rows:
        for number in range(self.sizes.actions):
            yield {
                "key": f"key{number}", "digest": revision(number), "at": self.age(number, self.sizes.actions),
                "action_id": number + 1, "made_action": True, "channel": "c", "redelivered": False, "stamp": 0.0,
                "acknowledged": True,
            }  # fmt: skip

    def notices(self) -> Rows:
        for number in range(self.sizes.actions):
            at = self.age(number, self.sizes.actions)
            yield {
                "id": number + 1, "kind": "pulse", "action_id": number + 1, "target": "exchange", "key": "key",
                "body": {}, **self.work(number, at, "pulse", "-"),
            }  # fmt: skip

    def reports(self) -> Rows:
        for number in range(self.sizes.reports):
            at = self.age(number, self.sizes.reports, 35 * DAY)
            project = alias(number % self.sizes.repositories)
            yield {
                "id": number + 1, "task_id": task_id("r", number), "run_id": 0, "environment": ENVIRONMENT,
                "project": project, "revision": revision(number), "task_group_id": task_id("g", number // 10),
                "stage": 2 if number % 100 == 1 else 3, "run": ENDED_RUN, "version": 4, "last_event_at": at,
                "delivered": 3,
                **self.work(number, at, job_lane(ENVIRONMENT, project), revision(number)),
            }  # fmt: skip

    def letters(self) -> Rows:
        owners = ("step_id", "action_id", "notice_id", "report_id")
        kinds = ("graph", "action", "notice", "job-report")
        for number in range(self.sizes.letters):
            which, at = number % 4, self.age(number, self.sizes.letters, 100 * DAY)
            owner = number % min(self.sizes.actions, self.sizes.reports) + 1
            yield {
                "id": number + 1, "kind": kinds[which], "subject": f"the {number}th", "reason": "it did not work",
                "since": at, **dict.fromkeys(owners), owners[which]: owner,
            }  # fmt: skip

    def checks(self) -> Rows:
        for number in range(self.sizes.reports // 20):
            at = self.age(number, self.sizes.reports // 20, 35 * DAY)
            yield {"id": number + 1, "task_group_id": task_id("g", number), **self.work(number, at, "task-groups", "-")}

    def audit(self) -> Rows:
        for number in range(self.sizes.actions):
            yield {
                "id": number + 1, "at": self.age(number, self.sizes.actions, 400 * DAY),
                "event": "push-retried" if number % 100 == 0 else "action-asked", "caller": f"user{number % 1_000}",
                "taskcluster": False, "origin": "api", "repository": alias(number % self.sizes.repositories),
                "subject": "a task",
                "details": {"action": number + 1},
            }  # fmt: skip

    def tables(self) -> Iterable[tuple[str, Rows]]:
        """Yield the rows of each table, in the order of their foreign keys."""
        yield "repository", self.repositories()
        yield "push", self.pushes()
        yield "push_step", self.steps()
        yield "action", self.actions()
        yield "planned_task", self.tasks()
        yield "planned_task", self.copies()
        yield "delivery", self.deliveries()
        yield "notice", self.notices()
        yield "job_report", self.reports()
        yield "group_check", self.checks()
        yield "dead_letter", self.letters()
        yield "audit_entry", self.audit()


def fill(database_url: str, sizes: Sizes) -> None:
    """Fill a database that has the schema and no rows."""
    fill_tables(database_url, Filling(sizes).tables())


def fill_tables(database_url: str, rows: Iterable[tuple[str, Rows]]) -> None:
    """Insert rows into tables that have none of these ids; recreate indexes at the end, which is much faster."""
    engine = create_engine(sync_url(database_url))
    postgresql = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        if postgresql:
            connection.execute(text("SET session_replication_role = replica"))  # skips the checks of foreign keys
        names = {index.name for table in SQLModel.metadata.sorted_tables for index in table.indexes}
        # in order of creation: SQLite without statistics prefers the earlier of equal indexes
        definitions = "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index ORDER BY indexrelid"
        if not postgresql:
            definitions = "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY rowid"
        in_order = [(name, sql) for name, sql in connection.execute(text(definitions)) if name in names]
        assert len(in_order) == len(names), "the migrations make each index of the models"
        for name, _ in in_order:
            connection.execute(text(f'DROP INDEX "{name}"'))
        for name, of_table in rows:
            _load(connection, SQLModel.metadata.tables[name], of_table)
        for _, sql in in_order:
            connection.exec_driver_sql(sql)
        if postgresql:
            for table in SQLModel.metadata.sorted_tables:
                if "id" in table.columns:
                    _continue_ids(connection, table.name)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # as autovacuum does while a database grows
        connection.execute(text("VACUUM ANALYZE" if postgresql else "PRAGMA optimize"))
    engine.dispose()


def _load(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert rows by COPY, or by sqlite3's own executemany: SQLAlchemy's takes several times as long."""
    first = next(rows, None)
    if first is None:
        return
    names = list(first)
    columns = ", ".join(f'"{name}"' for name in names)
    types = [table.columns[name].type.dialect_impl(connection.dialect) for name in names]
    bind = [of_type.bind_processor(connection.dialect) for of_type in types]

    def values() -> Iterator[list[Any]]:
        for row in itertools.chain([first], rows):
            assert len(row) == len(names), f"{table.name}: each row has the same columns"
            yield [row[name] if to is None else to(row[name]) for name, to in zip(names, bind, strict=True)]

    cursor: Any = connection.connection.cursor()
    if connection.dialect.name == "postgresql":
        with cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as copy:
            for row in values():
                copy.write_row(row)
    else:
        marks = ", ".join("?" * len(names))
        cursor.executemany(f'INSERT INTO "{table.name}" ({columns}) VALUES ({marks})', values())
    cursor.close()


def _continue_ids(connection: Connection, table: str) -> None:
    connection.execute(
        text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT coalesce(max(id), 1) FROM \"{table}\"))")
    )


def sizes_on_disk(database_url: str) -> None:
    """Print the bytes that a row of each large table takes, with its part of the indexes."""
    engine = create_engine(sync_url(database_url))
    with engine.connect() as connection:
        if engine.dialect.name != "postgresql":
            pages = connection.scalar(text("PRAGMA page_count")) or 0
            typer.echo(f"the database: {pages * (connection.scalar(text('PRAGMA page_size')) or 0) / 1e9:.2f} GB")
            engine.dispose()
            return
        for table in SQLModel.metadata.sorted_tables:
            rows = connection.scalar(text(f'SELECT count(*) FROM "{table.name}"')) or 0
            if rows >= 1_000:
                whole = connection.scalar(text(f"SELECT pg_total_relation_size('{table.name}')")) or 0
                indexes = connection.scalar(text(f"SELECT pg_indexes_size('{table.name}')")) or 0
                report_size = f"{(whole - indexes) / rows:6.0f} + {indexes / rows:.0f} bytes a row and its indexes"
                typer.echo(f"{table.name:20} {rows:9,} rows, {report_size}")
        whole = connection.scalar(text("SELECT pg_database_size(current_database())")) or 0
        typer.echo(f"the database: {whole / 1e9:.2f} GB")
    engine.dispose()


# --- measurements -------------------------------------------------------------------------------------------------

LISTS: dict[str, Row] = {
    "/pushes": {},
    "/pushes?repository": {"repository": alias(1)},
    "/pushes?user": {"user": "user1@example.com"},
    "/pushes?revision": {"revision": revision(1000)},
    "/pushes?state=done": {"state": "done"},
    "/pushes?state=failed": {"state": "failed"},
    "/pushes?repository&state=failed": {"repository": alias(3), "state": "failed"},
    "/actions": {},
    "/actions?project": {"project": alias(1)},
    "/actions?requester": {"requester": "user1@example.com"},
    "/actions?task_id": {"task_id": task_id("t", 1)},
    "/actions?state=received": {"state": "received"},
    "/actions?state=failed&project": {"state": "failed", "project": alias(3)},
    "/reports": {},
    **{f"/reports?state={state}": {"state": state} for state in ("pending", "done", "skipped", "failed")},
    "/reports?waiting=push": {"waiting": "push"},
    "/reports?waiting=push&state=done": {"waiting": "push", "state": "done"},
    "/dead-letters": {},
    "/repositories": {},
    f"/pushes/{alias(1)}/1": {},
    f"/tasks/{task_id('c', 1)}": {},
}

PAGES = (
    *("/", "/pushes", f"/pushes?repository={alias(1)}", "/pushes?state=failed", "/pushes?user=user1%40example.com"),
    *(f"/pushes/{alias(1)}/1", "/actions", f"/actions?project={alias(1)}", "/actions/2", f"/tasks/{task_id('c', 1)}"),
    *("/waiting", f"/waiting?work=push_step&lane=resultset%20{ENVIRONMENT}", "/reports", "/reports?state=failed"),
    *("/dead-letters", "/dead-letters?kind=graph", "/dead-letters/1", "/repositories", f"/repositories/{alias(1)}"),
    *("/pulse-queues", "/audit", "/audit?event=push-retried", f"/search?q={alias(1)}", "/search?q=user1%40example.com"),
)
"""Pages that people open, each with a filter or two."""


async def time_of(call: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    """Call once without counting, then `times` times; return the duration of each call in milliseconds."""
    await call()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return [duration * 1000 for duration in seconds]


def settings_for(database_url: str) -> Settings:
    """Return settings for a service on this database."""
    return Settings(
        database_url=database_url,
        tokens=[{"name": "measure", "value": TOKEN, "scopes": ["*"]}],
        webhook_secrets=[WEBHOOK_SECRET],
        environments={ENVIRONMENT: {"url": "https://treeherder.example.com", "client_id": "c", "secret": "s"}},
        allowed_hosts=["hg.example.com"],
    )


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Database]]:
    """Yield a client of the service's API, over ASGI, and its database; no worker runs."""
    app = create_app(settings, work=False)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://measure/api/v1", headers=headers)
        )
        yield client, app.state.services.database


async def measure_push(database_url: str, when: str, first_id: int) -> None:
    """Time pushes through the ingress, one after the other, and count their statements."""
    async with served(settings_for(database_url)) as (client, database):
        statements: list[str] = []

        @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
        def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        webhook, path = Webhook(WEBHOOK_SECRET), "/api/v1/events/pushes"
        number = itertools.count()

        async def push() -> None:
            n = next(number)
            node = f"{first_id + n + 2**100:040x}"
            entry = {"id": first_id + n, "user": "dev@example.com", "date": time.time()}
            entry["changesets"] = [{"node": node, "branch": "default", "author": "A", "desc": "d" * 60}]
            repository = alias(n)
            body = {
                "repository": repository,
                "repository_id": n + 1,
                "shift": 0,
                "generation": 0,
                "since": 0,
                "lastpushid": first_id + n,
                "push": entry,
            }
            raw = json.dumps({"events": [body]}).encode()
            answer = await client.post("/events/pushes", content=raw, headers=signed_headers(webhook, "m", path, raw))
            assert b"accepted" in answer.content, answer.text

        await push()
        statements.clear()
        report(f"a push through the ingress, {when}", await time_of(push, 50))
        if statements:  # statements that SQLite's thread runs in one hop are not counted
            typer.echo(f"{'':45} {len(statements) / 51:9.1f} statements")


async def measure(database_url: str, times: int) -> None:
    """Time each list, the claims, /metrics and a sweep."""
    settings = settings_for(database_url)
    async with served(settings) as (client, database):
        for name, query in LISTS.items():
            path = name.partition("?")[0]

            async def get(path: str = path, query: Row = query) -> None:
                answer = await client.get(path, params=query)
                answer.raise_for_status()

            report(name, await time_of(get, times))
        await measure_work(database, settings, times)
        await measure_sweep(database)


def report(title: str, milliseconds: list[float]) -> None:
    """Print the median, and the minimum: the time on a machine that does nothing else."""
    typer.echo(f"{title:45} {statistics.median(milliseconds):9.1f} ms, at best {min(milliseconds):.1f}")


async def measure_pages(database_url: str, times: int) -> None:
    """Time each page until it is complete: it goes out at once, so its first byte comes no sooner."""
    settings = settings_for(database_url).model_copy(update={"public_reads": True})
    async with served(settings) as (client, _):
        sign_in = await client.get("http://measure/sign-in")
        form = {"form_token": re.findall(r'name="form_token" value="(\w+)"', sign_in.text)[0], "token": TOKEN}
        (await client.post("http://measure/sign-in", data=form, headers={"Origin": "http://measure"})).read()
        for path in PAGES:

            async def get(path: str = path) -> None:
                answer = await client.get(f"http://measure{path}")
                assert answer.status_code in {200, 303}, (path, answer.text)

            report(f"page {path}", await time_of(get, times))


async def measure_work(database: Database, settings: Settings, times: int) -> None:
    """Time the claims of worker and reporter, and /metrics."""
    lease = settings.work.lease

    async def look() -> None:
        async with database.reading() as session:
            await leases.due_lanes(session, WORK.worked)

    async def claim_step() -> None:
        async with database.writing() as session:
            assert await leases.claim(session, PushStep, "graph hg.example.com", 2, lease)

    async def look_for_reports() -> None:
        async with database.reading() as session:
            await batches.due(session, ENVIRONMENT, 100)

    async with database.reading() as session:
        lanes = list(await batches.due(session, ENVIRONMENT, 100))

    async def claim_reports() -> None:
        async with database.writing() as session:
            assert await leases.claim(session, JobReport, lanes.pop(), 2, lease)

    report("worker: which lanes have work", await time_of(look, times))
    report("worker: claim two steps", await time_of(claim_step, times))
    report("reporter: which lanes have work", await time_of(look_for_reports, times))
    report("reporter: claim two reports", await time_of(claim_reports, times))
    report("/metrics", await time_of(lambda: gauges.exposition(database), times))


async def measure_sweep(database: Database) -> None:
    """Time the longest transaction of each step of a sweep."""
    longest: dict[str, list[float]] = {}
    began = time.perf_counter()
    for name, parts in retention.steps_of(RetentionSettings()).items():
        for step, before in parts:
            more = True
            while more:
                start = time.perf_counter()
                async with database.writing() as session:
                    _, more = await step(session, before)
                longest.setdefault(name, []).append((time.perf_counter() - start) * 1000)
    for name, durations in longest.items():
        title, median = f"sweep: {name}, {len(durations)}", statistics.median(durations)
        typer.echo(f"{title:45} {median:9.1f} ms, the longest {max(durations):.1f}")
    typer.echo(f"the whole sweep: {time.perf_counter() - began:.0f} s")


def grow(database_url: str, sizes: Sizes, times: int) -> None:
    """Fill a database, and time the service's queries."""
    upgrade(database_url)
    filling = Filling(sizes)
    tables = list(filling.tables())
    fill_tables(database_url, tables[:1])
    asyncio.run(measure_push(database_url, "the first", sizes.pushes + 1))
    engine = create_engine(sync_url(database_url))
    with engine.begin() as connection:
        for table in ("push_step", "push"):
            connection.execute(SQLModel.metadata.tables[table].delete())
    engine.dispose()
    began = time.perf_counter()
    fill_tables(database_url, tables[1:])
    typer.echo(f"filled in {time.perf_counter() - began:.0f} s")
    sizes_on_disk(database_url)
    asyncio.run(measure_push(database_url, f"after {sizes.pushes:,}", sizes.pushes + 1_000))
    asyncio.run(measure_pages(database_url, times))
    asyncio.run(measure(database_url, times))


def main(
    what: Annotated[str, typer.Argument(help="database, or replicas")] = "database",
    database_url: Annotated[
        str | None, typer.Option(help="an empty database of a superuser; otherwise SQLite in a new folder")
    ] = None,
    pushes: int = Sizes.pushes,
    reports: int = Sizes.reports,
    actions: int = Sizes.actions,
    letters: int = Sizes.letters,
    repositories: int = Sizes.repositories,
    times: Annotated[int, typer.Option(help="how often each question is asked, after once that does not count")] = 9,
    waiting: Annotated[int, typer.Option(help="pushes that replicas work off")] = 400,
    upstream: Annotated[float, typer.Option(help="seconds that each upstream call takes, for replicas")] = 0.02,
    services: Annotated[str, typer.Option(help="how many services there are, for replicas")] = "1,2,4",
) -> None:
    """Measure a large database, or several services on one PostgreSQL."""
    log.configure("WARNING", as_json=False)
    with tempfile.TemporaryDirectory() as folder:
        if what == "replicas":
            from benchmarks.replicas import replicas

            if database_url is None:
                raise typer.BadParameter("replicas need the --database-url of an empty PostgreSQL database")
            replicas(Path(folder), database_url, waiting, upstream, [int(count) for count in services.split(",")])
        else:
            url = database_url or f"sqlite+aiosqlite:///{folder}/growth.sqlite"
            grow(url, Sizes(pushes, reports, actions, letters, repositories), times)


if __name__ == "__main__":
    typer.run(main)
