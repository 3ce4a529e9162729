"""The loop: claim due work, run its step, write down how it ended. Any number of them share one database."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog

from service import work
from service.database import now
from service.errors import Unavailable, UpstreamError
from service.flow import cancel, graph, heal, notice, resultset, retrigger
from service.models import Action, GroupCheck, Notice, PushStep, StepKind, Work
from service.parts import Parts
from service.work import Hold, LeaseLostError

log = structlog.get_logger()

_STEPS = {StepKind.RESULTSET: resultset.run, StepKind.GRAPH: graph.run, StepKind.ANNOUNCEMENT: resultset.announce}
_ACTIONS = {"retrigger": retrigger.run, "cancel": cancel.run}


async def _push_step(parts: Parts, hold: Hold[PushStep]) -> None:
    await _STEPS[hold.item.kind](parts, hold)


async def _action(parts: Parts, hold: Hold[Action]) -> None:
    await _ACTIONS[hold.item.kind](parts, hold)


RUN: Mapping[type[Work], Callable[[Parts, Hold[Any]], Awaitable[None]]] = {
    PushStep: _push_step,
    Action: _action,
    Notice: notice.run,
    GroupCheck: heal.list_group,
}
"""What is done for each kind of work; each table is leased by itself."""


AWAY = 10.0
"""Seconds between two looks, at most, while the database is away."""


class Worker:
    """Runs steps until it is stopped. `wake` makes it look at once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings.work
        self._wake = asyncio.Event()
        self._stopping = False
        self._active = False  # whether `run` is at work and not stopping
        self._running: dict[asyncio.Task[None], Hold[Any]] = {}

    def wake(self) -> None:
        self._wake.set()

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
                    pause = min(self._settings.idle.total_seconds() * 2 ** min(failures, 10), AWAY)
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
        async with self._parts.database.reading() as session:
            lanes = await work.due_lanes(session, tuple(RUN))
        at = now()
        pause = self._settings.idle.total_seconds()
        for model, due in lanes.items():
            if free := self._free(model, [lane for lane, first in due.items() if first <= at]):
                self.begin(await self._claimed(model, free))
            later = [(first - at).total_seconds() for first in due.values() if first > at]
            pause = min([pause, *later])
        return max(pause, 0.001)

    def _free(self, model: type[Work], lanes: list[str]) -> dict[str, int]:
        """How many more pieces of each lane this process has room for."""
        busy = Counter(hold.item.lane for hold in self._running.values() if isinstance(hold.item, model))
        return {lane: self._settings.per_lane - busy[lane] for lane in lanes if busy[lane] < self._settings.per_lane}

    async def _claimed(self, model: type[Work], free: dict[str, int]) -> list[Work]:
        async with self._parts.database.writing() as session:
            return [
                item
                for lane, slots in sorted(free.items())
                for item in await work.claim(session, model, lane, slots, self._settings.lease)
            ]

    def take(self, fresh: Sequence[Work]) -> list[Work]:
        """Claim of `fresh` work, which the caller is about to store, what this worker has room for at once.

        The caller gives it to `begin` after the commit. The others are claimed as usual.
        """
        if not self._active:
            return []
        busy = Counter(hold.item.lane for hold in self._running.values())
        taken = []
        for item in fresh:
            if busy[item.lane] < self._settings.per_lane:
                busy[item.lane] += 1
                taken.append(item)
        work.take(taken, self._settings.lease)
        return taken

    def begin(self, items: Iterable[Work]) -> None:
        """Start on work that this worker has claimed."""
        for item in items:
            hold = Hold(self._parts.database, self._settings, item)
            task = asyncio.create_task(self._do(hold), context=contextvars.Context())
            self._running[task] = hold
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        lane = self._running.pop(task).item.lane
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work-not-recorded", exc_info=error)  # its lease ends, then it is done again
        # not for each piece that ends: a look costs the same for one as for half of what a lane has room for
        if 2 * sum(hold.item.lane == lane for hold in self._running.values()) <= self._settings.per_lane:
            self._wake.set()

    async def _do(self, hold: Hold[Any]) -> None:
        item = hold.item
        structlog.contextvars.bind_contextvars(work=type(item).__name__, lane=item.lane, id=item.id)
        try:
            await RUN[type(item)](self._parts, hold)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))
        except Unavailable as error:
            log.warning("step-postponed", system=error.system, error=str(error))
            await self._again(hold, str(error), error.retry_after)
        except UpstreamError as error:
            log.warning("step-postponed", system=error.system, error=str(error))
            await self._again(hold, str(error))
        except Exception as error:  # a bug, or the database away: the work is kept and tried again
            log.exception("step-broke")
            await self._again(hold, f"internal error: {type(error).__name__}; the log has more")

    async def _again(self, hold: Hold[Any], reason: str, wait: Any = None) -> None:
        try:
            await hold.retry(reason, wait)
        except LeaseLostError as error:
            log.warning("lease-lost", error=str(error))

    async def _renew(self) -> None:
        """Say that we live; who has lost the lease is stopped."""
        while True:
            await asyncio.sleep(self._settings.lease.total_seconds() / 3)
            for task, hold in list(self._running.items()):
                if hold.ended:
                    continue
                try:
                    await hold.renew()
                except LeaseLostError:
                    if not hold.ended:  # meanwhile
                        log.warning("lease-lost", id=hold.item.id)
                        task.cancel()
                except Exception:  # the database is away; the lease may last until it is back
                    log.exception("renew-failed")

    async def _drain(self) -> None:
        if not self._running:
            return
        holds = dict(self._running)
        log.info("draining", running=len(holds))
        _, pending = await asyncio.wait(holds, timeout=self._settings.drain.total_seconds())
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in pending:
            try:
                await holds[task].release()
            except LeaseLostError as error:
                log.info("lease-lost", error=str(error))
            except Exception:  # the database is away: then its lease ends by itself
                log.exception("release-failed")
