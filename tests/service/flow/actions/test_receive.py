"""Presses of equal buttons, redelivered and overtaken at random: how many actions they become."""

import json
import os
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlmodel import col, func, select

from service.api.events import job_action
from service.flow.actions import receive
from service.flow.actions.receive import count_presses, may_come_again_as, store
from service.store import models
from service.store.database import Database
from service.store.models import Action, Delivery

BODY = json.dumps(
    {
        "version": 1,
        "project": "mc",
        "job_guid": "560ee14d-6357-493c-9536-c5630693b209/0",
        "action": "retrigger",
        "requester": "sheriff@example.com",
    }
)

PLAYS = int(os.environ.get("ACTION_PLAYS", "60"))
"""More of them: bin/soak."""


def message(key: str, channel: str, redelivered: bool, stamp: float) -> dict[str, Any]:
    return {
        "delivery": key,
        "channel": channel,
        "redelivered": redelivered,
        "stamp": stamp,
        "exchange": "exchange/treeherder/v1/job-actions",
        "routing_key": "taskcluster.mc.retrigger",
        "body": BODY,
    }


# --- plays -------------------------------------------------------------------------------------------------------


def new_uuid() -> str:
    return str(uuid.uuid4())


@dataclass
class Channel:
    """A channel as the broker sees it: open or not, and the unacknowledged messages in order."""

    id: str = field(default_factory=new_uuid)
    open: bool = True
    unacknowledged: list[int] = field(default_factory=list)


@dataclass
class Read:
    """A message that a listener has read."""

    press: int
    redelivered: bool
    stamp: float
    key: str = field(default_factory=new_uuid)


@dataclass
class Listener:
    """A listener process on one channel, step by step as `listeners.pulse.Post` does it."""

    number: int
    clock: float  # seconds that it is off
    channel: Channel = field(default_factory=Channel)
    socket: list[tuple[int, bool]] = field(default_factory=list)  # sent by the broker, not read yet
    read: list[Read] = field(default_factory=list)
    batch: list[Read] = field(default_factory=list)
    checked: bool = False  # the channel answered after the batch was read
    acknowledging: list[Read] = field(default_factory=list)  # on their way to the broker
    confirmed: list[str] = field(default_factory=list)
    alive: bool = True


@dataclass
class Request:
    """A POST that is on its way to the service."""

    listener: Listener
    batch: list[Read]
    acknowledged: list[str]


class Play:
    """A broker and its listeners, at the real `store`. Each step is one thing that can happen, and takes some time."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self.database, self.chance = database, chance
        self.most = chance.randint(1, 6)
        self.pace = chance.choice([0.05, 0.5, 10])
        self.time = 1_700_000_000.0
        self.queue: deque[tuple[int, bool]] = deque()
        self.presses = 0
        self.listeners: list[Listener] = []
        for _ in range(3):
            self.connect()
        self.requests: list[Request] = []
        self.arrived: dict[str, int] = {}  # the press of each delivery that the service has
        self.taken: set[str] = set()  # deliveries whose acknowledgement the broker has
        self.reported: set[str] = set()  # and of which the service knows
        self.story: list[str] = []

    def tell(self, *words: Any) -> None:
        self.story.append(f"{self.time - 1_700_000_000:.1f} " + " ".join(map(str, words)))

    # the broker

    def press(self) -> None:
        self.presses += 1
        self.queue.append((self.presses, False))
        self.tell("press", self.presses)

    def deliver(self, listener: Listener) -> None:
        press, redelivered = self.queue.popleft()
        listener.channel.unacknowledged.append(press)
        listener.socket.append((press, redelivered))
        self.tell("deliver", press, "again" * redelivered, "to", listener.number)

    def take_acknowledgements(self, listener: Listener) -> None:
        if listener.channel.open:
            for read in listener.acknowledging:
                listener.channel.unacknowledged.remove(read.press)
                self.taken.add(read.key)
            listener.confirmed += [read.key for read in listener.acknowledging]
        listener.acknowledging = []

    def cut(self, listener: Listener) -> None:
        """Let the broker close the channel; the listener need not notice."""
        listener.channel.open = False
        self.queue.extendleft((press, True) for press in reversed(listener.channel.unacknowledged))
        self.tell("cut", listener.number)

    def cut_after_acknowledgements(self, listener: Listener) -> None:
        """Let the broker take acknowledgements, of which the listener never learns."""
        confirmed = list(listener.confirmed)
        self.take_acknowledgements(listener)
        listener.confirmed = confirmed
        self.cut(listener)

    # the listeners

    def connect(self) -> None:
        self.listeners.append(Listener(len(self.listeners), self.chance.uniform(-0.5, 0.5)))

    def read(self, listener: Listener) -> None:
        press, redelivered = listener.socket.pop(0)
        listener.read.append(Read(press, redelivered, self.time + listener.clock))
        self.tell("read", press, "again" * redelivered, "by", listener.number)

    def check(self, listener: Listener) -> None:
        """Take a batch, and ask the broker whether the channel is open."""
        if not listener.channel.open:
            self.reconnect(listener)
            return
        self.take_acknowledgements(listener)
        size = self.chance.randint(0, len(listener.read))
        listener.batch, listener.read = listener.read[:size], listener.read[size:]
        listener.checked = True
        self.tell("check", listener.number, [read.press for read in listener.batch])

    def send(self, listener: Listener) -> None:
        """Once, or again while nobody knows whether it arrived."""
        self.requests.append(Request(listener, list(listener.batch), list(listener.confirmed)))
        self.tell("send", [read.press for read in listener.batch], "from", listener.number)

    async def arrive(self, request: Request, *, heard: bool) -> None:
        self.requests.remove(request)
        listener = request.listener
        arrivals = [
            job_action(message(read.key, listener.channel.id, read.redelivered, read.stamp)) for read in request.batch
        ]
        async with self.database.writing() as session:
            verdicts, _ = await store(session, arrivals, request.acknowledged)
        said = [(read.press, verdict.verdict) for read, verdict in zip(request.batch, verdicts, strict=True)]
        self.tell("from", listener.number, said, len(request.acknowledged), "acknowledged", "heard" * heard)
        self.arrived |= {read.key: read.press for read in request.batch}
        self.reported |= set(request.acknowledged)
        await self.expect()
        if heard and listener.alive and listener.checked and listener.batch == request.batch:
            listener.acknowledging, listener.batch, listener.checked = listener.batch, [], False
            listener.confirmed = [key for key in listener.confirmed if key not in request.acknowledged]

    def kill(self, listener: Listener) -> None:
        self.tell("kill", listener.number)
        if listener.channel.open:
            self.cut(listener)
        self.reconnect(listener)

    def reconnect(self, listener: Listener) -> None:
        """Drop what was read, because the broker delivers it again; the listener gets another number."""
        listener.alive = False
        self.connect()
        self.tell("reconnect", listener.number, "as", len(self.listeners) - 1)

    # what must be true at any time

    async def expect(self) -> None:
        async with self.database.reading() as session:
            actions = set(await session.exec(select(Action.id)))
            listed = dict((await session.exec(select(Delivery.key, Delivery.action_id))).all())
        story = "\n".join(self.story)
        assert len(actions) <= len(set(self.arrived.values())), f"an action too many\n{story}"
        assert listed.keys() == self.arrived.keys(), story
        assert set(listed.values()) == actions, f"a delivery is on no action, or an action has none\n{story}"

    async def expect_in_the_end(self) -> None:
        await self.expect()
        async with self.database.reading() as session:
            actions = (await session.exec(select(func.count()).select_from(Action))).one()
        story = "\n".join(self.story)
        assert set(self.arrived.values()) == set(range(1, self.presses + 1)), f"a press is not listed\n{story}"
        lost = len(self.taken - self.reported)
        assert self.presses - lost <= actions, f"{actions} actions, {lost} acknowledgements lost\n{story}"

    # what can happen

    def can(self) -> list[list[Callable[[], Any]]]:
        living = [listener for listener in self.listeners if listener.alive]
        opened = [listener for listener in living if listener.channel.open]
        broken = [listener for listener in opened if listener.channel.unacknowledged] if len(self.listeners) < 8 else []

        def of(do: Callable[[Listener], Any], listeners: Iterable[Listener]) -> list[Callable[[], Any]]:
            return [partial(do, listener) for listener in listeners]

        kinds: list[list[Callable[[], Any]]] = [
            [self.press] if self.presses < self.most else [],
            of(self.deliver, opened) if self.queue else [],
            of(self.read, [listener for listener in living if listener.socket]),
            of(self.check, [listener for listener in living if listener.read and not listener.checked]),
            of(self.check, [listener for listener in living if listener.acknowledging and not listener.checked]),
            of(self.send, [listener for listener in living if listener.checked]) if len(self.requests) < 5 else [],
            [partial(self.arrive, request, heard=True) for request in self.requests],
            [partial(self.arrive, request, heard=False) for request in self.requests],
            of(self.take_acknowledgements, [listener for listener in living if listener.acknowledging]),
            of(self.cut, broken),
            of(self.cut_after_acknowledgements, [listener for listener in broken if listener.acknowledging]),
            of(self.kill, broken),
        ]
        return [kind for kind in kinds if kind]

    async def step(self) -> None:
        self.time += 30 if self.chance.random() < 0.05 else self.chance.uniform(0, self.pace)
        if can := self.can():
            done = self.chance.choice(self.chance.choice(can))()
            if done is not None:
                await done

    async def end(self) -> None:
        """Bring everything to an end that still can be."""
        for request in list(self.requests):
            await self.arrive(request, heard=False)
        while self.queue or any(self._busy(listener) for listener in self.listeners if listener.alive):
            for listener in [listener for listener in self.listeners if listener.alive]:
                while listener.socket:
                    self.read(listener)
                if not listener.checked:
                    self.check(listener)
                if listener.checked:
                    self.send(listener)
                    await self.arrive(self.requests[-1], heard=True)
            self.time += 1
            if self.queue:
                self.deliver(
                    self.chance.choice(
                        [listener for listener in self.listeners if listener.alive and listener.channel.open]
                    )
                )

    @staticmethod
    def _busy(listener: Listener) -> bool:
        return bool(listener.socket or listener.read or listener.batch or listener.acknowledging or listener.confirmed)


async def play(database: Database, seed: int, steps: int) -> None:
    async with database.writing() as session:
        for row in [*await session.exec(select(Delivery)), *await session.exec(select(Action))]:
            await session.delete(row)
            await session.flush()
    playing = Play(database, random.Random(seed))
    playing.tell("seed", seed)
    for _ in range(steps):
        await playing.step()
    await playing.end()
    await playing.expect_in_the_end()


async def test_equal_presses_are_as_many_actions_whatever_happens_to_listeners_and_posts(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "CLOCK_SKEW", 0.5)
    for _ in range(PLAYS):
        await play(sqlite, random.randrange(2**32), 80)


# --- counting ----------------------------------------------------------------------------------------------------


def largest_matching(deliveries: list[Delivery]) -> int:
    """By augmenting paths, as in the books."""
    matched: dict[int, int] = {}

    def augment(earlier: int, seen: set[int]) -> bool:
        for later, delivery in enumerate(deliveries):
            if later not in seen and may_come_again_as(deliveries[earlier], delivery):
                seen.add(later)
                if later not in matched or augment(matched[later], seen):
                    matched[later] = earlier
                    return True
        return False

    return sum(augment(earlier, set()) for earlier in range(len(deliveries)))


def delivery(channel: str, halves: int, redelivered: bool, acknowledged: bool) -> Delivery:
    stamp = halves * receive.CLOCK_SKEW / 2
    return Delivery(key="", channel=channel, stamp=stamp, redelivered=redelivered, acknowledged=acknowledged)


some_deliveries = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.booleans(), st.booleans()).map(lambda of: delivery(*of)),
    max_size=9,
)


@given(some_deliveries)
def test_what_is_left_without_the_largest_matching_is_counted(deliveries: list[Delivery]) -> None:
    assert count_presses(deliveries) == len(deliveries) - largest_matching(deliveries)


def key(channel: str, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{channel} {number}"))


async def take(database: Database, channel: str, numbers: range, acknowledged: Iterable[str] = ()) -> int:
    """Take a batch of equal presses, redelivered unless the channel is `first`; how many actions it made."""
    arrivals = [
        job_action(message(key(channel, number), key(channel, -1), channel != "first", 1.0)) for number in numbers
    ]
    async with database.writing() as session:
        _, actions = await store(session, arrivals, list(acknowledged))
        return len(actions)


async def test_what_is_read_for_a_batch_does_not_grow_with_the_presses_before(sqlite: Database) -> None:
    """A hostile publisher can send any number of presses; after acknowledgement, none of them has to be read again."""
    loaded: list[Delivery] = []

    def note(delivery: Delivery, _: Any) -> None:
        loaded.append(delivery)

    event.listen(Delivery, "load", note)
    try:
        acknowledged: list[str] = []
        for start in range(0, 1_000, 100):
            loaded.clear()
            numbers = range(start, start + 100)
            assert await take(sqlite, "first", numbers, acknowledged) == 100
            assert len(loaded) <= 100
            acknowledged = [key("first", number) for number in numbers]
    finally:
        event.remove(Delivery, "load", note)


async def test_presses_that_are_redelivered_again_and_again_are_spread_over_their_actions(sqlite: Database) -> None:
    numbers = range(100)
    assert await take(sqlite, "first", numbers) == 100
    for channel in ("second", "third"):
        assert await take(sqlite, channel, numbers) == 0
    async with sqlite.reading() as session:
        listed = await session.exec(select(func.count(col(Delivery.key))).group_by(col(Delivery.action_id)))
        assert list(listed) == [3] * 100


async def test_no_lookup_of_deliveries_scans_the_table(database: Database) -> None:
    statements: list[tuple[str, Any]] = []
    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
    await take(database, "first", range(3))
    statements.clear()
    await take(database, "second", range(3), [key("first", 1)])
    lookups = [(statement, values) for statement, values in statements if "FROM delivery" in statement]
    assert len(lookups) == 3
    explain = "EXPLAIN QUERY PLAN" if database.sqlite else "EXPLAIN"
    async with database.engine.connect() as connection:
        if not database.sqlite:
            await connection.execute(text("SET enable_seqscan = off"))
        plans = [
            str((await connection.exec_driver_sql(f"{explain} {statement}", values)).all())
            for statement, values in lookups
        ]
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "SCAN" not in plan
    if database.sqlite:  # of a few rows PostgreSQL may find any index as good
        assert sum("ix_delivery_unsettled" in plan for plan in plans) == 1


async def test_what_has_become_too_old_to_be_matched_makes_no_action(database: Database) -> None:
    """A delivery that becomes too old leaves the count together with its pair, which was no press of its own."""
    assert await take(database, "first", range(1)) == 1
    assert await take(database, "second", range(1)) == 0
    async with database.writing() as session:
        first = await session.get_one(Delivery, key("first", 0))
        first.at -= models.REDELIVERED_WITHIN
    assert await take(database, "third", range(1), [key("second", 0)]) == 0  # it may be the second's, read late
    assert await take(database, "third", range(0), [key("third", 0)]) == 1
