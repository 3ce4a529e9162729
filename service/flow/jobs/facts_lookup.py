"""Look up the facts of the tasks of reports: many definitions in one call, remembered from then on."""

from typing import Any

from service import metrics
from service.clients.taskcluster import TooLargeError
from service.engine.batches import Delivered, End, Outcome
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.jobs.lru import LruCache
from service.flow.jobs.retries import Retries
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.services import Services
from service.store.models import JobReport

NEGATIVE_CONFIRMATIONS = 3
"""Answers in a row that a task does not exist after which that is believed: it may only not exist yet."""

NO_TASK = "Taskcluster has no such task (any more)"
"""The reason of a report that is skipped because its task does not exist."""


class FactsLookup:
    """The facts of tasks, for one Treeherder."""

    def __init__(self, services: Services, environment: str, retries: Retries) -> None:
        self._services, self._prefix, self._retries = services, environment, retries
        self._environment = services.settings.environments[environment]
        self._facts: LruCache[str, TaskFacts | str] = LruCache(services.settings.reports.definitions)
        self._not_found: LruCache[str, int] = LruCache(5_000)  # number of answers that a task does not exist

    async def find(self, reports: list[JobReport], done: Delivered) -> list[tuple[JobReport, TaskFacts]]:
        """Return reports with the facts of their tasks; the outcomes of all others are added to `done`."""
        missing = {report.task_id for report in reports if self._facts.get(report.task_id) is None}
        fetched: dict[str, TaskFacts | str] = {}
        if missing:
            try:
                fetched = await self._fetch(sorted(missing))
            except (Unavailable, PermanentUpstreamError) as error:
                done.outcomes += [self._retries.later(r, str(error)) for r in reports if r.task_id in missing]
                reports = [report for report in reports if report.task_id not in missing]
            else:
                for task_id, facts_or_reason in fetched.items():
                    if facts_or_reason == NO_TASK:
                        self._not_found.put(task_id, (self._not_found.get(task_id) or 0) + 1)
                    else:
                        self._facts.put(task_id, facts_or_reason)
        with_facts = []
        for report in reports:
            facts = fetched.get(report.task_id) or self._facts.get(report.task_id)
            if isinstance(facts, TaskFacts):
                with_facts.append((report, facts))
            elif facts == NO_TASK and (self._not_found.get(report.task_id) or 0) < NEGATIVE_CONFIRMATIONS:
                done.outcomes.append(self._retries.later(report, facts))
            else:
                done.outcomes.append(Outcome(report, End.SKIPPED, facts))
        return with_facts

    async def _fetch(self, task_ids: list[str]) -> dict[str, TaskFacts | str]:
        """Return the facts of each task, or the reason why it is not shown.

        A call whose answer is too large is halved, so that a task which is too large hides no other.
        """
        try:
            definitions = await self._services.queue.tasks(task_ids)
        except TooLargeError as error:
            if len(task_ids) == 1:
                return {task_ids[0]: f"its definition is too large: {error}"}
            half = len(task_ids) // 2
            return await self._fetch(task_ids[:half]) | await self._fetch(task_ids[half:])
        return {task_id: self._read(task_id, definitions.get(task_id)) for task_id in task_ids}

    def _read(self, task_id: str, definition: dict[str, Any] | None) -> TaskFacts | str:
        """Return the facts of a task, or the reason why it is not shown."""
        if definition is None:
            return NO_TASK
        try:
            facts = TaskFacts(task_id, definition)
        except UnshowableTaskError as error:
            metrics.task_unusable(self._prefix)
            return str(error)
        except (KeyError, TypeError, ValueError) as error:
            return f"its definition is not one of the queue's: {type(error).__name__} {error}"
        platforms = self._environment.platforms
        platform = facts.machine["platform"]
        if platforms is not None and platform not in platforms:
            return f"its platform {platform} is none of the platforms configured for {self._prefix}"
        return facts
