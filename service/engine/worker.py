"""The worker: claim due work, do it, record its end. Any number of workers share one database."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog

from service.clock import check_wall_clock, clock_usable, now
from service.contract import tracing
from service.contract.retry import backoff
from service.engine import leases
from service.engine.fair import most_of
from service.engine.leases import Lease, LeaseLostError, Storing, YieldedError
from service.engine.process import Process
from service.engine.registry import WORK, Registry
from service.engine.running import Running, give_back
from service.errors import Unavailable, UpstreamError
from service.store.database import check_clock
from service.store.models import Traced, Work
from service.store.wakeups import Topic

log = structlog.get_logger()

FIRST_RETRY, AWAY = 0.1, 10.0
"""Seconds between two attempts to claim while the database is away, at least and at most."""


class Worker:
    """Does work until it is stopped. It claims when it is woken, and when something is due."""

    def __init__(self, services: Process, registry: Registry = WORK) -> None:
        self._services, self._registry = services, registry
        self._settings = services.settings.work
        self._wake = services.database.wakeups.subscribe(Topic.WORK)
        self._stopping = False
        self._active = False  # whether `run` is at work and not stopping
        self._found_due = True  # whether the last look may have left due work
        self._running = Running(services.database, self._settings, self._ended)
        self._last: dict[
            tuple[type[Work], str], str
        ] = {}  # the share of each lane that was served last, by table and lane
        self._waiting: dict[tuple[type[Work], str], list[str]] = {}  # shares of each lane that were left waiting

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is under way has ended, or `drain` is over."""
        self._stopping, self._active = True, False
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        renewer = asyncio.create_task(self._running.keep_renewing())
        self._active = True
        failures = 0
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    pause = await self._claim()
                except Exception as error:  # the database is away: say so, and go on when it is back
                    failures += 1
                    pause = backoff(failures, FIRST_RETRY, AWAY)
                    log.exception("claim-failed", error=type(error).__name__, again_in=pause, exc_info=failures == 1)
                else:
                    if failures:
                        log.info("claims-again", after_failures=failures)
                    failures = 0
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    continue
            await self._running.drain()
        finally:
            renewer.cancel()

    async def _claim(self) -> float:
        """Claim what is due and start it; return the seconds until there is something to claim again."""
        self._found_due = True  # until a look has succeeded
        async with self._services.database.reading() as session:
            await check_clock(session)
            if not clock_usable():
                return self._settings.idle.total_seconds()
            lanes = await leases.due_lanes(session, self._registry.worked)
        at = now()
        looked_at = [(model, name) for model, due in lanes.items() for name, lane in due.items() if lane.first <= at]
        self._found_due = bool(looked_at)
        self._waiting = {key: self._waiting[key] for key in looked_at if key in self._waiting}
        for model, due in lanes.items():
            for name, lane in due.items():
                if lane.last > at + self._settings.longest_wait:
                    await self._pull_back(model, name)
        full = await self._claim_lanes(looked_at)
        for model, name in full:
            await self._let_give_way(model, name)
        later = [
            (lane.first - at).total_seconds() for due in lanes.values() for lane in due.values() if lane.first > at
        ]
        return max(min([self._settings.idle.total_seconds(), *later]), 0.001)

    async def _pull_back(self, model: type[Work], lane: str) -> None:
        async with self._services.database.writing() as session:
            await leases.pull_back(session, model, lane, self._settings.longest_wait)

    async def _claim_lanes(self, lanes: list[tuple[type[Work], str]]) -> list[tuple[type[Work], str]]:
        """Fill the free slots of this process; return the lanes that have none left and may have more due work."""
        free = {(model, lane): self._settings.per_lane - len(self._holds(model, lane)) for model, lane in lanes}
        wanted = [key for key in lanes if free[key] > 0]
        if not wanted:
            return lanes
        claimed: dict[tuple[type[Work], str], list[Work]] = {}
        loaded: dict[type[Work], dict[int, Any]] = {}
        async with self._services.database.writing() as session:
            for model, lane in wanted:
                claimed[model, lane] = await leases.claim(
                    session,
                    model,
                    lane,
                    free[model, lane],
                    self._settings.lease,
                    holder=self._services.replica.holder,
                    held=Counter(lease.item.share for lease in self._holds(model, lane)),
                    most=most_of(self._settings.per_lane),
                    after=self._last.get((model, lane), ""),
                )
            for model, table in self._registry.tables.items():
                items = [item for (its, _), of_lane in claimed.items() if its is model for item in of_lane]
                if table.load is not None and items:
                    loaded[model] = await table.load(session, items)
        for (model, lane), items in claimed.items():
            of_model = loaded.get(model, {})
            self.begin(items, [of_model.get(item.id or 0) for item in items])
            if items:
                self._last[model, lane] = items[-1].share
            if len(items) < free[model, lane]:  # the rest belongs to shares that hold their most
                self._waiting.pop((model, lane), None)
        return [key for key in lanes if len(claimed.get(key, ())) >= free[key]]

    async def _let_give_way(self, model: type[Work], lane: str) -> None:
        """Ask long work of a lane without a free slot to give way to a share that holds less."""
        of_lane = self._holds(model, lane)
        held = Counter(lease.item.share for lease in of_lane)
        async with self._services.database.reading() as session:
            waiting = await leases.due_shares(session, model, lane, self._last.get((model, lane), ""))
        self._waiting[model, lane] = waiting
        least = min((held[share] for share in waiting), default=0)
        if waiting and sum(held.values()) >= self._settings.per_lane:
            # the longest running work of the share that holds most; if each has one slot, those that wait have none
            long = max(of_lane, key=lambda lease: held[lease.item.share], default=None)
            if long is not None and held[long.item.share] > least:
                long.wanted = True

    def _holds(self, model: type[Work], lane: str) -> list[Lease[Any]]:
        """Return what this process holds of a lane, the longest held first."""
        return [lease for lease in self._running.leases if type(lease.item) is model and lease.item.lane == lane]

    def preclaim(self, new: Sequence[Work]) -> list[Work]:
        """Lease new work whose turn it is, as far as there are free slots; return what was leased.

        The caller is about to store all of `new`, and passes what is returned to `begin`. The rest is claimed from the
        database as usual.
        """
        if self._services.database.sqlite:  # it costs nothing, and may have been set since the last look
            check_wall_clock()
        if not self._active or not clock_usable():
            return []
        claimed: list[Work] = []
        for item in new:
            same_lane = [lease.item for lease in self._holds(type(item), item.lane)]
            same_lane += [other for other in claimed if type(other) is type(item) and other.lane == item.lane]
            held = Counter(other.share for other in same_lane)
            # it must not overtake work of its own share, nor of a share that holds no more and may have another slot
            most = most_of(self._settings.per_lane)
            waiting = [share for share in self._waiting.get((type(item), item.lane), []) if held[share] < most]
            its_turn = all(share != item.share and held[share] > held[item.share] for share in waiting)
            if len(same_lane) < self._settings.per_lane and held[item.share] < most and its_turn:
                claimed.append(item)
        leases.preclaim(claimed, self._settings.lease, self._services.replica.holder)
        return claimed

    def begin(self, items: Sequence[Work], loaded: Sequence[Any] | None = None, storing: Storing | None = None) -> None:
        """Start work that this worker has claimed; `loaded` is what each piece belongs to.

        `storing` is given if the work is just being stored. Until that has ended, work only reads.
        """
        for item, belongs_to in zip(items, loaded or [None] * len(items), strict=True):
            lease = Lease(self._services.database, self._settings, item, belongs_to, storing)
            self._running.start(self._do(lease), [lease])

    def _ended(self, held: Sequence[Lease[Any]]) -> None:
        # not for each piece that ends: a claim costs the same for one as for half of the slots of a lane
        for lease in held:
            item = lease.item
            half_free = 2 * len(self._holds(type(item), item.lane)) <= self._settings.per_lane
            if not lease.finished or (self._found_due and half_free):
                self._wake.set()

    async def _do(self, lease: Lease[Any]) -> None:
        item = lease.item
        if not self._registry.is_early(item):
            try:
                await lease.wait_until_stored()
            except LeaseLostError as error:
                log.warning("lease-lost", error=str(error))
                return
        structlog.contextvars.bind_contextvars(work=type(item).__name__, lane=item.lane, id=item.id)
        traceparent = item.traceparent if isinstance(item, Traced) else None
        with tracing.span(item.work_name, traceparent, lane=item.lane, id=item.id or 0, attempt=item.attempts):
            await self._attempt(lease)

    async def _attempt(self, lease: Lease[Any]) -> None:
        try:
            await self._registry.run_of(lease.item)(self._services, lease)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))
        except YieldedError:
            log.info("work-gave-way")
            await give_back(lease)
        except Unavailable as error:
            log.warning("step-postponed", system=error.system, error=str(error))
            await self._again(lease, str(error), error.retry_after)
        except UpstreamError as error:
            log.warning("step-postponed", system=error.system, error=str(error))
            await self._again(lease, str(error))
        except Exception as error:  # a bug, or the database away: the work is kept and tried again
            log.exception("step-broke")
            await self._again(lease, f"internal error: {type(error).__name__}; the log has more")

    async def _again(self, lease: Lease[Any], reason: str, wait: Any = None) -> None:
        tracing.fail(reason)
        try:
            await lease.retry(reason, wait)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))
