"""The loop of the worker: claims, steps that fail, and its end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import structlog
from sqlalchemy.exc import OperationalError
from sqlmodel import col, select, update

from service.clock import now
from service.engine import leases
from service.engine.leases import Lease, Storing
from service.engine.registry import Registry, WorkTable
from service.engine.worker import Worker
from service.errors import PermanentUpstreamError, Unavailable
from service.services import Services
from service.settings import Settings
from service.store.database import Database
from service.store.models import DeadLetter, Notice, NoticeKind, PushStep, State, StepKind
from service.store.wakeups import Topic
from tests.service.engine.test_leases import add_steps

Step = Callable[[Services, Lease[Any]], Awaitable[None]]


class Steps:
    """Steps that the worker runs instead of real ones: `does` by lane; it counts those that began."""

    def __init__(self) -> None:
        self.does: dict[str, Step] = {}
        self.began: list[int] = []

    async def __call__(self, services: Services, lease: Lease[Any]) -> None:
        self.began.append(lease.item.id)
        does = self.does.get(lease.item.lane)
        if does is not None:
            await does(services, lease)
        await lease.finish(State.DONE)


@pytest.fixture
def steps() -> Steps:
    return Steps()


def settings_of(**values: Any) -> Settings:
    work = {
        "lease": 10,
        "idle": 0.02,
        "first_retry": 0.01,
        "max_retry": 0.02,
        "drain": 0.3,
        "give_up_attempts": 1,
        **values,
    }
    return Settings(work=work, taskcluster={"timeout": 0.01})


def worker_of(database: Database, steps: Steps, settings: Settings, *, early: bool = False) -> Worker:
    """Return a worker that runs `steps` for whatever is due, which need none of the other services."""
    nothing: Any = None
    registry = Registry()
    registry.add_table(WorkTable(PushStep, "nowhere"))
    registry.add_table(WorkTable(Notice, "nowhere"))
    for name in StepKind:
        registry.add_kind(PushStep, name, steps, early=early)
    registry.add_kind(Notice, "notice", steps)
    services = Services(settings, database, nothing, nothing, {}, None, nothing, b"", nothing, nothing)
    return Worker(services, registry)


@asynccontextmanager
async def working(database: Database, steps: Steps, *, early: bool = False, **values: Any) -> AsyncIterator[Worker]:
    worker = worker_of(database, steps, settings_of(**values), early=early)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


async def all_steps(database: Database) -> list[PushStep]:
    async with database.reading() as session:
        return list(await session.exec(select(PushStep).order_by(col(PushStep.id))))


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not await true():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds} s"
        await asyncio.sleep(0.01)


async def done(database: Database) -> int:
    return sum(step.state == State.DONE for step in await all_steps(database))


def waits(event: asyncio.Event) -> Step:
    async def wait(services: Services, lease: Lease[Any]) -> None:
        await event.wait()

    return wait


def fails(*errors: Exception) -> Step:
    """Return a step that raises each of `errors` once, in order."""
    left = list(errors)

    async def fail(services: Services, lease: Lease[Any]) -> None:
        if left:
            raise left.pop(0)

    return fail


async def test_does_all_that_is_due(database: Database, steps: Steps) -> None:
    ids = await add_steps(database, 30)
    async with working(database, steps):
        await until(lambda: _is(done(database), 30))
    assert sorted(steps.began) == ids


async def _is(value: Awaitable[int], expected: int) -> bool:
    return await value == expected


async def test_two_workers_do_each_step_once(database: Database, steps: Steps) -> None:
    ids = await add_steps(database, 40)
    async with working(database, steps, per_lane=3), working(database, steps, per_lane=3):
        await until(lambda: _is(done(database), 40))
    assert sorted(steps.began) == ids


async def test_one_slow_lane_holds_up_no_other(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["resultset slow"] = waits(slow)
    await add_steps(sqlite, 20, lane="resultset slow")
    await add_steps(sqlite, 20, lane="graph fast")
    async with working(sqlite, steps, per_lane=2):
        await until(lambda: _is(done(sqlite), 20))
        assert {step.lane for step in await all_steps(sqlite) if step.state == State.DONE} == {"graph fast"}
        assert len(steps.began) == 22
        slow.set()
        await until(lambda: _is(done(sqlite), 40))


async def test_no_more_at_a_time_than_per_lane(sqlite: Database, steps: Steps) -> None:
    most = now_running = 0

    async def count(services: Services, lease: Lease[Any]) -> None:
        nonlocal most, now_running
        now_running += 1
        most = max(most, now_running)
        await asyncio.sleep(0.005)
        now_running -= 1

    steps.does["graph x"] = count
    await add_steps(sqlite, 20)
    async with working(sqlite, steps, per_lane=4):
        await until(lambda: _is(done(sqlite), 20))
    assert most == 4


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("hg", "hg is away"),
        PermanentUpstreamError("taskcluster", "you may not read", 403),
        KeyError("a bug"),
        AssertionError("another"),
        OperationalError("the database", {}, Exception("went away")),
    ],
)
async def test_whatever_a_step_raises_it_is_tried_again(sqlite: Database, steps: Steps, error: Exception) -> None:
    steps.does["graph x"] = fails(error, error)
    await add_steps(sqlite)
    async with working(sqlite, steps):
        await until(lambda: _is(done(sqlite), 1))
    assert len(steps.began) == 3
    (step,) = await all_steps(sqlite)
    assert (step.attempts, step.error) == (3, None)


async def test_a_bug_is_told_without_its_words_and_an_upstreams_reason_with_them(
    sqlite: Database, steps: Steps
) -> None:
    """The text of an internal error can hold anything, so it stands only in the log."""
    steps.does["graph bug"] = fails(*[KeyError("secret")] * 99)
    steps.does["graph hg"] = fails(*[Unavailable("hg", "hg is away", timedelta(minutes=20))] * 99)
    await add_steps(sqlite, lane="graph bug")
    await add_steps(sqlite, lane="graph hg")
    async with working(sqlite, steps, first_retry=50, max_retry=50):
        await until(lambda: _is(_told(sqlite), 2))
    bug, hg = await all_steps(sqlite)
    assert bug.error == "internal error: KeyError; the log has more"
    assert hg.error == "hg is away"
    assert hg.due_at is not None
    assert hg.due_at - now() > timedelta(minutes=19)


async def _told(database: Database) -> int:
    return sum(step.error is not None for step in await all_steps(database))


async def test_buried_when_it_fails_too_long(sqlite: Database, steps: Steps) -> None:
    steps.does["graph x"] = fails(*[Unavailable("hg", "hg is away")] * 99)
    await add_steps(sqlite, since=now() - timedelta(days=2))
    async with working(sqlite, steps):
        await until(lambda: _is(_failed(sqlite), 1))
    async with sqlite.reading() as session:
        letter = (await session.exec(select(DeadLetter))).one()
    assert "hg is away" in letter.reason
    assert len(steps.began) == 1


async def _failed(database: Database) -> int:
    return sum(step.state == State.FAILED for step in await all_steps(database))


async def test_stop_waits_for_what_is_under_way_and_begins_nothing(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    await add_steps(sqlite, 5)
    worker = worker_of(sqlite, steps, settings_of(per_lane=2, drain=5))
    running = asyncio.create_task(worker.run())
    await until(lambda: _is(_count(steps), 2))
    worker.stop()
    await asyncio.sleep(0.05)
    assert not running.done()
    slow.set()
    await running
    assert await done(sqlite) == 2
    assert len(steps.began) == 2


async def _count(steps: Steps) -> int:
    return len(steps.began)


async def test_stop_gives_back_what_takes_too_long(sqlite: Database, steps: Steps) -> None:
    steps.does["graph x"] = waits(asyncio.Event())
    await add_steps(sqlite)
    async with working(sqlite, steps, drain=0.05):
        await until(lambda: _is(_count(steps), 1))
    (step,) = await all_steps(sqlite)
    assert (step.state, step.attempts, step.error) == (State.PENDING, 0, None)
    assert step.due_at is not None
    assert step.due_at <= now()
    steps.does.clear()
    async with working(sqlite, steps):
        await until(lambda: _is(done(sqlite), 1))


async def test_an_idle_worker_stops_at_once(sqlite: Database, steps: Steps) -> None:
    async with asyncio.timeout(0.5), working(sqlite, steps, idle=60, drain=60):
        await asyncio.sleep(0.02)
        sqlite.wakeups.wake(Topic.WORK)


async def test_wake_makes_it_look_at_once(sqlite: Database, steps: Steps) -> None:
    async with working(sqlite, steps, idle=60):
        await asyncio.sleep(0.05)
        await add_steps(sqlite)
        sqlite.wakeups.wake(Topic.WORK)
        await until(lambda: _is(done(sqlite), 1), 10)


async def test_what_is_tried_again_soon_is_looked_for_then_although_its_lane_is_busy(
    sqlite: Database, steps: Steps
) -> None:
    slow = asyncio.Event()
    (fails, *_) = await add_steps(sqlite, 4)

    async def step(services: Services, lease: Lease[Any]) -> None:
        if lease.item.id != fails:
            await slow.wait()
        elif steps.began.count(fails) < 3:
            raise Unavailable("x", "not yet")

    steps.does["graph x"] = step
    async with working(sqlite, steps, idle=60, per_lane=5):
        await until(lambda: _is(done(sqlite), 1), 10)
        slow.set()
    assert steps.began.count(fails) == 3


async def test_a_lease_is_renewed_while_its_step_runs(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    await add_steps(sqlite)
    async with working(sqlite, steps, lease=0.6), working(sqlite, steps, lease=0.6):
        await asyncio.sleep(1.5)
        assert len(steps.began) == 1
        (step,) = await all_steps(sqlite)
        assert (step.fencing_token, step.attempts) == (1, 1)
        slow.set()
        await until(lambda: _is(done(sqlite), 1))


async def test_whoever_lost_its_lease_is_stopped(sqlite: Database, steps: Steps) -> None:
    stopped = asyncio.Event()

    async def until_stopped(services: Services, lease: Lease[Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    steps.does["graph x"] = until_stopped
    await add_steps(sqlite)
    async with working(sqlite, steps, lease=0.15):
        await until(lambda: _is(_count(steps), 1))
        async with sqlite.writing() as session:
            await session.exec(update(PushStep).values(fencing_token=7, due_at=now() + timedelta(minutes=5)))
        async with asyncio.timeout(1):
            await stopped.wait()
    (step,) = await all_steps(sqlite)
    assert (step.fencing_token, step.state, step.error) == (7, State.PENDING, None)


async def test_work_of_a_worker_that_died_is_taken_over(sqlite: Database, steps: Steps) -> None:
    steps.does["graph x"] = waits(asyncio.Event())
    await add_steps(sqlite)
    dead = asyncio.create_task(worker_of(sqlite, steps, settings_of(lease=0.2)).run())
    await until(lambda: _is(_count(steps), 1))
    dead.cancel()  # it renews nothing any more
    with contextlib.suppress(asyncio.CancelledError):
        await dead
    steps.does.clear()
    async with working(sqlite, steps):
        await until(lambda: _is(done(sqlite), 1))
    assert len(steps.began) == 2
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_goes_on_when_the_database_is_back(
    sqlite: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(sqlite, steps):
        with monkeypatch.context() as broken:
            broken.setattr(Database, "reading", _away)
            await add_steps(sqlite)
            await asyncio.sleep(0.1)
            assert steps.began == []
        await until(lambda: _is(done(sqlite), 1))


@asynccontextmanager
async def _away(_: Database) -> AsyncIterator[None]:
    raise OperationalError("SELECT", {}, Exception("the database is away"))
    yield


async def test_what_cannot_be_recorded_is_done_again_after_its_lease(
    sqlite: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.does["graph x"] = fails(KeyError("a bug"))
    await add_steps(sqlite)
    failing = [True]
    real = Lease.retry

    async def retry(self: Lease[Any], *arguments: Any) -> None:
        if failing.pop():
            raise OperationalError("UPDATE", {}, Exception("the database is away"))
        await real(self, *arguments)

    monkeypatch.setattr(Lease, "retry", retry)
    async with working(sqlite, steps, lease=0.2):
        await until(lambda: _is(done(sqlite), 1))
    assert len(steps.began) == 2


async def test_takes_fresh_work_up_to_its_room(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    async with working(sqlite, steps, per_lane=2, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        lanes = ("graph x",) * 3 + ("graph y",)
        pieces: list[Any] = [
            PushStep(push_id=1, kind=StepKind.GRAPH, lane=lane, share=f"mc/{number}")
            for number, lane in enumerate(lanes)
        ]
        taken = worker.preclaim(pieces)
        assert [pieces.index(item) for item in taken] == [0, 1, 3]
        assert [item.fencing_token for item in pieces] == [1, 1, 0, 1]
        assert all(item.due_at is not None and item.due_at > now() for item in taken)
        assert pieces[2].due_at is not None
        assert pieces[2].due_at <= now()
        slow.set()
    assert worker.preclaim(pieces) == []


async def test_nothing_is_looked_for_when_fresh_work_ends_that_nothing_waits_behind(
    sqlite: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = leases.due_lanes

    async def due_lanes(*arguments: Any) -> Any:
        looks.append(arguments)
        return await real(*arguments)

    monkeypatch.setattr(leases, "due_lanes", due_lanes)
    async with working(sqlite, steps, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        await until(lambda: _is(_length(looks), 1))
        storing = Storing()
        await _being_stored(sqlite, worker, storing)
        storing.end(succeeded=True)
        await until(lambda: _is(done(sqlite), 1))
        await until(lambda: _is(_held(worker), 0))
        await asyncio.sleep(0.05)
        assert len(looks) == 1


async def test_what_is_due_soon_is_done_then_after_fresh_work_of_its_lane(sqlite: Database, steps: Steps) -> None:
    await add_steps(sqlite, alias="r1", due_at=now() + timedelta(seconds=0.3))
    async with working(sqlite, steps, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        storing = Storing()
        await _being_stored(sqlite, worker, storing)
        storing.end(succeeded=True)
        await until(lambda: _is(done(sqlite), 2))


async def test_what_is_due_soon_is_done_then_after_due_work_of_its_lane(sqlite: Database, steps: Steps) -> None:
    await add_steps(sqlite)
    await add_steps(sqlite, alias="r1", due_at=now() + timedelta(seconds=0.3))
    async with working(sqlite, steps, idle=60):
        await until(lambda: _is(done(sqlite), 2))


async def test_a_look_that_failed_may_have_left_due_work(
    sqlite: Database, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(sqlite, steps, settings_of())
    await worker._claim()
    assert not worker._found_due
    monkeypatch.setattr(sqlite, "reading", lambda: _away(sqlite))
    with pytest.raises(OperationalError):
        await worker._claim()
    assert worker._found_due


async def _length(things: list[Any]) -> int:
    return len(things)


async def _active(worker: Worker) -> int:
    return int(worker._active)


# Fairness: order is counted, not time


async def test_one_hog_leaves_the_last_slot_to_others(database: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    await add_steps(database, 20, share="mc/hog")
    async with working(database, steps, per_lane=4):
        await until(lambda: _is(_count(steps), 3))
        (other,) = await add_steps(database, 1, alias="r1", share="r1/dev")
        await until(lambda: _is(_count(steps), 4))
        assert steps.began[-1] == other
        slow.set()
        await until(lambda: _is(done(database), 21))


async def test_fresh_work_of_another_is_begun_at_once_and_a_hogs_waits_its_turn(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    await add_steps(sqlite, 20, share="mc/hog")
    async with working(sqlite, steps, per_lane=4) as worker:
        await until(lambda: _is(_count(steps), 3))

        def new_piece(share: str) -> PushStep:
            return PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", share=share)

        assert worker.preclaim([new_piece("mc/hog")]) == []
        other = new_piece("r1/dev")
        assert worker.preclaim([other]) == [other]
        slow.set()
        await until(lambda: _is(done(sqlite), 20))


async def test_fresh_work_does_not_overtake_a_share_that_waits(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    for number in range(4):
        await add_steps(sqlite, 1, alias=f"r{number}", share=f"r{number}/dev")
    async with working(sqlite, steps, per_lane=3, idle=0.02) as worker:
        await until(lambda: _is(_count(steps), 3))
        await until(lambda: _is(_waiting(worker), 1))
        (task, *_) = worker._running.tasks
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        late = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", share="r9/dev")
        assert worker.preclaim([late]) == []
        slow.set()


async def _waiting(worker: Worker) -> int:
    return len(worker._waiting.get((PushStep, "graph x"), []))


async def test_fresh_work_waits_for_nobody_whose_work_another_replica_has_done(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["graph x"] = waits(slow)
    for number in range(4):
        await add_steps(sqlite, 1, alias=f"r{number}", share=f"r{number}/dev")
    async with working(sqlite, steps, per_lane=3, idle=0.02) as worker:
        await until(lambda: _is(_waiting(worker), 1))
        async with sqlite.writing() as session:
            others = update(PushStep).where(col(PushStep.id).not_in(steps.began))
            await session.exec(others.values(due_at=None, state=State.DONE))
        slow.set()
        await until(lambda: _is(done(sqlite), 4))
        await until(lambda: _is(_waiting(worker), 0))
        late = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", share="r9/dev")
        assert worker.preclaim([late]) == [late]


async def test_fresh_work_does_not_wait_for_another_tables_lane_of_that_name(sqlite: Database, steps: Steps) -> None:
    slow = asyncio.Event()
    steps.does["pulse"] = waits(slow)
    for number in range(4):
        await add_steps(sqlite, 1, lane="pulse", alias=f"r{number}", share=f"r{number}/dev")
    async with working(sqlite, steps, per_lane=3, idle=0.02) as worker:
        await until(lambda: _is(_count(steps), 3))
        await until(lambda: _is(_left(worker), 1))
        notice = Notice(kind=NoticeKind.PULSE, lane="pulse", share="r9/dev", action_id=1, target="e", key="k", body={})
        assert worker.preclaim([notice]) == [notice]
        slow.set()


async def _left(worker: Worker) -> int:
    return len(worker._waiting.get((PushStep, "pulse"), []))


async def test_long_work_gives_way_between_its_parts(sqlite: Database, steps: Steps) -> None:
    """With as many large shares as slots, a later one waits for a part of their work, not for all of it."""
    parts_done: Counter[int] = Counter()
    enough = asyncio.Event()

    async def long(services: Services, lease: Lease[Any]) -> None:
        while not enough.is_set():
            parts_done[lease.item.id] += 1
            await asyncio.sleep(0)
            lease.give_way()

    steps.does["graph x"] = long
    hogs = [(await add_steps(sqlite, 1, alias=f"hog{n}", share=f"hog{n}/dev"))[0] for n in range(3)]
    async with working(sqlite, steps, per_lane=3):
        await until(lambda: _is(_count(steps), 3))
        (other,) = await add_steps(sqlite, 1, alias="r1", share="r1/dev")
        await until(lambda: _began(steps, other))
        await until(lambda: _again(steps, hogs))
        enough.set()
        await until(lambda: _is(done(sqlite), 4))
    assert all(step.attempts == 1 for step in await all_steps(sqlite)), "to give way is no failure"


async def _began(steps: Steps, step_id: int) -> bool:
    return step_id in steps.began


async def _again(steps: Steps, hogs: list[int]) -> bool:
    return any(steps.began.count(hog) > 1 for hog in hogs)


# Work that begins while it is being stored


@pytest.mark.parametrize("early", [True, False])
async def test_only_early_work_begins_before_it_is_stored_and_none_writes(sqlite: Database, early: bool) -> None:
    steps = Steps()
    async with working(sqlite, steps, early=early, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        storing = Storing()
        step = await _being_stored(sqlite, worker, storing)
        await asyncio.sleep(0.1)
        assert len(steps.began) == int(early)
        assert await done(sqlite) == 0
        storing.end(succeeded=True)
        await until(lambda: _is(done(sqlite), 1))
        assert steps.began == [step.id]


@pytest.mark.parametrize("early", [True, False])
async def test_work_that_could_not_be_stored_is_dropped(sqlite: Database, early: bool) -> None:
    steps = Steps()
    async with working(sqlite, steps, early=early, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        storing = Storing()
        await _being_stored(sqlite, worker, storing)
        storing.end(succeeded=False)
        await until(lambda: _is(_held(worker), 0))
        assert await done(sqlite) == 0
        assert len(steps.began) == int(early)


@pytest.mark.parametrize("early", [True, False])
async def test_the_log_names_the_id_that_work_got_when_it_was_stored(sqlite: Database, early: bool) -> None:
    steps, names = Steps(), []

    async def note(_: Services, lease: Lease[Any]) -> None:
        await lease.wait_until_stored()
        names.append(structlog.contextvars.get_contextvars()["id"])

    steps.does["graph x"] = note
    async with working(sqlite, steps, early=early, idle=60) as worker:
        await until(lambda: _is(_active(worker), 1))
        (number,) = await add_steps(sqlite, due_at=now() + timedelta(minutes=1), fencing_token=1)
        storing = Storing()
        step = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", fencing_token=1)
        worker.begin([step], None, storing)
        await asyncio.sleep(0.05)
        step.id = number
        storing.end(succeeded=True)
        await until(lambda: _is(done(sqlite), 1))
    assert names == [number]


async def _being_stored(database: Database, worker: Worker, storing: Storing) -> PushStep:
    """Have the worker begin with a step before the transaction that stores it is said to have ended."""
    (number,) = await add_steps(database, due_at=now() + timedelta(minutes=1), fencing_token=1)
    async with database.reading() as session:
        step = await session.get_one(PushStep, number)
    worker.begin([step], None, storing)
    return step


async def _held(worker: Worker) -> int:
    return len(worker._running.leases)
