"""How many requests a second each listener may send to a host.

The rates given out, of all listeners together, and the reserve for announced pushes stay within
`poll.max_requests_per_host`. Each listener keeps to its rate by itself, so nobody has to ask before each request.

A rate holds until the listener's shift ends. One that is cut goes on to count as it was until the listener has shown
that it has the answer which cut it, by naming that answer's number; or until its shift has ended.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from service.settings import PollSettings
from service.store.database import INSERT
from service.store.models import RateGrant

_TABLE: Any = RateGrant.__table__  # type: ignore[attr-defined]  # SQLModel's own

# written once: to make a statement takes as long as to execute it
_OF_HOSTS = select(_TABLE).where(_TABLE.c.host.in_(bindparam("hosts", expanding=True)))
_ENDED = delete(_TABLE).where(_TABLE.c.listener == bindparam("gone"), _TABLE.c.host == bindparam("there"))


def _upsert(insert: Any) -> Any:
    granted = insert(_TABLE)
    new = {name: granted.excluded[name] for name in ("answer", "rate", "counted", "ends_at")}
    return granted.on_conflict_do_update(index_elements=["listener", "host"], set_=new)


_GRANTED = {dialect: _upsert(insert) for dialect, insert in INSERT.items()}


def reserve(settings: PollSettings) -> float:
    """Return the requests a second to a host that are kept for announced pushes."""
    return settings.max_requests_per_host * settings.announced_share


def shared(settings: PollSettings) -> float:
    """Return the requests a second to a host that listeners share."""
    return settings.max_requests_per_host - reserve(settings)


@dataclass
class Grant:
    """What one listener may ask of a host; see `RateGrant`."""

    rate: float
    counted: float
    answer: int
    ends_at: datetime


@dataclass
class Rates:
    """The rates of one listener, and what it has to know of the others'. The caller holds the hosts' budgets."""

    listener: str
    grants: dict[str, Grant]  # this listener's, by host
    others: dict[str, list[Grant]]  # those of other listeners whose shifts have not ended

    def sharers(self, host: str) -> int:
        """Return the number of listeners that share the host's budget, this one too."""
        return 1 + len(self.others.get(host, []))

    def next_end(self, hosts: Collection[str]) -> datetime | None:
        """Return when the first of the others' shifts ends."""
        return min((grant.ends_at for host in hosts for grant in self.others.get(host, [])), default=None)

    def grant(self, host: str, rate: float, answer: int, ends_at: datetime) -> float:
        """Grant the listener its share of `rate` requests a second, as far as others leave it, and return that."""
        others = sum(other.counted for other in self.others.get(host, []))
        granted = max(min(rate / self.sharers(host), rate - others), 0.0)
        before = self.grants.get(host)
        counted = granted if before is None else max(before.counted, granted)
        self.grants[host] = Grant(granted, counted, answer, ends_at)
        return granted


def read(connection: Connection, listener: str, answer: int, hosts: list[str], at: datetime, latest: datetime) -> Rates:
    """Read the rates of `hosts`, and delete those of shifts that have ended.

    `answer` is the number of the last answer that the listener has: what it cut is free from now on. No shift ends
    after `latest`, whatever a clock that had jumped wrote.
    """
    rates = Rates(listener, {}, {})
    ended = []
    for row in connection.execute(_OF_HOSTS, {"hosts": hosts}):
        grant = Grant(row.rate, row.counted, row.answer, min(row.ends_at, latest))
        if grant.ends_at <= at:
            ended.append({"gone": row.listener, "there": row.host})
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
    """Write down what the listener was granted for `hosts`."""
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
        connection.execute(_GRANTED[connection.dialect.name], rows)


def give_back(connection: Connection, rates: Rates) -> None:
    """Free what the listener was granted: it sends nothing more."""
    if rates.grants:
        connection.execute(_ENDED, [{"gone": rates.listener, "there": host} for host in rates.grants])
