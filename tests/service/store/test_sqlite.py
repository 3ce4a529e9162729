"""Connections and cursors of SQLite, as SQLAlchemy uses them."""

import asyncio
import sqlite3
import threading
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select, update

from service.clock import now
from service.store.database import Database
from service.store.models import Budget
from service.store.sqlite import connect


def bucket(name: str) -> Budget:
    return Budget(name=name, tokens=1.0, at=now())


async def test_aiosqlite_has_the_names_that_are_no_part_of_its_interface() -> None:
    """Our connections rely on them; see service/store/sqlite.py."""
    assert "_execute" in vars(aiosqlite.Connection), "aiosqlite.Connection has no method _execute any more"
    opened = await connect(":memory:")
    assert hasattr(opened, "_thread"), "aiosqlite.Connection has no attribute _thread any more"
    assert opened._thread.daemon
    assert "_conn" in dir(opened), "aiosqlite.Connection has no attribute _conn any more"
    await opened.close()


async def test_a_database_is_closed_though_its_opening_was_cancelled(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    opened: list[sqlite3.Connection] = []
    real = sqlite3.connect

    def slow(*arguments: Any, **options: Any) -> sqlite3.Connection:
        begun.set()
        go_on.wait(10)
        opened.append(real(*arguments, **options))
        return opened[0]

    async def read() -> None:
        async with sqlite.reading() as session:
            await session.exec(select(Budget))

    monkeypatch.setattr(sqlite3, "connect", slow)
    reading = asyncio.create_task(read())
    assert await asyncio.to_thread(begun.wait, 10)
    reading.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([reading])
    assert reading.cancelled()
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        opened[0].execute("SELECT 1")


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count the functions that a connection's thread is given from now on."""
    calls: list[None] = []
    execute = aiosqlite.Connection._execute

    async def counted(self: aiosqlite.Connection, *arguments: object, **more: object) -> object:
        calls.append(None)
        return await execute(self, *arguments, **more)  # type: ignore[no-untyped-call]  # aiosqlite's own

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    return calls


async def test_a_statement_is_one_hop_and_so_is_each_end_of_a_transaction(sqlite: Database, hops: list[None]) -> None:
    async with sqlite.reading() as session:
        await session.exec(text("SELECT 1"))  # type: ignore[call-overload]  # SQLModel's type leaves text out
    hops.clear()
    async with sqlite.reading() as session:
        await session.exec(select(Budget))
    assert len(hops) == 3
    hops.clear()
    async with sqlite.writing() as session:
        session.add_all([bucket("a"), bucket("b")])  # one statement with two sets of parameters
        await session.flush()
        assert len((await session.exec(select(Budget))).all()) == 2
    assert len(hops) == 4


async def test_rows_counts_and_errors_are_sqlites(sqlite: Database) -> None:
    async with sqlite.writing() as session:
        session.add_all([bucket("a"), bucket("b"), bucket("c")])
    async with sqlite.writing() as session:
        changed = await session.exec(update(Budget).where(col(Budget.name) > "a").values(tokens=2.0))
        assert changed.rowcount == 2
        result = await session.exec(update(Budget).values(tokens=3.0).returning(col(Budget.name)))
        assert sorted(result.scalars()) == ["a", "b", "c"]
    with pytest.raises(IntegrityError, match="UNIQUE constraint failed"):
        async with sqlite.writing() as session:
            session.add(bucket("b"))
    async with sqlite.reading() as session:
        assert (await session.exec(select(Budget.tokens))).all() == [3.0, 3.0, 3.0]


async def test_a_connection_comes_back_clean_when_its_user_was_cancelled(sqlite: Database) -> None:
    """Whatever its thread was at when nobody waited for it any more."""

    async def write(statement_ended: bool) -> None:
        async with sqlite.writing() as session:
            session.add(bucket("a"))
            flush = asyncio.ensure_future(session.flush())
            if statement_ended:
                await flush
                await asyncio.sleep(60)
            await flush

    for pause in [0.0, 0.001, 0.002, 0.005, 0.05, 0.05]:
        task = asyncio.create_task(write(statement_ended=pause == 0.05))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.wait([task])
    async with asyncio.timeout(1), sqlite.writing() as session:  # a transaction left open would keep us waiting
        await session.exec(update(Budget).values(tokens=0.0))
