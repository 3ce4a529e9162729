"""Connect to SQLite through aiosqlite, with one hop to the connection's thread per statement instead of four.

Each hop wakes two threads one after the other, which takes longer than most statements do. For that, this module uses
three names of aiosqlite (0.22.1) that are not part of its documented interface; `tests/service/store/test_sqlite.py`
fails when an upgrade removes one:

    Connection._execute   run a function in the connection's thread: execute and fetch in one hop
    Connection._conn      the sqlite3 connection that this function uses
    Connection._thread    made a daemon, so that a connection that was not closed does not keep the process alive
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import aiosqlite


class Cursor(aiosqlite.Cursor):
    """A cursor that fetches all rows together with the execution of its statement."""

    _rows: Sequence[Any] = ()

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        return await self._run(lambda connection: connection.execute(sql, parameters or ()))  # type: ignore[arg-type]  # aiosqlite's type is wider than sqlite3's

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._run(lambda connection: connection.executemany(sql, parameters))  # type: ignore[arg-type]  # as above: aiosqlite's type is wider

    async def _run(self, statement: Callable[[sqlite3.Connection], sqlite3.Cursor]) -> Self:
        def run() -> tuple[sqlite3.Cursor, Sequence[Any]]:
            cursor = statement(self._connection._conn)
            return cursor, cursor.fetchall()

        self._connection.in_use = True
        self._cursor, self._rows = await self._connection._execute(run)  # type: ignore[no-untyped-call]  # aiosqlite's own
        return self

    async def fetchall(self) -> Sequence[Any]:
        return self._rows

    async def close(self) -> None:
        """Do nothing: all rows were fetched, so nothing is open."""


class Connection(aiosqlite.Connection):
    """A connection that does not hop to its thread for a cursor, or for a rollback without a statement before it."""

    in_use = False
    """True if a statement was executed since the last transaction ended."""

    def cursor(self) -> Cursor:  # type: ignore[override]  # SQLAlchemy only enters it, and needs no awaitable
        return Cursor(self)

    async def commit(self) -> None:
        await super().commit()
        self.in_use = False

    async def rollback(self) -> None:
        """Roll back if a statement was executed: SQLAlchemy calls this whenever a connection returns to its pool."""
        if self.in_use:
            await super().rollback()
            self.in_use = False


async def connect(database: str, **options: Any) -> Connection:
    """Connect as `aiosqlite.connect` does, for SQLAlchemy's `async_creator_fn`, with a daemon thread.

    aiosqlite forgets a database that its thread opens for a caller who is cancelled meanwhile. Here it is opened to the
    end, and closed.
    """
    connection = Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=64)
    connection._thread.daemon = True
    opening = asyncio.create_task(_opened(connection))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await connection.close()
        raise


async def _opened(connection: Connection) -> Connection:
    await connection
    return connection
