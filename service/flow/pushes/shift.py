"""Lease repositories to listeners, which poll them.

A listener gets repositories for a shift, which it renews a few times before it ends. Within a shift it polls by itself;
with each renewal it reports what it polled. A listener that dies keeps nothing beyond its shift.

A repository can be leased when it is due; `due_at` of one that has a holder is the end of its shift. If the host's
budget is enough for all repositories, a listener keeps those that it has polled since the last renewal. Otherwise each
goes to the end of the queue after it was polled, so that all have their turn.
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
"""Part of a shift that a listener may use: the clocks of two replicas may differ by the rest."""

HORIZON = 1.5
"""Multiple of `renew` within which leased repositories are due: enough even if the next renewal is late."""

_TABLE: Any = Repository.__table__  # type: ignore[attr-defined]  # SQLModel's own

_AT, _SOON, _BUSY_SINCE = (bindparam(name, type_=Utc) for name in ("at", "soon", "busy_since"))

# made once: compiling a statement takes as long as executing it
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
        _TABLE.c.turn <= _SOON,  # never later than due_at, and the order of the index
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
class _HostShare:
    """A listener's share of one host."""

    rate: float  # requests per second
    at_a_time: int
    most: int  # repositories
    interval: float  # seconds between two polls of each
    crowded: bool  # more repositories than the budget is enough for
    held: int = 0  # repositories


@dataclass
class _Renewal:
    """A renewal of a shift in progress."""

    at: datetime
    ends_at: datetime
    hosts: dict[str, _HostShare]
    held: dict[int, Any]  # this listener's rows, by id
    rows: list[dict[str, Any]] = field(default_factory=list)  # parameters of _POLLED
    renewed: list[int] = field(default_factory=list)


def renew(
    connection: Connection, settings: PollSettings, hosts: list[str], request: ShiftRequest, news: list[PollNews]
) -> Shift:
    """Record what a listener has polled, renew its shift, and lease it due repositories within the budgets.

    The number of statements depends on the number of hosts and of news, not on the number of repositories.
    """
    at = now()
    hosts = sorted(hosts)  # so that two replicas lock the budgets in one order
    budget.lock(connection, [_bucket(host) for host in hosts], at)
    granted = rates.read(connection, request.listener, request.answer, hosts, at, at + settings.shift)
    of_listener = {"listener": request.listener, "at": at, "busy_since": at - poll.BUSY_FOR}
    held = {row.id: row for row in connection.execute(_HELD, of_listener)}
    number = max((grant.answer for grant in granted.grants.values()), default=request.answer) + 1
    renewal = _Renewal(at, at + settings.shift, {}, held)
    if not request.ends:
        for host in hosts:
            if share := _share_of_host(connection, settings, granted, host, number, renewal.ends_at):
                renewal.hosts[host] = share
    _record_news(connection, settings, renewal, news)
    _count_unpolled(renewal, request)
    _record_polled(settings, renewal, request)
    if renewal.rows:
        connection.execute(_POLLED, renewal.rows)
    if request.ends:
        rates.give_back(connection, granted)
        _release_rest(connection, renewal)
        return Shift(answer=number, seconds=0, renew=0, full_every=0, hosts={}, renewed=[], leases=[])
    rates.write(connection, granted, renewal.hosts)
    _renew_under_way(connection, renewal, request)
    leases = []
    for host in renewal.hosts:
        leases += _lease_due(connection, settings, renewal, host, request.listener)
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


def _share_of_host(
    connection: Connection, settings: PollSettings, granted: rates.Rates, host: str, number: int, ends_at: datetime
) -> _HostShare | None:
    """Grant the listener a rate for a host and a number of repositories; return None if the host has none."""
    rate, interval = rates.shared_rate(settings), settings.interval.total_seconds()
    horizon = settings.renew.total_seconds() * HORIZON
    enough = math.ceil(rate * max(interval, horizon)) + 1  # more than these make no difference
    repositories = (connection.execute(_MONITORED_OF_HOST, {"host": host, "most": enough})).scalar_one()
    if not repositories:
        return None
    granted_rate = granted.grant(host, rate, number, ends_at)
    sharers = granted.sharers(host)
    crowded = repositories > rate * interval
    share = math.ceil(repositories / sharers)
    most = min(share, math.ceil(granted_rate * (horizon if crowded else max(interval, horizon))))
    return _HostShare(
        rate=granted_rate,
        at_a_time=max(settings.at_a_time // sharers, 1),
        most=most,
        interval=max(interval, most / granted_rate) if granted_rate else interval,
        crowded=crowded,
    )


def _record_news(connection: Connection, settings: PollSettings, renewal: _Renewal, news: list[PollNews]) -> None:
    """Record news of repositories that the listener holds in the shift that it names."""
    current = [item for item in news if (row := renewal.held.get(item.repository_id)) and row.shift == item.shift]
    if not current:
        return
    ids = {item.repository_id for item in current}
    with SyncSession(connection) as session:
        rows = session.exec(sqlmodel_select(Repository).where(col(Repository.id).in_(ids)))
        repositories = {repository.id: repository for repository in rows}
        for item in current:
            repository = repositories[item.repository_id]
            if repository.holder is not None and repository.shift == item.shift:
                poll.record_poll(session, settings, repository, item, renewal.at)
            if repository.holder is None:
                renewal.held.pop(item.repository_id, None)
        session.flush()


def _count_unpolled(renewal: _Renewal, request: ShiftRequest) -> None:
    """Count the repositories that the listener holds and has not polled since the last renewal: it keeps them."""
    polled = {repository_id for repository_id, *_ in request.polled}
    unpolled = Counter(row.host for row in renewal.held.values() if row.id not in polled and row.current)
    for name, host in renewal.hosts.items():
        host.held = unpolled[name]


def _record_polled(settings: PollSettings, renewal: _Renewal, request: ShiftRequest) -> None:
    """Decide for each polled repository whether the listener keeps it, and when it is due."""
    spare = (settings.shift - settings.renew).total_seconds()
    for row, ago, slowest in _current_rows(renewal, request.polled):
        if row.poll_failures:
            log.info("poll-recovered", repository=row.alias, failures=row.poll_failures)
        polled_at = renewal.at - timedelta(seconds=ago)
        host = renewal.hosts.get(row.host)
        interval = max(settings.interval.total_seconds(), slowest)  # a slow one is polled less often
        if host and not host.crowded and host.held < host.most and max(interval, host.interval) - ago <= spare:
            host.held += 1
            renewal.renewed.append(row.id)
            times = {"next_at": renewal.ends_at, "next_turn": renewal.ends_at, "by": request.listener}
        else:
            due_at = polled_at + timedelta(seconds=interval * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, no secret
            times = {"next_at": due_at, "next_turn": poll.order_key(settings, due_at, busy=bool(row.busy)), "by": None}
        renewal.rows.append({"row": row.id, "polled_at": polled_at, **times})


def _current_rows(renewal: _Renewal, polled: Sequence[PolledRepository]) -> list[tuple[Any, float, float]]:
    """Return the rows of repositories that were polled in their present shift, in the order of locking."""
    current = {}
    for repository_id, shift, ago, slowest in polled:
        row = renewal.held.get(repository_id)
        if row is not None and row.shift == shift:
            current[repository_id] = row, ago, slowest
    return [current[repository_id] for repository_id in sorted(current)]


def _renew_under_way(connection: Connection, renewal: _Renewal, request: ShiftRequest) -> None:
    """Renew the leases of repositories whose polls are under way."""
    ids = [
        repository_id
        for repository_id, shift in request.under_way
        if (row := renewal.held.get(repository_id)) and row.shift == shift and repository_id not in renewal.renewed
    ]
    if ids:
        connection.execute(_RENEWED, {"ids": ids, "ends_at": renewal.ends_at})
        renewal.renewed += ids


def _release_rest(connection: Connection, renewal: _Renewal) -> None:
    """Release the listener's other repositories, which are due now."""
    ids = renewal.held.keys() - {row["row"] for row in renewal.rows}
    if ids:
        values = {"due_at": renewal.at, "turn": renewal.at, "holder": None}
        connection.execute(update(_TABLE).where(_TABLE.c.id.in_(ids)).values(values))


def _lease_due(
    connection: Connection, settings: PollSettings, renewal: _Renewal, name: str, listener: str
) -> list[Lease]:
    """Lease repositories of a host that are due within the horizon, in the order of their turns."""
    host = renewal.hosts[name]
    room = host.most - host.held
    if room <= 0:
        return []
    soon = renewal.at + settings.renew * HORIZON
    rows = (connection.execute(_DUE, {"host": name, "at": renewal.at, "soon": soon, "room": room})).all()
    if rows:
        values = {"ids": [row.id for row in rows], "by": listener, "ends_at": renewal.ends_at}
        connection.execute(_GIVEN, values)
    return [_lease_of(settings, row, renewal.at, row.shift + 1, host.interval) for row in rows]


def _lease_of(settings: PollSettings, row: Any, at: datetime, shift: int, interval: float) -> Lease:
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
        return usual / 5  # another listener has the whole rate until it renews
    ends_at = granted.next_end(renewal.hosts)
    if ends_at is None:
        return usual
    return min((ends_at - renewal.at).total_seconds() + usual / 100, usual)


async def lease_announced(
    session: Session, settings: PollSettings, hosts: list[str], urls: Collection[str]
) -> AnnouncedLeases:
    """Lease the repositories at these URLs for one poll now, within the reserves of their hosts.

    A repository that exceeds the reserve is due at once if it has no holder; otherwise its holder polls it soon.
    """
    at, rate = now(), rates.reserved_rate(settings)
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
                leases.append(_lease_of(settings, row, at, row.shift, settings.interval.total_seconds()))
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
