"""List the artifacts of ended runs, within a time limit: a completed job is posted once, with its links or without."""

import asyncio
from typing import Any

import structlog

from service.errors import PermanentUpstreamError, Unavailable
from service.services import Services
from service.store.models import JobReport, Stage

log = structlog.get_logger()

CONCURRENT_LISTS = 40
"""Lists of artifacts that are requested at a time; the session has a hundred connections for all calls to the queue."""

MAX_LINKS = 2_000
"""Artifacts of one run that are linked: a task can upload any number, and all reports of a batch wait for the list."""


class ArtifactLists:
    """The lists of artifacts, for one Treeherder."""

    def __init__(self, services: Services, environment: str) -> None:
        self._services, self._prefix = services, environment
        self._wanted = services.settings.environments[environment].artifact_links
        self._slots = asyncio.Semaphore(CONCURRENT_LISTS)

    async def of(self, reports: list[JobReport]) -> dict[int, list[dict[str, Any]]]:
        """Return the artifacts of those of these runs that have ended, by report.

        A list that Taskcluster refuses or does not answer within `reports.links_wait` is left out.
        """
        ended = [report for report in reports if report.stage >= Stage.RESOLVED and "started" in report.run]
        if not self._wanted:
            return {}
        artifacts: dict[int, list[dict[str, Any]]] = {}

        async def fetch(report: JobReport) -> None:
            async with self._slots:
                try:
                    artifacts[report.id or 0] = await self._services.queue.artifacts(
                        report.task_id, report.run_id, MAX_LINKS
                    )
                except (Unavailable, PermanentUpstreamError) as error:
                    why = str(error)
                    log.info("links-left-out", task_id=report.task_id, run_id=report.run_id, why=why)

        seconds = self._services.settings.reports.links_wait.total_seconds()
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for report in ended:
                    group.create_task(fetch(report))
        except TimeoutError:
            missing = len(ended) - len(artifacts)
            why = f"Taskcluster lists the artifacts of {missing} runs later than within {seconds:g} s"
            log.warning("links-left-out", environment=self._prefix, runs=missing, why=why)
        return artifacts
