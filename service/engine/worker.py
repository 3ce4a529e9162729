"""The loop: claim due work, run its step, write down how it ended. Any number of them share one database."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import structlog

from service.contract.retry import backoff
from service.engine import leases
from service.engine.fair import most_of
from service.engine.leases import Lease, LeaseLostError, YieldedError
from service.errors import Unavailable, UpstreamError
from service.flow.actions import cancel, notice, retrigger
from service.flow.jobs import reconcile
from service.flow.pushes import graph, push, resultset
from service.services import Services
from service.store.database import Session, check_clock, check_wall_clock, clock_usable, now
from service.store.models import Action, GroupCheck, Notice, PushStep, StepKind, Work
from service.store.wakeups import Topic

log = structlog.get_logger()

_STEPS = {StepKind.RESULTSET: resultset.run, StepKind.GRAPH: graph.run, StepKind.ANNOUNCEMENT: resultset.announce}
_ACTIONS = {"retrigger": retrigger.run, "cancel": cancel.run}


async def _push_step(services: Services, lease: Lease[PushStep]) -> None:
    await _STEPS[lease.item.kind](services, lease)


async def _action(services: Services, lease: Lease[Action]) -> None:
    await _ACTIONS[lease.item.kind](services, lease)


RUN: Mapping[type[Work], Callable[[Services, Lease[Any]], Awaitable[None]]] = {
    PushStep: _push_step,
    Action: _action,
    Notice: notice.run,
    GroupCheck: reconcile.list_group,
}
"""What is done for each kind of work; each table is leased by itself."""


async def _pushes(session: Session, steps: Sequence[Any]) -> dict[int, Any]:
    pushes = await push.pushes_of(session, steps)
    return {step.id: pushes[step.push_id] for step in steps}


LOAD: Mapping[type[Work], Callable[[Session, Sequence[Any]], Awaitable[dict[int, Any]]]] = {PushStep: _pushes}
"""What pieces of work belong to, by their ids: read for all that are claimed together."""


FIRST_RETRY, AWAY = 0.1, 10.0
"""Seconds between two looks, at least and at most, while the database is away."""


class Worker:
    """Runs steps until it is stopped. It looks when it is woken, and when something is due."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.work
        self._wake = services.database.wakeups.subscribe(Topic.WORK)
        self._stopping = False
        self._active = False  # whether `run` is at work and not stopping
        self._running: dict[asyncio.Task[None], Lease[Any]] = {}
        self._last: dict[tuple[type[Work], str], str] = {}  # the share of each lane that was served last
        self._waiting: dict[tuple[type[Work], str], list[str]] = {}  # shares of each lane that were left waiting

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is under way has ended, or `drain` is over."""
        self._stopping, self._active = True, False
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        renewer = asyncio.create_task(self._renew())
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
            await self._drain()
        finally:
            renewer.cancel()

    async def _claim(self) -> float:
        """Claim what is due and start it; returns for how many seconds there is nothing to look for."""
        async with self._services.database.reading() as session:
            await check_clock(session)
            if not clock_usable():
                return self._settings.idle.total_seconds()
            lanes = await leases.due_lanes(session, tuple(RUN))
        at = now()
        looked_at = [(model, name) for model, due in lanes.items() for name, lane in due.items() if lane.first <= at]
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
        """Fill this process's free slots of these lanes; return those that have none left, and may have more due."""
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
            for model, load in LOAD.items():
                if items := [item for (its, _), of_lane in claimed.items() if its is model for item in of_lane]:
                    loaded[model] = await load(session, items)
        for (model, lane), items in claimed.items():
            self.begin(items, loaded.get(model, {}))
            if items:
                self._last[model, lane] = items[-1].share
            if len(items) < free[model, lane]:  # what is left, if anything is, is of shares that hold their most
                self._waiting.pop((model, lane), None)
        return [key for key in lanes if len(claimed.get(key, ())) >= free[key]]

    async def _let_give_way(self, model: type[Work], lane: str) -> None:
        """Let long work of a lane that has no free slot give way to a share that has less."""
        leases_held = self._holds(model, lane)
        held = Counter(lease.item.share for lease in leases_held)
        async with self._services.database.reading() as session:
            waiting = await leases.due_shares(session, model, lane, self._last.get((model, lane), ""))
        self._waiting[model, lane] = waiting
        least = min((held[share] for share in waiting), default=0)
        if waiting and sum(held.values()) >= self._settings.per_lane:
            # of whoever holds most, what has run longest; with a slot each, those that wait have none
            long = max(leases_held, key=lambda lease: held[lease.item.share], default=None)
            if long is not None and held[long.item.share] > least:
                long.wanted = True

    def _holds(self, model: type[Work], lane: str) -> list[Lease[Any]]:
        """Return what this process holds of a lane, the longest held first."""
        return [
            lease for lease in list(self._running.values()) if type(lease.item) is model and lease.item.lane == lane
        ]

    def take(self, fresh: Sequence[Work]) -> list[Work]:
        """Claim of `fresh` work, which the caller is about to store, what it is the turn of, as far as there is room.

        The caller gives it to `begin` after the commit. The others are claimed as usual.
        """
        if self._services.database.sqlite:  # it costs nothing, and may have been set since the last look
            check_wall_clock()
        if not self._active or not clock_usable():
            return []
        taken: list[Work] = []
        for item in fresh:
            leases_held = [lease.item for lease in self._holds(type(item), item.lane)]
            leases_held += [each for each in taken if type(each) is type(item) and each.lane == item.lane]
            held = Counter(each.share for each in leases_held)
            # it may not overtake work of its own share, nor of one that holds no more and may have another slot
            most = most_of(self._settings.per_lane)
            ahead = [share for share in self._waiting.get((type(item), item.lane), []) if held[share] < most]
            its_turn = all(share != item.share and held[share] > held[item.share] for share in ahead)
            if len(leases_held) < self._settings.per_lane and held[item.share] < most and its_turn:
                taken.append(item)
        leases.preclaim(taken, self._settings.lease, self._services.replica.holder)
        return taken

    def begin(self, items: Iterable[Work], loaded: Mapping[int, Any] = MappingProxyType({})) -> None:
        """Start on work that this worker has claimed; `loaded` is what was read with it, by its id."""
        for item in items:
            lease = Lease(self._services.database, self._settings, item, loaded.get(item.id or 0))
            task = asyncio.create_task(self._do(lease), context=contextvars.Context())
            self._running[task] = lease
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        lease = self._running.pop(task)
        item = lease.item
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work-not-recorded", exc_info=error)  # its lease ends, then it is done again
        # not for each piece that ends: a look costs the same for one as for half of what a lane has room for
        if lease.requeued or 2 * len(self._holds(type(item), item.lane)) <= self._settings.per_lane:
            self._wake.set()

    async def _do(self, lease: Lease[Any]) -> None:
        item = lease.item
        structlog.contextvars.bind_contextvars(work=type(item).__name__, lane=item.lane, id=item.id)
        try:
            await RUN[type(item)](self._services, lease)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))
        except YieldedError:
            log.info("work-gave-way")
            await self._give_back(lease)
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
        try:
            await lease.retry(reason, wait)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))

    async def _renew(self) -> None:
        """Say that we live; who has lost the lease is stopped."""
        while True:
            await asyncio.sleep(self._settings.lease.total_seconds() / 3)
            running = {lease: task for task, lease in self._running.items() if not lease.ended}
            if not running:
                continue
            try:
                async with self._services.database.writing() as session:
                    lost = await leases.renew(session, running, self._settings.lease)
            except Exception:  # the database is away; the leases may last until it is back
                log.exception("renew-failed")
                continue
            for lease in lost:
                if not lease.ended:  # meanwhile
                    log.warning("lease-lost", id=lease.item.id)
                    running[lease].cancel()

    async def _drain(self) -> None:
        if not self._running:
            return
        leases_held = dict(self._running)
        log.info("draining", running=len(leases_held))
        _, pending = await asyncio.wait(leases_held, timeout=self._settings.drain.total_seconds())
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in pending:
            await self._give_back(leases_held[task])

    async def _give_back(self, lease: Lease[Any]) -> None:
        try:
            await lease.release()
        except LeaseLostError as error:
            log.info("lease-lost", error=str(error))
        except Exception:  # the database is away: then its lease ends by itself
            log.exception("release-failed")
