"""The reporter: choose the project that is served next, within the budget of requests that all replicas share.

The worker does its work piece by piece; reports are claimed and finished by the hundred. Any number of reporters share
one database.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import exc

from service.clock import clock_usable, now
from service.contract import tracing
from service.engine import batches, leases
from service.engine.batches import Delivered, Deliverer
from service.engine.budget import blocked_for, jobs_budget, refilled
from service.engine.leases import Lease
from service.engine.process import Process
from service.engine.registry import WORK, Registry, Step
from service.engine.running import Running
from service.store.database import check_clock
from service.store.models import Budget, JobReport
from service.store.wakeups import Topic

log = structlog.get_logger()

_DATABASE_AWAY = (exc.InterfaceError, exc.OperationalError, exc.TimeoutError, OSError)
"""Errors that no report causes."""

IN_HAND = 5
"""Batches under way for each request that may be: the others wait for definitions from Taskcluster meanwhile."""

RETRY = 1.0
"""Seconds until the next attempt after an error of our own, or of the database."""


class Reporter:
    """Reports jobs to every Treeherder that takes them until it is stopped, and does what is due now and then."""

    def __init__(self, services: Process, registry: Registry = WORK) -> None:
        self._services, self._steps = services, registry.steps
        self._stopping = asyncio.Event()
        self._environments = [
            EnvironmentReporter(services, name, table.deliverer(services, name))
            for table in registry.tables.values()
            if table.deliverer is not None
            for name, environment in services.settings.environments.items()
            if environment.jobs != "off"
        ]

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is under way has ended, or the worker's `drain` is over."""
        self._stopping.set()
        for environment in self._environments:
            environment.wake.set()

    async def run(self) -> None:
        """Report until `stop`."""
        helpers = [asyncio.create_task(environment.running.keep_renewing()) for environment in self._environments]
        helpers += [asyncio.create_task(self._loop(self._now_and_then(step), asyncio.Event())) for step in self._steps]
        try:
            await asyncio.gather(
                self._stopping.wait(),
                *(self._loop(environment.serve, environment.wake) for environment in self._environments),
            )
            await asyncio.gather(*(environment.running.drain() for environment in self._environments))
        finally:
            for helper in helpers:
                helper.cancel()

    async def _loop(self, step: Callable[[], Awaitable[float]], wake: asyncio.Event) -> None:
        """Do `step` again and again; it returns for how many seconds there is nothing to do unless `wake` is set."""
        while not self._stopping.is_set():
            wake.clear()
            try:
                pause = await step()
            except Exception:  # the database is away: say so, and go on when it is back
                log.exception("reporting-failed")
                pause = RETRY
            if pause <= 0:
                continue
            try:
                await asyncio.wait_for(wake.wait(), pause)
            except TimeoutError:
                continue

    def _now_and_then(self, step: Step) -> Callable[[], Awaitable[float]]:
        """Return what does a registered step, unless the clock cannot be trusted."""

        async def once() -> float:
            return await step(self._services) if clock_usable() else RETRY

        return once


class EnvironmentReporter:
    """Reports to one Treeherder: projects take turns, within the budget of its credential."""

    def __init__(self, services: Process, environment: str, deliverer: Deliverer) -> None:
        self.wake = services.database.wakeups.subscribe(Topic.REPORTS)
        self._services = services
        self._settings = services.settings.reports
        self._prefix = environment
        self._environment = services.settings.environments[environment]
        self._deliverer = deliverer
        self.running = Running(services.database, services.settings.work, lambda _: self.wake.set())
        self.served_at: dict[str, float] = {}  # when each lane was served last, by time.monotonic()
        self._last: dict[str, str] = {}  # the share of each lane that was served last
        self.budget, self._rate = jobs_budget(self._environment, self._settings.links_wait)

    async def serve(self) -> float:
        """Start the batch that is due next; return the seconds until there is something to look for again."""
        at_a_time = self._settings.at_a_time
        while len(self.running.tasks) >= IN_HAND * at_a_time or self._deliverer.sending >= at_a_time:
            await asyncio.wait(self.running.tasks, return_when=asyncio.FIRST_COMPLETED)
        async with self._services.database.reading() as session:
            await check_clock(session)
            if not clock_usable():
                return RETRY
            due = await batches.due(session, self._prefix, self._settings.batch)
        longest = self._services.settings.work.longest_wait
        at = now()
        hidden = [name for name, (_, _, last) in due.items() if last > at + longest]
        for name in hidden:
            async with self._services.database.writing() as session:
                await leases.pull_back(session, JobReport, name, longest)
        if hidden:
            return 0
        lanes = {name: count for name, (count, _, _) in due.items() if count}
        lane, pause = self.next_lane(lanes)
        if lane is None:
            later = [(first - at).total_seconds() for count, first, _ in due.values() if not count]
            return max(min([pause, *later]), 0.001)
        async with self._services.database.writing() as session:
            bucket = await refilled(session, self.budget, now(), self._rate)
            pause = self._wait(bucket)
            if pause > 0:
                return pause
            lease = self._services.settings.work.lease
            reports = await leases.claim(
                session,
                JobReport,
                lane,
                self._settings.batch,
                lease,
                holder=self._services.replica.holder,
                after=self._last.get(lane, ""),
            )
            if reports:
                bucket.tokens -= 1
        self.served_at[lane] = time.monotonic()
        if reports:
            self._last[lane] = reports[-1].share
            held = [Lease(self._services.database, self._services.settings.work, report) for report in reports]
            self.running.start(self._deliver(lane, held), held)
        return 0

    def next_lane(self, lanes: dict[str, int]) -> tuple[str | None, float]:
        """Return the lane whose turn it is; None and the seconds until the next look if there is none."""
        at = time.monotonic()
        turn, gather = self._settings.turn.total_seconds(), self._settings.gather.total_seconds()
        waited = {lane: at - self.served_at.get(lane, 0) for lane in lanes}
        ready = [lane for lane, count in lanes.items() if count >= self._settings.batch or waited[lane] >= gather]
        if ready:
            starving = [lane for lane in ready if waited[lane] >= turn]
            if starving:
                return max(starving, key=lambda lane: waited[lane]), 0
            return max(ready, key=lambda lane: lanes[lane]), 0
        if lanes:
            return None, gather - max(waited[lane] for lane in lanes)
        return None, self._services.settings.work.idle.total_seconds()

    def _wait(self, bucket: Budget) -> float:
        """Return the seconds until a request may be made."""
        if blocked := blocked_for(bucket, now(), self._services.settings.work.longest_wait):
            return min(blocked.total_seconds(), 1.0)  # the block may be lifted
        return max(0.0, (1.0 - bucket.tokens) / self._rate)

    async def _deliver(self, lane: str, held: list[Lease[JobReport]]) -> None:
        reports = [lease.item for lease in held]
        with tracing.span("jobs", lane=lane, reports=len(reports)):
            done = await self._unbroken(reports)
        for lease in held:
            lease.ended = True  # what is recorded now must not be renewed
        async with self._services.database.writing() as session:
            if done.requests != 1 or done.pause is not None:
                bucket = await refilled(session, self.budget, now(), self._rate)
                bucket.tokens -= done.requests - 1  # one was subtracted with the claim
                if done.pause is not None:
                    bucket.blocked_until = now() + done.pause
                    log.warning("treeherder-left-alone", environment=self._prefix, seconds=done.pause.total_seconds())
            await batches.record_outcomes(session, done.outcomes)
        log.info("jobs-reported", lane=lane, reports=len(reports), requests=done.requests)

    async def _unbroken(self, reports: list[JobReport]) -> Delivered:
        """Deliver reports; halve a batch that breaks our code until that report is alone, which is retried."""
        try:
            return await self._deliverer.deliver(reports)
        except Exception as error:
            log.exception("delivery-broke", environment=self._prefix, reports=len(reports))
            if len(reports) == 1 or isinstance(error, _DATABASE_AWAY):
                reason = f"internal error: {type(error).__name__}; the log has more"
                return Delivered([self._deliverer.later(report, reason) for report in reports], requests=1)
        middle = len(reports) // 2
        done = await self._unbroken(reports[:middle])
        if done.pause is not None:
            rest = [
                self._deliverer.later(report, "left alone with the others", done.pause) for report in reports[middle:]
            ]
            return Delivered([*done.outcomes, *rest], done.requests + 1, done.pause)
        more = await self._unbroken(reports[middle:])
        return Delivered([*done.outcomes, *more.outcomes], done.requests + more.requests + 1, more.pause)
