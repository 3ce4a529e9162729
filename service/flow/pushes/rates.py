"""Grant each listener a rate of requests per second to a host.

The rates of all listeners and the reserve for announced pushes together stay within `poll.max_requests_per_host`. Each
listener keeps to its rate by itself, so it need not ask before each request.

A rate holds until the listener's shift ends. A rate that is reduced counts as it was before until the listener names
the number of the answer that reduced it, or until its shift has ended.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from service.settings import PollSettings
from service.store.database import insert_of
from service.store.models import RateGrant

_TABLE: Any = RateGrant.__table__  # type: ignore[attr-defined]  # SQLModel's own

# made once: compiling a statement takes as long as executing it
_OF_HOSTS = select(_TABLE).where(_TABLE.c.host.in_(bindparam("hosts", expanding=True)))
_ENDED = delete(_TABLE).where(_TABLE.c.listener == bindparam("of_listener"), _TABLE.c.host == bindparam("of_host"))


@cache
def _upsert(dialect: str) -> Any:
    granted = insert_of(dialect)(_TABLE)
    new = {name: granted.excluded[name] for name in ("answer", "rate", "counted", "ends_at")}
    return granted.on_conflict_do_update(index_elements=["listener", "host"], set_=new)


def reserved_rate(settings: PollSettings) -> float:
    """Return the requests per second to a host that are reserved for announced pushes."""
    return settings.max_requests_per_host * settings.announced_share


def shared_rate(settings: PollSettings) -> float:
    """Return the requests per second to a host that listeners share."""
    return settings.max_requests_per_host - reserved_rate(settings)


@dataclass
class Grant:
    """The rate of one listener for a host; see `RateGrant`."""

    rate: float
    counted: float
    answer: int
    ends_at: datetime


@dataclass
class Rates:
    """The rates of one listener, and those of the others. The caller holds the locks of the hosts' budgets."""

    listener: str
    grants: dict[str, Grant]  # this listener's, by host
    others: dict[str, list[Grant]]  # those of other listeners whose shifts have not ended

    def sharers(self, host: str) -> int:
        """Return the number of listeners that share the host's budget, including this one."""
        return 1 + len(self.others.get(host, []))

    def next_end(self, hosts: Collection[str]) -> datetime | None:
        """Return when the first shift of another listener ends."""
        return min((grant.ends_at for host in hosts for grant in self.others.get(host, [])), default=None)

    def grant(self, host: str, rate: float, answer: int, ends_at: datetime) -> float:
        """Grant the listener its share of `rate` requests per second, at most what others leave, and return it."""
        others = sum(other.counted for other in self.others.get(host, []))
        granted = max(min(rate / self.sharers(host), rate - others), 0.0)
        before = self.grants.get(host)
        counted = granted if before is None else max(before.counted, granted)
        self.grants[host] = Grant(granted, counted, answer, ends_at)
        return granted


def read(connection: Connection, listener: str, answer: int, hosts: list[str], at: datetime, latest: datetime) -> Rates:
    """Read the rates of `hosts`, and delete those of shifts that have ended.

    `answer` is the number of the last answer that the listener has: a rate that it reduced counts less from now on. No
    shift ends after `latest`, whatever a wrong clock wrote.
    """
    rates = Rates(listener, {}, {})
    ended = []
    for row in connection.execute(_OF_HOSTS, {"hosts": hosts}):
        grant = Grant(row.rate, row.counted, row.answer, min(row.ends_at, latest))
        if grant.ends_at <= at:
            ended.append({"of_listener": row.listener, "of_host": row.host})
        elif row.listener != listener:
            rates.others.setdefault(row.host, []).append(grant)
        else:
            if grant.answer == answer:
                grant.counted = grant.rate
            rates.grants[row.host] = grant
    if ended:
        connection.execute(_ENDED, ended)
    return rates


def write(connection: Connection, rates: Rates, hosts: Collection[str]) -> None:
    """Write the rates that the listener was granted for `hosts`."""
    rows = [
        {
            "listener": rates.listener,
            "host": host,
            "answer": grant.answer,
            "rate": grant.rate,
            "counted": grant.counted,
            "ends_at": grant.ends_at,
        }
        for host, grant in rates.grants.items()
        if host in hosts
    ]
    if rows:
        connection.execute(_upsert(connection.dialect.name), rows)


def give_back(connection: Connection, rates: Rates) -> None:
    """Free the rates of the listener, which sends nothing more."""
    if rates.grants:
        connection.execute(_ENDED, [{"of_listener": rates.listener, "of_host": host} for host in rates.grants])
