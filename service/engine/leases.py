"""How work is leased: claim, finish, retry, bury. Of job reports only the claim: the rest is in `flow.record_outcomes`.

A claim raises the row's fencing number (`lease`) and pushes `due_at` to the lease's end, so that work whose holder
died becomes due by itself. Every write of a holder goes through `Lease`, which first proves in the same transaction
that the number is still the holder's. Its last write raises the number too, so that nothing of the holder's comes
after it: a renewal on its way would make finished work due again.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Integer, String, Table, Text, bindparam, collate, func, literal, tuple_, union_all
from sqlalchemy import update as sqlalchemy_update
from sqlmodel import SQLModel, col, select, update

from service import metrics
from service.clock import now
from service.contract import retry
from service.engine.fair import deal
from service.sanitize import escape_unstorable
from service.settings import WorkSettings
from service.store.commits import Fence, FencedError, Statement
from service.store.database import Database, Session, Utc, insertion
from service.store.distinct import distinct_of
from service.store.models import Notice, State, Work, work_tables
from service.store.wakeups import Topic

log = structlog.get_logger()

W = TypeVar("W", bound=Work)


class LeaseLostError(Exception):
    """Another worker holds this work now: stop at once and write nothing."""


class YieldedError(Exception):
    """The work was stopped between two parts of it, for others who wait: it goes on when their turn is over."""


class Lease(Generic[W]):
    """A piece of work that this process holds; `ended` once it was finished, given back or buried.

    `loaded`: what it belongs to, if that was read with it.
    """

    def __init__(self, database: Database, settings: WorkSettings, item: W, loaded: Any = None) -> None:
        self.item = item
        self.loaded = loaded
        self.ended = False
        self.requeued = False  # it was given back, and is soon due again
        self.wanted = False  # others wait for its slot
        self.also_wanted: Callable[[], bool] = lambda: False  # others wait for something else that it holds
        self._database = database
        self._settings = settings
        self._model = type(item)

    def __repr__(self) -> str:
        return f"Hold({self._model.__name__} {self.item.id}, lease {self.item.fencing_token})"

    @asynccontextmanager
    async def writing(self, **values: Any) -> AsyncIterator[Session]:
        """A transaction that proves and renews the lease, and sets `values` on the work."""
        async with self._database.writing() as session:
            await self._set(session, due_at=now() + self._settings.lease, **values)
            yield session

    async def renew(self) -> None:
        """Say that the holder lives. Raises LeaseLostError."""
        await self.commit()

    def give_way(self) -> None:
        """Call this between two parts of long work, with all that was done on record. Raises GivenWayError."""
        if self.wanted or self.also_wanted():
            raise YieldedError

    async def finish(
        self,
        state: State,
        reason: str | None = None,
        also: Sequence[Statement] = (),
        notices: Sequence[Notice] = (),
        rows: int = 1,
        **values: Any,
    ) -> list[int]:
        """Be done with the work, in a transaction that it may share.

        `also` is written with it, about `rows` rows; returned is how many rows each of these statements changed.
        `notices` are stored, beside those of a failure.
        """
        values.update(state=state, error=reason, due_at=None, done_at=now())
        if state in {State.FAILED, State.REJECTED}:
            notices = [*notices, *self.item.failure_notices()]
        self.ended = True
        counts = await self.commit([*also, *insertion(notices)], rows, **values)
        metrics.work_ended(self.item.work_name, state.value)
        if notices:  # which are work in turn
            self._database.wakeups.wake(Topic.WORK)
        return counts

    async def commit(self, statements: Sequence[Statement] = (), rows: int = 1, **values: Any) -> list[int]:
        """Prove and renew the lease, set `values` on the work and write, in a transaction that it may share.

        `rows` is about how many are written. Returns how many rows each statement changed. Raises LeaseLostError.
        """
        values = self._values({"due_at": now() + self._settings.lease, **values})
        table, number, token = _table(self._model), self.item.id or 0, self.item.fencing_token
        own = (fenced(self._model, tuple(values)), [{**values, "its_id": number, "its_token": token}])
        try:
            _, *counts = await self._database.write(
                Fence(table, number, token), [own, *statements], self.item.share, rows
            )
        except FencedError:
            raise LeaseLostError(f"{self!r} is held by another worker") from None
        return counts

    async def retry(self, reason: str, wait: timedelta | None = None) -> None:
        """Try again later, with exponential backoff and jitter; bury it once it was tried for `give_up`."""
        at = now()
        if exhausted(self._settings, self.item, self.item.since, self._settings.give_up):
            await self.bury(f"given up after {self.item.attempts} attempts since {self.item.since:%F %T}Z: {reason}")
            return
        pause = max(backoff(self._settings, self.item.attempts), wait or timedelta())
        pause = min(pause, self._settings.longest_wait)
        await self._end(error=reason, due_at=at + pause)
        metrics.work_ended(self.item.work_name, "retried")

    async def release(self) -> None:
        """Give it back untouched, for another worker to take at once."""
        await self._end(due_at=now(), attempts=max(self.item.attempts - 1, 0))

    async def bury(self, reason: str) -> None:
        """Give it up for good: a dead letter is left of it, for a person to see."""
        letter = self.item.dead_letter(escape_unstorable(reason))
        await self.finish(State.FAILED, reason, insertion([letter]))
        metrics.work_ended(self.item.work_name, "buried")
        log.error("work-buried", work=self._model.__name__, id=self.item.id, reason=reason)

    async def _end(self, **values: Any) -> None:
        """Write for the last time, for another attempt."""
        self.ended = True
        await self.commit(**values)
        self.requeued = True

    async def _set(self, session: Session, **values: Any) -> None:
        values = self._values(values)
        held = await (await session.connection()).execute(
            fenced(self._model, tuple(values)), {**values, "its_id": self.item.id, "its_token": self.item.fencing_token}
        )
        if held.rowcount != 1:
            raise LeaseLostError(f"{self!r} is held by another worker")

    def _values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return what is to be set, as a database takes it: reasons quote what upstreams said."""
        values = {name: escape_unstorable(value) if isinstance(value, str) else value for name, value in values.items()}
        if self.ended:
            values["holder"] = None
        return {**values, "by": int(self.ended)}


def _table(model: type[Work]) -> Table:
    return SQLModel.metadata.tables[str(model.__tablename__)]


@cache
def fenced(model: type[Work], names: tuple[str, ...]) -> Any:
    """Return the statement by which a holder sets `names`, made once; `by` is added to the fencing number."""
    columns = _table(model).c
    return (
        sqlalchemy_update(_table(model))
        .where(columns.id == bindparam("its_id"), columns.fencing_token == bindparam("its_token"))
        .values(
            {name: bindparam(name) for name in names if name != "by"}
            | {"fencing_token": columns.fencing_token + bindparam("by")}
        )
    )


def exhausted(settings: WorkSettings, item: Work, since: datetime, limit: timedelta) -> bool:
    """Return True if the work failed for `limit` since then and often enough: a clock that jumps buries nothing."""
    return now() - since >= limit and item.attempts >= settings.give_up_attempts


def backoff(settings: WorkSettings, attempts: int) -> timedelta:
    """Return the wait after the `attempts`th failure."""
    first, longest = settings.first_retry.total_seconds(), settings.max_retry.total_seconds()
    return timedelta(seconds=retry.backoff(attempts, first, longest))


@dataclass
class Lane:
    """Unfinished work of one table and lane: when its first and its last piece is due."""

    first: datetime
    last: datetime


async def due_lanes(session: Session, models: tuple[type[Work], ...]) -> dict[type[Work], dict[str, Lane]]:
    """Return each lane of these tables that has unfinished work."""
    lanes: dict[type[Work], dict[str, Lane]] = {model: {} for model in models}
    for number, lane, first, last in await session.exec(_due_lanes(models)):
        lanes[models[number]][lane] = Lane(first, last)
    return lanes


@cache
def _due_lanes(models: tuple[type[Work], ...]) -> Any:
    """One statement for all of them, made once: that takes longer than to execute it."""
    return union_all(*(_lanes(number, model) for number, model in enumerate(models)))


def _lanes(number: int, model: type[Work]) -> Any:
    lanes = distinct_of(model.lane, f"lanes_{number}", col(model.due_at).is_not(None))

    def due(which: Any) -> Any:
        of_lane = (col(model.due_at).is_not(None), col(model.lane) == lanes.c.lane)
        return select(which(model.due_at)).where(*of_lane).scalar_subquery()

    return select(literal(number), lanes.c.lane, due(func.min), due(func.max)).where(lanes.c.lane.is_not(None))


async def pull_back(session: Session, model: type[Work], lane: str, longest: timedelta) -> None:
    """Let what is due later than after the longest wait be due: a clock that was wrong wrote that."""
    at = now()
    hidden = (
        select(model.id)
        .where(model.lane == lane, col(model.due_at) > at + longest)
        .limit(PULLED_BACK)
        .with_for_update(skip_locked=True)
        .cte()
    )
    pulled = await session.exec(update(model).where(col(model.id).in_(select(hidden.c.id))).values(due_at=at))
    if pulled.rowcount:
        log.warning("due-too-late", work=model.__name__, lane=lane, pieces=pulled.rowcount, longest=str(longest))


PULLED_BACK = 500
"""Rows in one statement."""

SHARES = 50
"""Shares of a lane that are looked at for one claim; the next claim goes on with those that follow."""


async def due_shares(session: Session, model: type[Work], lane: str, after: str = "") -> list[str]:
    """Return shares of `lane` that have due work, in the order of their turns: those that follow `after` come first."""
    values = {"lane": lane, "at": now()}
    shares = list(await session.exec(_due_shares(model), params={**values, "after": after}))
    if after and len(shares) < SHARES:
        first = await session.exec(_due_shares(model), params={**values, "after": ""})
        shares += [share for share in first if share not in shares]
    return shares[:SHARES]


@cache
def _due_shares(model: type[Work]) -> Any:
    """From share to share by the index, however many pieces are in each."""
    lane: Any = bindparam("lane")
    at: Any = bindparam("at", type_=Utc)
    unfinished = (col(model.lane) == lane, col(model.due_at).is_not(None))
    first = select(func.min(model.share).label("share")).where(*unfinished, col(model.share) > bindparam("after"))
    shares: Any = first.cte("shares", recursive=True)
    following = select(func.min(model.share)).where(*unfinished, col(model.share) > shares.c.share).scalar_subquery()
    shares = shares.union_all(select(following).where(shares.c.share.is_not(None)))
    due = select(literal(1)).where(col(model.lane) == lane, col(model.share) == shares.c.share, col(model.due_at) <= at)
    return select(shares.c.share).where(shares.c.share.is_not(None), due.exists()).limit(SHARES)


async def claim(
    session: Session,
    model: type[W],
    lane: str,
    limit: int,
    duration: timedelta,
    *,
    holder: str | None = None,
    held: Mapping[str, int] = MappingProxyType({}),
    most: int | None = None,
    after: str = "",
) -> list[W]:
    """Take up to `limit` due pieces of `lane`, fairly by shares, and of each share the longest due first.

    The share that holds the fewest goes first (`held`: what this process holds of the lane), and none gets more than
    `most`; the turns begin with the shares that follow `after`.
    """
    at = now()
    leases_held = Counter(held)
    shares = await due_shares(session, model, lane, after)
    claimed: list[W] = []
    while shares and len(claimed) < limit:
        dealt = deal(shares, leases_held, limit - len(claimed), most or limit)
        if not dealt:
            break
        taken = await _claim(session, model, lane, dealt, at, {"due_at": at + duration, "holder": holder})
        claimed += taken
        got = Counter(item.share for item in taken)
        leases_held.update(got)
        shares = [share for share in shares if got[share] == dealt.get(share, 0)]  # the others have nothing left
        if not taken:
            break
    return sorted(claimed, key=lambda item: item.id or 0)


async def _claim(
    session: Session, model: type[W], lane: str, dealt: Mapping[str, int], at: datetime, values: dict[str, Any]
) -> list[W]:
    turns = {f"share_{n}": share for n, share in enumerate(dealt)} | {
        f"most_{n}": m for n, m in enumerate(dealt.values())
    }
    parameters = {**turns, "of_lane": lane, "at": at, "until": values["due_at"], "by": values["holder"]}
    claimed = await session.exec(_claim_of(model, len(dealt)), params=parameters)
    return list(claimed.scalars().all())


@lru_cache(maxsize=500)
def _claim_of(model: type[Work], shares: int) -> Any:
    """Return the statement that claims of so many shares, made once."""
    at: Any = bindparam("at", type_=Utc)
    turns = [
        select(model.id)
        .where(model.lane == bindparam("of_lane"), model.share == bindparam(f"share_{n}"), col(model.due_at) <= at)
        .order_by(col(model.due_at), col(model.id))
        .limit(bindparam(f"most_{n}", type_=Integer))
        .with_for_update(skip_locked=True)  # SQLite leaves it out; there BEGIN IMMEDIATE does the same
        .subquery()
        for n in range(shares)
    ]
    # a CTE is read once: a subquery that PostgreSQL's planner scans again locks, and takes, more than it may
    due = union_all(*(select(turn.c.id) for turn in turns)).cte()
    return (
        update(model)
        .where(col(model.id).in_(select(due.c.id)))
        .values(
            fencing_token=model.fencing_token + 1,
            attempts=model.attempts + 1,
            due_at=bindparam("until", type_=Utc),
            holder=bindparam("by", type_=Text),
        )
        .returning(model)
    )


def preclaim(fresh: Iterable[Work], duration: timedelta, holder: str | None = None) -> None:
    """Claim work that the caller is about to store: it is born claimed, and need not be looked for."""
    for item in fresh:
        item.fencing_token, item.attempts, item.due_at, item.holder = 1, 1, now() + duration, holder


async def renew(session: Session, held: Iterable[Lease[Any]], duration: timedelta) -> list[Lease[Any]]:
    """Lease for `duration` from now on; return the leases that were lost, whose work another holds or has ended."""
    lost: list[Lease[Any]] = []
    by_model: dict[type[Work], list[Lease[Any]]] = {}
    for lease in held:
        by_model.setdefault(type(lease.item), []).append(lease)
    # in the order in which `commits` locks rows
    for model, of_model in sorted(by_model.items(), key=lambda pair: str(pair[0].__tablename__)):
        ours = [(lease.item.id, lease.item.fencing_token) for lease in of_model]
        still = (
            select(model.id)
            # by the ids alone, too: SQLite finds no index for pairs, and would read the table
            .where(
                col(model.id).in_([number for number, _ in ours]),
                tuple_(col(model.id), col(model.fencing_token)).in_(ours),
            )
            .order_by(*in_lock_order(session, model))
            .with_for_update()
            .cte()
        )
        renewed = await session.exec(
            update(model)
            .where(col(model.id).in_(select(still.c.id)))
            .values(due_at=now() + duration)
            .returning(col(model.id))
        )
        ids = set(renewed.scalars())
        lost += [lease for lease in of_model if lease.item.id not in ids]
    return lost


def in_lock_order(session: Session, model: type[Work]) -> list[Any]:
    """Return the columns to order rows of this table by before they are locked; texts are compared byte by byte."""
    columns = [_table(model).c[name] for name in model.lock_order]
    if session.get_bind().dialect.name != "postgresql":
        return columns
    return [collate(column, "C") if isinstance(column.type, String) else column for column in columns]


def bury(items: Iterable[Work], reason: str) -> list[SQLModel]:
    """End work that the caller has locked, whoever holds it; return the dead letters and notices to store with it."""
    left: list[SQLModel] = []
    for item in items:
        item.state, item.error, item.due_at, item.done_at = State.FAILED, reason, None, now()
        item.fencing_token += 1  # whoever works on it now has lost it
        left += [item.dead_letter(reason), *item.failure_notices()]
    return left


def due_now(model: type[Work], lane: str) -> Statement:
    """Return the statement that makes due what waits in a lane after a failure, but for what is held just now."""
    return _due_now(model), [{"at": now(), "of_lane": lane}]


@cache
def _due_now(model: type[Work]) -> Any:
    columns = _table(model).c
    at = bindparam("at", type_=Utc)
    waiting = (
        select(columns.id)
        .where(columns.lane == bindparam("of_lane"), columns.due_at > at)
        .where(columns.error.is_not(None), columns.holder.is_(None))
        .with_for_update(skip_locked=True)  # what is locked is being claimed, or changed by an event
    )
    return sqlalchemy_update(_table(model)).where(columns.id.in_(waiting)).values(due_at=at)


async def take_over(session: Session, names: str | None, but: str) -> int:
    """Let work be due at once whose holder is known to be gone; return how much it was.

    `names`: what the holder begins with, None: any. `but`: the holder that is not gone. The fencing token goes up, so
    that a holder that lives after all can write nothing.
    """
    taken = 0
    for model in work_tables():
        gone = [col(model.due_at).is_not(None), col(model.holder) > "", col(model.holder) != but]
        if names is not None:
            gone.append(func.substr(model.holder, 1, len(names)) == names)
        held = select(model.id).where(*gone).order_by(col(model.holder), col(model.id)).with_for_update().cte()
        freed = await session.exec(
            update(model)
            .where(col(model.id).in_(select(held.c.id)))
            .values(due_at=now(), holder=None, fencing_token=model.fencing_token + 1)
        )
        taken += freed.rowcount
    return taken


AT_ONCE = datetime(2000, 1, 1, tzinfo=UTC)
"""When work is due that a person asked for again: before everything else of its share."""


def requeue(steps: Iterable[Work]) -> None:
    """Make finished work due once more, as if it were new, and first within its share."""
    for step in steps:
        step.state, step.error, step.done_at, step.attempts, step.holder = State.PENDING, None, None, 0, None
        step.since, step.due_at = now(), AT_ONCE
