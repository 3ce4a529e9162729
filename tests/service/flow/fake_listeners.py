"""Listeners as the service sees them: what they ask for and tell, without HTTP, and by a clock that is moved."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlmodel import select, update

from service.contract.events import AnnouncedLeases, Lease, PollNews, PushEvent, Shift, ShiftRequest
from service.flow.pushes import push, shift
from service.settings import PollSettings, load
from service.store.database import Database
from service.store.models import Repository
from tests.service.harness import add_repository

HOST = "hg.mozilla.org"
START = datetime(2030, 1, 30, 12, 0, 0, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


class Clock:
    """Time that stands still, unless it is moved."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Polls:
    """A service, and the repositories that it monitors."""

    def __init__(self, database: Database, clock: Clock, **settings: Any) -> None:
        self.database, self.clock = database, clock
        self.settings = PollSettings(**settings)
        self.hosts = [HOST]

    def listener(self) -> "Listener":
        return Listener(self)

    async def add(self, *aliases: str, **fields: Any) -> None:
        """Monitor these, due in this order one after the other."""
        for number, alias in enumerate(aliases):
            at = self.clock.at - MINUTE + number * SECOND / 1000
            await add_repository(self.database, alias, **{"due_at": at, "turn": at, "created_at": at, **fields})

    async def renew(self, request: ShiftRequest, news: list[PollNews]) -> Shift:
        return await self.database.run(
            lambda connection: shift.renew(connection, self.settings, self.hosts, request, news)
        )

    async def announce(self, *urls: str) -> AnnouncedLeases:
        async with self.database.writing() as session:
            return await shift.lease_announced(session, self.settings, self.hosts, urls)

    async def row(self, alias: str = "mc") -> Repository:
        async with self.database.reading() as session:
            return (await session.exec(select(Repository).where(Repository.alias == alias))).one()

    async def change(self, **values: Any) -> None:
        if "due_at" in values:
            values = {"turn": values["due_at"], **values}  # it is never later
        async with self.database.writing() as session:
            await session.exec(update(Repository).values(**values))

    async def store(self, *events: PushEvent) -> None:
        async with self.database.writing() as session:
            await push.store(session, load(), list(events), replayed=True)


class Listener:
    """A listener that reports the polls that a test names."""

    def __init__(self, polls: Polls) -> None:
        self._polls = polls
        self.id = str(uuid.uuid4())
        self.answer = 0
        self.leases: dict[str, Lease] = {}
        self.rate = 0.0
        self.shift: Shift | None = None

    async def renew(
        self, *polled: str, ago: float = 0, slowest: float = 0, under_way: tuple[str, ...] = (),
        news: list[PollNews] | None = None, ends: bool = False, lost: bool = False,
    ) -> Shift:  # fmt: skip
        """Renew, having polled these; `lost`: the answer does not arrive."""
        named = [(self.leases[alias].id, self.leases[alias].shift) for alias in polled]
        request = ShiftRequest(
            listener=self.id,
            answer=self.answer,
            polled=[(*leased, ago, slowest) for leased in named],
            under_way=[(self.leases[alias].id, self.leases[alias].shift) for alias in under_way],
            polls=len(polled),
            requests=len(polled),
            ends=ends,
        )
        shift = await self._polls.renew(request, news or [])
        if lost:
            return shift
        self.shift, self.answer = shift, shift.answer
        gone = {*polled, *under_way, *(self.alias(item.repository_id) for item in news or [])}
        for alias in gone:
            if self.leases[alias].id not in shift.renewed:
                del self.leases[alias]
        self.leases |= {lease.repository: lease for lease in shift.leases}
        self.rate = shift.hosts[HOST].rate if HOST in shift.hosts else 0
        return shift

    async def polled_all(self, **options: Any) -> Shift:
        return await self.renew(*self.leases, **options)

    def alias(self, repository_id: int) -> str:
        return next(alias for alias, lease in self.leases.items() if lease.id == repository_id)

    def news(self, outcome: Any = "listed", alias: str = "mc", **fields: Any) -> PollNews:
        lease = self.leases[alias]
        values: dict[str, Any] = {"since": lease.cursor, "cursor": lease.cursor}
        if outcome != "failed":
            values |= {"lastpushid": lease.cursor, "at_cursor": lease.last_changeset}
        return PollNews(repository_id=lease.id, shift=lease.shift, outcome=outcome, **{**values, **fields})
