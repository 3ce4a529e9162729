"""Decide when a report is tried again, and whether a job or its Treeherder is the cause of a failure."""

import time
from datetime import timedelta

from service.clock import now
from service.contract import retry
from service.engine.batches import End, Outcome
from service.engine.leases import backoff, exhausted
from service.errors import Unavailable
from service.flow.jobs.lru import LruCache
from service.services import Services
from service.store.models import JobReport

MAX_LONE_FAILURES = 3
"""Server errors in a row after which a job that was sent alone is bad, if Treeherder accepted others before each."""

HEALTHY_WINDOW = 60.0
"""Seconds for which an accepted job shows that Treeherder works."""


class Retries:
    """The retries of reports to one Treeherder, by how it answered until now."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lone_failures: LruCache[int, tuple[int, float]] = LruCache(5_000)  # count, and time of the last
        self._outages = 0  # in a row
        self._accepted_at = float("-inf")  # by time.monotonic(), as all times here
        self._away_at = float("-inf")
        self.away_reason, self.away_pause = "", timedelta()

    def later(self, report: JobReport, reason: str, wait: timedelta | None = None) -> Outcome:
        """Try again after `wait`, by default with backoff; bury the report after it was tried for `work.give_up`."""
        work = self._services.settings.work
        if exhausted(work, report, report.since, work.give_up):
            return Outcome(report, End.BURIED, f"given up after {report.attempts} attempts: {reason}")
        pause = min(backoff(work, report.attempts), self._services.settings.reports.max_pause) if wait is None else wait
        return Outcome(report, End.LATER, reason, min(pause, work.longest_wait))

    def wait_for_push(self, report: JobReport, reason: str) -> Outcome:
        """Try again until Treeherder has answered for `reports.push_wait` that it has no such push; then bury it.

        Only such answers count: the time of an outage does not.
        """
        push_wait = self._services.settings.reports.push_wait
        since = report.no_push_since or now()
        if exhausted(self._services.settings.work, report, since, push_wait):
            return Outcome(report, End.BURIED, f"given up after {push_wait}: {reason}")
        outcome = self.later(report, reason)
        outcome.no_push_since = since
        return outcome

    def record_accepted(self) -> None:
        """Record that Treeherder accepted jobs."""
        self._outages, self._accepted_at = 0, time.monotonic()

    def record_lone_failure(self, report: JobReport, reason: str) -> Outcome:
        """Bury the report after `MAX_LONE_FAILURES` server errors to requests with this job alone, or try it later.

        An error counts only if Treeherder accepted another job since this report's previous attempt. Otherwise
        Treeherder itself may be broken, and the usual limit of `later` applies.
        """
        attempted_at = time.monotonic()
        failures, previous_attempt = self._lone_failures.get(report.id or 0) or (0, attempted_at - HEALTHY_WINDOW)
        if self._accepted_at > previous_attempt:
            failures += 1
        self._lone_failures.put(report.id or 0, (failures, attempted_at))
        if failures >= MAX_LONE_FAILURES:
            return Outcome(report, End.BURIED, reason)
        return self.later(report, reason)

    def has_failed_alone(self, report: JobReport) -> bool:
        """Return True if a request with this job alone was answered with a server error."""
        return self._lone_failures.get(report.id or 0) is not None

    def record_away(self, error: Unavailable) -> timedelta:
        """Record that Treeherder is away or refuses further requests; return for how long to leave it alone."""
        self._outages += 1
        longest = self._services.settings.reports.max_pause.total_seconds()
        pause = timedelta(seconds=retry.backoff(self._outages, 1.0, longest, spread=0))
        pause = min(max(pause, error.retry_after or timedelta()), self._services.settings.work.longest_wait)
        self._away_at, self.away_reason, self.away_pause = time.monotonic(), str(error), pause
        return pause

    def went_away_since(self, began: float) -> bool:
        """Return True if Treeherder went away after this time of time.monotonic()."""
        return self._away_at >= began
