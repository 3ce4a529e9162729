"""Leased work: claim it, renew the lease, finish the work, retry it, bury it.

A claim raises the row's fencing token and moves `due_at` to the end of the lease, so that work whose holder died
becomes due by itself. Every write of a holder goes through `Lease`, which first proves in the same transaction that
the token is still the holder's. The holder's last write raises the token too: a renewal that is still on its way
would otherwise make finished work due again.

Job reports are claimed and renewed here. `service.engine.batches` records what became of them, by the hundred.
"""

import asyncio
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
from service.contract import retry, tracing
from service.engine.fair import deal
from service.sanitize import escape_unstorable
from service.settings import WorkSettings
from service.store.commits import Fence, FencedError, Statement
from service.store.database import Database, Session, Utc, insertion
from service.store.distinct import distinct_of
from service.store.models import Notice, State, Work, work_tables
from service.store.rows import set_values
from service.store.wakeups import Topic

log = structlog.get_logger()

W = TypeVar("W", bound=Work)


class LeaseLostError(Exception):
    """Another process holds this work now: stop at once and write nothing."""


class YieldedError(Exception):
    """The work stopped between two of its parts, for others who wait; it is continued after their turn."""


class Storing:
    """Says when work that was begun while it was being stored is stored, or cannot be."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self.succeeded = False

    def end(self, *, succeeded: bool) -> None:
        """Tell those who wait whether the work is stored."""
        self.succeeded = succeeded
        self._over.set()

    async def wait(self) -> bool:
        """Wait for the end; return True if the work is stored."""
        await self._over.wait()
        return self.succeeded


class Lease(Generic[W]):
    """A piece of work that this process holds.

    `loaded` is what the work belongs to, if that was read together with it. `ended` is set once the work was finished,
    given back or buried. `storing` is given for work that may not be in the database yet.
    """

    def __init__(
        self,
        database: Database,
        settings: WorkSettings,
        item: W,
        loaded: Any = None,
        storing: Storing | None = None,
    ) -> None:
        self.item = item
        self.loaded = loaded
        self._storing = storing
        self.ended = False
        self.finished = False  # its end is recorded; otherwise it becomes due again
        self.wanted = False  # others wait for its slot
        self.also_wanted: Callable[[], bool] = lambda: False  # others wait for something else that it holds
        self._database = database
        self._settings = settings
        self._model = type(item)

    def __repr__(self) -> str:
        return f"Lease({self._model.__name__} {self.item.id}, token {self.item.fencing_token})"

    @property
    def renewable(self) -> bool:
        """Return True if the database has this lease, and it has not ended."""
        return not self.ended and (self._storing is None or self._storing.succeeded)

    async def wait_until_stored(self) -> None:
        """Wait until the work is stored, if it was begun before, and add its id to log and trace.

        Raises LeaseLostError if it cannot be stored.
        """
        if self._storing is None:
            return
        if not await self._storing.wait():
            raise LeaseLostError(f"{self._model.__name__} of lane {self.item.lane} could not be stored")
        structlog.contextvars.bind_contextvars(id=self.item.id)
        tracing.describe(id=self.item.id or 0)

    @asynccontextmanager
    async def writing(self, **values: Any) -> AsyncIterator[Session]:
        """Open a transaction that proves and renews the lease, and sets `values` on the work. Raises LeaseLostError."""
        await self.wait_until_stored()
        async with self._database.writing() as session:
            await self._set(session, due_at=now() + self._settings.lease, **values)
            yield session

    def give_way(self) -> None:
        """Raise YieldedError if others wait. Call it between two parts of long work, once the first is recorded."""
        if self.wanted or self.also_wanted():
            raise YieldedError

    async def finish(
        self,
        state: State,
        reason: str | None = None,
        also: Sequence[Statement] = (),
        notices: Sequence[Notice] = (),
        rows: int = 1,
        outcome: str | None = None,
        **values: Any,
    ) -> list[int]:
        """End the work in this state, in a transaction that it may share with other writes.

        `also` are statements of the same transaction, which change about `rows` rows. Returns how many rows each of
        them changed. `notices` are stored too, and those of a failure. `outcome` is what the attempt is counted as, if
        not as the state. Raises LeaseLostError.
        """
        values.update(state=state, error=reason, due_at=None, done_at=now())
        if state in {State.FAILED, State.REJECTED}:
            notices = [*notices, *self.item.failure_notices()]
        self.ended = True
        counts = await self._commit([*also, *insertion(notices)], rows, values, hurry=False)
        self.finished = True
        metrics.work_ended(self.item.work_name, outcome or state.value)
        if notices:  # which are work in turn
            self._database.wakeups.wake(Topic.WORK)
        return counts

    async def commit(self, statements: Sequence[Statement] = (), rows: int = 1, **values: Any) -> list[int]:
        """Renew the lease, set `values` on the work and execute `statements`, in a transaction that it may share.

        The statements change about `rows` rows. Returns how many rows each of them changed. Raises LeaseLostError.
        """
        return await self._commit(statements, rows, values)

    async def _commit(
        self, statements: Sequence[Statement], rows: int, values: dict[str, Any], *, hurry: bool = True
    ) -> list[int]:
        await self.wait_until_stored()
        values = self._values({"due_at": now() + self._settings.lease, **values})
        table, number, token = _table(self._model), self.item.id or 0, self.item.fencing_token
        own = (fenced(self._model, tuple(values)), [{**values, "its_id": number, "its_token": token}])
        try:
            _, *counts = await self._database.write(
                Fence(table, number, token), [own, *statements], self.item.share, rows, hurry=hurry
            )
        except FencedError:
            raise LeaseLostError(f"{self!r} is held by another worker") from None
        return counts

    async def retry(self, reason: str, wait: timedelta | None = None) -> None:
        """Retry the work after a backoff, and at least after `wait`; bury it once it was tried for `give_up`."""
        at = now()
        if exhausted(self._settings, self.item, self.item.since, self._settings.give_up):
            await self.bury(f"given up after {self.item.attempts} attempts since {self.item.since:%F %T}Z: {reason}")
            return
        pause = max(backoff(self._settings, self.item.attempts), wait or timedelta())
        pause = min(pause, self._settings.longest_wait)
        await self._end(error=reason, due_at=at + pause)
        metrics.work_ended(self.item.work_name, "retried")

    async def release(self) -> None:
        """Give the work back untouched, for another process to take at once."""
        await self._end(due_at=now(), attempts=max(self.item.attempts - 1, 0))

    async def bury(self, reason: str) -> None:
        """End the work as failed, and leave a dead letter of it for a person to see."""
        letter = self.item.dead_letter(escape_unstorable(reason), self.loaded)
        await self.finish(State.FAILED, reason, insertion([letter]), outcome="buried")
        log.error("work-buried", work=self._model.__name__, id=self.item.id, subject=letter.subject, reason=reason)

    async def _end(self, **values: Any) -> None:
        """Write for the last time in this attempt."""
        self.ended = True
        await self.commit(**values)

    async def _set(self, session: Session, **values: Any) -> None:
        values = self._values(values)
        held = await (await session.connection()).execute(
            fenced(self._model, tuple(values)), {**values, "its_id": self.item.id, "its_token": self.item.fencing_token}
        )
        if held.rowcount != 1:
            raise LeaseLostError(f"{self!r} is held by another worker")

    def _values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values in a form that a database takes: reasons quote texts of upstreams."""
        values = {name: escape_unstorable(value) if isinstance(value, str) else value for name, value in values.items()}
        if self.ended:
            values["holder"] = None
        return {**values, "by": int(self.ended)}


def _table(model: type[Work]) -> Table:
    return SQLModel.metadata.tables[str(model.__tablename__)]


@cache
def fenced(model: type[Work], names: tuple[str, ...]) -> Any:
    """Return the statement by which a holder sets the columns `names`; `by` is added to the fencing token."""
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
    """Return True if the work failed for `limit` and often enough: a clock that jumps alone buries nothing."""
    return now() - since >= limit and item.attempts >= settings.give_up_attempts


def backoff(settings: WorkSettings, attempts: int) -> timedelta:
    """Return the wait after the `attempts`th failure."""
    first, longest = settings.first_retry.total_seconds(), settings.max_retry.total_seconds()
    return timedelta(seconds=retry.backoff(attempts, first, longest))


@dataclass
class Lane:
    """The unfinished work of one table and lane: when its first and its last piece are due."""

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
    """Return one statement for all tables, made once: compiling it takes longer than executing it."""
    return union_all(*(_lanes(number, model) for number, model in enumerate(models)))


def _lanes(number: int, model: type[Work]) -> Any:
    lanes = distinct_of(model.lane, f"lanes_{number}", col(model.due_at).is_not(None))

    def due(which: Any) -> Any:
        of_lane = (col(model.due_at).is_not(None), col(model.lane) == lanes.c.lane)
        return select(which(model.due_at)).where(*of_lane).scalar_subquery()

    return select(literal(number), lanes.c.lane, due(func.min), due(func.max)).where(lanes.c.lane.is_not(None))


async def pull_back(session: Session, model: type[Work], lane: str, longest: timedelta) -> None:
    """Make due what would only be due after more than the longest wait: a wrong clock wrote that."""
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
"""Rows that one statement makes due."""

SHARES = 50
"""Shares of a lane that are considered at most; the next claim continues with those that follow."""


async def due_shares(session: Session, model: type[Work], lane: str, after: str = "", most: int = SHARES) -> list[str]:
    """Return up to `most` shares of `lane` with due work, in the order of their turns, beginning behind `after`."""
    values = {"lane": lane, "at": now(), "most": most}
    shares = list(await session.exec(_due_shares(model), params={**values, "after": after}))
    if after and len(shares) < most:
        first = await session.exec(_due_shares(model), params={**values, "after": ""})
        shares += [share for share in first if share not in shares]
    return shares[:most]


@cache
def _due_shares(model: type[Work]) -> Any:
    """Return the statement that goes from share to share by the index, however many pieces each has."""
    lane: Any = bindparam("lane")
    at: Any = bindparam("at", type_=Utc)
    unfinished = (col(model.lane) == lane, col(model.due_at).is_not(None))
    first = select(func.min(model.share).label("share")).where(*unfinished, col(model.share) > bindparam("after"))
    shares: Any = first.cte("shares", recursive=True)
    following = select(func.min(model.share)).where(*unfinished, col(model.share) > shares.c.share).scalar_subquery()
    shares = shares.union_all(select(following).where(shares.c.share.is_not(None)))
    due = select(literal(1)).where(col(model.lane) == lane, col(model.share) == shares.c.share, col(model.due_at) <= at)
    # a value, because PostgreSQL would make a join of an EXISTS, and read all shares for the first few
    is_due = due.limit(1).scalar_subquery().is_not(None)
    return select(shares.c.share).where(shares.c.share.is_not(None), is_due).limit(bindparam("most", type_=Integer))


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
    """Lease up to `limit` due pieces of `lane` for `duration`, fairly by shares; of each share the longest due first.

    The share that holds the fewest goes first, and none gets more than `most`. `held` is how many pieces of the lane
    this process holds already, by shares. The turns begin with the shares that follow `after`.
    """
    at = now()
    leases_held = Counter(held)
    # more than enough to find `limit` shares that hold nothing, although other replicas take some meanwhile
    considered = min(2 * limit + len(leases_held), SHARES)
    shares = await due_shares(session, model, lane, after, considered)
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
    """Return the statement that claims work of this many shares, made once."""
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


def preclaim(items: Iterable[Work], duration: timedelta, holder: str | None = None) -> None:
    """Lease work that the caller is about to store, so that nobody has to look for it."""
    for item in items:
        if item.id is None:  # not stored yet: an insert takes what it finds then
            set_values(item, fencing_token=1, attempts=1, due_at=now() + duration, holder=holder)
        else:
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


def bury(items: Iterable[tuple[Work, Any]], reason: str) -> list[SQLModel]:
    """End work that the caller has locked, whoever holds it; return the dead letters and notices to store with it.

    Each piece of work comes with what it belongs to, as `Lease.loaded`.
    """
    left: list[SQLModel] = []
    for item, owner in items:
        stop(item, reason)
        left += [item.dead_letter(reason, owner), *item.failure_notices()]
    return left


def stop(item: Work, reason: str) -> None:
    """End work that the caller has locked as failed. Whoever works on it now has lost it, and can write nothing."""
    item.state, item.error, item.due_at, item.done_at, item.holder = State.FAILED, reason, None, now(), None
    item.fencing_token += 1


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
    """Make due the work whose holder is known to be gone; return how many pieces that were.

    `names` is what the name of the holder begins with; None stands for any holder. `but` is the one that is not gone.
    The fencing token goes up, so that a holder that lives after all can write nothing.
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
"""`due_at` of work that a person asked for again, before everything else of its share."""


def requeue(items: Iterable[Work]) -> None:
    """Make ended work due again as if it were new, and first within its share."""
    for item in items:
        item.state, item.error, item.done_at, item.attempts, item.holder = State.PENDING, None, None, 0, None
        item.since, item.due_at = now(), AT_ONCE
