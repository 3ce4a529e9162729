"""Who polls which repository, and how often.

Listeners are leased repositories for a shift, which they renew a few times before it ends. Within it they poll by
themselves; with each renewal they say what they polled. A listener that dies keeps nothing beyond its shift.

A repository is free to be leased when it is due, and `due_at` of one that has a holder is the end of its shift. Where
the host's budget is enough for all repositories, a listener keeps those that it has polled since the last renewal.
Where it is not, each goes to the end of the queue once it was polled, so that all have their turn.
"""

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, and_, bindparam, case, func, literal, or_, select, text, update
from sqlmodel import Session as SyncSession
from sqlmodel import col
from sqlmodel import select as sqlmodel_select

from service.clock import now
from service.contract.events import AnnouncedLeases, HostRate, Lease, PolledRepository, PollNews, Shift, ShiftRequest
from service.engine import budget
from service.flow.pushes import poll, rates
from service.settings import PollSettings
from service.store.database import Session, Utc
from service.store.models import MONITORED, Repository

log = structlog.get_logger()

MARGIN = 0.99
"""The part of a shift that a listener is told of: the clocks of two replicas may differ by the rest."""

HORIZON = 1.5
"""Repositories are leased that are due within so many times `renew`: enough until the next renewal, if that is late."""

_TABLE: Any = Repository.__table__  # type: ignore[attr-defined]  # SQLModel's own

_AT, _SOON, _BUSY_SINCE = (bindparam(name, type_=Utc) for name in ("at", "soon", "busy_since"))

# written once: to make a statement takes as long as to execute it
_HELD = (
    select(
        _TABLE.c.id, _TABLE.c.shift, _TABLE.c.host, _TABLE.c.alias, _TABLE.c.poll_failures,
        (_TABLE.c.due_at > _AT).label("current"), (_TABLE.c.last_push_at > _BUSY_SINCE).label("busy"),
    )
    .where(_TABLE.c.holder == bindparam("listener"))
    .order_by(_TABLE.c.id)
    .with_for_update()
)  # fmt: skip
_MONITORED_OF_HOST = select(func.count()).select_from(
    select(literal(1))
    .select_from(_TABLE)
    .where(text(MONITORED), _TABLE.c.host == bindparam("host"))
    .limit(bindparam("most"))
    .subquery()
)
_LEASED = (
    _TABLE.c.id, _TABLE.c.alias, _TABLE.c.shift, _TABLE.c.url, _TABLE.c.host, _TABLE.c.generation,
    _TABLE.c.last_push_id, _TABLE.c.last_changeset, _TABLE.c.etag, _TABLE.c.etag_cursor, _TABLE.c.last_full_poll_at,
    _TABLE.c.due_at, _TABLE.c.holder, _TABLE.c.reset_suspicions,
)  # fmt: skip
_DUE = (
    select(*_LEASED)
    .where(
        text(MONITORED),
        _TABLE.c.host == bindparam("host"),
        _TABLE.c.turn <= _SOON,  # never later than due_at: it is what the index is in the order of
        _TABLE.c.due_at <= _SOON,
        or_(_TABLE.c.holder.is_(None), _TABLE.c.due_at <= _AT),
    )
    .order_by(_TABLE.c.turn, _TABLE.c.id)
    .limit(bindparam("room"))
    .with_for_update(skip_locked=True)
)
_POLLED = (
    update(_TABLE)
    .where(_TABLE.c.id == bindparam("row"))
    .values(
        last_polled_at=bindparam("polled_at", type_=Utc),
        last_good_poll_at=bindparam("polled_at", type_=Utc),
        poll_error=None,
        poll_failures=0,
        reset_suspicions=0,
        reset_suspected_at=None,
        due_at=bindparam("next_at", type_=Utc),
        turn=bindparam("next_turn", type_=Utc),
        holder=bindparam("by"),
    )
)


_IDS = _TABLE.c.id.in_(bindparam("ids", expanding=True))
_ENDS_AT = {"due_at": bindparam("ends_at", type_=Utc), "turn": bindparam("ends_at", type_=Utc)}
_RENEWED = update(_TABLE).where(_IDS).values(_ENDS_AT)
_GIVEN = update(_TABLE).where(_IDS).values(shift=_TABLE.c.shift + 1, holder=bindparam("by"), **_ENDS_AT)


@dataclass
class _Host:
    """What a listener may have of one host."""

    rate: float  # requests a second
    at_a_time: int
    most: int  # repositories
    interval: float  # seconds between two polls of each
    crowded: bool  # more repositories than the budget is enough for
    has: int = 0


@dataclass
class _Renewal:
    at: datetime
    ends_at: datetime
    hosts: dict[str, _Host]
    held: dict[int, Any]  # this listener's rows, by id
    rows: list[dict[str, Any]] = field(default_factory=list)  # parameters of _POLLED
    renewed: list[int] = field(default_factory=list)


def renew(
    connection: Connection, settings: PollSettings, hosts: list[str], asked: ShiftRequest, news: list[PollNews]
) -> Shift:
    """Write down what a listener has polled, renew its shift, and lease it what is due, as far as budgets go.

    The number of statements depends on the number of hosts and of news, not on the number of repositories.
    """
    at = now()
    hosts = sorted(hosts)  # two replicas lock the budgets in one order
    budget.lock(connection, [_bucket(host) for host in hosts], at)
    granted = rates.read(connection, asked.listener, asked.answer, hosts, at, at + settings.shift)
    mine = {"listener": asked.listener, "at": at, "busy_since": at - poll.BUSY}
    held = {row.id: row for row in connection.execute(_HELD, mine)}
    number = max((mine.answer for mine in granted.grants.values()), default=asked.answer) + 1
    renewal = _Renewal(at, at + settings.shift, {}, held)
    if not asked.ends:
        for host in hosts:
            if given := _host(connection, settings, granted, host, number, renewal.ends_at):
                renewal.hosts[host] = given
    _hear(connection, settings, renewal, news)
    _count_idle(renewal, asked)
    _judge(settings, renewal, asked)
    if renewal.rows:
        connection.execute(_POLLED, renewal.rows)
    if asked.ends:
        rates.give_back(connection, granted)
        _give_back(connection, renewal)
        return Shift(answer=number, seconds=0, renew=0, full_every=0, hosts={}, renewed=[], leases=[])
    rates.write(connection, granted, renewal.hosts)
    _renew_under_way(connection, renewal, asked)
    leases = []
    for host in renewal.hosts:
        leases += _lease(connection, settings, renewal, host, asked.listener)
    return Shift(
        answer=number,
        seconds=settings.shift.total_seconds() * MARGIN,
        renew=_next_renewal(settings, renewal, granted),
        full_every=settings.full_every.total_seconds(),
        hosts={name: HostRate(rate=host.rate, at_a_time=host.at_a_time) for name, host in renewal.hosts.items()},
        renewed=renewal.renewed,
        leases=leases,
    )


def _bucket(host: str) -> str:
    return f"hg {host}"


def _host(
    connection: Connection, settings: PollSettings, granted: rates.Rates, host: str, number: int, ends_at: datetime
) -> _Host | None:
    """Grant the listener a rate for a host, and say how many repositories it may have; None: there are none."""
    rate, interval = rates.shared(settings), settings.interval.total_seconds()
    horizon = settings.renew.total_seconds() * HORIZON
    enough = math.ceil(rate * max(interval, horizon)) + 1  # how many there are beyond these makes no difference
    repositories = (connection.execute(_MONITORED_OF_HOST, {"host": host, "most": enough})).scalar_one()
    if not repositories:
        return None
    mine = granted.grant(host, rate, number, ends_at)
    sharers = granted.sharers(host)
    crowded = repositories > rate * interval
    share = math.ceil(repositories / sharers)
    most = min(share, math.ceil(mine * horizon)) if crowded else min(share, math.ceil(mine * max(interval, horizon)))
    return _Host(
        rate=mine,
        at_a_time=max(settings.at_a_time // sharers, 1),
        most=most,
        interval=max(interval, most / mine) if mine else interval,
        crowded=crowded,
    )


def _hear(connection: Connection, settings: PollSettings, renewal: _Renewal, news: list[PollNews]) -> None:
    """Take in news, of repositories that are this listener's in the shift that it says."""
    current = [each for each in news if (row := renewal.held.get(each.repository_id)) and row.shift == each.shift]
    if not current:
        return
    ids = {each.repository_id for each in current}
    with SyncSession(connection) as session:
        found = session.exec(sqlmodel_select(Repository).where(col(Repository.id).in_(ids)))
        repositories = {repository.id: repository for repository in found}
        for each in current:
            repository = repositories[each.repository_id]
            if repository.holder is not None and repository.shift == each.shift:
                poll.take_news(session, settings, repository, each, renewal.at)
            if repository.holder is None:
                renewal.held.pop(each.repository_id, None)
        session.flush()


def _count_idle(renewal: _Renewal, asked: ShiftRequest) -> None:
    """Count what the listener has and did not ask for since the last renewal: it is the listener's until it ends."""
    named = {each[0] for each in asked.polled}
    idle = Counter(row.host for row in renewal.held.values() if row.id not in named and row.current)
    for name, host in renewal.hosts.items():
        host.has = idle[name]


def _judge(settings: PollSettings, renewal: _Renewal, asked: ShiftRequest) -> None:
    """Decide of each repository that was polled whether it stays the listener's, and when it is due."""
    spare = (settings.shift - settings.renew).total_seconds()
    for row, ago, slowest in _own(renewal, asked.polled):
        if row.poll_failures:
            log.info("poll-recovered", repository=row.alias, failures=row.poll_failures)
        polled_at = renewal.at - timedelta(seconds=ago)
        host = renewal.hosts.get(row.host)
        interval = max(settings.interval.total_seconds(), slowest)  # a slow one is asked less often
        if host and not host.crowded and host.has < host.most and max(interval, host.interval) - ago <= spare:
            host.has += 1
            renewal.renewed.append(row.id)
            times = {"next_at": renewal.ends_at, "next_turn": renewal.ends_at, "by": asked.listener}
        else:
            due_at = polled_at + timedelta(seconds=interval * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, no secret
            times = {"next_at": due_at, "next_turn": poll.turn_of(settings, due_at, busy=bool(row.busy)), "by": None}
        renewal.rows.append({"row": row.id, "polled_at": polled_at, **times})


def _own(renewal: _Renewal, polled: Sequence[PolledRepository]) -> list[tuple[Any, float, float]]:
    """Return rows of what was polled in the shift that is the present one, in the order in which rows are locked."""
    own = {}
    for repository_id, shift, ago, slowest in polled:
        row = renewal.held.get(repository_id)
        if row is not None and row.shift == shift:
            own[repository_id] = row, ago, slowest
    return [own[repository_id] for repository_id in sorted(own)]


def _renew_under_way(connection: Connection, renewal: _Renewal, asked: ShiftRequest) -> None:
    """Renew what was asked and has not answered yet."""
    ids = [
        repository_id
        for repository_id, shift in asked.under_way
        if (row := renewal.held.get(repository_id)) and row.shift == shift and repository_id not in renewal.renewed
    ]
    if ids:
        connection.execute(_RENEWED, {"ids": ids, "ends_at": renewal.ends_at})
        renewal.renewed += ids


def _give_back(connection: Connection, renewal: _Renewal) -> None:
    """Free what is left of the listener's repositories: they are due now."""
    ids = renewal.held.keys() - {row["row"] for row in renewal.rows}
    if ids:
        values = {"due_at": renewal.at, "turn": renewal.at, "holder": None}
        connection.execute(update(_TABLE).where(_TABLE.c.id.in_(ids)).values(values))


def _lease(connection: Connection, settings: PollSettings, renewal: _Renewal, name: str, listener: str) -> list[Lease]:
    """Lease repositories of a host that are due before long, those first whose turn it is."""
    host = renewal.hosts[name]
    room = host.most - host.has
    if room <= 0:
        return []
    soon = renewal.at + settings.renew * HORIZON
    rows = (connection.execute(_DUE, {"host": name, "at": renewal.at, "soon": soon, "room": room})).all()
    if rows:
        values = {"ids": [row.id for row in rows], "by": listener, "ends_at": renewal.ends_at}
        connection.execute(_GIVEN, values)
    return [_leased(settings, row, renewal.at, row.shift + 1, host.interval) for row in rows]


def _leased(settings: PollSettings, row: Any, at: datetime, shift: int, interval: float) -> Lease:
    usable = row.last_full_poll_at is not None and row.etag_cursor == row.last_push_id
    full_in = (row.last_full_poll_at + settings.full_every - at).total_seconds() if usable else 0
    return Lease(
        repository=row.alias,
        id=row.id,
        shift=shift,
        url=row.url,
        host=row.host,
        generation=row.generation,
        cursor=row.last_push_id,
        last_changeset=row.last_changeset,
        etag=row.etag if full_in > 0 else None,
        full_in=max(full_in, 0),
        first_in=max((row.due_at - at).total_seconds(), 0) if row.holder is None else 0,
        interval=interval,
        suspected=row.reset_suspicions > 0,
    )


def _next_renewal(settings: PollSettings, renewal: _Renewal, granted: rates.Rates) -> float:
    """Return the seconds until the next renewal: sooner when another listener's shift ends before that."""
    usual = settings.renew.total_seconds()
    if any(not host.rate for host in renewal.hosts.values()):
        return usual / 5  # another listener has it all, until it renews
    ends_at = granted.next_end(renewal.hosts)
    if ends_at is None:
        return usual
    return min((ends_at - renewal.at).total_seconds() + usual / 100, usual)


async def announced(
    session: Session, settings: PollSettings, hosts: list[str], urls: Collection[str]
) -> AnnouncedLeases:
    """Let the repositories at these urls be polled once, now, as far as the reserves of their hosts go.

    What a reserve does not reach for is due at once, if it is nobody's; whoever has it polls it before long.
    """
    at, rate = now(), rates.reserve(settings)
    connection = await session.connection()
    named = select(*_LEASED).where(text(MONITORED), _TABLE.c.url.in_(urls), _TABLE.c.host.in_(hosts))
    rows = (await connection.execute(named.order_by(_TABLE.c.id))).all()
    leases, late, waits = [], [], []
    for host in sorted({row.host for row in rows}):
        bucket = await budget.refilled(session, _bucket(host), at, rate, empty=True)
        for row in rows:
            if row.host != host:
                continue
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                leases.append(_leased(settings, row, at, row.shift, settings.interval.total_seconds()))
            else:
                late.append(row.id)
                waits += [(1 - bucket.tokens) / rate] if rate else []
    if late:
        await connection.execute(_due_at_once(late, at))
    return AnnouncedLeases(leases=leases, wait=min(waits, default=None))


def _due_at_once(ids: list[int], at: datetime) -> Any:
    free = and_(_TABLE.c.id.in_(ids), _TABLE.c.holder.is_(None))
    turn = case((_TABLE.c.turn < at, _TABLE.c.turn), else_=literal(at, Utc))
    return update(_TABLE).where(free, _TABLE.c.due_at > at).values(due_at=at, turn=turn)
