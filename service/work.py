"""How work is leased: claim, finish, retry, bury. Of job reports only the claim: the rest is in `flow.settle`.

A claim raises the row's fencing number (`lease`) and pushes `due_at` to the lease's end, so that work whose holder
died becomes due by itself. Every write of a holder goes through `Hold`, which first proves in the same transaction
that the number is still the holder's. Its last write raises the number too, so that nothing of the holder's comes
after it: a renewal on its way would make finished work due again.
"""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import func, literal, union_all
from sqlmodel import col, select, update

from service import metrics
from service.database import Database, Session, now
from service.door import visible
from service.models import State, Work
from service.settings import WorkSettings

log = structlog.get_logger()

W = TypeVar("W", bound=Work)


class LeaseLostError(Exception):
    """Another worker holds this work now: stop at once and write nothing."""


class Hold(Generic[W]):
    """A piece of work that this process holds; `ended` once it was finished, given back or buried."""

    def __init__(self, database: Database, settings: WorkSettings, item: W) -> None:
        self.item = item
        self.ended = False
        self._database = database
        self._settings = settings
        self._model = type(item)

    def __repr__(self) -> str:
        return f"Hold({self._model.__name__} {self.item.id}, lease {self.item.lease})"

    @asynccontextmanager
    async def writing(self, **values: Any) -> AsyncIterator[Session]:
        """A transaction that proves and renews the lease, and sets `values` on the work."""
        async with self._database.writing() as session:
            await self._set(session, due_at=now() + self._settings.lease, **values)
            yield session

    async def renew(self) -> None:
        """Say that the holder lives. Raises LeaseLostError."""
        async with self.writing():
            pass

    @asynccontextmanager
    async def finishing(self, state: State, reason: str | None = None, **values: Any) -> AsyncIterator[Session]:
        """A transaction in which the work is done with: nothing is due any more."""
        async with self._ending() as session:
            await self._set(session, state=state, error=reason, due_at=None, done_at=now(), **values)
            if state in {State.FAILED, State.REJECTED}:
                session.add_all(self.item.failure_notices())
            yield session
        metrics.work_ended(self.item, state.value)

    async def finish(self, state: State, reason: str | None = None, **values: Any) -> None:
        """The work is done with, and nothing else is to be written."""
        async with self.finishing(state, reason, **values):
            pass

    async def retry(self, reason: str, wait: timedelta | None = None) -> None:
        """Try again later, with exponential backoff and jitter; bury it once it was tried for `give_up`."""
        at = now()
        if at - self.item.since >= self._settings.give_up:
            await self.bury(f"given up after {self.item.attempts} attempts since {self.item.since:%F %T}Z: {reason}")
            return
        pause = max(backoff(self._settings, self.item.attempts), wait or timedelta())
        async with self._ending() as session:
            await self._set(session, error=reason, due_at=at + pause)
        metrics.work_ended(self.item, "retried")

    async def release(self) -> None:
        """Give it back untouched, for another worker to take at once."""
        async with self._ending() as session:
            await self._set(session, due_at=now(), attempts=max(self.item.attempts - 1, 0))

    async def bury(self, reason: str) -> None:
        """Give it up for good: a dead letter is left of it, for a person to see."""
        async with self.finishing(State.FAILED, reason) as session:
            session.add(self.item.dead_letter(visible(reason)))
        metrics.work_ended(self.item, "buried")
        log.error("work-buried", work=self._model.__name__, id=self.item.id, reason=reason)

    @asynccontextmanager
    async def _ending(self) -> AsyncIterator[Session]:
        """The transaction of the holder's last write."""
        self.ended = True
        async with self._database.writing() as session:
            yield session

    async def _set(self, session: Session, **values: Any) -> None:
        # reasons quote what upstreams said, which may hold what no database takes
        values = {name: visible(value) if isinstance(value, str) else value for name, value in values.items()}
        held = await session.exec(
            update(self._model)
            .where(col(self._model.id) == self.item.id, col(self._model.lease) == self.item.lease)
            .values(**values, lease=self._model.lease + int(self.ended))
        )
        if held.rowcount != 1:
            raise LeaseLostError(f"{self!r} is held by another worker")


def backoff(settings: WorkSettings, attempts: int) -> timedelta:
    """How long to wait after the `attempts`th failure: doubling, capped, and spread by half either way."""
    doublings = min(max(attempts - 1, 0), 30)
    pause: timedelta = min(settings.first_retry * 2**doublings, settings.max_retry)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret


async def due_lanes(session: Session, models: tuple[type[Work], ...]) -> dict[type[Work], dict[str, datetime]]:
    """Each lane of these tables that has unfinished work, and when its first piece is due."""
    lanes: dict[type[Work], dict[str, datetime]] = {model: {} for model in models}
    for number, lane, due in await session.exec(_due_lanes(models)):
        lanes[models[number]][lane] = due
    return lanes


@cache
def _due_lanes(models: tuple[type[Work], ...]) -> Any:
    """One statement for all of them, made once: that takes longer than to execute it."""
    return union_all(
        *(
            select(literal(number), model.lane, func.min(model.due_at))
            .where(col(model.due_at).is_not(None))
            .group_by(model.lane)
            for number, model in enumerate(models)
        )
    )


async def claim(session: Session, model: type[W], lane: str, limit: int, lease: timedelta) -> list[W]:
    """Take up to `limit` due pieces of `lane`, the longest due first."""
    at = now()
    due = (
        select(model.id)
        .where(model.lane == lane, col(model.due_at) <= at)
        .order_by(col(model.due_at), col(model.id))
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite leaves it out; there BEGIN IMMEDIATE does the same
        .cte()  # read once: a subquery that PostgreSQL's planner scans again locks, and takes, more than `limit`
    )
    claimed = await session.exec(
        update(model)
        .where(col(model.id).in_(select(due.c.id)))
        .values(due_at=at + lease, lease=model.lease + 1, attempts=model.attempts + 1)
        .returning(model)
    )
    return sorted(claimed.scalars().all(), key=lambda item: item.id or 0)


def take(fresh: Iterable[Work], lease: timedelta) -> None:
    """Claim work that the caller is about to store: it is born claimed, and need not be looked for."""
    for item in fresh:
        item.lease, item.attempts, item.due_at = 1, 1, now() + lease


def again(steps: Iterable[Work]) -> None:
    """Make finished work due once more, as if it were new."""
    for step in steps:
        step.state, step.error, step.done_at, step.attempts = State.PENDING, None, None, 0
        step.since = step.due_at = now()
