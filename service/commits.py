"""Group commit: small writes that are due at the same time share one transaction.

A transaction costs far more than the statements of a small write. While one is being committed, those that come
meanwhile wait for the next, so the busier the service is, the less each of them costs; one that comes alone waits for
nobody. They run in a thread of their own, on a synchronous connection: one hop for all statements of a transaction.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine

log = structlog.get_logger()

T = TypeVar("T")

MAX_ROWS = 500
"""Rows of one transaction, by what its writes say of themselves; a larger write has one to itself."""


@dataclass
class _Write:
    run: Callable[[Connection], Any]
    order: tuple[str, int]
    rows: int
    done: asyncio.Future[Any]


class GroupCommit:
    """Runs writes in shared transactions. `turn` keeps other writers of this process out meanwhile."""

    def __init__(self, engine: Engine, turn: AbstractAsyncContextManager[Any]) -> None:
        self._engine = engine
        self._turn = turn
        self._pending: dict[str, deque[_Write]] = {}  # by share; the first one's turn is next
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._runner: asyncio.Task[None] | None = None

    async def run(
        self, write: Callable[[Connection], T], share: str, order: tuple[str, int] = ("", 0), rows: int = 1
    ) -> T:
        """Call `write` in a transaction, and return what it returns once that is committed.

        It runs in another thread, and a second time if the transaction failed because of another write. When it
        raises, nothing of it is committed, and the error is raised here. Shares take turns. Within a transaction the
        writes are sorted by `order`, the table and id of the row that each locks first, so that two transactions
        never wait for each other in a circle.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(share, deque()).append(_Write(write, order, rows, done))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await done

    async def close(self) -> None:
        """Wait for what is under way, and close the connection."""
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()
        self._engine.dispose()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            async with self._turn:
                writes = self._next()
                results = await loop.run_in_executor(self._thread, self._commit, writes) if writes else []
            for write, (result, error) in zip(writes, results, strict=True):
                if write.done.cancelled():
                    continue
                if error is None:
                    write.done.set_result(result)
                else:
                    write.done.set_exception(error)
        self._runner = None

    def _next(self) -> list[_Write]:
        """Take the writes of the next transaction: one of each share after the other."""
        writes: list[_Write] = []
        rows = 0
        while self._pending and rows < MAX_ROWS:
            share, queue = next(iter(self._pending.items()))
            if writes and rows + queue[0].rows > MAX_ROWS:
                break
            del self._pending[share]
            write = queue.popleft()
            if queue:
                self._pending[share] = queue  # behind the others
            if not write.done.cancelled():  # whoever waited for it is gone: then it has not happened
                writes.append(write)
                rows += write.rows
        return sorted(writes, key=lambda write: write.order)

    def _commit(self, writes: Sequence[_Write]) -> list[tuple[Any, Exception | None]]:
        """Write in one transaction; if it fails, each in its own, so that none fails because of another."""
        try:
            with self._engine.begin() as connection:
                return [(write.run(connection), None) for write in writes]
        except Exception as error:  # noqa: BLE001 - raised where the write was asked for
            if len(writes) == 1:
                return [(None, error)]
            log.info("group-commit-split", writes=len(writes), error=type(error).__name__)
            return [result for write in writes for result in self._commit([write])]
