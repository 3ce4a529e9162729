"""Group commit: what shares a transaction, what does not, and whose turn is next."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import col, select, update

from service.clock import now
from service.engine.leases import Lease, LeaseLostError
from service.store import commits
from service.store.commits import MAX_ROWS
from service.store.database import Database, insertion
from service.store.models import Budget, DeadLetter, PushStep, State
from tests.service.engine.test_leases import SETTINGS, add_steps, take
from tests.service.flow.single_treeherder import until

TABLE = Budget.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it


def insert(name: str) -> Callable[[Connection], str]:
    def write(connection: Connection) -> str:
        connection.execute(TABLE.insert(), {"name": name, "tokens": 0, "at": now()})
        return name

    return write


async def names(database: Database) -> set[str]:
    async with database.reading() as session:
        return set((await session.exec(select(col(Budget.name)))).all())


class Transactions:
    """Holds the first transaction up until `go`, and notes which writes ran in each."""

    def __init__(self, database: Database) -> None:
        self.ran: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self._database = database
        event.listen(database.engines[1], "begin", lambda _: self.ran.append([]))

    def write(self, name: str) -> Callable[[Connection], str]:
        inner = insert(name)

        def run(connection: Connection) -> str:
            self.ran[-1].append(name)
            self.begun.set()
            assert self.go.wait(10)
            return inner(connection)

        return run

    async def begin(self) -> None:
        """Wait until a write is under way."""
        assert await asyncio.to_thread(self.begun.wait, 10)

    async def ask(self, *writes: tuple[str, str, int]) -> list[Any]:
        """Ask for writes (share, name, rows), the first of which is under way when the others come."""
        tasks = []
        for share, name, rows in writes:
            tasks.append(asyncio.create_task(self._database.commit(self.write(name), share, rows)))
            await self.begin()
        await asyncio.sleep(0)
        self.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_writes_that_come_meanwhile_share_a_transaction(database: Database) -> None:
    transactions = Transactions(database)
    written = [str(number) for number in range(20)]
    assert await transactions.ask(*(("a", name, 1) for name in written)) == written
    assert await names(database) == set(written)
    assert [len(ran) for ran in transactions.ran] == [1, 19]


async def test_no_share_waits_for_all_that_another_wants_to_write(database: Database) -> None:
    transactions = Transactions(database)
    hog = [("hog", str(number), MAX_ROWS - 5) for number in range(5)]
    await transactions.ask(*hog, ("other", "small", 1))
    assert transactions.ran == [["0"], ["1", "small"], ["2"], ["3"], ["4"]]


async def test_what_must_be_alone_shares_with_no_write_even_of_no_rows(database: Database) -> None:
    transactions = Transactions(database)
    await transactions.ask(("a", "first", 1), ("a", "none", 0), ("b", "alone", MAX_ROWS))
    assert transactions.ran == [["first"], ["none"], ["alone"]]


async def test_a_write_that_fails_fails_alone(database: Database) -> None:
    async with database.writing() as session:
        session.add(Budget(name="taken", tokens=0, at=now()))
    transactions = Transactions(database)
    first, good, bad, also = await transactions.ask(("a", "0", 1), ("a", "1", 1), ("a", "taken", 1), ("a", "2", 1))
    assert (first, good, also) == ("0", "1", "2")
    assert isinstance(bad, IntegrityError)
    assert await names(database) == {"taken", "0", "1", "2"}


class OutOfReasonError(BaseException):
    """An error that is no Exception."""


@pytest.mark.parametrize("error", [ConnectionRefusedError, OutOfReasonError])
async def test_without_a_connection_all_fail_after_one_attempt(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    attempts = 0

    def away(_: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise error("nobody is there")

    with monkeypatch.context() as broken:
        broken.setattr(type(database.engines[1]), "connect", away)
        writes = [asyncio.create_task(database.commit(insert(str(number)), "a")) for number in range(6)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [error] * 6
    assert attempts <= 2, "the first may have gone alone"
    assert await database.commit(insert("back"), "a") == "back"
    assert await names(database) == {"back"}


async def test_nothing_is_committed_of_a_write_that_raises(database: Database) -> None:
    def write(connection: Connection) -> None:
        insert("half")(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.commit(write, "a")
    assert await names(database) == set()
    assert await database.commit(insert("next"), "a") == "next"


async def test_a_write_whose_caller_has_gone_before_its_turn_does_not_happen(database: Database) -> None:
    transactions = Transactions(database)
    first = asyncio.create_task(database.commit(transactions.write("first"), "a"))
    await transactions.begin()
    cancelled, remaining = (
        asyncio.create_task(database.commit(transactions.write(name), "a")) for name in ("gone", "stays")
    )
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    transactions.go.set()
    assert [await first, await remaining] == ["first", "stays"]
    assert await names(database) == {"first", "stays"}


async def test_a_caller_that_goes_while_its_write_is_under_way_leaves_it_whole(database: Database) -> None:
    transactions = Transactions(database)
    first = asyncio.create_task(database.commit(transactions.write("first"), "a"))
    await transactions.begin()
    first.cancel()
    await asyncio.sleep(0)
    transactions.go.set()
    assert await database.commit(insert("second"), "a") == "second"
    assert await names(database) == {"first", "second"}


async def test_a_session_of_this_process_and_a_group_take_turns(sqlite: Database) -> None:
    async with sqlite.writing() as session:
        session.add(Budget(name="session", tokens=0, at=now()))
        waiting = asyncio.create_task(sqlite.commit(insert("group"), "a"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    assert await waiting == "group"


@pytest.fixture
async def postgresql(postgres_url: str) -> AsyncIterator[Database]:
    opened = Database(postgres_url)
    yield opened
    await opened.close()


async def test_a_connection_that_was_cut_costs_nothing(postgresql: Database) -> None:
    pid = await postgresql.commit(backend, "a")
    await postgresql.commit(insert("before"), "a")
    assert await postgresql.commit(backend, "a") == pid, "it is kept"
    async with postgresql.writing() as session:
        connection = await session.connection()
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        await connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
    assert await postgresql.commit(insert("after"), "a") == "after"
    assert await names(postgresql) == {"before", "after"}


def backend(connection: Connection) -> int:
    """Return the number of the server's process for this connection."""
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def end_backend(url: str, pid: int) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)


async def test_a_connection_that_ends_during_a_write_is_replaced_once(postgresql: Database, postgres_url: str) -> None:
    await postgresql.commit(backend, "a")
    ended: list[int] = []

    def write(connection: Connection) -> None:
        ended.append(backend(connection))
        end_backend(postgres_url, ended[-1])
        insert("lost")(connection)

    with pytest.raises(OperationalError):
        await postgresql.commit(write, "a")
    assert len(set(ended)) == 2
    assert await names(postgresql) == set()
    assert await postgresql.commit(insert("next"), "a") == "next"


@pytest.mark.parametrize(("error", "told"), [(psycopg.OperationalError, OperationalError), (OutOfReasonError,) * 2])
async def test_a_write_whose_commit_was_lost_does_not_happen_twice(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], told: type[BaseException]
) -> None:
    pid = await postgresql.commit(backend, "a")
    engine = postgresql.engines[1]
    commit = engine.dialect.do_commit

    def commit_and_lose(connection: Any) -> None:
        commit(connection)
        connection.dbapi_connection.close()
        raise error("consuming input failed: server closed the connection unexpectedly")

    with monkeypatch.context() as broken:
        broken.setattr(engine.dialect, "do_commit", commit_and_lose)
        with pytest.raises(told):
            await postgresql.commit(insert("once"), "a")
        transactions = Transactions(postgresql)
        _, *shared = await transactions.ask(("a", "first", 1), ("a", "one", 1), ("a", "two", 1))
        assert [type(outcome) for outcome in shared] == [told] * 2, "nobody knows"
        assert transactions.ran == [["first"], ["one", "two"]]
    assert await names(postgresql) == {"once", "first", "one", "two"}
    assert await postgresql.commit(backend, "a") != pid


# What holders write


async def held_steps(database: Database, count: int) -> list[Lease[PushStep]]:
    await add_steps(database, count)
    return [Lease(database, SETTINGS, item) for item in await take(database, count)]


async def test_holders_that_end_together_share_their_statements(database: Database) -> None:
    transactions = Transactions(database)
    leases_held = await held_steps(database, 8)
    statements: list[tuple[str, bool]] = []
    event.listen(
        database.engines[1], "before_cursor_execute",
        lambda _, __, statement, ___, ____, many: statements.append((statement.split()[0], many)),
    )  # fmt: skip
    first = asyncio.create_task(database.commit(transactions.write("first"), "a"))
    await transactions.begin()
    ends = [asyncio.create_task(lease.finish(State.DONE)) for lease in leases_held]
    await asyncio.sleep(0)
    transactions.go.set()
    await asyncio.gather(first, *ends)
    assert statements == [("INSERT", False), ("SELECT", False), ("UPDATE", True)]
    assert len(transactions.ran) == 2
    async with database.reading() as session:
        assert {step.state for step in await session.exec(select(PushStep))} == {State.DONE}


async def test_an_end_waits_a_moment_for_a_write_whose_transaction_it_can_share(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 60)
    transactions = Transactions(database)
    ending, going_on = await held_steps(database, 2)
    end = asyncio.create_task(ending.finish(State.DONE))
    await asyncio.sleep(0.05)
    assert transactions.ran == []
    async with asyncio.timeout(10):
        await asyncio.gather(going_on.commit(refused="x"), end)
    assert len(transactions.ran) == 1


async def test_ends_that_come_together_wait_for_no_other_write(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 60)
    transactions = Transactions(database)
    async with asyncio.timeout(10):
        await asyncio.gather(*(lease.finish(State.DONE) for lease in await held_steps(database, 2)))
    assert len(transactions.ran) == 1


async def test_a_large_end_waits_for_nobody_to_share_with(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 60)
    (ending,) = await held_steps(database, 1)
    async with asyncio.timeout(10):
        await ending.finish(State.DONE, rows=MAX_ROWS)


async def test_who_writes_again_at_once_is_not_taken_for_a_crowd(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "GATHER", 60)

    async def write_twice(name: str) -> None:
        await database.commit(insert(name), name)
        await database.commit(insert(f"{name} again"), name)

    async with asyncio.timeout(10):
        await asyncio.gather(write_twice("a"), write_twice("b"))


async def test_an_end_waits_for_no_other_write_for_long(database: Database) -> None:
    transactions = Transactions(database)
    (ending,) = await held_steps(database, 1)
    async with asyncio.timeout(10):
        await ending.finish(State.DONE)
    assert len(transactions.ran) == 1


async def test_what_is_in_a_hurry_does_not_wait_behind_a_large_write(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 60)
    transactions = Transactions(database)
    transactions.go.set()
    async with asyncio.timeout(10):
        written = (database.commit(transactions.write(name), "a", MAX_ROWS) for name in ("first", "second"))
        assert await asyncio.gather(*written) == ["first", "second"]
    assert transactions.ran == [["first"], ["second"]]


async def test_a_holder_that_is_fenced_off_loses_alone(database: Database) -> None:
    transactions = Transactions(database)
    leases_held = await held_steps(database, 3)
    async with database.writing() as session:
        await session.exec(update(PushStep).where(col(PushStep.id) == leases_held[1].item.id).values(fencing_token=7))
    first = asyncio.create_task(database.commit(transactions.write("first"), "a"))
    await transactions.begin()
    letter = DeadLetter(kind="x", subject="x", reason="x")
    ends = [asyncio.create_task(lease.finish(State.DONE, also=insertion([letter]))) for lease in leases_held]
    await asyncio.sleep(0)
    transactions.go.set()
    assert await first == "first"
    outcomes = await asyncio.gather(*ends, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, LeaseLostError, list]
    assert len(transactions.ran) == 2, "nothing was rolled back for its sake"
    async with database.reading() as session:
        steps = {step.id: step.state for step in await session.exec(select(PushStep))}
        assert len((await session.exec(select(DeadLetter))).all()) == 2
    assert [steps[lease.item.id] for lease in leases_held] == [State.DONE, State.PENDING, State.DONE]


async def test_a_write_alone_needs_no_look_at_the_token_before(database: Database) -> None:
    (lease,) = await held_steps(database, 1)
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement.split(maxsplit=1)[0])

    event.listen(database.engines[1], "before_cursor_execute", note)
    await lease.finish(State.DONE, also=insertion([DeadLetter(kind="x", subject="x", reason="x")]))
    event.remove(database.engines[1], "before_cursor_execute", note)
    assert statements == ["UPDATE", "INSERT"]


async def test_a_write_alone_that_is_fenced_off_leaves_nothing(database: Database) -> None:
    (lease,) = await held_steps(database, 1)
    async with database.writing() as session:
        await session.exec(update(PushStep).values(fencing_token=7))
    with pytest.raises(LeaseLostError):
        await lease.finish(State.DONE, also=insertion([DeadLetter(kind="x", subject="x", reason="x")]))
    async with database.reading() as session:
        assert [step.state for step in await session.exec(select(PushStep))] == [State.PENDING]
        assert (await session.exec(select(DeadLetter))).all() == []


async def test_an_error_that_is_no_exception_fails_alone_and_ends_no_thread(database: Database) -> None:
    def write(_: Connection) -> None:
        raise OutOfReasonError

    writes = (insert("before"), write, insert("after"))
    outcomes = await asyncio.gather(*(database.commit(each, "a") for each in writes), return_exceptions=True)
    assert (outcomes[0], type(outcomes[1]), outcomes[2]) == ("before", OutOfReasonError, "after")
    assert await database.commit(insert("next"), "a") == "next"
    assert await names(database) == {"before", "after", "next"}


@pytest.mark.parametrize("error", [ConnectionRefusedError, OutOfReasonError])
async def test_what_is_committed_is_no_failure_if_a_later_write_finds_no_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def bad(_: Connection) -> None:
        raise ValueError

    connected = 0
    connect = type(database.engines[1]).connect

    def connect_twice(engine: Any) -> Connection:  # for all writes, and after these failed for the first one
        nonlocal connected
        connected += 1
        if connected > 2:
            raise error("nobody is there any more")
        return connect(engine)

    with monkeypatch.context() as broken:
        broken.setattr(type(database.engines[1]), "connect", connect_twice)
        writes = (database.commit(write, "a") for write in (insert("good"), bad, insert("lost")))
        good, failed, lost = await asyncio.gather(*writes, return_exceptions=True)
    assert (good, type(failed), type(lost)) == ("good", ValueError, error)
    assert await names(database) == {"good"}


async def test_a_log_that_breaks_ends_no_thread(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: Connection) -> None:
        raise ValueError

    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    with monkeypatch.context() as broken:
        broken.setattr(commits, "log", SimpleNamespace(info=closed))
        outcomes = await asyncio.gather(*(database.commit(write, "a") for _ in range(2)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokenPipeError}
    assert await database.commit(insert("next"), "a") == "next"


async def test_an_error_that_is_no_exception_keeps_no_connection(database: Database) -> None:
    def write(_: Connection) -> None:
        raise OutOfReasonError

    with pytest.raises(OutOfReasonError) as kept:  # with the functions that it passed through, and what they have
        await database.commit(write, "a")
    _, synchronous = database.engines
    assert synchronous.pool.checkedout() == 0  # type: ignore[attr-defined]  # pools of connections have it
    del kept


async def test_what_was_written_is_not_kept_in_memory(database: Database) -> None:
    class Large:
        pass

    def write(large: Large) -> Callable[[Connection], str]:
        return lambda _: type(large).__name__

    large = Large()
    gone = weakref.ref(large)
    assert await database.commit(write(large), "a") == "Large"
    del large
    await until(lambda: gone() is None)  # the thread that waits for the next write keeps nothing of the last one


async def test_a_write_after_the_end_is_an_error(database_url: str) -> None:
    opened = Database(database_url)
    await opened.commit(insert("last"), "a")
    await opened.close()
    with pytest.raises(RuntimeError, match="was closed"):
        await opened.commit(insert("late"), "a")


async def test_a_closed_database_has_no_connection(postgres_url: str) -> None:
    opened = Database(postgres_url)
    (lease,) = await held_steps(opened, 1)
    await lease.commit([], rows=MAX_ROWS + 1)
    await opened.commit(insert("small"), "a")
    await opened.close()
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as other:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await until(lambda: other.execute(others).fetchone() == (0,))
