"""Sessions, transactions and points in time, on both databases."""

import asyncio
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import col, select, update

from service.clock import now
from service.store.database import (
    TRANSACTIONS,
    Database,
    SchemaBehindError,
    SchemaError,
    check_schema,
    check_schema_async,
    downgrade,
    insert_rows,
    upgrade,
)
from service.store.models import DeadLetter, PushStep, Repository, StepKind
from tests.service.harness import add_repository
from tests.services import Server, create_database, drop_database


def letter(subject: str, since: datetime | None = None) -> DeadLetter:
    return DeadLetter(kind="x", subject=subject, reason="", since=since or now())


async def subjects(database: Database) -> list[str]:
    async with database.reading() as session:
        return sorted(await session.exec(select(DeadLetter.subject)))


async def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    at = datetime(2024, 2, 29, 23, 30, 0, 123_456, timezone(timedelta(hours=-5)))
    async with database.writing() as session:
        session.add(letter("a", at))
    async with database.reading() as session:
        stored = (await session.exec(select(DeadLetter))).one()
        earlier = await session.exec(select(DeadLetter.id).where(col(DeadLetter.since) < at + timedelta(seconds=1)))
        assert len(earlier.all()) == 1
        later = await session.exec(select(DeadLetter.id).where(col(DeadLetter.since) > at.astimezone(UTC)))
        assert later.all() == []
    assert stored.since == at
    assert stored.since.utcoffset() == timedelta()


async def test_a_time_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match=r"no time zone: use service\.clock\.now\(\)"):
        async with database.writing() as session:
            session.add(letter("a", datetime(2024, 1, 1)))  # noqa: DTZ001 - that is the point
    assert await subjects(database) == []


async def test_a_database_without_an_encoding_keeps_text(postgres_server: Server) -> None:
    """As PostgreSQL makes it where no locale is set, as in a minimal container."""
    url = create_database(postgres_server.url, encoding="SQL_ASCII")
    await asyncio.to_thread(upgrade, url)
    database = Database(url)
    async with database.writing() as session:
        session.add(letter("žluťoučký 🐎"))
    assert await subjects(database) == ["žluťoučký 🐎"]
    await database.close()
    drop_database(postgres_server.url, url)


def test_now_is_aware() -> None:
    assert now().tzinfo is UTC


async def test_leaving_the_block_commits(database: Database) -> None:
    async with database.writing() as session:
        session.add(letter("a"))
    assert await subjects(database) == ["a"]


async def test_raising_rolls_all_back(database: Database) -> None:
    async def write() -> None:
        async with database.writing() as session:
            session.add(letter("a"))
            await session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        await write()
    assert await subjects(database) == []


async def test_a_reading_session_leaves_nothing_behind(database: Database) -> None:
    async with database.reading() as session:
        session.add(letter("a"))
        await session.flush()
    assert await subjects(database) == []


async def test_writers_at_once_wait_for_each_other(database: Database) -> None:
    """On SQLite two of them would fail with "database is locked" if they began as readers."""
    repository = await add_repository(database, "mc")

    async def one() -> None:
        async with database.writing() as session:
            query = select(type(repository)).where(type(repository).id == repository.id).with_for_update()
            locked = (await session.exec(query)).one()
            await asyncio.sleep(0.01)
            locked.shift += 1

    await asyncio.gather(*(one() for _ in range(15)))
    async with database.reading() as session:
        assert (await session.exec(select(type(repository).shift))).one() == 15


CALLER = ContextVar("CALLER", default="nobody")


async def test_a_transaction_in_a_thread_commits_and_has_its_callers_context(database: Database) -> None:
    CALLER.set("somebody")

    def write(connection: Connection) -> str:
        insert_rows(connection, [letter("a")])
        return f"{CALLER.get()} in {threading.current_thread() is not threading.main_thread()}"

    assert await database.run(write) == "somebody in True"
    assert await subjects(database) == ["a"]


async def test_a_transaction_in_a_thread_that_raises_leaves_nothing(database: Database) -> None:
    def write(connection: Connection) -> None:
        insert_rows(connection, [letter("a")])
        raise ValueError("not this")

    with pytest.raises(ValueError, match="not this"):
        await database.run(write)
    assert await subjects(database) == []


async def test_transactions_that_wait_for_locks_hold_up_no_small_write(postgres_url: str) -> None:
    postgres = Database(postgres_url)
    repositories = [await add_repository(postgres, f"r{number}") for number in range(TRANSACTIONS)]
    statement = update(Repository).values(level="1")

    def change(number: int | None) -> Callable[[Connection], object]:
        return lambda connection: connection.execute(statement.where(col(Repository.id) == number))

    async with postgres.writing() as session:
        await session.exec(select(Repository).with_for_update())
        waiting = [asyncio.create_task(postgres.run(change(repository.id))) for repository in repositories]
        await asyncio.sleep(0.2)
        await asyncio.wait_for(postgres.commit(lambda connection: connection.execute(text("SELECT 1")), "share"), 10)
        assert not any(task.done() for task in waiting)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    async with postgres.reading() as session:
        assert set(await session.exec(select(Repository.level))) == {"1"}
    await postgres.close()


async def test_sqlite_writers_begin_as_writers(sqlite: Database) -> None:
    async with sqlite.writing(), sqlite.engine.connect() as other:
        await other.execute(text("SELECT 1"))
        await other.exec_driver_sql("PRAGMA busy_timeout=0")
        with pytest.raises(OperationalError, match="locked"):
            await other.execute(text("DELETE FROM dead_letter"))


async def test_sqlite_readers_never_wait_for_a_writer(sqlite: Database) -> None:
    async with sqlite.writing() as session:
        session.add(letter("a"))
        await session.flush()
        async with asyncio.timeout(1):
            assert await subjects(sqlite) == []
    assert await subjects(sqlite) == ["a"]


async def test_sqlite_pragmas(sqlite: Database) -> None:
    async with sqlite.engine.connect() as connection:
        for pragma, expected in (("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 30_000)):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == expected


async def test_references_are_checked(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        async with database.writing() as session:
            session.add(PushStep(push_id=4711, kind=StepKind.GRAPH, lane="graph x"))
    assert await subjects(database) == []


async def test_none_in_json_is_null(database: Database) -> None:
    await add_repository(database, "mc", environments=None)
    async with database.engine.connect() as connection:
        result = await connection.execute(text("SELECT count(*) FROM repository WHERE environments IS NULL"))
        assert result.scalar() == 1


async def test_a_schema_that_is_up_to_date_is_fine(database_url: str) -> None:
    await check_schema_async(database_url)


def test_a_schema_that_is_behind_is_named(empty_database_url: str) -> None:
    with pytest.raises(
        SchemaBehindError, match=r"is at schema none, and this release needs .*tc-treeherder db upgrade"
    ):
        check_schema(empty_database_url)


def test_a_service_whose_schema_is_as_it_should_be_does_without_alembic(sqlite_url: str) -> None:
    script = (
        "import sys, service.app, service.cli; from service.store.database import check_schema, upgrade; "
        "upgrade(sys.argv[1]); check_schema(sys.argv[1]); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, sqlite_url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_revision_that_is_none_is_said(sqlite_url: str) -> None:
    with pytest.raises(SchemaError, match=r"x\.sqlite was not changed: .*nonsense"):
        downgrade(sqlite_url, "nonsense")


def modes(path: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob(f"{path.name}*")}


@pytest.mark.parametrize("way", ["upgrade", "check", "serve"])
async def test_nobody_else_may_read_a_sqlite_database(tmp_path: Path, way: str) -> None:
    path = tmp_path / "x.sqlite"
    url = f"sqlite+aiosqlite:///{path}"
    before = os.umask(0)  # the least careful one
    try:
        if way == "upgrade":
            upgrade(url)
        elif way == "check":
            with pytest.raises(SchemaBehindError):
                check_schema(url)
        database = Database(url)
        async with database.writing() as session:
            await session.exec(text("CREATE TABLE x (y)"))  # type: ignore[call-overload]  # SQLModel's own is narrower
            assert modes(path) == {"x.sqlite": 0o600, "x.sqlite-wal": 0o600, "x.sqlite-shm": 0o600}
        await database.close()
        assert modes(path)["x.sqlite"] == 0o600
    finally:
        os.umask(before)


async def test_a_database_that_others_could_read_is_corrected_with_its_side_files(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    url = f"sqlite+aiosqlite:///{path}"
    first = Database(url)
    async with first.writing() as session:
        await session.exec(text("CREATE TABLE x (y)"))  # type: ignore[call-overload]  # SQLModel's own is narrower
    for name in modes(path):
        os.chmod(tmp_path / name, 0o644)
    assert set(modes(path)) == {"x.sqlite", "x.sqlite-wal", "x.sqlite-shm"}
    second = Database(url)
    assert set(modes(path).values()) == {0o600}
    await first.close()
    await second.close()
