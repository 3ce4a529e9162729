"""Engine, sessions, UTC timestamps, SQLite's pragmas, and the schema's version.

Nobody but `Database.reading` and `Database.writing` commits: leaving the block is the commit, an exception the
roll-back.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import sqlalchemy.orm
import structlog
from sqlalchemy import JSON, Connection, DateTime, Engine, create_engine, event, func, inspect, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeDecorator
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service import clock
from service.clock import check_wall_clock, now
from service.store import sqlite
from service.store.commits import MAX_ROWS, Fence, GroupCommit, Statement
from service.store.wakeups import CHANNEL, Topic, Wakeups

log = structlog.get_logger()

Session = AsyncSession
SyncSession = sqlalchemy.orm.Session

T = TypeVar("T")


async def check_clock(session: AsyncSession) -> None:
    """Compare this process's clock with the database's: before each claim, and at the start, when it is set by it.

    SQLite's clock is the wall clock of this machine.
    """
    if session.get_bind().dialect.name != "postgresql":
        check_wall_clock()
        return
    connection = await session.connection()
    sent = clock.process_clock.steady()
    database_time = (await connection.execute(_DATABASE_TIME)).scalar_one()
    clock.process_clock.compare(database_time, sent, clock.process_clock.steady())


CLOCK_EVERY = 5.0
"""Seconds between two comparisons in a process that claims nothing."""


async def follow_clock(database: "Database") -> None:
    """Compare the clocks until cancelled, in a process that claims nothing."""
    while True:
        await asyncio.sleep(CLOCK_EVERY)
        try:
            async with database.reading() as session:
                await check_clock(session)
        except Exception:  # the database is away: the time is carried forward
            log.exception("clock-not-compared")


_DATABASE_TIME = select(func.clock_timestamp())


class Utc(TypeDecorator[datetime]):
    """A point in time. SQLite gives naive datetimes back, whatever it was given; this makes them UTC again."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: use service.clock.now()")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


Json = JSON(none_as_null=True)
"""A JSON column in which None is SQL's NULL."""


SQLITE_POOL = 6
"""Connections to SQLite: each has a thread, and 2 MB of pages in memory."""


class Database:
    """One engine and its sessions. Its errors hold no parameters: secrets and whole pushes are among them."""

    def __init__(self, url: str, pool: int = 20) -> None:
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            make_private(url)
            self.engine = create_async_engine(
                url,
                pool_size=SQLITE_POOL,
                max_overflow=0,
                connect_args={"timeout": 30, "async_creator_fn": sqlite.connect},
                hide_parameters=True,
            )
            _prepare_sqlite(self.engine.sync_engine)
            group = create_engine(sync_url(url), connect_args={"timeout": 30}, hide_parameters=True)
            _prepare_sqlite(group)
            group = group.execution_options(immediate=True)
        else:
            self.engine = create_async_engine(
                url, pool_size=pool, max_overflow=0, pool_pre_ping=True, hide_parameters=True
            )
            group = create_engine(url, pool_size=2, max_overflow=0, pool_pre_ping=True, hide_parameters=True)
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.sqlite else nullcontext()
        self.engines = (self.engine.sync_engine, group)  # for whoever watches the statements
        self._group = GroupCommit(group, self._turn)
        # SQLite has one writer; on PostgreSQL a large write goes beside the small ones
        self._large = self._group if self.sqlite else GroupCommit(group, self._turn)
        self.wakeups = Wakeups(None if self.sqlite else self._notify)
        self._sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for reads; on SQLite it never waits for a writer."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A session that commits when the block is left, and rolls back when it raises.

        On SQLite it begins with BEGIN IMMEDIATE: a transaction that turns into a writer later fails with
        "database is locked" instead of waiting. Writers of this process take turns by a lock of ours, for one that
        SQLite makes wait sleeps for milliseconds at a time.
        """
        async with self._turn, self._sessions() as session, session.begin():
            await session.connection(execution_options={"immediate": True})
            yield session

    async def commit(self, write: Callable[[Connection], T], share: str, rows: int = 1) -> T:
        """Call `write` in a transaction that it may share with others; see `GroupCommit.run`."""
        return await self._group.run(write, share, rows)

    async def write(self, fence: Fence, statements: Sequence[Statement], share: str, rows: int = 1) -> list[int]:
        """Write what a holder of leased work writes; see `GroupCommit.write`."""
        group = self._group if rows <= MAX_ROWS else self._large
        return await group.write(fence, statements, share, rows)

    async def run(self, write: Callable[[Connection], T]) -> T:
        """Call `write` in a transaction of its own, and return what it returns once that is committed.

        On SQLite that is one hop to a thread for all statements. On PostgreSQL it may wait for locks, and does so
        beside the writes that share transactions.
        """
        if self.sqlite:
            return await self.commit(write, "", rows=MAX_ROWS)
        async with self.writing() as session:
            return await (await session.connection()).run_sync(write)

    async def run_objects(self, write: Callable[[SyncSession], T]) -> T:
        """Call `write` likewise, with a session for objects; these may be read when it is over."""

        def with_session(connection: Connection) -> T:
            with SyncSession(bind=connection, expire_on_commit=False) as session:
                result = write(session)
                session.flush()
                return result

        return await self.run(with_session)

    async def _notify(self, topic: Topic) -> None:
        told = {"channel": CHANNEL, "topic": topic}
        await self.commit(lambda connection: connection.execute(_NOTIFY, told), "")

    async def write_probe(self) -> None:
        """Write a row of its own. Raises when the database takes no writes: it is read-only, or its disk is full."""
        insert = INSERT["sqlite" if self.sqlite else "postgresql"]
        bucket = SQLModel.metadata.tables["budget"]
        row = insert(bucket).values(name="write probe", tokens=0, at=now())
        async with self.writing() as session:
            await session.exec(row.on_conflict_do_update(index_elements=["name"], set_={"at": row.excluded.at}))

    async def close(self) -> None:
        await self.wakeups.close()
        await self._group.close()
        await self._large.close()
        await self.engine.dispose()


INSERT: dict[str, Any] = {"postgresql": postgresql_insert, "sqlite": sqlite_insert}
"""The inserts of the dialects, by their names: those that can pass over, or update, what is there."""

_NOTIFY = text("SELECT pg_notify(:channel, :topic)")

PRIVATE = 0o600


def make_private(url: str) -> None:
    """Make sure that nobody else may read a SQLite database: create its file so, and correct one that is there.

    SQLite gives -wal and -shm the mode of the file; those of a file that was open to others are corrected, too. Call
    it before each first connection, which would create the file as the umask says.
    """
    name = make_url(url).database if url.startswith("sqlite") else None
    if not name or name == ":memory:":
        return
    path = urlsplit(name).path if name.startswith("file:") else name
    for file, flags in ((path, os.O_CREAT), *((f"{path}-{more}", 0) for more in ("wal", "shm", "journal"))):
        try:
            descriptor = os.open(file, os.O_RDONLY | flags, PRIVATE)
        except OSError:  # it is not there, or SQLite says more readably why it cannot be opened
            continue
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != PRIVATE:
                os.fchmod(descriptor, PRIVATE)
        except OSError as error:
            log.warning("database-not-private", file=file, why=error.strerror, remedy=f"chmod 600 {file}")
        finally:
            os.close(descriptor)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself: `begin` below does
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def insertion(rows: Sequence[SQLModel]) -> list[Statement]:
    """Return the statement that inserts rows of one table, none if there are none. The database gives the ids."""
    return [(_insert(type(rows[0])), [row.model_dump(exclude={"id"}) for row in rows])] if rows else []


@cache
def _insert(model: type[SQLModel]) -> Any:
    return SQLModel.metadata.tables[str(model.__tablename__)].insert()


async def insert_new(session: AsyncSession, model: type[SQLModel], **values: Any) -> None:
    """Insert a row unless its key is taken: whoever comes second finds the first one's."""
    insert = INSERT[session.get_bind().dialect.name]
    await session.exec(insert(model).values(**values).on_conflict_do_nothing())


# --- the schema's version ----------------------------------------------------------------------------------------


class SchemaError(Exception):
    """The schema cannot be changed; the message says why."""


class SchemaBehindError(SchemaError):
    """The database's schema is not the one this code was written for."""


def migrations() -> Path:
    """Where they are: in a wheel within the package, in a checkout beside it."""
    here = Path(__file__).parents[1]
    installed = here / "_alembic"
    return installed if installed.is_dir() else here.parent / "alembic"


def revisions() -> list[str]:
    """Those that this release knows, in order; a file's name begins with its own.

    Alembic would tell, too: it takes ten megabytes, which a service whose schema is as it should be can do without.
    """
    return sorted(file.name.partition("_")[0] for file in (migrations() / "versions").glob("*_*.py"))


def shown(url: str) -> str:
    """`url` as it may be shown: without its password, and without parameters, among which one can be."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def sync_url(url: str) -> str:
    """For SQLAlchemy's other half, in which alembic works."""
    return url.replace("sqlite+aiosqlite:", "sqlite:")


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`. Two at once on PostgreSQL wait for each other (alembic/env.py holds a lock).

    A schema that a newer release has migrated is left as it is, so that an older one can be rolled back to. Raises
    SchemaError.
    """
    current = _current(url)
    if revision == "head" and (current == revisions()[-1] or _is_ahead(current)):
        return
    _migrate("upgrade", url, revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision` (`base`: nothing is left). Raises SchemaError."""
    _migrate("downgrade", url, revision)


def _migrate(command: Literal["upgrade", "downgrade"], url: str, revision: str) -> None:
    import alembic.command  # noqa: PLC0415 - see `revisions`
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    make_private(url)
    config = Config()
    config.set_main_option("script_location", str(migrations()))
    config.attributes["url"] = sync_url(url)
    try:
        getattr(alembic.command, command)(config, revision)
    except CommandError as error:
        raise SchemaError(f"the schema of {shown(url)} stays as it is: {error}") from error


def check_schema(url: str) -> None:
    """Raise SchemaBehindError if the database lacks a migration of this release.

    One that is ahead will do: each migration works with the previous release's code (expand first, contract later).
    """
    current, head = _current(url), revisions()[-1]
    if current != head and not _is_ahead(current):
        raise SchemaBehindError(
            f"the database {shown(url)} is at schema {current or 'none'}, "
            f"this release needs {head}: run `tc-treeherder db upgrade` first"
        )


def _current(url: str) -> str | None:
    make_private(url)
    engine = create_engine(sync_url(url), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return revision
    finally:
        engine.dispose()


def _is_ahead(current: str | None) -> bool:
    """Whether the schema is at a migration that this release does not know, so a newer one made it."""
    ahead = current is not None and current not in revisions()
    if ahead:
        log.warning("schema-ahead", schema=current, why="a newer release has migrated it; expected in a roll-back")
    return ahead


async def check_schema_async(url: str) -> None:
    await asyncio.to_thread(check_schema, url)
