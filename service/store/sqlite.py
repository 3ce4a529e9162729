"""aiosqlite, with one trip to a connection's thread for each statement; by itself it makes four.

Each trip wakes two threads one after the other, which takes longer than most statements do.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import aiosqlite


class Cursor(aiosqlite.Cursor):
    """It is there once a statement was executed, and by then has all of its rows."""

    _rows: Sequence[Any] = ()

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        return await self._run(lambda connection: connection.execute(sql, parameters or ()))  # type: ignore[arg-type]  # aiosqlite's type is wider than sqlite3's

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._run(lambda connection: connection.executemany(sql, parameters))  # type: ignore[arg-type]  # likewise

    async def _run(self, statement: Callable[[sqlite3.Connection], sqlite3.Cursor]) -> Self:
        def run() -> tuple[sqlite3.Cursor, Sequence[Any]]:
            cursor = statement(self._connection._conn)
            return cursor, cursor.fetchall()

        self._connection.spoken_to = True
        self._cursor, self._rows = await self._connection._execute(run)  # type: ignore[no-untyped-call]  # aiosqlite's own
        return self

    async def fetchall(self) -> Sequence[Any]:
        return self._rows

    async def close(self) -> None:
        """Nothing is open: SQLite has given its last row."""


class Connection(aiosqlite.Connection):
    spoken_to = False
    """Whether a statement was sent since a transaction ended last."""

    def cursor(self) -> Cursor:  # type: ignore[override]  # SQLAlchemy enters it at once: no trip to make one
        return Cursor(self)

    async def commit(self) -> None:
        await super().commit()
        self.spoken_to = False

    async def rollback(self) -> None:
        """SQLAlchemy asks for one whenever a connection returns to its pool: no trip when there is nothing to undo."""
        if self.spoken_to:
            await super().rollback()
            self.spoken_to = False


def connect(database: str, **options: Any) -> Connection:
    """As `aiosqlite.connect`, for SQLAlchemy's `async_creator_fn`. The thread keeps no process from its end."""
    connection = Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=64)
    connection._thread.daemon = True
    return connection
