"""Leases are continued: at once where the predecessor is known to be gone, and of nobody else."""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import select

from service.clock import now
from service.engine import replica as module
from service.engine.leases import Lease, LeaseLostError
from service.engine.replica import LockedError, Replica, only
from service.store.database import Database
from service.store.models import Action, GroupCheck, JobReport, Notice, NoticeKind, PushStep, Source, Stage, Work
from tests.service.engine.test_leases import MINUTE, SETTINGS, add_steps, take
from tests.service.engine.test_worker import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK", 0.02)


@pytest.fixture
async def replicas() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, database: Database, name: str = "pod-1", *, alone: bool = True) -> Replica:
    """Start a process of this name; on SQLite it holds the lock of the file if `alone`."""
    replica = Replica(database, name, alone=alone and database.sqlite)
    stack.push_async_callback(replica.stop)
    await replica.start()
    return replica


async def held_by(database: Database, holder: str | None) -> Lease[PushStep]:
    """Hold a new step as that process."""
    (number,) = await add_steps(database, lane=f"graph {os.urandom(4).hex()}", share="mc/dev")
    async with database.writing() as session:
        step = await session.get_one(PushStep, number)
        step.due_at, step.fencing_token, step.attempts, step.holder = now() + MINUTE, 1, 1, holder
    return Lease(database, SETTINGS, step)


def report_of(**fields: Any) -> JobReport:
    run: dict[str, Any] = {"run_id": 0, "stage": Stage.PENDING, "run": {}}
    return JobReport(task_id="t", environment="e", project="mc", task_group_id="g", **run, **fields)


async def is_due(database: Database, lease: Lease[Any]) -> bool:
    async with database.reading() as session:
        item = await session.get_one(type(lease.item), lease.item.id)
        return item.due_at is not None and item.due_at <= now()


async def test_a_restarted_process_takes_over_at_once_and_fences(database: Database) -> None:
    async with AsyncExitStack() as first:
        before = await start(first, database)
        lease = await held_by(database, before.holder)
    async with AsyncExitStack() as second:
        await start(second, database)
        assert await is_due(database, lease)
        (item,) = await take(database, lane=lease.item.lane)
        assert item.fencing_token > lease.item.fencing_token
        with pytest.raises(LeaseLostError):
            await lease.commit()


async def test_every_kind_of_work_is_taken_over(database: Database, replicas: AsyncExitStack) -> None:
    lease = await held_by(database, "pod-1/gone")
    fields: dict[str, Any] = {"lane": "x", "due_at": now() + MINUTE, "fencing_token": 1, "holder": "pod-1/gone"}
    async with database.writing() as session:
        action = Action(kind="cancel", project="mc", task_id="t", requester="r", source=Source.API, **fields)
        session.add(action)
        await session.flush()
        rows: list[Work] = [
            Notice(kind=NoticeKind.JOB, action_id=action.id or 0, target="t", key="k", body={}, **fields),
            GroupCheck(task_group_id="g", **fields),
            JobReport(
                task_id="t",
                run_id=0,
                environment="e",
                project="mc",
                task_group_id="g",
                stage=Stage.PENDING,
                run={},
                **fields,
            ),
        ]
        session.add_all(rows)
    await start(replicas, database)
    for item in (action, lease.item, *rows):
        assert await is_due(database, Lease(database, SETTINGS, item)), type(item)


async def test_nothing_of_another_replica_is_touched(postgres_url: str, replicas: AsyncExitStack) -> None:
    database = Database(postgres_url)
    replicas.push_async_callback(database.close)
    others = [await held_by(database, holder) for holder in ("pod-2/x", "pod-10/x", "/pod-1", None)]
    finished = await held_by(database, "pod-1/gone")
    await finished.retry("later")
    await start(replicas, database)
    assert [await is_due(database, lease) for lease in (*others, finished)] == [False] * 5
    for lease in others:
        await lease.commit()


async def test_without_the_lock_nothing_is_taken_over_until_it_is_free(
    postgres_url: str, replicas: AsyncExitStack
) -> None:
    """Two processes of one name: the second waits for the leases, and holds its own under a name that nobody takes."""
    database = Database(postgres_url)
    replicas.push_async_callback(database.close)
    async with AsyncExitStack() as first:
        one = await start(first, database)
        held = await held_by(database, one.holder)
        two = await start(replicas, database)
        assert two.holder.startswith("/")
        assert not await is_due(database, held)
        own = await held_by(database, two.holder)
        other = await start(replicas, database, "pod-2")
        assert other.holder.startswith("pod-2/")
    await until(lambda: is_due(database, held))
    await until(lambda: _says(two.holder.startswith("pod-1/")))
    assert not await is_due(database, own)
    await own.commit()


async def _says(value: bool) -> bool:
    return value


async def test_a_lock_that_was_lost_is_had_again_and_keeps_what_is_held(
    postgres_url: str, replicas: AsyncExitStack
) -> None:
    database = Database(postgres_url)
    replicas.push_async_callback(database.close)
    replica = await start(replicas, database)
    mine = await held_by(database, replica.holder)
    await _cut(database)
    await until(lambda: _says(replica.holder.startswith("/")))
    await until(lambda: _says(replica.holder.startswith("pod-1/")))
    assert replica.holder == mine.item.holder
    await mine.commit()


async def _cut(database: Database) -> None:
    """End the session that holds the lock, as a restart of the database or a broken connection does."""
    async with database.writing() as session:
        ended = await session.exec(  # type: ignore[call-overload]  # SQLModel has no types for text
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
        ended.all()


async def test_who_lost_the_lock_to_another_is_fenced(postgres_url: str, replicas: AsyncExitStack) -> None:
    database = Database(postgres_url)
    replicas.push_async_callback(database.close)
    one = await start(replicas, database)
    held = await held_by(database, one.holder)
    two = await start(replicas, database)  # waits for the lock, and may be quicker than the first
    for _ in range(50):
        await _cut(database)
        await until(lambda: _says(one.holder.startswith("pod-1/") or two.holder.startswith("pod-1/")))
        if two.holder.startswith("pod-1/"):
            break
    else:
        pytest.fail("the other never had it")
    assert await is_due(database, held)
    with pytest.raises(LeaseLostError):
        await held.finish(held.item.state)
    if one.holder.startswith("/"):  # it may have it back by now, from a session that was cut too
        late = await held_by(database, one.holder)
        assert late.item.holder is not None
        assert late.item.holder.startswith("/")


async def test_a_database_that_is_away_at_the_start_is_waited_for(
    postgres_url: str, replicas: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres_url)
    replicas.push_async_callback(database.close)
    held = await held_by(database, "pod-1/gone")

    async def away(_: Replica) -> bool:
        raise ConnectionError("the database is away")

    with monkeypatch.context() as broken:
        broken.setattr(Replica, "_lock", away)
        replica = await start(replicas, database)
        assert replica.holder.startswith("/")
    await until(lambda: is_due(database, held))


# SQLite's lock file


def test_one_service(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.sqlite'}"
    with only(url):
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* runs `tc-treeherder serve` on .*x.sq"):
            only(url).__enter__()
        assert oct((tmp_path / "x.sqlite.lock").stat().st_mode)[-3:] == "600"
    with only(url):
        pass


def test_a_database_in_memory_is_nobody_elses() -> None:
    with only("sqlite+aiosqlite:///:memory:"), only("sqlite+aiosqlite:///:memory:"):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(LockedError, match=r"x\.sqlite\.lock cannot be written \(Read-only file system\)"):
        only(f"sqlite+aiosqlite:///{tmp_path / 'x.sqlite'}").__enter__()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(LockedError, match=r"cannot be locked \(No locks available\): a network file system"):
        only(f"sqlite+aiosqlite:///{tmp_path / 'x.sqlite'}").__enter__()


async def test_a_process_that_is_not_alone_takes_nothing_over(sqlite: Database, replicas: AsyncExitStack) -> None:
    held = await held_by(sqlite, "pod-1/gone")
    await start(replicas, sqlite, alone=False)
    await asyncio.sleep(0.05)
    assert not await is_due(sqlite, held)
    async with sqlite.reading() as session:
        assert (await session.exec(select(PushStep.fencing_token))).one() == 1
