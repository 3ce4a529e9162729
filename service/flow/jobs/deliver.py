"""Deliver job reports to a Treeherder in bulk: a batch of one project at a time.

    FactsLookup     the definitions of the tasks, many in one call
    PushLookup      the pushes, which must exist in Treeherder before a job of them is posted
    ArtifactLists   the artifacts of ended runs
    Retries         when what failed is tried again, and when it is given up

A batch that is refused is halved until the bad job is alone; all others are accepted.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from service.clients.pulse import JOBS
from service.clients.treeherder import FoundPush
from service.engine.batches import Delivered, End, Outcome
from service.engine.registry import WORK, WorkTable
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.jobs.artifacts import ArtifactLists
from service.flow.jobs.facts_lookup import FactsLookup
from service.flow.jobs.pulse import pulse_message
from service.flow.jobs.push_lookup import PushLookup, push_key
from service.flow.jobs.rest import rest_entry
from service.flow.jobs.retries import Retries
from service.flow.jobs.run import artifact_links
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.services import Services
from service.store.models import JobReport, Stage

MAX_LONE_FAILURES_IN_SEQUENCE = 4
"""Server errors in a row, each to a request with one job, after which Treeherder itself is taken to be broken."""

Item = tuple[JobReport, Any]
"""A report, and its job in the form that is sent."""

Post = Callable[[list[Any]], Awaitable[None]]


class TreeherderDeliverer:
    """Delivers reports to one Treeherder, and remembers what it looked up."""

    def __init__(self, services: Services, environment: str) -> None:
        self._services = services
        self._prefix = environment
        self._environment = services.settings.environments[environment]
        self._root = services.settings.taskcluster.root
        self._requests = asyncio.Semaphore(services.settings.reports.at_a_time)
        self.retries = Retries(services)
        self._facts = FactsLookup(services, environment, self.retries)
        self._pushes = PushLookup(services, environment, self.retries, self._requests)
        self._artifacts = ArtifactLists(services, environment)
        self.sending = 0  # batches that are ready, and posted or about to be

    async def deliver(self, reports: list[JobReport]) -> Delivered:
        """Deliver the reports of one project."""
        done = Delivered([])
        undelivered = []
        for report in reports:
            # unscheduled and pending runs are the same job, which is sent once
            delivered = report.delivered
            if delivered is not None and max(delivered, Stage.PENDING) >= max(report.stage, Stage.PENDING):
                done.outcomes.append(Outcome(report, End.DONE))
            else:
                undelivered.append(report)
        items = await self._prepare(undelivered, done)
        if not items:
            return done
        # jobs that failed alone come last, so that many bad ones never keep a good one from being tried
        items.sort(key=lambda item: self.retries.has_failed_alone(item[0]))
        self.sending += 1
        try:
            async with self._requests:
                if self.retries.went_away_since(done.began):  # while this batch was prepared
                    reason, pause = self.retries.away_reason, self.retries.away_pause
                    done.outcomes += [self.later(report, reason, pause) for report, _ in items]
                else:
                    await self._send(items[0][0].project, items, done)
        finally:
            self.sending -= 1
        return done

    def later(self, report: JobReport, reason: str, wait: timedelta | None = None) -> Outcome:
        """Try again after `wait`, by default with backoff; bury the report after it was tried for `work.give_up`."""
        return self.retries.later(report, reason, wait)

    async def _prepare(self, reports: list[JobReport], done: Delivered) -> list[Item]:
        """Return reports with their jobs; the outcomes of those that cannot be sent are added to `done`."""
        with_facts = await self._facts.find(reports, done)
        pushes = await self._pushes.find([report for report, _ in with_facts], done)
        ready = [(report, facts) for report, facts in with_facts if push_key(report) in pushes]
        artifacts = await self._artifacts.of([report for report, _ in ready])
        items: list[Item] = []
        for report, facts in ready:
            links = artifact_links(report, self._root, artifacts.get(report.id or 0, []))
            try:
                items.append((report, self._build_job(report, facts, pushes[push_key(report)], links)))
            except UnshowableTaskError as error:
                done.outcomes.append(Outcome(report, End.SKIPPED, str(error)))
        return items

    def _build_job(
        self, report: JobReport, facts: TaskFacts, push: FoundPush, links: list[dict[str, str]]
    ) -> dict[str, Any]:
        environment, root = self._environment, self._root
        if environment.jobs == "rest":
            return rest_entry(report, facts, root, environment.log, push, links)
        return pulse_message(report, facts, root, environment.log, push, links, schema=environment.jobs_schema)

    async def _send(self, project: str, items: list[Item], done: Delivered) -> None:
        if self._environment.jobs == "rest":
            treeherder = self._services.treeherders[self._prefix]
            await self._post_in_halves(items, lambda jobs: treeherder.post_jobs(project, jobs), done)
        else:
            await self._publish(project, items, done)

    async def _publish(self, project: str, items: list[Item], done: Delivered) -> None:
        publisher = self._services.publisher
        assert publisher is not None, "the settings require pulse.url"
        key = f"{self._prefix}.{project}._"
        errors = await asyncio.gather(
            # mandatory: a job that reaches no queue would be shown by nobody, so it is not delivered
            *(publisher.publish(JOBS, key, message, mandatory=True) for _, message in items),
            return_exceptions=True,
        )
        for (report, _), error in zip(items, errors, strict=True):
            if error is None:
                done.outcomes.append(Outcome(report, End.DONE))
            elif isinstance(error, Unavailable):
                done.outcomes.append(self.later(report, str(error)))
            else:
                raise error

    async def _post_in_halves(self, items: list[Item], post: Post, done: Delivered) -> None:
        """Post `items` together; halve what is refused until the bad job is alone."""
        # depth first: after as many requests as there are halvings, a good job is accepted or a bad one is alone
        waiting = deque([items])
        lone_failures: list[tuple[Item, str]] = []
        in_sequence = 0  # lone failures since Treeherder last accepted anything
        while waiting:
            chunk = waiting.popleft()
            done.requests += 1
            try:
                await post([job for _, job in chunk])
            except PermanentUpstreamError as refusal:
                if not _push_halves(chunk, waiting):
                    done.outcomes.append(Outcome(chunk[0][0], End.BURIED, str(refusal)))
            except Unavailable as error:
                if error.status == 500 and _push_halves(chunk, waiting):
                    continue
                in_sequence += 1
                if error.status != 500 or in_sequence == MAX_LONE_FAILURES_IN_SEQUENCE:
                    unsent = [item for more in (chunk, *waiting) for item in more]
                    self._postpone(error, [*(item for item, _ in lone_failures), *unsent], done)
                    return
                lone_failures.append((chunk[0], str(error)))
            else:
                in_sequence = 0
                self.retries.record_accepted()
                done.outcomes += [Outcome(report, End.DONE) for report, _ in chunk]
        done.outcomes += [self.retries.record_lone_failure(report, reason) for (report, _), reason in lone_failures]

    def _postpone(self, error: Unavailable, items: list[Item], done: Delivered) -> None:
        """Try all items later: Treeherder takes nothing now, or nothing of this project (404)."""
        pause = None
        if error.status != 404:
            pause = done.pause = self.retries.record_away(error)
        done.outcomes += [self.later(report, str(error), pause) for report, _ in items]


def _push_halves(chunk: list[Item], waiting: deque[list[Item]]) -> bool:
    """Put both halves of a refused chunk first in `waiting`; return False if it is a single job."""
    if len(chunk) == 1:
        return False
    middle = len(chunk) // 2
    waiting.extendleft([chunk[middle:], chunk[:middle]])
    return True


WORK.add_table(
    WorkTable(JobReport, "`tc-treeherder reports list --state pending` says why", deliverer=TreeherderDeliverer),
)
