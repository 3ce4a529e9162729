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
from functools import cache
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, Table, bindparam, select

log = structlog.get_logger()

T = TypeVar("T")

GATHER = 0.005
"""Seconds that a transaction waits for more writes, when the one before it was shared."""

MAX_ROWS = 50
"""Rows of one transaction, by what its writes say of themselves; a larger write has one to itself, for whoever shares
it would wait for it."""


Statement = tuple[Any, list[dict[str, Any]]]
"""A statement that is made once, and the parameters of each of its executions."""


@dataclass(frozen=True)
class Fence:
    """The row that a holder has leased, and its fencing token: what is behind it is written only while they match."""

    table: Table  # with columns `id` and `fencing_token`
    id: int
    token: int


class FencedError(Exception):
    """The row is held by somebody else now, and nothing was written."""


@dataclass
class _Write:
    run: Callable[[Connection], Any] | None
    fence: Fence | None
    statements: Sequence[Statement]
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

    async def run(self, write: Callable[[Connection], T], share: str, rows: int = 1) -> T:
        """Call `write` in a transaction, and return what it returns once that is committed.

        It runs in another thread, and a second time if the transaction failed because of another write. When it
        raises, nothing of it is committed, and the error is raised here. Shares take turns. A write that locks rows is
        to have a transaction of its own (`MAX_ROWS`), so that two transactions never wait for each other in a circle.
        """
        return await self._ask(run=write, fence=None, statements=(), share=share, rows=rows)  # type: ignore[no-any-return]  # what `write` returns

    async def write(self, fence: Fence, statements: Sequence[Statement], share: str, rows: int = 1) -> list[int]:
        """Execute `statements` if the fence holds, and return how many rows each has changed.

        Equal statements of several writes are executed together, and their rows are counted together. Raises
        FencedError.
        """
        return list(await self._ask(run=None, fence=fence, statements=statements, share=share, rows=rows))

    async def _ask(self, share: str, **values: Any) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(share, deque()).append(_Write(**values, done=done))
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
        writes: list[_Write] = []
        while self._pending:
            if len(writes) > 1:  # there is much to write: let more come, so that each costs less
                await asyncio.sleep(GATHER)
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
        return writes

    def _commit(self, writes: Sequence[_Write]) -> list[tuple[Any, Exception | None]]:
        """Write in one transaction; if it fails, each in its own, so that none fails because of another."""
        try:
            connection = self._engine.connect()
        except Exception as error:  # noqa: BLE001 - the database is away, for all of them
            return [(None, error) for _ in writes]
        try:
            with connection, connection.begin():
                return _write(connection, writes)
        except Exception as error:  # noqa: BLE001 - raised where the write was asked for
            if len(writes) == 1:
                return [(None, error)]
            log.info("group-commit-split", writes=len(writes), error=type(error).__name__)
            return [result for write in writes for result in self._commit([write])]


def _write(connection: Connection, writes: Sequence[_Write]) -> list[tuple[Any, Exception | None]]:
    held = _held(connection, [write.fence for write in writes if write.fence is not None])
    results: list[tuple[Any, Exception | None]] = []
    fenced: list[tuple[list[int], Sequence[Statement]]] = []
    for write in writes:
        if write.run is not None:
            results.append((write.run(connection), None))
        elif write.fence in held:
            counts: list[int] = []
            results.append((counts, None))
            fenced.append((counts, write.statements))
        else:
            results.append((None, FencedError()))
    for number in range(max((len(statements) for _, statements in fenced), default=0)):
        _execute(
            connection, [(counts, *statements[number]) for counts, statements in fenced if number < len(statements)]
        )
    return results


def _execute(connection: Connection, asked: list[tuple[list[int], Any, list[dict[str, Any]]]]) -> None:
    """Execute each statement once, with the parameters of all who ask for it: on PostgreSQL in one round trip."""
    together: dict[int, list[tuple[list[int], Any, list[dict[str, Any]]]]] = {}
    for each in asked:
        together.setdefault(id(each[1]), []).append(each)
    for same in together.values():
        parameters = [row for _, _, rows in same for row in rows]
        count = connection.execute(same[0][1], parameters).rowcount if parameters else 0
        for counts, _, _ in same:
            counts.append(count)


def _held(connection: Connection, fences: Sequence[Fence]) -> set[Fence]:
    """Lock the rows of the fences in the order of their ids, and return those whose token is still the same."""
    held: set[Fence] = set()
    for table in sorted({fence.table for fence in fences}, key=lambda table: table.name):
        ids = [fence.id for fence in fences if fence.table is table]
        held |= {Fence(table, *row) for row in connection.execute(_tokens(table), {"ids": ids})}
    return held & set(fences)


@cache
def _tokens(table: Table) -> Any:
    of_ids = table.c.id.in_(bindparam("ids", expanding=True))
    return select(table.c.id, table.c.fencing_token).where(of_ids).order_by(table.c.id).with_for_update()
