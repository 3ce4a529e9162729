"""Engine, sessions, UTC timestamps, SQLite's pragmas, and the schema's version.

Only `Database` commits: leaving the block of `Database.writing` commits, and an exception rolls back.
"""

import asyncio
import contextvars
import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import structlog
from sqlalchemy import JSON, Connection, DateTime, Engine, create_engine, event, func, inspect, text
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeDecorator
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service import clock
from service.clock import check_wall_clock, now
from service.store.commits import MAX_ROWS, Fence, GroupCommit, Statement
from service.store.rows import set_values
from service.store.wakeups import CHANNEL, Topic, Wakeups

log = structlog.get_logger()

# A database that was made without a locale (SQL_ASCII) would answer with bytes where SQLAlchemy expects text.
os.environ.setdefault("PGCLIENTENCODING", "UTF8")

Session = AsyncSession

T = TypeVar("T")


async def check_clock(session: AsyncSession) -> None:
    """Compare this process's clock with the database's. The first comparison sets it.

    It is called at the start, and before work is claimed. SQLite's clock is the wall clock of this machine.
    """
    if session.get_bind().dialect.name != "postgresql":
        check_wall_clock()
        return
    connection = await session.connection()
    sent = clock.process_clock.steady()
    database_time = (await connection.execute(_DATABASE_TIME)).scalar_one()
    clock.process_clock.compare(database_time, sent, clock.process_clock.steady())


CLOCK_EVERY = 5.0
"""Seconds between two comparisons in a process that claims no work."""


async def follow_clock(database: "Database") -> None:
    """Compare the clocks until cancelled, in a process that claims no work."""
    while True:
        await asyncio.sleep(CLOCK_EVERY)
        try:
            async with database.reading() as session:
                await check_clock(session)
        except Exception:  # while the database cannot be reached, the time is carried forward
            log.exception("clock-not-compared")


_DATABASE_TIME = select(func.clock_timestamp())


class Utc(TypeDecorator[datetime]):
    """A column type for aware datetimes. SQLite returns naive ones, which are converted back to UTC."""

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


TRANSACTIONS = 4
"""Transactions on PostgreSQL that run in threads at a time, beside those that writes share."""

SQLITE_POOL = 6
"""Connections to SQLite. Each has a thread, and 2 MB of pages in memory."""


class Database:
    """An engine and its sessions. Errors contain no parameters, because these may be secrets or whole pushes."""

    def __init__(self, url: str, pool: int = 20) -> None:
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            from service.store import sqlite  # noqa: PLC0415 - it takes 2 MB, which PostgreSQL does not need

            make_private(url)
            self.engine = create_async_engine(
                url,
                pool_size=SQLITE_POOL,
                max_overflow=0,
                connect_args={"timeout": 30, "async_creator_fn": sqlite.connect},
                hide_parameters=True,
            )
            _set_pragmas(self.engine.sync_engine)
            event.listen(self.engine.sync_engine, "begin", _begin)
            group = create_engine(sync_url(url), connect_args={"timeout": 30}, hide_parameters=True)
            _set_pragmas(group)
            # not by an event: SQLAlchemy would look for events at each statement, which takes as long as some of them
            group.dialect.do_begin = _begin_immediately  # type: ignore[assignment,method-assign]  # of this engine alone
        else:
            options: dict[str, Any] = {"max_overflow": 0, "pool_pre_ping": True, "hide_parameters": True}
            self.engine = create_async_engine(url, pool_size=pool, **options)
            group = create_engine(url, pool_size=2 + TRANSACTIONS, **options)
        self._turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.sqlite else nullcontext()
        self.engines = (self.engine.sync_engine, group)  # for tools that observe the statements
        self._group = GroupCommit(group, self._turn)
        # SQLite has one writer; on PostgreSQL large writes run beside the small ones
        self._large = self._group if self.sqlite else GroupCommit(group, self._turn)
        self._alone = group
        self._transactions = ThreadPoolExecutor(TRANSACTIONS, thread_name_prefix="transaction")  # starts none by itself
        self.wakeups = Wakeups(None if self.sqlite else self._notify)
        self._sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session for reads. On SQLite it never waits for a writer."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block is left, and rolls back if the block raises.

        On SQLite it begins with BEGIN IMMEDIATE, because a transaction that becomes a writer later fails with
        "database is locked" instead of waiting. Writers of this process take turns with a lock of ours, because a
        writer that waits in SQLite sleeps for milliseconds at a time.
        """
        async with self._turn, self._sessions() as session, session.begin():
            await session.connection(execution_options={"immediate": True})
            yield session
        for topic in session.info.get(_WAKE, ()):
            self.wakeups.wake(topic)

    async def commit(self, write: Callable[[Connection], T], share: str, rows: int = 1) -> T:
        """Call `write` in a transaction that it may share with other writes; see `GroupCommit.run`."""
        return await self._group.run(write, share, rows)

    async def write(
        self, fence: Fence, statements: Sequence[Statement], share: str, rows: int = 1, *, hurry: bool = True
    ) -> list[int]:
        """Execute the statements of a holder of leased work; see `GroupCommit.write`."""
        group = self._group if rows <= MAX_ROWS else self._large
        return await group.write(fence, statements, share, rows, hurry=hurry)

    async def run(self, write: Callable[[Connection], T]) -> T:
        """Call `write` in a transaction of its own in another thread, and return its result after the commit.

        On PostgreSQL it may wait for locks, without holding up the writes that share transactions.
        """
        if self.sqlite:
            return await self.commit(write, "", rows=MAX_ROWS)
        context = contextvars.copy_context()

        def transact() -> T:
            with self._alone.begin() as connection:
                return context.run(write, connection)

        return await asyncio.get_running_loop().run_in_executor(self._transactions, transact)

    async def _notify(self, topic: Topic) -> None:
        parameters = {"channel": CHANNEL, "topic": topic}
        await self.commit(lambda connection: connection.execute(_NOTIFY, parameters), "")

    async def write_probe(self) -> None:
        """Write a row for this check. Raises if the database refuses: it is read-only, or its disk is full."""
        insert = insert_of(self.engine.dialect.name)
        bucket = SQLModel.metadata.tables["budget"]
        row = insert(bucket).values(name="write probe", tokens=0, at=now())
        async with self.writing() as session:
            await session.exec(row.on_conflict_do_update(index_elements=["name"], set_={"at": row.excluded.at}))

    async def close(self) -> None:
        await self.wakeups.close()
        await asyncio.to_thread(self._transactions.shutdown)  # they may wait for this event loop
        await self._group.close()
        await self._large.close()
        self._alone.dispose()
        await self.engine.dispose()


_WAKE = "topics to wake after the commit"
"""Key of a session's own information."""

_NOTIFY = text("SELECT pg_notify(:channel, :topic)")

PRIVATE = 0o600


def make_private(url: str) -> None:
    """Create a SQLite database's file with mode 0600, and correct the mode of an existing one.

    SQLite gives -wal and -shm the mode of the file; existing ones are corrected, too. Call it before the first
    connection, which would create the file with the umask's mode.
    """
    name = make_url(url).database if url.startswith("sqlite") else None
    if not name or name == ":memory:":
        return
    path = urlsplit(name).path if name.startswith("file:") else name
    for file, flags in ((path, os.O_CREAT), *((f"{path}-{suffix}", 0) for suffix in ("wal", "shm", "journal"))):
        try:
            descriptor = os.open(file, os.O_RDONLY | flags, PRIVATE)
        except OSError:  # it does not exist, or SQLite reports more readably why it cannot be opened
            continue
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != PRIVATE:
                os.fchmod(descriptor, PRIVATE)
        except OSError as error:
            log.warning("database-not-private", file=file, why=error.strerror, remedy=f"chmod 600 {file}")
        finally:
            os.close(descriptor)


def _set_pragmas(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins no transaction by itself: the functions below do
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _begin_immediately(connection: Any) -> None:
    connection.execute("BEGIN IMMEDIATE")


def wake_after(session: Session, topic: Topic) -> None:
    """Wake those who wait for this work once the session of `Database.writing` has committed."""
    session.info.setdefault(_WAKE, set()).add(topic)


def insert_of(dialect: str) -> Any:
    """Return the insert construct of a dialect, which can skip or update existing rows; `sqlalchemy.insert` cannot.

    The other dialect is not loaded, which saves 1 to 2 MB.
    """
    return import_module(f"sqlalchemy.dialects.{dialect}").insert


def insertion(rows: Sequence[SQLModel]) -> list[Statement]:
    """Return the statement that inserts these rows of one table, if there are any. The database assigns the ids."""
    return [(_insert_into(type(rows[0])), [row.model_dump(exclude={"id"}) for row in rows])] if rows else []


@cache
def _insert_into(model: type[SQLModel]) -> Any:
    return SQLModel.metadata.tables[str(model.__tablename__)].insert()


def insert_rows(connection: Connection, rows: Sequence[SQLModel]) -> None:
    """Insert rows of one table, and set their ids, in a third of the time that a session's flush takes."""
    if not rows:
        return
    table = SQLModel.metadata.tables[str(type(rows[0]).__tablename__)]
    names = [column.key for column in table.columns if column.key != "id"]
    values = [{name: vars(row).get(name) for name in names} for row in rows]  # each attribute read takes as long
    ids = connection.execute(_insert_for_ids(type(rows[0])), values).scalars()
    for row, number in zip(rows, ids, strict=True):
        set_values(row, id=number)


@cache
def _insert_for_ids(model: type[SQLModel]) -> Any:
    insert = _insert_into(model)
    return insert.returning(insert.table.c.id, sort_by_parameter_order=True)


async def insert_new(session: AsyncSession, model: type[SQLModel], **values: Any) -> None:
    """Insert a row, unless a row with its key exists."""
    insert = insert_of(session.get_bind().dialect.name)
    await session.exec(insert(model).values(**values).on_conflict_do_nothing())


# --- the schema's version ----------------------------------------------------------------------------------------


class SchemaError(Exception):
    """A schema that cannot be changed. The message says why."""


class SchemaBehindError(SchemaError):
    """A schema that lacks a migration of this release."""


def migrations() -> Path:
    """Return the folder of the migrations: in a wheel within the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    installed = package / "_alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


def revisions() -> list[str]:
    """Return the revisions that this release knows, in order. The name of a migration's file begins with its revision.

    This does not import alembic, which takes ten megabytes of memory and is only needed to migrate.
    """
    return sorted(file.name.partition("_")[0] for file in (migrations() / "versions").glob("*_*.py"))


def shown(url: str) -> str:
    """Return `url` without its password, and without its parameters, which can contain one."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def sync_url(url: str) -> str:
    """Return the URL for a synchronous engine, as alembic uses one."""
    return url.replace("sqlite+aiosqlite:", "sqlite:")


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate the schema to `revision`.

    Concurrent migrations on PostgreSQL wait for each other (alembic/env.py holds a lock). A schema that a newer release
    has migrated is not changed, so that a release can be rolled back. Raises SchemaError.
    """
    current = _current(url)
    if revision == "head" and (current == revisions()[-1] or _is_ahead(current)):
        return
    _migrate("upgrade", url, revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate the schema back to `revision` (`base` removes all tables). Raises SchemaError."""
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
        revisions = "a revision is head, base, or a number such as 0001"
        raise SchemaError(f"the schema of {shown(url)} was not changed: {error}; {revisions}") from error


def check_schema(url: str) -> None:
    """Raise SchemaBehindError if the database lacks a migration of this release.

    A schema of a newer release is accepted: each migration works with the previous release's code (expand first,
    contract later).
    """
    current, head = _current(url), revisions()[-1]
    if current != head and not _is_ahead(current):
        raise SchemaBehindError(
            f"the database {shown(url)} is at schema {current or 'none'}, "
            f"and this release needs {head}: run `tc-treeherder db upgrade` first"
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
    """Return True if the schema is at a migration that this release does not know, so a newer release made it."""
    ahead = current is not None and current not in revisions()
    if ahead:
        log.warning("schema-ahead", schema=current, why="a newer release has migrated it; expected in a roll-back")
    return ahead


async def check_schema_async(url: str) -> None:
    """Check the schema as `check_schema` does, in a thread."""
    await asyncio.to_thread(check_schema, url)
