"""The loop that reports jobs: which project is served next, within the budget that all replicas share.

Beside `worker.Worker`, whose work is done piece by piece: reports are claimed and finished by the hundred. Any number
of reporters share one database.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import exc

from service.engine import leases
from service.engine.budget import blocked_for, jobs_budget, refilled
from service.flow.jobs import outcomes, reconcile
from service.flow.jobs.deliver import Deliverer
from service.flow.jobs.outcomes import Delivered
from service.services import Services
from service.store.database import check_clock, clock_usable, now
from service.store.models import Budget, JobReport
from service.store.wakeups import Topic

log = structlog.get_logger()

_DATABASE_AWAY = (exc.InterfaceError, exc.OperationalError, exc.TimeoutError, OSError)
"""Errors that are no fault of a report's."""

IN_HAND = 5
"""Batches under way for each request that may be: those beyond it wait for what Taskcluster knows of their tasks."""

RETRY = 1.0
"""Seconds until the next attempt after an error of our own, or of the database."""


class Reporter:
    """Reports jobs to every Treeherder that takes them until it is stopped."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.reports
        self._stopping = asyncio.Event()
        environments = [name for name, each in services.settings.environments.items() if each.jobs != "off"]
        self._environment_reporters = [EnvironmentReporter(services, name) for name in environments]

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is under way has ended, or the worker's `drain` is over."""
        self._stopping.set()
        for reporter in self._environment_reporters:
            reporter.wake.set()

    async def run(self) -> None:
        """Report until `stop`."""
        if not self._environment_reporters:
            await self._stopping.wait()
            return
        helpers = [asyncio.create_task(self._renew()), asyncio.create_task(self._heal())]
        try:
            await asyncio.gather(
                *(self._loop(reporter.serve, reporter.wake) for reporter in self._environment_reporters)
            )
            await asyncio.gather(*(reporter.drain() for reporter in self._environment_reporters))
        finally:
            for helper in helpers:
                helper.cancel()

    async def _loop(self, step: Callable[[], Awaitable[float]], wake: asyncio.Event) -> None:
        """Do `step` again and again; it says how many seconds there is nothing to do unless `wake` is set."""
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

    async def _heal(self) -> None:
        pause = min(self._settings.quiet.total_seconds() / 4, 30)

        async def step() -> float:
            if not clock_usable():
                return RETRY
            checked = await reconcile.check_quiet(self._services)
            return 0 if checked == reconcile.ONE_CALL else pause

        await self._loop(step, asyncio.Event())

    async def _renew(self) -> None:
        """Say that we live, while batches take long."""
        lease = self._services.settings.work.lease
        while True:
            await asyncio.sleep(lease.total_seconds() / 3)
            held = [report for reporter in self._environment_reporters for report in reporter.held()]
            if not held:
                continue
            try:
                async with self._services.database.writing() as session:
                    await outcomes.renew(session, held, lease)
            except Exception:  # the database is away; the lease may last until it is back
                log.exception("renew-failed")


class EnvironmentReporter:
    """What is reported to one Treeherder: projects take turns, within the budget of its credential."""

    def __init__(self, services: Services, environment: str) -> None:
        self.wake = services.database.wakeups.subscribe(Topic.REPORTS)
        self._services = services
        self._settings = services.settings.reports
        self._prefix = environment
        self._environment = services.settings.environments[environment]
        self._deliverer = Deliverer(services, environment)
        self._served: dict[str, float] = {}  # lane -> when it was last, by time.monotonic()
        self._last: dict[str, str] = {}  # lane -> the share that was served last
        self._running: dict[asyncio.Task[None], list[JobReport]] = {}
        self._budget, self._rate = jobs_budget(self._environment, self._settings.links_wait)

    def held(self) -> list[JobReport]:
        """The reports under way."""
        return [report for reports in self._running.values() for report in reports]

    async def serve(self) -> float:
        """Start on the batch that is due next; for how many seconds there is none to look for."""
        at_a_time = self._settings.at_a_time
        while len(self._running) >= IN_HAND * at_a_time or self._deliverer.sending >= at_a_time:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        async with self._services.database.reading() as session:
            await check_clock(session)
            if not clock_usable():
                return RETRY
            found = await outcomes.due(session, self._prefix, self._settings.batch)
        longest = self._services.settings.work.longest_wait
        at = now()
        hidden = [name for name, (_, _, last) in found.items() if last > at + longest]
        for name in hidden:
            async with self._services.database.writing() as session:
                await leases.pull_back(session, JobReport, name, longest)
        if hidden:
            return 0
        lanes = {name: count for name, (count, _, _) in found.items() if count}
        lane, pause = self._next(lanes)
        if lane is None:
            later = [(first - at).total_seconds() for count, first, _ in found.values() if not count]
            return max(min([pause, *later]), 0.001)
        async with self._services.database.writing() as session:
            bucket = await refilled(session, self._budget, now(), self._rate)
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
        self._served[lane] = time.monotonic()
        if reports:
            self._last[lane] = reports[-1].share
            task = asyncio.create_task(self._deliver(lane, reports), context=contextvars.Context())
            self._running[task] = reports
            task.add_done_callback(self._ended)
        return 0

    def _next(self, lanes: dict[str, int]) -> tuple[str | None, float]:
        """The lane whose turn it is, and if there is none, when to look again."""
        at = time.monotonic()
        turn, gather = self._settings.turn.total_seconds(), self._settings.gather.total_seconds()
        waited = {lane: at - self._served.get(lane, 0) for lane in lanes}
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
        """Seconds until a request may be made."""
        if blocked := blocked_for(bucket, now(), self._services.settings.work.longest_wait):
            return min(blocked.total_seconds(), 1.0)  # it may be lifted
        return max(0.0, (1.0 - bucket.tokens) / self._rate)

    async def _deliver(self, lane: str, reports: list[JobReport]) -> None:
        done = await self._unbroken(reports)
        async with self._services.database.writing() as session:
            if done.requests != 1 or done.pause is not None:
                bucket = await refilled(session, self._budget, now(), self._rate)
                bucket.tokens -= done.requests - 1  # one was taken off before
                if done.pause is not None:
                    bucket.blocked_until = now() + done.pause
                    log.warning("treeherder-left-alone", environment=self._prefix, seconds=done.pause.total_seconds())
            await outcomes.record_outcomes(session, done.outcomes)
        log.info("jobs-reported", lane=lane, reports=len(reports), requests=done.requests)

    async def _unbroken(self, reports: list[JobReport]) -> Delivered:
        """Deliver; what breaks is halved until the report that a bug trips over stands alone, and is tried again."""
        try:
            return await self._deliverer.jobs(reports)
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

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reports-not-recorded", exc_info=error)  # their lease ends, then they are done again
        self.wake.set()

    async def drain(self) -> None:
        """Wait for what is under way; give back what takes too long."""
        if not self._running:
            return
        running = dict(self._running)
        _, pending = await asyncio.wait(running, timeout=self._services.settings.work.drain.total_seconds())
        for task in pending:
            task.cancel()
        if not pending:
            return
        await asyncio.wait(pending)
        try:
            async with self._services.database.writing() as session:
                await outcomes.release(session, [report for task in pending for report in running[task]])
        except Exception:  # the database is away: then the leases end by themselves
            log.exception("release-failed")
