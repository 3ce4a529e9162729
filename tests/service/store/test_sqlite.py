"""The cursors that SQLAlchemy is given on SQLite."""

import asyncio

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select, update

from service.clock import now
from service.store.database import Database
from service.store.models import Budget


def bucket(name: str) -> Budget:
    return Budget(name=name, tokens=1.0, at=now())


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each function that a connection's thread is given from now on."""
    made: list[None] = []
    execute = aiosqlite.Connection._execute

    async def counted(self: aiosqlite.Connection, *arguments: object, **more: object) -> object:
        made.append(None)
        return await execute(self, *arguments, **more)  # type: ignore[no-untyped-call]  # aiosqlite's own

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    return made


async def test_a_statement_is_one_trip_and_so_is_each_end_of_a_transaction(sqlite: Database, trips: list[None]) -> None:
    async with sqlite.reading() as session:
        await session.exec(text("SELECT 1"))  # type: ignore[call-overload]  # SQLModel's type leaves text out
    trips.clear()
    async with sqlite.reading() as session:
        await session.exec(select(Budget))
    assert len(trips) == 3
    trips.clear()
    async with sqlite.writing() as session:
        session.add_all([bucket("a"), bucket("b")])  # one statement with two sets of parameters
        await session.flush()
        assert len((await session.exec(select(Budget))).all()) == 2
    assert len(trips) == 4


async def test_rows_counts_and_errors_are_sqlites(sqlite: Database) -> None:
    async with sqlite.writing() as session:
        session.add_all([bucket("a"), bucket("b"), bucket("c")])
    async with sqlite.writing() as session:
        changed = await session.exec(update(Budget).where(col(Budget.name) > "a").values(tokens=2.0))
        assert changed.rowcount == 2
        told = await session.exec(update(Budget).values(tokens=3.0).returning(col(Budget.name)))
        assert sorted(told.scalars()) == ["a", "b", "c"]
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
