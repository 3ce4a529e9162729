"""Leases of work, on both databases."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, func
from sqlmodel import select, update
from structlog.testing import capture_logs

from service.clock import now
from service.engine import batches, leases
from service.engine.leases import Lane, Lease, LeaseLostError, Storing, backoff, claim, due_lanes, due_shares
from service.metrics import PREFIX, REGISTRY
from service.settings import WorkSettings
from service.store.database import Database
from service.store.models import DeadLetter, GroupCheck, Notice, Push, PushStep, State, StepKind, work_tables
from tests.service.harness import add_repository

SETTINGS = WorkSettings(lease=timedelta(seconds=30))
MINUTE = timedelta(minutes=1)
OVER = WorkSettings(give_up=timedelta(), give_up_attempts=1)
"""Settings with which work that fails is buried at once."""


async def add_steps(
    database: Database, count: int = 1, lane: str = "graph x", alias: str | None = None, **fields: Any
) -> list[int]:
    """Add due steps of a lane, the first due first; return their ids."""
    repository = await add_repository(database, alias or lane.replace(" ", "-"))
    at = now() - MINUTE
    pushes = [
        Push(
            repository_id=repository.id or 0,
            generation=0,
            push_id=number,
            user="u",
            date=at,
            revision=None,
            revision_hash="",
            changesets=[],
            nodes=[],
        )
        for number in range(count)
    ]
    async with database.writing() as session:
        session.add_all(pushes)
        await session.flush()
        steps = [
            PushStep(
                push_id=push.id or 0,
                kind=StepKind.GRAPH,
                lane=lane,
                **{"due_at": at + timedelta(milliseconds=number), "since": at, "share": f"mc/{number % 2}", **fields},
            )
            for number, push in enumerate(pushes)
        ]
        session.add_all(steps)
    return [step.id or 0 for step in steps]


async def take(database: Database, limit: int = 1, lane: str = "graph x", lease: timedelta = MINUTE) -> list[PushStep]:
    async with database.writing() as session:
        return await claim(session, PushStep, lane, limit, lease)


async def hold_one(database: Database, settings: WorkSettings = SETTINGS, **fields: Any) -> Lease[PushStep]:
    await add_steps(database, **fields)
    (item,) = await take(database, lease=settings.lease)
    return Lease(database, settings, item)


async def stored_step(database: Database) -> PushStep:
    async with database.reading() as session:
        return (await session.exec(select(PushStep))).one()


async def letters(database: Database) -> list[DeadLetter]:
    async with database.reading() as session:
        return list(await session.exec(select(DeadLetter)))


async def end_lease(database: Database) -> None:
    """Let the time of a lease pass."""
    async with database.writing() as session:
        await session.exec(update(PushStep).values(due_at=now() - timedelta(seconds=1)))


# Claims


async def test_a_claim_takes_the_longest_due_and_no_more_than_asked(database: Database) -> None:
    ids = await add_steps(database, 10, share="mc/dev")
    assert [item.id for item in await take(database, 3)] == ids[:3]
    assert [item.id for item in await take(database, 100)] == ids[3:]
    assert await take(database, 1) == []


async def test_a_claim_raises_lease_and_attempts(database: Database) -> None:
    await add_steps(database)
    before = now()
    (item,) = await take(database)
    stored = await stored_step(database)
    assert (stored.fencing_token, stored.attempts) == (item.fencing_token, item.attempts) == (1, 1)
    assert stored.due_at is not None
    assert before + MINUTE <= stored.due_at <= now() + MINUTE


async def test_a_claim_takes_of_its_lane_and_what_is_due_alone(database: Database) -> None:
    await add_steps(database, lane="graph x", due_at=now() + MINUTE)
    await add_steps(database, lane="graph y", due_at=None, state=State.DONE)
    (third,) = await add_steps(database, lane="graph z")
    assert await take(database, 9, "graph x") == []
    assert await take(database, 9, "graph y") == []
    assert [item.id for item in await take(database, 9, "graph z")] == [third]


async def test_workers_at_once_never_claim_the_same(database: Database) -> None:
    ids = await add_steps(database, 60)
    claimed = await asyncio.gather(*(take(database, 4) for _ in range(20)))
    assert sorted(item.id or 0 for items in claimed for item in items) == ids
    assert max(map(len, claimed)) <= 4


async def test_postgresql_skips_what_another_is_just_claiming(postgres_url: str) -> None:
    database = Database(postgres_url)
    ids = await add_steps(database, 4, share="mc/dev")
    async with database.writing() as first:
        assert [item.id for item in await claim(first, PushStep, "graph x", 2, MINUTE)] == ids[:2]
        async with asyncio.timeout(5):
            assert [item.id for item in await take(database, 9)] == ids[2:]
    await database.close()


async def test_a_lease_that_ended_is_taken_by_another(database: Database) -> None:
    lease = await hold_one(database)
    assert await take(database) == []
    await end_lease(database)
    (again,) = await take(database)
    assert (again.id, again.fencing_token, again.attempts) == (lease.item.id, 2, 2)


async def test_due_lanes(database: Database) -> None:
    due = now() - MINUTE
    await add_steps(database, 2, lane="graph x", due_at=due)
    await add_steps(database, lane="graph y", due_at=due + MINUTE)
    await add_steps(database, lane="graph z", due_at=None, state=State.DONE)
    async with database.writing() as session:
        session.add(GroupCheck(lane="taskcluster", task_group_id="x", due_at=due))
    async with database.reading() as session:
        assert await due_lanes(session, (PushStep, Notice, GroupCheck)) == {
            PushStep: {"graph x": Lane(due, due), "graph y": Lane(due + MINUTE, due + MINUTE)},
            Notice: {},
            GroupCheck: {"taskcluster": Lane(due, due)},
        }


# Holders


async def test_finish(database: Database) -> None:
    lease = await hold_one(database)
    await lease.finish(State.SKIPPED, "because", error_task="abc")
    stored = await stored_step(database)
    assert (stored.state, stored.error, stored.error_task, stored.due_at) == (State.SKIPPED, "because", "abc", None)
    assert stored.done_at is not None
    assert await letters(database) == []


async def test_writing_renews_and_commits_with_the_holders_values(database: Database) -> None:
    lease = await hold_one(database, WorkSettings(lease=timedelta(minutes=10)))
    await end_lease(database)
    async with lease.writing(refused="no") as session:
        session.add(DeadLetter(kind="x", subject="", reason=""))
    stored = await stored_step(database)
    assert stored.refused == "no"
    assert stored.due_at is not None
    assert stored.due_at > now() + timedelta(minutes=9)
    assert len(await letters(database)) == 1
    await lease.commit()


async def test_writing_that_raises_changes_nothing(database: Database) -> None:
    lease = await hold_one(database)
    with pytest.raises(KeyError):
        async with lease.writing(refused="no"):
            raise KeyError
    assert (await stored_step(database)).refused is None


async def _write(lease: Lease[Any]) -> None:
    async with lease.writing(refused="mine") as session:
        session.add(DeadLetter(kind="x", subject="", reason=""))


WRITES: dict[str, Callable[[Lease[Any]], Awaitable[object]]] = {
    "writing": _write,
    "commit": Lease.commit,
    "finish": lambda lease: lease.finish(State.DONE),
    "retry": lambda lease: lease.retry("again"),
    "release": Lease.release,
    "bury": lambda lease: Lease(lease._database, OVER, lease.item).retry("over"),
}


def values(item: PushStep) -> dict[str, Any]:
    return {name: getattr(item, name) for name in PushStep.model_fields}


@pytest.mark.parametrize("write", WRITES)
async def test_whoever_lost_the_lease_changes_nothing(database: Database, write: str) -> None:
    old = await hold_one(database)
    await end_lease(database)
    (item,) = await take(database)
    before = values(await stored_step(database))
    with pytest.raises(LeaseLostError, match="is held by another worker"):
        await WRITES[write](old)
    assert values(await stored_step(database)) == before
    assert await letters(database) == []
    await Lease(database, SETTINGS, item).commit()


@pytest.mark.parametrize("end", ["finish", "retry", "release", "bury"])
@pytest.mark.parametrize("write", WRITES)
async def test_nothing_comes_after_the_last_write(sqlite: Database, end: str, write: str) -> None:
    """A renewal that was under way would make finished work due again, and postpone what is to be retried."""
    lease = await hold_one(sqlite)
    await WRITES[end](lease)
    before, buried = values(await stored_step(sqlite)), len(await letters(sqlite))
    with pytest.raises(LeaseLostError):
        await WRITES[write](lease)
    assert values(await stored_step(sqlite)) == before
    assert len(await letters(sqlite)) == buried


async def test_the_end_is_known_before_it_is_written(database: Database) -> None:
    lease = await hold_one(database)
    await lease.commit()
    assert not lease.ended
    await lease.finish(State.DONE)
    assert lease.ended


async def test_a_step_that_was_deleted_is_lost(database: Database) -> None:
    lease = await hold_one(database)
    async with database.writing() as session:
        step = (await session.exec(select(PushStep))).one()
        await session.delete(step)
    with pytest.raises(LeaseLostError):
        await lease.finish(State.DONE)


async def test_release_gives_it_back_at_once_and_counts_no_attempt(database: Database) -> None:
    lease = await hold_one(database)
    await lease.release()
    (again,) = await take(database)
    assert again.attempts == 1
    assert again.fencing_token > lease.item.fencing_token


# Retries


async def test_retry_comes_after_the_backoff(database: Database) -> None:
    lease = await hold_one(database, WorkSettings(first_retry=timedelta(seconds=10)))
    at = now()
    await lease.retry("hg is away")
    stored = await stored_step(database)
    assert (stored.state, stored.error, stored.done_at) == (State.PENDING, "hg is away", None)
    assert stored.due_at is not None
    assert timedelta(seconds=5) <= stored.due_at - at <= timedelta(seconds=16)


async def test_retry_waits_as_long_as_it_was_told(database: Database) -> None:
    lease = await hold_one(database)
    at = now()
    await lease.retry("429", timedelta(minutes=20))
    due = (await stored_step(database)).due_at
    assert due is not None
    assert due - at >= timedelta(minutes=20)


def attempts_counted(outcome: str) -> float:
    labels = {"work": "graph", "outcome": outcome}
    return REGISTRY.get_sample_value(PREFIX + "work_attempts_total", labels) or 0


async def test_buried_after_a_day_with_a_dead_letter(database: Database) -> None:
    await add_steps(database, since=now() - timedelta(hours=23, minutes=59), attempts=30)
    (item,) = await take(database)
    await Lease(database, SETTINGS, item).retry("still not")
    assert (await stored_step(database)).state == State.PENDING

    async with database.writing() as session:
        await session.exec(update(PushStep).values(since=now() - timedelta(hours=24), due_at=now()))
    (item,) = await take(database)
    counted = {outcome: attempts_counted(outcome) for outcome in ("buried", "failed")}
    await Lease(database, SETTINGS, item).retry("still not", timedelta(hours=1))
    assert {outcome: attempts_counted(outcome) - before for outcome, before in counted.items()} == {
        "buried": 1,
        "failed": 0,
    }
    stored = await stored_step(database)
    assert (stored.state, stored.due_at) == (State.FAILED, None)
    assert stored.done_at is not None
    assert "given up after 32 attempts since" in str(stored.error)
    assert str(stored.error).endswith("still not")
    (letter,) = await letters(database)
    assert (letter.kind, letter.step_id, letter.reason) == ("graph", stored.id, stored.error)
    assert letter.payload is None


async def test_again_makes_it_new(database: Database) -> None:
    lease = await hold_one(database, OVER)
    await lease.retry("over")
    async with database.writing() as session:
        leases.requeue(await session.exec(select(PushStep)))
    (item,) = await take(database)
    assert (item.state, item.error, item.attempts, item.done_at) == (State.PENDING, None, 1, None)
    assert now() - item.since < MINUTE


@pytest.mark.parametrize("end", ["retry", "finish", "bury"])
async def test_a_reason_that_no_database_takes_is_made_visible(database: Database, end: str) -> None:
    """Upstreams' own words stand in reasons; one that cannot be stored would keep its work from ever ending."""
    lease = await hold_one(database, OVER if end == "bury" else SETTINGS)
    if end == "finish":
        await lease.finish(State.FAILED, "a\0b\udce9")
    else:
        await lease.retry("a\0b\udce9")
    assert str((await stored_step(database)).error).endswith("a\\u0000b\\udce9")


@given(attempts=st.integers(0, 10_000))
def test_backoff_stays_within_bounds(attempts: int) -> None:
    settings = WorkSettings(first_retry=timedelta(seconds=1), max_retry=timedelta(minutes=10))
    middle = min(timedelta(seconds=2 ** min(max(attempts - 1, 0), 30)), settings.max_retry)
    assert middle * 0.5 <= backoff(settings, attempts) <= middle * 1.5


def test_backoff_is_spread() -> None:
    assert len({backoff(SETTINGS, 5) for _ in range(20)}) > 10


# Fairness


async def test_a_claim_shares_a_lane_fairly(database: Database) -> None:
    hog = await add_steps(database, 50, share="mc/hog")
    others = [(await add_steps(database, 3, lane="graph x", alias=f"r{n}", share=f"r{n}/dev"))[0] for n in range(3)]
    claimed = await claim_fairly(database, 8)
    assert Counter(item.share for item in claimed) == {"mc/hog": 2, "r0/dev": 2, "r1/dev": 2, "r2/dev": 2}
    assert {hog[0], hog[1], *others} <= {item.id for item in claimed}, "of each the first"


async def claim_fairly(database: Database, limit: int, **more: Any) -> list[PushStep]:
    async with database.writing() as session:
        return await claim(session, PushStep, "graph x", limit, MINUTE, **more)


async def test_whoever_holds_least_goes_first_and_none_gets_the_last_slot(database: Database) -> None:
    await add_steps(database, 50, share="mc/hog")
    assert len(await claim_fairly(database, 10, most=9)) == 9
    await add_steps(database, 5, alias="r1", share="r1/dev")
    claimed = await claim_fairly(database, 1, most=9, held={"mc/hog": 9})
    assert [item.share for item in claimed] == ["r1/dev"]
    assert await claim_fairly(database, 9, most=9, held={"mc/hog": 9, "r1/dev": 9}) == []


async def test_what_one_share_leaves_others_get(database: Database) -> None:
    await add_steps(database, 50, share="mc/hog")
    await add_steps(database, 1, alias="r1", share="r1/dev")
    assert Counter(item.share for item in await claim_fairly(database, 10)) == {"mc/hog": 9, "r1/dev": 1}


async def test_shares_take_turns(database: Database) -> None:
    for number in range(5):
        await add_steps(database, 2, alias=f"r{number}", share=f"r{number}/dev")
    served, last = [], ""
    for _ in range(10):
        (item,) = await claim_fairly(database, 1, after=last)
        last = item.share
        served.append(last)
    assert served == [f"r{number}/dev" for number in range(5)] * 2


async def test_more_shares_than_are_looked_at_take_turns_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * leases.SHARES
    ids = await add_steps(database, count, share="-")
    async with database.writing() as session:
        for number, step_id in enumerate(ids):
            (await session.get_one(PushStep, step_id)).share = f"r{number:03}/dev"
    served: set[str] = set()
    last = ""
    for _ in range(10):
        items = await claim_fairly(database, 10, after=last)
        served |= {item.share for item in items}
        last = items[-1].share
    assert len(served) == count


async def test_who_holds_nothing_is_found_behind_all_who_hold_something(database: Database) -> None:
    for number in range(9):
        await add_steps(database, 2, alias=f"r{number}", share=f"r{number}/dev")
    held = {f"r{number}/dev": 1 for number in range(7)}
    items = await claim_fairly(database, 2, held=held)
    assert [item.share for item in items] == ["r7/dev", "r8/dev"]


async def test_who_waits_for_a_retry_has_no_turn(database: Database) -> None:
    await add_steps(database, 5, share="mc/later", due_at=now() + MINUTE)
    await add_steps(database, 1, alias="r1", share="r1/dev")
    async with database.reading() as session:
        assert await due_shares(session, PushStep, "graph x") == ["r1/dev"]
    assert [item.share for item in await claim_fairly(database, 5)] == ["r1/dev"]


async def test_what_is_asked_for_again_goes_first_within_its_share(database: Database) -> None:
    ids = await add_steps(database, 5, share="mc/dev")
    async with database.writing() as session:
        step = await session.get_one(PushStep, ids[4])
        step.state, step.due_at = State.FAILED, None
    async with database.writing() as session:
        leases.requeue([await session.get_one(PushStep, ids[4])])
    assert [item.id for item in await claim_fairly(database, 1)] == [ids[4]]


async def test_what_is_pulled_back_or_taken_over_is_counted(database: Database) -> None:
    await add_steps(database, 3, due_at=now() + 60 * MINUTE)
    await add_steps(database, 2, alias="r1", due_at=now() + MINUTE, holder="a/b")
    for pulled, taken in ((3, 2), (0, 0)):
        with capture_logs() as logs:
            async with database.writing() as session:
                assert await leases.take_over(session, "a/", "a/c") == taken
                await leases.pull_back(session, PushStep, "graph x", 10 * MINUTE)
        assert [line["pieces"] for line in logs if line["event"] == "due-too-late"] == [pulled] * (pulled > 0)


# Indexes


async def test_what_workers_ask_all_the_time_scans_nothing(database: Database, statements: list[Any]) -> None:
    """At a million finished rows and ten thousand due ones; PostgreSQL is told that scans cost too much."""
    await add_steps(database, 3)
    statements.clear()
    async with database.writing() as session:
        await due_lanes(session, tuple(work_tables()))
        for model in work_tables():
            await claim(session, model, "graph x", 2, MINUTE, holder="a/b", after="mc/1")
            await leases.pull_back(session, model, "graph x", MINUTE)
        await batches.due(session, "tc-treeherder", 200)
        await leases.take_over(session, "a/", "a/c")
        requests = list(statements)
        assert len(requests) > 20
        connection = await session.connection()
        if not database.sqlite:
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement, parameters in requests:
            explain = f"EXPLAIN {'QUERY PLAN ' if database.sqlite else ''}{statement}"
            plan = "\n".join(str(row) for row in (await connection.exec_driver_sql(explain, parameters)).all())
            scans = [
                line
                for line in plan.splitlines()
                if re.search(r"Seq Scan on|SCAN (push_step|action|notice|job_report|group_check)\b", line)
                and "USING" not in line
            ]
            assert not scans, f"{statement}\n{plan}"
        await session.rollback()


@pytest.fixture
def statements(database: Database) -> Iterator[list[Any]]:
    """Record the statements that are sent to the database, with their parameters."""
    sent: list[Any] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("succeeded", [True, False])
async def test_no_write_of_a_holder_comes_before_its_work_is_stored(database: Database, succeeded: bool) -> None:
    await add_steps(database)
    async with database.writing() as session:
        (step,) = await claim(session, PushStep, "graph x", 1, MINUTE)
    storing = Storing()
    lease = Lease(database, SETTINGS, step, storing=storing)

    async def write_within() -> None:
        async with lease.writing(error="written"):
            pass

    writes = [asyncio.create_task(write) for write in (lease.commit(error="written"), write_within())]
    await asyncio.sleep(0.05)
    assert await read_errors(database) == [None]
    storing.end(succeeded=succeeded)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(outcome, LeaseLostError) for outcome in outcomes] == [not succeeded] * 2
    assert await read_errors(database) == ["written" if succeeded else None]


async def read_errors(database: Database) -> list[str | None]:
    async with database.reading() as session:
        return list(await session.exec(select(PushStep.error)))


async def test_a_claim_on_postgresql_looks_at_as_many_shares_as_it_considers(postgres_url: str) -> None:
    database = Database(postgres_url)
    await add_steps(database, 500)
    asked: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        asked.append((statement, parameters))

    async with database.writing() as session:
        await session.exec(update(PushStep).values(share=func.concat("mc/", PushStep.id)))
    async with database.writing() as session:
        connection = await session.connection()
        # with another join the planner has to read all of them, as it did among two million steps
        await connection.exec_driver_sql("SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = off")
        event.listen(database.engine.sync_engine, "before_cursor_execute", note)
        assert len(await due_shares(session, PushStep, "graph x", most=4)) == 4
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
        ((statement, parameters),) = asked
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        plan = json.dumps(explained.scalar_one())
    await database.close()
    unions = [int(match) for match in re.findall(r'"Node Type": "Recursive Union".*?"Actual Rows": (\d+)', plan)]
    assert unions == [4]
