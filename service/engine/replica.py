"""In whose name this process leases work, and the proof that whoever used that name before is gone.

With the proof, what the predecessor held is due at once; without it, its leases end by themselves. The proof is a lock
that ends with the process: on SQLite of a file beside the database, on PostgreSQL a session's advisory lock. Fencing
tokens make it safe to be wrong: whoever is taken over while it lives can write nothing any more.
"""

import asyncio
import errno
import fcntl
import os
import secrets
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from service.engine import leases
from service.store.database import Database
from service.store.wakeups import Topic

log = structlog.get_logger()

CHECK = 5.0
"""Seconds between two looks whether the lock is still held, or can be had."""

TIME_LIMIT = 10.0
"""Seconds for one such look."""

_SPACE = 0x7C7C
"""The first of the two numbers of the lock on PostgreSQL; alembic/env.py and flow/action.py have their own."""


class LockedError(Exception):
    """The lock file cannot be locked; the message says why, and what to do."""


@contextmanager
def only(url: str) -> Iterator[None]:
    """Hold the lock that says that this service is the only one on a SQLite database. Raises LockedError."""
    database = make_url(url).database or ":memory:"
    if database == ":memory:":  # nobody shares it
        yield
        return
    with _locked(database):
        yield


def _locked(database: str) -> IO[str]:
    path = Path(f"{database}.lock")
    try:
        path.touch(mode=0o600)
        file = path.open("r+")
    except OSError as error:
        raise LockedError(
            f"{path} cannot be written ({error.strerror}), so neither can the database: make its folder writable, or "
            "change TC_TREEHERDER_DATABASE_URL"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = file.read(100).strip() or "another process"
        file.close()
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            raise LockedError(
                f"{other} runs `tc-treeherder serve` on {database} already, and SQLite is for one: stop it, choose "
                "another file, or use PostgreSQL (TC_TREEHERDER_DATABASE_URL)"
            ) from None
        raise LockedError(
            f"{path} cannot be locked ({error.strerror}): a network file system without locks is no place for SQLite. "
            "Use a local disk, or PostgreSQL (TC_TREEHERDER_DATABASE_URL)"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


class Replica:
    """The name under which this process leases work. `alone` says that it holds the lock of the database's file."""

    def __init__(self, database: Database | None = None, name: str | None = None, *, alone: bool = False) -> None:
        self._database = database
        self._name = name or socket.gethostname()
        self._unique = secrets.token_hex(8)  # tells apart two processes that use the same name one after the other
        self._proved = alone
        self._engine: AsyncEngine | None = None
        self._connection: AsyncConnection | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def holder(self) -> str:
        """Return what this process writes on the work that it claims. Without the lock, nobody takes that work over."""
        return f"{self._name}/{self._unique}" if self._proved else f"/{self._unique}"

    async def start(self) -> None:
        """Take over the leases of the predecessor if it is gone; on PostgreSQL, keep the lock until `stop`."""
        assert self._database is not None
        if self._database.sqlite:
            if self._proved:
                await self._take_over(self._database, None)
            return
        self._engine = create_async_engine(self._database.engine.url, poolclass=NullPool, hide_parameters=True)
        await self._look()
        if not self._proved:
            log.warning("replica-name-in-use", replica=self._name, why="leases of a predecessor end by themselves")
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Release the lock."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._disconnect()
        if self._engine is not None:
            await self._engine.dispose()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(CHECK)
            await self._look()

    async def _look(self) -> None:
        """Check that the lock is still held, or try to get it: another process may have it by now."""
        try:
            async with asyncio.timeout(TIME_LIMIT):
                if self._connection is not None:
                    await self._connection.execute(text("SELECT 1"))
                elif await self._lock():
                    assert self._database is not None
                    await self._take_over(self._database, f"{self._name}/")
                    self._proved = True
        except Exception as error:  # noqa: BLE001 - the database is away: whatever it is, the lock is gone
            log.warning("replica-lock-lost", replica=self._name, error=type(error).__name__)
            await self._disconnect()

    async def _lock(self) -> bool:
        assert self._engine is not None
        self._connection = await (await self._engine.connect()).execution_options(isolation_level="AUTOCOMMIT")
        number = zlib.crc32(self._name.encode()) - 2**31  # PostgreSQL's are signed
        query = text("SELECT pg_try_advisory_lock(:space, :number)")
        if (await self._connection.execute(query, {"space": _SPACE, "number": number})).scalar_one():
            return True
        await self._disconnect()
        return False

    async def _disconnect(self) -> None:
        self._proved = False
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.invalidate()  # returning it to the pool is not enough: the lock ends with the session
                await connection.close()
            except Exception:  # noqa: BLE001 - it was broken already
                log.debug("replica-connection-broken", replica=self._name)

    async def _take_over(self, database: Database, names: str | None) -> None:
        async with database.writing() as session:
            taken = await leases.take_over(session, names, but=f"{self._name}/{self._unique}")
        if taken:
            for topic in Topic:
                database.wakeups.wake(topic)
            log.warning("leases-taken-over", replica=self._name, pieces=taken)
