"""No query reads a large table: what the service sends to its database is caught, and the database explains it.

Everything that is done often, or by itself, is done once: every list with every filter and pair of filters that the
OpenAPI document knows, what listeners send, claims of the worker and the reporter, sweeps, metrics, health checks. A
query that is new is thereby explained, too. The planner is made to believe that the tables are large.
"""

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import UniqueConstraint, event, text, update
from sqlalchemy.engine import Connection
from sqlmodel import SQLModel, col

from benchmarks.growth import ENVIRONMENT, Sizes, alias, fill, revision, task_id
from service.api.marks import NEWEST, ROWS, Watched, read_marks
from service.clock import now
from service.engine import batches, leases, retention
from service.engine.leases import Lease
from service.errors import UpstreamError
from service.flow.actions import action_task, decision, push_tasks, receive, supersede, trigger
from service.flow.jobs import reconcile
from service.flow.tasks.routes import Route
from service.flow.tasks.subject import PushSubject, Subject, find_push
from service.settings import RetentionSettings
from service.store.database import Database
from service.store.models import (
    NEVER,
    NOBODY,
    Action,
    GroupCheck,
    JobReport,
    Source,
    Supersede,
    job_lane,
    work_tables,
)
from service.web.install import page_routes
from tests.service.asgi import ADMIN, Api, changeset, node, push_event, running, settings_for
from tests.service.web.browser import Browser

SMALL = {"pulse_queue", "budget", "rate_grant", "secret"}
"""Tables with a row for each queue, upstream, or key of ours."""

LARGE = set(SQLModel.metadata.tables) - SMALL

MILLION = 1_000_000

COARSE = {"lane", "state", "kind", "host", "repository_id", "project", "user", "requester", "poll_failures",
          "event", "caller", "repository"}  # fmt: skip
"""Columns of which many rows have the same value; of the others, ten have."""

TABLE = re.compile(rf"({'|'.join(sorted(LARGE))})(_\d+)?")

Statement = tuple[str, Any]


@contextmanager
def caught(database: Database) -> Iterator[dict[str, Any]]:
    """Every statement that this engine sends meanwhile, with the parameters of its first execution."""
    statements: dict[str, Any] = {}

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if TABLE.search(statement) and re.match(r"(SELECT|UPDATE|DELETE|WITH)\b", statement):
            statements.setdefault(statement, parameters[0] if many else parameters)

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        for engine in database.engines:
            event.remove(engine, "before_cursor_execute", note)


# --- what the databases explain ------------------------------------------------------------------------------------


KEYSET_ALONE = re.compile(r"WHERE (\w+\.deleted_at IS NULL AND )?\w+\.id [<>] \S+ ORDER BY \w+\.id( DESC)?\s+LIMIT")
"""A query for nothing but the next rows by their key reads no row in vain (of repositories, few are deleted).
Anything else that goes along a key may read the whole table for what it filters; along a partial index, it may not."""

PARTIAL = {
    index.name for table in SQLModel.metadata.tables.values() for index in table.indexes if "where" in index.info
}


def scans_of_sqlite(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    wrong = [line for line in plan if re.match(rf"SCAN ({TABLE.pattern})\b", line)]
    if not KEYSET_ALONE.search(statement):
        by_key = rf"SEARCH ({TABLE.pattern}) USING .*?(\w+) \((rowid|\w*id)[<>]\?\)"
        wrong += [line for line in plan if (match := re.match(by_key, line)) and match[4] not in PARTIAL]
    if "LIMIT" in statement:  # otherwise what is sorted is the result
        wrong += [line for line in plan if line == "USE TEMP B-TREE FOR ORDER BY"]
    return wrong


def forget_sqlite_statistics(connection: Connection) -> None:
    """Leave the planner without statistics, as in production; SQLite 3.53 scans what it knows is small."""
    connection.exec_driver_sql("ANALYZE")
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # reads it


def believe_sqlite_large(connection: Connection) -> None:
    """Write the statistics that ANALYZE would write for tables of a million rows."""
    connection.exec_driver_sql("ANALYZE")
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    indexes = connection.exec_driver_sql("SELECT tbl_name, name FROM sqlite_master WHERE type = 'index'").all()
    for table, index in indexes:
        columns = [row[2] for row in connection.exec_driver_sql(f"PRAGMA index_info('{index}')")]
        counts = [MILLION // 10 if set(columns[: n + 1]) <= COARSE else 10 for n in range(len(columns))]
        values = (table, index, " ".join(str(number) for number in (MILLION, *counts)))
        connection.exec_driver_sql("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", values)
    for table in LARGE:  # of one that has partial indexes only, ANALYZE writes this
        connection.exec_driver_sql("INSERT INTO sqlite_stat1 VALUES (?, NULL, ?)", (table, str(MILLION)))
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # reads it


def scans_of_postgres(connection: Connection, statement: str, parameters: Any) -> list[str]:
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    return list(_scans(statement, plan[0]["Plan"], limited=False, first_ones=False))


def _scans(statement: str, node: dict[str, Any], limited: bool, first_ones: bool) -> Iterator[str]:
    kind, table = node["Node Type"], node.get("Relation Name")
    how = f"{kind} on {table} by {node.get('Index Name')}: {node.get('Index Cond')}, filter {node.get('Filter')}"
    if table in LARGE and kind != "ModifyTable":
        unbounded = "Index Cond" not in node and not (first_ones and "Filter" not in node)
        if kind == "Seq Scan" or (kind != "Bitmap Heap Scan" and unbounded):
            yield how
        by_key = re.fullmatch(r"\(\w*id [<>] \S+\)", node.get("Index Cond", ""))
        if by_key and node["Index Name"] not in PARTIAL and not KEYSET_ALONE.search(statement):
            yield how
    if kind == "Bitmap Index Scan" and "Index Cond" not in node:
        yield f"{kind} by {node['Index Name']}"
    if limited and kind == "Sort":
        yield f"Sort by {node['Sort Key']}"
    first_ones = kind == "Limit"  # nothing between it and an index: as for max(), a few entries are read
    # a limit holds for all that is below it, as far as rows come through in order
    limited = kind == "Limit" or (limited and kind in {"LockRows", "Subquery Scan", "Result", "Unique"})
    for child in node.get("Plans", []):
        yield from _scans(statement, child, limited, first_ones)


def believe_postgres_large(connection: Connection) -> None:
    tables = ", ".join(f"'{table}'" for table in sorted(LARGE))
    connection.execute(
        text(
            f"UPDATE pg_class SET reltuples = {MILLION}, relpages = 1 WHERE relname IN ({tables}) OR oid IN "
            f"(SELECT indexrelid FROM pg_index WHERE indrelid::regclass::text IN ({tables}))"
        )
    )
    connection.execute(text("SET LOCAL enable_seqscan = off"))


def explain(connection: Connection, statements: dict[str, Any]) -> list[str]:
    """Return a line for each scan that is left. What the planner is told here is rolled back."""
    wrong: dict[str, None] = {}
    believe, explained = {
        "sqlite": (believe_sqlite_large, scans_of_sqlite),
        "postgresql": (believe_postgres_large, scans_of_postgres),
    }[connection.dialect.name]
    for believed in (False, True):
        if believed:
            believe(connection)
        elif connection.dialect.name == "postgresql":
            continue  # it would see that the tables are small
        else:
            forget_sqlite_statistics(connection)
        for statement, parameters in statements.items():
            wrong |= dict.fromkeys(f"{line}\n    {statement}" for line in explained(connection, statement, parameters))
    return list(wrong)


async def scans(database: Database, statements: dict[str, Any]) -> list[str]:
    async with database.engine.connect() as connection:
        left = await connection.run_sync(explain, statements)
        await connection.rollback()
    return left


# --- what is done --------------------------------------------------------------------------------------------------

TASK, CHANNEL = "fN1SbArXTPSVFNUvaOlinQ", "b6db6db6-db6d-4b6d-b6db-6db6db6db6db"

SIZES = Sizes(pushes=60, reports=300, actions=60, letters=20, repositories=3)

VALUES: dict[str, list[Any]] = {
    "repository": [alias(1)],
    "project": [alias(1)],
    "user": ["user1@example.com"],
    "requester": ["user1@example.com"],
    "revision": [revision(1)],
    "task_id": [task_id("t", 1)],
    "alias": [alias(1)],
    "push_id": [1],
    "push": [1],
    "action_id": [2],
    "letter_id": [2],
    "generation": [0],
    "limit": [2],
    "waiting": ["push"],
    "caller": ["user1"],
}
"""Of each parameter, where its schema does not list them. A filter of tomorrow needs a line here."""

Parameter = dict[str, Any]


def values_of(parameter: Parameter, document: dict[str, Any]) -> list[Any]:
    schema = parameter["schema"]
    for choice in schema.get("anyOf", [schema]):
        named = document["components"]["schemas"].get(choice.get("$ref", "").rpartition("/")[2], choice)
        if "enum" in named:
            return list(named["enum"])
    return VALUES[parameter["name"]]


def reads(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every page that can be read, with each filter and each two of them; what a list's `limit` is."""
    for path, methods in document["paths"].items():
        if "get" not in methods:
            continue
        parameters = [
            parameter for parameter in methods["get"].get("parameters", []) if parameter["in"] in {"path", "query"}
        ]
        in_path = {
            parameter["name"]: values_of(parameter, document)[0]
            for parameter in parameters
            if parameter["in"] == "path"
        }
        page = {"limit": 2} if any(parameter["name"] == "limit" for parameter in parameters) else {}
        filters = [
            parameter
            for parameter in parameters
            if parameter["in"] == "query" and parameter["name"] not in {"limit", "after"}
        ]
        for count in range(3):
            for combination in itertools.combinations(filters, count):
                for values in itertools.product(*(values_of(parameter, document) for parameter in combination)):
                    query = {parameter["name"]: value for parameter, value in zip(combination, values, strict=True)}
                    yield path.format(**in_path), {**page, **query}


async def read_all(api: Api) -> None:
    document = api.app.openapi()
    for path, query in reads(document):
        answer = await api.call("GET", path, params=query)
        # what the tree offers is in Taskcluster, and there is none here
        expected = (
            {404, 502} if path.startswith("/api/v1/") and path.endswith("/actions") and path.count("/") > 3 else {200}
        )
        assert answer.status_code in expected, (path, query, answer.text)
        following = answer.json().get("next") if "limit" in query else None
        if following:
            assert (await api.call("GET", path, params={**query, "after": following})).status_code == 200
    for path in ("/metrics", "/__heartbeat__", "/__readiness__"):
        assert (await api.call("GET", path)).status_code in {200, 503}


async def look(api: Api) -> None:
    """Open each page with each of its filters, as a person who has signed in; and search for each kind of thing."""
    browser = Browser(api, api.client)
    assert (await browser.sign_in(ADMIN)).status_code == 303
    for route in page_routes():
        names = re.findall(r"{(\w+)}", route.path)
        if {"digest", "name"} & set(names) or "GET" not in (route.methods or ()) or "/sign-in/" in route.path:
            continue
        if route.path == "/live":  # it sends what its pages read, and asks for marks
            continue
        path = route.path.format(**{name: VALUES[name][0] for name in names})
        filters = {field.alias for field in route.dependant.query_params} & {*VALUES, "state", "kind", "event"} - {
            "limit"
        }
        states = ["failed", "received" if path == "/actions" else "pending", "done"]
        values = {**VALUES, "state": states, "kind": ["graph"], "event": ["push-retried"]}
        for query in [{}, *({name: value} for name in sorted(filters) for value in values[name])]:
            # what the tree offers is in Taskcluster, and there is none here
            expected = {404, 502} if "/offers" in path else {200, 303}
            assert (await api.client.get(path, params=query)).status_code in expected, (path, query)
    ids = frozenset(range(1, 11))
    rows = frozenset((kind, alias(n) if kind == "repository" else n) for kind in ROWS for n in ids)
    tasks = frozenset(task_id("r", n) for n in ids)
    watched = Watched(ids, ids, tasks, rows, frozenset(NEWEST), waiting=True, pulse_queues=True)
    async with api.database.reading() as session:
        kinds = {"push", "action", "task", *ROWS, "newest", "waiting", "pulse queues"}
        assert {kind for kind, _ in await read_marks(session, watched)} == kinds
    for model in work_tables():
        query = {"work": str(model.__tablename__), "lane": job_lane(ENVIRONMENT, alias(1))}
        assert (await api.client.get("/waiting", params=query)).status_code == 200
    for text_ in (
        revision(1)[:8],
        f"{alias(1)}/1",
        task_id("t", 1),
        "user1@example.com",
        alias(1),
        "https://hg.x/a/rev/0",
    ):
        assert (await api.client.get("/search", params={"q": text_})).status_code in {200, 303}


async def write(api: Api) -> None:
    """Send the writing requests of people."""
    letters = (await api.get("/dead-letters", params={"limit": 500})).json()["items"]
    of_kind = {letter["kind"]: letter["id"] for letter in letters}
    for letter_id in of_kind.values():
        assert (await api.post(f"/dead-letters/{letter_id}/replay")).status_code == 202
    assert (await api.delete(f"/dead-letters/{min(letter['id'] for letter in letters)}")).status_code in {204, 404}
    failed = (await api.get("/pushes", params={"state": "failed"})).json()["items"][0]
    assert (await api.post(f"/pushes/{failed['repository']}/{failed['push_id']}/retry")).status_code == 202
    assert (await api.patch(f"/repositories/{alias(1)}", {"enabled": True})).status_code == 200
    assert (await api.post(f"/repositories/{alias(1)}/poll")).status_code == 202
    body = {"action": "cancel", "project": alias(1), "task_id": TASK}
    for _ in range(2):
        assert (await api.post("/actions", body, headers={"Idempotency-Key": "k"})).status_code == 202
    cancel_push = {"action": "cancel-push", "project": alias(1), "push": 1}
    assert (await api.post("/actions", cancel_push)).json()["generation"] == 0


async def listen(api: Api) -> None:
    """Send the requests of listeners."""
    leases = (await api.lease())["leases"]
    assert len(leases) >= 3
    first, second, third = ({"id": lease["id"], "shift": lease["shift"]} for lease in leases[:3])
    news = {"repository_id": first["id"], "shift": first["shift"], "outcome": "suspicious", "lastpushid": 60}
    await api.lease(
        polled=[[*second.values(), 0, 0]],
        under_way=[[*third.values()]],
        news=[{**news, "since": 50, "cursor": 50, "moved": True, "at_cursor": node("moved")}],
    )
    for _ in range(2):
        assert (await api.signed("/polls/announced", {"urls": [leases[0]["url"]]})).status_code == 200
    await api.push(push_event(SIZES.pushes + 1, alias=alias(1), shift=1, changesets=[changeset("new")]))
    await api.lease(ends=True)
    guid = f"{CHANNEL}/0"
    body = {"version": 1, "project": alias(1), "action": "retrigger", "requester": "me", "job_guid": guid}
    message: dict[str, Any] = {
        "exchange": "e",
        "routing_key": "k",
        "cc": [],
        "encoding": "utf-8",
        "body": json.dumps(body),
    }
    delivered: dict[str, Any] = {"channel": CHANNEL, "redelivered": False, "delivery": CHANNEL}
    message |= {**delivered, "stamp": 1.0}
    for number in range(2):
        events = [{**message, "delivery": f"{number}{CHANNEL[1:]}"}]
        sent = {"events": events, "acknowledged": [f"0{CHANNEL[1:]}"] if number else []}
        answer = await api.signed("/events/job-actions", sent)
        assert answer.status_code == 202, answer.text
    status = {"taskId": TASK, "taskGroupId": TASK, "deadline": now().isoformat(), "state": "pending", "runs": []}
    task_message: dict[str, Any] = {
        "exchange": "e",
        "routing_key": "k",
        "encoding": "utf-8",
        "body": json.dumps({"status": status}),
    }
    task_message |= {**delivered, "cc": [f"route.{ENVIRONMENT}.v2.{alias(1)}.{revision(1)}.1"]}
    answer = await api.signed("/events/tasks", {"events": [task_message, {**task_message, "body": "{"}]})
    assert answer.status_code == 202, answer.text
    for state in ("there", "deleted"):
        report = {"queue": "q", "events": "tasks", "found": state}
        assert (await api.signed("/listeners/report", report)).status_code == 200


async def follow_tree(api: Api, subject: PushSubject) -> None:
    """Run the queries for in-tree actions."""
    followed = {"action_task": task_id("r", 1), "action_task_seen_at": NEVER}
    async with api.database.writing() as session:
        await session.exec(update(Action).where(col(Action.id) == 1).values(**followed))
    await action_task.follow_action_tasks(api.services)
    async with api.database.reading() as session:
        action = await session.get_one(Action, 1)
    assert action.action_task_state is not None
    await trigger._rivals(api.services, action)
    with pytest.raises(UpstreamError):  # no queue is there to be asked
        await decision.decisions_of_push(api.services, subject)
    route = Route(alias(1), revision=node(1))
    await decision._push_of(api.services, Subject(subject.repository, {}, {}, [(ENVIRONMENT, route)]))
    async with api.database.reading() as session:
        await receive.load_rules(session, [alias(1), alias(2)])


async def serve(api: Api) -> None:
    """Run the queries of the worker and the reporter, beside the work itself."""
    database, settings = api.database, api.settings
    with pytest.raises(UpstreamError):  # no queue is there to be asked
        await reconcile.reconcile_quiet_runs(api.services)
    async with database.writing() as session:
        for model in work_tables():
            await session.exec(update(model).where(col(model.id).in_(range(10))).values(due_at=now()))
        session.add(lost := GroupCheck(task_group_id=reconcile.EVERYTHING, lane="lost", fencing_token=1))
    await reconcile.check_group(api.services, Lease(database, settings.work, lost))
    action = Action(kind="x", project=alias(1), push_id=1, generation=0, requester="me", source=Source.API, lane="x")
    subject = await find_push(api.services, action)
    for mode in Supersede:
        subject.repository.supersede = mode
        await supersede.find_pairs(api.services, subject)
    await follow_tree(api, subject)
    await push_tasks.read_copies(database, [task_id("t", 1), task_id("t", 2)])
    async with database.reading() as session:
        await push_tasks.graph_step(session, subject.push.id or 0)
        lanes = await leases.due_lanes(session, tuple(work_tables()))
        reports = await batches.due(session, ENVIRONMENT, 10)
    assert all(lanes.values())
    assert reports
    for model, of_model in lanes.items():
        for lane in of_model:
            async with database.writing() as session:
                await leases.pull_back(session, model, lane, timedelta(days=1))
                claimed = await leases.claim(session, model, lane, 2, settings.work.lease, holder="me", after="a")
            async with database.writing() as session:
                await leases.renew(session, [Lease(database, settings.work, item) for item in claimed], timedelta(0))
    await database.commit(
        lambda connection: connection.execute(*leases.due_now(JobReport, job_lane(ENVIRONMENT, alias(1)))), NOBODY
    )
    async with database.writing() as session:
        await reconcile.skip_reports(session, [task_id("r", 1)], "gone")
        await leases.take_over(session, "me", but="you")
        await leases.take_over(session, None, but="you")


@pytest.fixture
async def grown(database_url: str) -> AsyncIterator[Api]:
    fill(database_url, SIZES)
    async with running(
        settings_for(database_url, allowed_hosts=["hg.example.com"], taskcluster={"root_url": "http://127.0.0.1:9"})
    ) as started:
        yield started


async def test_no_query_of_the_api_reads_a_large_table(grown: Api) -> None:
    with caught(grown.database) as statements:
        await read_all(grown)
        await write(grown)
        await listen(grown)
    assert len(statements) > 50
    assert not (left := await scans(grown.database, statements)), "\n".join(left)


async def test_no_query_of_the_page_reads_a_large_table(grown: Api) -> None:
    with caught(grown.database) as statements:
        await look(grown)
    assert len(statements) > 15
    assert not (left := await scans(grown.database, statements)), "\n".join(left)


async def test_no_query_of_the_worker_or_the_sweeper_reads_a_large_table(grown: Api) -> None:
    with caught(grown.database) as statements:
        await serve(grown)
        await retention.sweep(grown.database, RetentionSettings(plans=timedelta(0)))
    assert len(statements) > 50
    assert not (left := await scans(grown.database, statements)), "\n".join(left)


@pytest.mark.parametrize("index", ["ix_push_user", "ix_push_repository_id", "ix_action_state", "ix_push_step_state"])
@pytest.mark.long
async def test_it_sees_when_the_index_of_a_list_is_missing(grown: Api, index: str) -> None:
    with caught(grown.database) as statements:
        await read_all(grown)
    async with grown.database.engine.connect() as connection:
        await connection.execute(text(f"DROP INDEX {index}"))
        assert await connection.run_sync(explain, statements)
        await connection.rollback()


@pytest.mark.parametrize("index", ["ix_push_noticed_at", "ix_job_report_ended", "ix_dead_letter_since"])
async def test_it_sees_when_the_index_of_a_sweep_is_missing(grown: Api, index: str) -> None:
    with caught(grown.database) as statements:
        await retention.sweep(grown.database, RetentionSettings())
    async with grown.database.engine.connect() as connection:
        await connection.execute(text(f"DROP INDEX {index}"))
        assert await connection.run_sync(explain, statements)
        await connection.rollback()


def test_every_foreign_key_has_an_index() -> None:
    """Otherwise each row that is deleted has its table read for rows that hang on it."""
    for table in SQLModel.metadata.tables.values():
        first = {next(iter(index.columns)).name for index in table.indexes}
        first |= {next(iter(c.columns)).name for c in table.constraints if isinstance(c, UniqueConstraint)}
        assert {key.parent.name for key in table.foreign_keys} <= first, table.name
