"""Group commit: small writes that are due at the same time share one transaction.

A transaction costs far more than the statements of a small write. Writes that arrive during a commit share the next
transaction, so a write costs less the busier the service is. A single write does not wait, unless it is in no hurry:
then it waits for another one, for `PATIENCE` at most. The transactions run in a thread of their own, on a synchronous
connection that it keeps, which takes one hop for all statements of a transaction. It is no executor, whose futures call
as many functions for a hop as a statement does.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, Table, bindparam, select
from sqlalchemy.exc import DBAPIError

log = structlog.get_logger()

T = TypeVar("T")

GATHER = 0.005
"""Seconds that a transaction waits for more writes if the previous transaction was shared."""

PATIENCE = 0.002
"""Seconds that a write without hurry waits for another one, with which it shares a transaction."""

MAX_ROWS = 50
"""Largest number of rows in a shared transaction, as its writes declare them.

A larger write has a transaction of its own, so that no other write waits for it."""


Statement = tuple[Any, list[dict[str, Any]]]
"""A statement, and the parameters of each of its executions."""


@dataclass(frozen=True)
class Fence:
    """A leased row and its fencing token. Writes behind a fence happen only while the row still has this token."""

    table: Table  # with columns `id` and `fencing_token`
    id: int
    token: int


class FencedError(Exception):
    """A fencing token is out of date, because another process holds the row. Nothing was written."""


@dataclass
class _Write:
    run: Callable[[Connection], Any] | None
    fence: Fence | None
    statements: Sequence[Statement]
    rows: int
    done: asyncio.Future[Any]


Results = list[tuple[Any, BaseException | None]]
"""For each write what it returned, or its error."""


class _CommitThread:
    """A thread that writes in transactions, one after the other, and keeps its connection from one to the next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._jobs: SimpleQueue[tuple[Sequence[_Write], asyncio.Future[Results]] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._closed = False

    def commit(self, writes: Sequence[_Write]) -> asyncio.Future[Results]:
        """Begin to write in one transaction. If that fails, each write has one of its own."""
        done: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        try:
            self._start()
        except RuntimeError as error:
            done.set_result([(None, error) for _ in writes])
        else:
            self._jobs.put((writes, done))
        return done

    def _start(self) -> None:
        """Start the thread with the first job. Raises RuntimeError after `close`, or without a free thread."""
        if self._closed:
            raise RuntimeError("the database was closed")
        if self._thread is None:
            thread = Thread(target=self._work, name="commit", daemon=True)
            thread.start()
            self._thread = thread

    def close(self) -> None:
        """End the thread after what was begun, and return its connection to the pool."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(*job)
            del job  # while it waits for the next one, it keeps nothing of this one in memory
        self._drop()

    def _do(self, writes: Sequence[_Write], done: asyncio.Future[Results]) -> None:
        try:
            results = self._commit(writes)
        except BaseException as error:  # noqa: BLE001 - raised to each caller: without this thread, all would wait for ever
            results = [(None, error) for _ in writes]
        with suppress(RuntimeError):  # the event loop was closed meanwhile, so nobody waits
            done.get_loop().call_soon_threadsafe(_settle, done, results)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit(self, writes: Sequence[_Write]) -> Results:
        """Write in one transaction. If it fails, retry each write alone, so that none fails because of another."""
        kept = self._connection is not None
        try:
            self._connection = connection = self._connection or self._engine.connect()
        except BaseException as error:  # noqa: BLE001 - raised to each caller: the database cannot be reached
            return [(None, error) for _ in writes]
        written = False
        try:
            with connection.begin():
                results = _write(connection, writes)
                written = True
        except BaseException as error:  # noqa: BLE001 - raised to the caller of the write
            self._drop()
            answered = isinstance(error, DBAPIError) and not error.connection_invalidated  # then nothing is committed
            lost = isinstance(error, DBAPIError) and not answered
            if lost and kept and not written:
                return self._commit(writes)  # the server has ended the connection, perhaps long ago
            if len(writes) == 1 or (written and not answered):  # they may be committed, and must not be twice
                return [(None, error) for _ in writes]
            log.info("group-commit-split", writes=len(writes), error=type(error).__name__)
            return [result for write in writes for result in self._commit([write])]
        return results


def _settle(done: asyncio.Future[Results], results: Results) -> None:
    if not done.cancelled():
        done.set_result(results)


class GroupCommit:
    """A queue of writes that run in shared transactions. `turn` excludes this process's other writers meanwhile."""

    def __init__(self, engine: Engine, turn: AbstractAsyncContextManager[Any]) -> None:
        self._turn = turn
        self._pending: dict[str, deque[_Write]] = {}  # by share, in the order of their turns
        self._thread = _CommitThread(engine)
        self._runner: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()  # set while a pending write need not wait for another one

    async def run(self, write: Callable[[Connection], T], share: str, rows: int = 1) -> T:
        """Call `write` in a transaction, and return its result after the commit.

        `write` runs in another thread. It runs again if the transaction failed because of another write, and if the
        connection that was kept was gone. If it raises, none of its statements is committed, and the error is raised
        here. Shares take turns. A write that locks rows must have a transaction of its own (`MAX_ROWS`), so that
        transactions cannot deadlock. It has the caller's context variables: the id of the request in the log, and the
        trace.
        """
        context = contextvars.copy_context()

        def write_in_context(connection: Connection) -> T:
            return context.run(write, connection)

        return await self._enqueue(run=write_in_context, fence=None, statements=(), share=share, rows=rows)  # type: ignore[no-any-return]  # what `write` returns

    async def write(
        self, fence: Fence, statements: Sequence[Statement], share: str, rows: int = 1, *, hurry: bool = True
    ) -> list[int]:
        """Execute `statements` if the row still has the fence's token, and return the number of rows each has changed.

        The first of them changes the row, and must have its token as a condition: that is enough for a write that has
        a transaction of its own. Equal statements of several writes are executed together, and their rows are counted
        together. Without `hurry` it waits up to `PATIENCE` for another write. Raises FencedError.
        """
        done = self._enqueue(share, hurry, run=None, fence=fence, statements=statements, rows=rows)
        return list(await done)

    async def _enqueue(self, share: str, hurry: bool = True, **values: Any) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if hurry or self._pending or values["rows"] >= MAX_ROWS:  # the others have met, or can meet nobody
            self._hurry.set()
        self._pending.setdefault(share, deque()).append(_Write(**values, done=done))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await done

    async def close(self) -> None:
        """Wait for pending writes. The engine is the caller's."""
        if self._runner is not None:
            await self._runner
        self._thread.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        busy = False
        while self._pending:
            if busy:  # gather more writes, so that each costs less
                await asyncio.sleep(GATHER)
            elif not self._hurry.is_set():
                timer = loop.call_later(PATIENCE, self._hurry.set)
                await self._hurry.wait()
                timer.cancel()
            async with self._turn:
                writes = self._next()
                if not self._pending:
                    self._hurry.clear()
                results = await self._thread.commit(writes) if writes else []
            for write, (result, error) in zip(writes, results, strict=True):
                if write.done.cancelled():
                    continue
                if error is None:
                    write.done.set_result(result)
                else:
                    write.done.set_exception(error)
            busy = len(writes) > 1 and bool(self._pending)
            await asyncio.sleep(0)  # what waited for these goes on before the next transaction takes the interpreter
        self._runner = None

    def _next(self) -> list[_Write]:
        """Remove the writes of the next transaction from the queue, and return them; shares take turns."""
        writes: list[_Write] = []
        rows = 0
        while self._pending and rows < MAX_ROWS:
            share, queue = next(iter(self._pending.items()))
            if writes and rows + queue[0].rows > MAX_ROWS:
                break
            del self._pending[share]
            write = queue.popleft()
            if queue:
                self._pending[share] = queue  # at the end, behind the other shares
            if not write.done.cancelled():  # a write whose caller has gone is dropped
                writes.append(write)
                rows += max(write.rows, 1)
        return writes


def _write(connection: Connection, writes: Sequence[_Write]) -> Results:
    if len(writes) == 1 and writes[0].fence is not None:
        return [(_write_alone(connection, writes[0].statements), None)]
    intact = _lock_intact(connection, [write.fence for write in writes if write.fence is not None])
    results: Results = []
    fenced: list[tuple[list[int], Sequence[Statement]]] = []
    for write in writes:
        if write.run is not None:
            results.append((write.run(connection), None))
        elif write.fence in intact:
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


def _write_alone(connection: Connection, statements: Sequence[Statement]) -> list[int]:
    """Execute the statements of one write behind a fence. Raises FencedError, and the transaction is rolled back."""
    counts: list[int] = []
    for statement, parameters in statements:
        counts.append(connection.execute(statement, parameters).rowcount if parameters else 0)
        if not counts[0]:
            raise FencedError
    return counts


def _execute(connection: Connection, executions: list[tuple[list[int], Any, list[dict[str, Any]]]]) -> None:
    """Execute each statement once, with the parameters of all writes that have it: on PostgreSQL in one round trip."""
    by_statement: dict[int, list[tuple[list[int], Any, list[dict[str, Any]]]]] = {}
    for execution in executions:
        by_statement.setdefault(id(execution[1]), []).append(execution)
    for equal in by_statement.values():
        parameters = [row for _, _, rows in equal for row in rows]
        count = connection.execute(equal[0][1], parameters).rowcount if parameters else 0
        for counts, _, _ in equal:
            counts.append(count)


def _lock_intact(connection: Connection, fences: Sequence[Fence]) -> set[Fence]:
    """Lock the rows of the fences in the order of their ids, and return the fences whose token is unchanged."""
    current: set[Fence] = set()
    for table in sorted({fence.table for fence in fences}, key=lambda table: table.name):
        ids = [fence.id for fence in fences if fence.table is table]
        current |= {Fence(table, *row) for row in connection.execute(_select_tokens(table), {"ids": ids})}
    return current & set(fences)


@cache
def _select_tokens(table: Table) -> Any:
    of_ids = table.c.id.in_(bindparam("ids", expanding=True))
    return select(table.c.id, table.c.fencing_token).where(of_ids).order_by(table.c.id).with_for_update()
