"""How many requests a second each listener may send to a host.

The rates given out, of all listeners together, and the reserve for announced pushes stay within
`poll.max_requests_per_host`. Each listener keeps to its rate by itself, so nobody has to ask before each request.

A rate holds until the listener's shift ends. One that is cut goes on to count as it was until the listener has shown
that it has the answer which cut it, by naming that answer's number; or until its shift has ended.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select

from service.database import Session
from service.models import RateGrant
from service.settings import PollSettings


def reserve(settings: PollSettings) -> float:
    """Return the requests a second to a host that are kept for announced pushes."""
    return settings.max_requests_per_host * settings.announced_share


def shared(settings: PollSettings) -> float:
    """Return the requests a second to a host that listeners share."""
    return settings.max_requests_per_host - reserve(settings)


@dataclass
class Rates:
    """The rates of one listener, and what it has to know of the others'. The caller holds the hosts' budgets."""

    listener: str
    grants: dict[str, RateGrant]  # this listener's, by host
    others: dict[str, list[RateGrant]]  # those of other listeners whose shifts have not ended

    def sharers(self, host: str) -> int:
        """Return the number of listeners that share the host's budget, this one too."""
        return 1 + len(self.others.get(host, []))

    def next_end(self, hosts: Collection[str]) -> datetime | None:
        """Return when the first of the others' shifts ends."""
        return min((grant.ends_at for host in hosts for grant in self.others.get(host, [])), default=None)


async def read(session: Session, listener: str, answer: int, hosts: list[str], at: datetime, latest: datetime) -> Rates:
    """Read the rates of `hosts`, and delete those of shifts that have ended.

    `answer` is the number of the last answer that the listener has: what it cut is free from now on. No shift ends
    after `latest`, whatever a clock that had jumped wrote.
    """
    rates = Rates(listener, {}, {})
    for grant in await session.exec(select(RateGrant).where(col(RateGrant.host).in_(hosts))):
        grant.ends_at = min(grant.ends_at, latest)
        if grant.ends_at <= at:
            await session.delete(grant)
        elif grant.listener == listener:
            if grant.answer == answer:
                grant.counted = grant.rate
            rates.grants[grant.host] = grant
        else:
            rates.others.setdefault(grant.host, []).append(grant)
    await session.flush()  # a row that was deleted may be made anew
    return rates


def grant(session: Session, rates: Rates, host: str, rate: float, answer: int, ends_at: datetime) -> float:
    """Grant the listener its share of `rate` requests a second, as far as others leave it, and return that."""
    others = sum(other.counted for other in rates.others.get(host, []))
    granted = max(min(rate / rates.sharers(host), rate - others), 0.0)
    mine = rates.grants.get(host)
    if mine is None:
        mine = rates.grants[host] = RateGrant(
            listener=rates.listener, host=host, answer=answer, rate=granted, counted=granted, ends_at=ends_at
        )
        session.add(mine)
    else:
        mine.counted = max(mine.counted, granted)
        mine.answer, mine.rate, mine.ends_at = answer, granted, ends_at
    return granted


async def give_back(session: Session, rates: Rates) -> None:
    """Free what the listener was granted: it sends nothing more."""
    for mine in rates.grants.values():
        await session.delete(mine)
