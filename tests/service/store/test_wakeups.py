"""Wake-ups: whatever stores due work says so, in this process and on PostgreSQL in every other one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import update

from service.store.database import Database
from service.store.models import DeadLetter, Notice, NoticeKind, PushStep, State
from service.store.wakeups import CHANNEL, Topic
from tests.service.asgi import Api, push_event
from tests.service.engine.test_leases import hold_one


class Woken:
    """A record of the topics that were woken since the last look."""

    def __init__(self, database: Database) -> None:
        self._events = {topic: database.wakeups.subscribe(topic) for topic in Topic}

    def look(self) -> set[Topic]:
        woken = {topic for topic, event in self._events.items() if event.is_set()}
        for event in self._events.values():
            event.clear()
        return woken

    async def wait_for(self, topic: Topic) -> None:
        async with asyncio.timeout(10):
            await self._events[topic].wait()
        self._events[topic].clear()


async def test_pushes_that_no_worker_of_this_process_took(api: Api) -> None:
    await api.add()
    woken = Woken(api.database)
    await api.push(push_event(101))
    assert woken.look() == {Topic.WORK}
    await api.push(push_event(101))
    assert woken.look() == set(), "a duplicate is no work"


async def test_a_retried_push_and_a_replayed_dead_letter(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    async with api.database.writing() as session:
        await session.exec(update(PushStep).values(state=State.FAILED, due_at=None))
        session.add(letter := DeadLetter(kind="group-check", subject="x", reason="x", payload=b"x"))
    woken = Woken(api.database)
    assert (await api.post("/pushes/mc/101/retry")).status_code == 202
    assert woken.look() == {Topic.WORK}
    assert (await api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    assert woken.look() == set(Topic)


async def test_an_action(api: Api) -> None:
    await api.add()
    woken = Woken(api.database)
    body = {"action": "cancel", "project": "mc", "task_id": "Q47ciBXISJ-kc4l49EAI-A"}
    for expected in ({Topic.WORK}, set()):
        answer = await api.post("/actions", body, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 202, answer.text
        assert woken.look() == expected


async def test_the_notices_of_what_has_ended(database: Database) -> None:
    for notices, expected in ((1, {Topic.WORK}), (0, set())):
        lease = await hold_one(database, alias=f"x{notices}")
        woken = Woken(database)
        notices_of_step = [
            Notice(kind=NoticeKind.PULSE, lane="x", target="x", key="x", step_id=lease.item.id, body={})
        ] * notices
        await lease.finish(State.DONE, notices=notices_of_step)
        assert woken.look() == expected


@pytest.fixture
async def others(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two services on one PostgreSQL; the second one listens."""
    async with opened(postgres_url) as first, opened(postgres_url) as second:
        listening = asyncio.create_task(second.wakeups.listen(postgres_url))
        woken = Woken(second)
        await woken.wait_for(Topic.WORK)  # which it is once it listens
        await woken.wait_for(Topic.REPORTS)
        yield first, second
        listening.cancel()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.close()


async def test_another_process_is_woken(others: tuple[Database, Database]) -> None:
    first, second = others
    woken = Woken(second)
    for topic in Topic:
        first.wakeups.wake(topic)
        await woken.wait_for(topic)
        assert woken.look() == set(), "the other topic was not meant"


async def test_many_at_once_are_told_in_few(others: tuple[Database, Database]) -> None:
    first, second = others
    woken = Woken(second)
    sent = 0
    commit = first.commit

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal sent
        sent += 1
        return await commit(*arguments, **more)

    first.commit = counted  # type: ignore[method-assign]
    for _ in range(100):
        first.wakeups.wake(Topic.WORK)
    await woken.wait_for(Topic.WORK)
    assert sent == 1


async def test_after_a_lost_connection_it_looks_and_listens_again(
    others: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = others
    monkeypatch.setattr("service.store.wakeups.FIRST_RETRY", 0.05)
    woken = Woken(second)
    async with first.writing() as session:
        listens = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN {CHANNEL}'")
        assert len((await (await session.connection()).execute(listens)).all()) >= 1
    await woken.wait_for(Topic.WORK)
    await woken.wait_for(Topic.REPORTS)
    first.wakeups.wake(Topic.REPORTS)
    await woken.wait_for(Topic.REPORTS)


async def test_a_database_that_is_away_fails_nobody(others: tuple[Database, Database]) -> None:
    first, _ = others
    woken = Woken(first)

    async def away(*_: Any, **__: Any) -> None:
        raise OSError("no way there")

    first.commit = away  # type: ignore[method-assign,assignment]
    first.wakeups.wake(Topic.WORK)
    await first.wakeups.close()
    assert woken.look() == {Topic.WORK}
