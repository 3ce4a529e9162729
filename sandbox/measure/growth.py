"""How lists, claims, sweeps and /metrics bear a database that has grown: `bin/measure-growth`."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import typer
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlmodel import SQLModel

from service import log, metrics, models, sweep, work
from service.app import create_app
from service.database import Database, sync_url, upgrade
from service.flow import settle
from service.flow.report import lane as job_lane
from service.models import JobReport, PushStep
from service.settings import RetentionSettings, Settings

Row = dict[str, Any]
Rows = Iterator[Row]

ENVIRONMENT = "tc-treeherder"
DAY = timedelta(days=1)
AGE = 400 * DAY
"""The oldest push and action; retention is a year."""

TOKEN = "measure-0123456789abcdef"
LARGE_PLAN = 10_000


@dataclass
class Sizes:
    pushes: int = 200_000
    reports: int = 200_000
    actions: int = 60_000
    letters: int = 20_000
    repositories: int = 200


def alias(number: int) -> str:
    return f"repo{number}"


def revision(number: int) -> str:
    return f"{number:040x}"


def task_id(kind: str, number: int) -> str:
    return f"{kind}{number:021d}"


class Filling:
    """Rows as the service leaves them; of each thing, a few are unfinished, have failed, or are due."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.now = datetime.now(UTC)

    def age(self, number: int, of: int, oldest: timedelta = AGE) -> datetime:
        """The first is the oldest."""
        return self.now - oldest * (1 - number / max(of, 1))

    def work(self, number: int, at: datetime, lane: str, share: str) -> Row:
        """A tenth of a per cent waits, half a per cent has failed."""
        due, failed = number % 997 == 7, number % 200 == 3
        state = "pending" if due else "failed" if failed else "done"
        times = {"since": at, "due_at": at if due else None, "done_at": None if due else at}
        common = {"lane": lane, "share": share, "lease": 1, "attempts": 1, "holder": None}
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
        """One of each graph, and of the oldest push very many."""
        for number in range(self.sizes.pushes):
            yield self.task(f"p{number:021d}", self.age(number, self.sizes.pushes), 0, step_id=2 * number + 2)
        for number in range(1, min(LARGE_PLAN, self.sizes.pushes)):
            yield self.task(task_id("l", number), self.age(0, 1), number, step_id=2)

    def copies(self) -> Rows:
        for number in range(self.sizes.actions):
            at = self.age(number, self.sizes.actions)
            yield self.task(task_id("c", number), at, 0, action_id=number + 1, copy_of=task_id("t", number % 5_000))

    def task(self, name: str, at: datetime, position: int, **owner: Any) -> Row:
        old = self.now - at > 8 * DAY  # what is a day older than retention.plans waits for the next sweep
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
                "stage": 2 if number % 100 == 1 else 3, "run": {"state": "completed"}, "version": 1, "heard_at": at,
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

    def tables(self) -> Iterable[tuple[str, Rows]]:
        """In the order in which they hang on each other."""
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


def fill(database_url: str, sizes: Sizes) -> None:
    """Fill a database that has the schema and nothing in it."""
    engine = create_engine(sync_url(database_url))
    with engine.begin() as connection:
        for name, rows in Filling(sizes).tables():
            table = SQLModel.metadata.tables[name]
            for chunk in _chunks(rows):
                connection.execute(table.insert(), chunk)
        if connection.dialect.name == "postgresql":
            for table in SQLModel.metadata.sorted_tables:
                if "id" in table.columns:
                    _continue_ids(connection, table.name)
    if engine.dialect.name == "postgresql":  # as autovacuum does while a database grows
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _chunks(rows: Iterable[Row], size: int = 5_000) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _continue_ids(connection: Connection, table: str) -> None:
    connection.execute(
        text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT coalesce(max(id), 1) FROM \"{table}\"))")
    )


# --- what is measured ----------------------------------------------------------------------------------------------

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
    "/dead-letters": {},
    "/repositories": {},
    f"/pushes/{alias(1)}/1001": {},
    f"/tasks/{task_id('c', 1)}": {},
}

TIMES = 9


async def time_of(call: Callable[[], Awaitable[Any]], times: int = TIMES) -> float:
    """Return the median of so many calls in milliseconds, after one that does not count."""
    await call()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


async def measure(database_url: str) -> None:
    settings = Settings(
        database_url=database_url,
        tokens=[{"name": "measure", "value": TOKEN, "scopes": ["*"]}],
        allowed_hosts=["hg.example.com"],
    )
    app = create_app(settings, work=False)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://measure/api/v1", headers=headers)
        )
        for name, query in LISTS.items():
            path = name.partition("?")[0]

            async def get(path: str = path, query: Row = query) -> None:
                answer = await client.get(path, params=query)
                answer.raise_for_status()

            report(name, await time_of(get))
        database: Database = app.state.parts.database
        await measure_work(database, settings)
        await measure_sweep(database)


def report(what: str, milliseconds: float) -> None:
    typer.echo(f"{what:40} {milliseconds:9.1f} ms")


async def measure_work(database: Database, settings: Settings) -> None:
    lease = settings.work.lease

    async def look() -> None:
        async with database.reading() as session:
            await work.due_lanes(session, models.WORK_TABLES)

    async def claim_step() -> None:
        async with database.writing() as session:
            assert await work.claim(session, PushStep, "graph hg.example.com", 2, lease)

    async def look_for_reports() -> None:
        async with database.reading() as session:
            await settle.due(session, ENVIRONMENT, 100)

    async with database.reading() as session:
        lanes = list(await settle.due(session, ENVIRONMENT, 100))

    async def claim_reports() -> None:
        async with database.writing() as session:
            assert await work.claim(session, JobReport, lanes.pop(), 2, lease)

    report("worker: which lanes have work", await time_of(look))
    report("worker: claim two steps", await time_of(claim_step))
    report("reporter: which lanes have work", await time_of(look_for_reports))
    report("reporter: claim two reports", await time_of(claim_reports))
    report("/metrics", await time_of(lambda: metrics.exposition(database)))


async def measure_sweep(database: Database) -> None:
    """Time the longest transaction of each step of a sweep."""
    longest: dict[str, list[float]] = {}
    began = time.perf_counter()
    for name, parts in sweep.steps_of(RetentionSettings()).items():
        for step, before in parts:
            more = True
            while more:
                start = time.perf_counter()
                async with database.writing() as session:
                    _, more = await step(session, before)
                longest.setdefault(name, []).append((time.perf_counter() - start) * 1000)
    for name, each in longest.items():
        report(f"sweep: {name}, median of {len(each)}", statistics.median(each))
        report(f"sweep: {name}, longest", max(each))
    typer.echo(f"the whole sweep: {time.perf_counter() - began:.0f} s")


def main(
    database_url: Annotated[
        str | None, typer.Option(help="an empty database; otherwise SQLite in a new folder")
    ] = None,
    pushes: int = Sizes.pushes,
    reports: int = Sizes.reports,
    actions: int = Sizes.actions,
    letters: int = Sizes.letters,
) -> None:
    """Fill a database, and time what the service asks of it."""
    with tempfile.TemporaryDirectory() as folder:
        url = database_url or f"sqlite+aiosqlite:///{folder}/growth.sqlite"
        log.configure("WARNING", as_json=False)
        upgrade(url)
        began = time.perf_counter()
        fill(url, Sizes(pushes, reports, actions, letters))
        typer.echo(f"filled in {time.perf_counter() - began:.0f} s")
        asyncio.run(measure(url))


if __name__ == "__main__":
    typer.run(main)
