"""Presses of equal buttons, redelivered and overtaken at random: as many actions as presses."""

import json
import os
import random
import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlmodel import select

from events import Verdict
from service.api.events import job_action
from service.database import Database
from service.flow.action import acknowledged, store
from service.models import Action, Delivery

BODY = json.dumps(
    {
        "version": 1,
        "project": "mc",
        "job_guid": "560ee14d-6357-493c-9536-c5630693b209/0",
        "action": "retrigger",
        "requester": "sheriff@example.com",
    }
)
LONGER = timedelta(minutes=1)

PLAYS = int(os.environ.get("ACTION_PLAYS", "60"))
"""More of them: bin/soak."""


@dataclass
class Channel:
    """What the broker knows: whether it is open, and what it delivered on it and was not acknowledged, in order."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    open: bool = True
    held: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivered:
    """A message in a listener's hands."""

    press: int
    redelivered: bool
    minute: int
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    alive_after: int = 0
    unsure_since: float = 0


@dataclass
class Listener:
    channel: Channel
    pending: list[Delivered] = field(default_factory=list)  # not known to be stored
    stored: list[str] = field(default_factory=list)  # and not acknowledged
    alive: bool = True

    def message(self, each: Delivered) -> dict[str, Any]:
        return {
            "delivery": each.key,
            "channel": self.channel.id,
            "redelivered": each.redelivered,
            "exchange": "exchange/treeherder/v1/job-actions",
            "routing_key": "taskcluster.mc.retrigger",
            "body": BODY,
            "alive_after": each.alive_after,
            "unsure_since": each.unsure_since,
        }


class Play:
    """A broker and its listeners, at the real `store`. Each step is one thing that can happen."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self.database, self.chance = database, chance
        self.queue: deque[tuple[int, bool]] = deque()
        self.presses = self.minute = 0
        self.listeners = [Listener(Channel()), Listener(Channel()), Listener(Channel())]
        self.flying: list[tuple[Listener, Delivered, dict[str, Any]]] = []
        self.told: list[str] = []

    def tell(self, *words: Any) -> None:
        self.told.append(" ".join(map(str, words)))

    def number(self, listener: Listener) -> int:
        return self.listeners.index(listener)

    # what happens

    async def press(self) -> None:
        await self._minutes(1)
        self.presses += 1
        self.queue.append((self.presses, False))
        self.tell("press", self.presses)

    def deliver(self, listener: Listener) -> None:
        press, redelivered = self.queue.popleft()
        each = Delivered(press, redelivered, self.minute)
        listener.channel.held[each.key] = press
        listener.pending.append(each)
        self.tell("deliver", press, "again" * redelivered, "to", self.number(listener))

    def send(self, listener: Listener) -> None:
        """It is on its way, and says what the listener knew then. Of a batch, some may be known before others."""
        each = self.chance.choice(listener.pending)
        self.flying.append((listener, each, listener.message(each)))

    async def arrive(self, flight: tuple[Listener, Delivered, dict[str, Any]], *, heard: bool) -> None:
        self.flying.remove(flight)
        listener, each, message = flight
        async with self.database.writing() as session:
            (verdict,), _ = await store(session, [job_action(message)], timedelta(seconds=30))
        what = f"alive after {each.alive_after}" if each.alive_after else ""
        said = f"{verdict.verdict} {verdict.reason or ''}"
        self.tell("from", self.number(listener), each.press, "again" * each.redelivered, what, said, heard)
        if heard and listener.alive:
            for pending in [its for its in listener.pending if its.key == each.key]:
                self._hear(listener, pending, verdict)

    def _hear(self, listener: Listener, each: Delivered, verdict: Verdict) -> None:
        listener.pending.remove(each)
        if verdict.verdict != "unsure":
            listener.stored.append(each.key)
        elif listener.channel.open:  # the broker was asked, after the answer
            listener.pending.append(replace(each, alive_after=verdict.after, unsure_since=verdict.since))
        else:
            self.reconnect(listener)

    async def acknowledge(self, listener: Listener) -> None:
        self.tell("acknowledge", self.number(listener), len(listener.stored))
        keys, listener.stored = listener.stored, []
        if not listener.channel.open:
            self.reconnect(listener)
            return
        for key in keys:
            del listener.channel.held[key]
        async with self.database.writing() as session:
            await acknowledged(session, keys)

    def cut(self, listener: Listener) -> None:
        """The broker loses the channel; the listener need not notice."""
        listener.channel.open = False
        self.queue.extendleft((press, True) for press in reversed(listener.channel.held.values()))
        listener.channel.held.clear()
        self.tell("cut", self.number(listener))

    def kill(self, listener: Listener) -> None:
        self.tell("kill", self.number(listener))
        if listener.channel.open:
            self.cut(listener)
        self.reconnect(listener)

    def reconnect(self, listener: Listener) -> None:
        """What it held is dropped, for the broker brings it again. The one with the new channel has another number."""
        listener.alive = False
        self.listeners.append(Listener(Channel()))
        self.tell("reconnect", self.number(listener), "as", len(self.listeners) - 1)

    async def _minutes(self, minutes: int) -> None:
        """Time passes; a stored press is acknowledged meanwhile, unless its channel is gone."""
        self.minute += minutes
        open_channels = [each.channel.id for each in self.listeners if each.channel.open and each.channel.held]
        async with self.database.writing() as session:
            for action in await session.exec(select(Action)):
                action.received_at -= minutes * LONGER
                if action.channel not in open_channels:
                    action.delivered_at -= minutes * LONGER
        for listener in self.listeners:
            listener.pending = [
                replace(each, unsure_since=max(each.unsure_since - minutes * LONGER.total_seconds(), 0))
                for each in listener.pending
            ]

    # what can happen

    def can(self) -> list[list[Any]]:
        living = [each for each in self.listeners if each.alive]
        opened = [each for each in living if each.channel.open]
        more = len(self.listeners) < 8
        kinds: list[list[Any]] = [
            [self.press] if self.presses < 4 else [],
            [lambda each=each: self.deliver(each) for each in opened] if self.queue else [],
            [lambda each=each: self.send(each) for each in living if each.pending] if len(self.flying) < 5 else [],
            [lambda each=each: self.arrive(each, heard=True) for each in self.flying],
            [lambda each=each: self.arrive(each, heard=False) for each in self.flying],
            [lambda each=each: self.acknowledge(each) for each in living if each.stored],
            [lambda each=each: self.cut(each) for each in opened if each.channel.held and more],
            [lambda each=each: self.kill(each) for each in living if each.channel.held and more],
            [lambda each=each: self.reconnect(each) for each in living if not each.channel.open],
        ]
        return [kind for kind in kinds if kind]

    async def step(self) -> None:
        if can := self.can():
            done = self.chance.choice(self.chance.choice(can))()
            if done is not None:
                await done

    async def end(self) -> None:
        """All that still can is brought to an end."""
        for flight in list(self.flying):
            await self.arrive(flight, heard=False)
        while self.queue or any(each.pending or each.stored for each in self.listeners if each.alive):
            for listener in [each for each in self.listeners if each.alive]:
                if listener.pending:
                    self.send(listener)
                    await self.arrive(self.flying[-1], heard=True)
                if listener.stored:
                    await self.acknowledge(listener)
                if listener.alive and not listener.channel.open:
                    self.reconnect(listener)
            await self._minutes(1)
            if self.queue:
                self.deliver(self.chance.choice([each for each in self.listeners if each.alive and each.channel.open]))


async def play(database: Database, seed: int, steps: int) -> None:
    async with database.writing() as session:
        for row in [*await session.exec(select(Action)), *await session.exec(select(Delivery))]:
            await session.delete(row)
    playing = Play(database, random.Random(seed))
    for _ in range(steps):
        await playing.step()
    await playing.end()
    async with database.reading() as session:
        actions = list(await session.exec(select(Action)))
    assert len(actions) == playing.presses, "\n".join([f"seed {seed}: {len(actions)} actions", *playing.told])


async def test_equal_presses_are_as_many_actions_whatever_happens_to_channels_and_posts(sqlite: Database) -> None:
    for _ in range(PLAYS):
        await play(sqlite, random.randrange(2**32), 40)
