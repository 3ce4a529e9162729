"""What every action begins with: the task that it names, as it stands now, and the repository that it belongs to."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from service.clients.taskcluster import Definition, Status, validate_definition, validate_status
from service.errors import PermanentUpstreamError
from service.flow.tasks.definition import SLUGID, name_of
from service.flow.tasks.routes import Route, parse_route
from service.services import Services
from service.store.models import Repository

KNOWN_PREFIXES = ("tc-treeherder", "tc-treeherder-stage")
"""Those of Mozilla's Treeherders, for a service that no environments are configured for."""


class ActionRejectedError(Exception):
    """The action is not to be done; the message says why."""


class ActionFailedError(Exception):
    """The action cannot be done; the message says why."""


@dataclass
class Subject:
    """What an action is about, as it stands now."""

    repository: Repository
    definition: Definition
    status: Status
    routes: list[tuple[str, Route]]  # prefix and what it says, of those that name the project

    @property
    def name(self) -> str:
        return name_of(self.definition)


async def repository_of(services: Services, project: str) -> Repository:
    """The monitored repository of that alias. Raises RejectedError."""
    async with services.database.reading() as session:
        found = await session.exec(
            select(Repository).where(Repository.alias == project, col(Repository.deleted_at).is_(None))
        )
        repository = found.first()
    if repository is None:
        raise ActionRejectedError(f"no repository {project!r} is monitored here: add it first")
    if not repository.enabled:
        raise ActionRejectedError(f"the repository {project} is disabled: enable it first")
    return repository


async def subject_of(services: Services, project: str, task_id: str) -> Subject:
    """The task, fetched anew, for a message is only a hint. Raises RejectedError and FailedError."""
    repository = await repository_of(services, project)
    if re.fullmatch(SLUGID, task_id) is None:
        raise ActionRejectedError(f"there is no task {task_id} in Taskcluster: no taskId looks like this")
    try:
        definition, status = await asyncio.gather(services.queue.task(task_id), services.queue.status(task_id))
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(
            f"Taskcluster does not let us see task {task_id} ({refusal.status}): {refusal}"
        ) from None
    if definition is None or status is None:
        raise ActionRejectedError(f"there is no task {task_id} in Taskcluster: it may have expired")
    definition, status = validate_definition(definition), validate_status(status)
    prefixes = tuple(services.settings.environments) or KNOWN_PREFIXES
    named = [
        (prefix, found)
        for route in definition["routes"]
        for prefix in prefixes
        if (found := parse_route(prefix, route)) and found.full_project in {project, repository.route_project}
    ]
    if not named:
        raise ActionRejectedError(
            f"none of the {' and '.join(prefixes)} routes of task {task_id} ({name_of(definition)}) names {project}: "
            "it is no task of that project"
        )
    return Subject(repository, definition, status, named)


def run_of(status: Status, run_id: int | None) -> dict[str, Any] | None:
    """The run that an action names, the latest when it names none; None when the task has never run.

    Raises RejectedError.
    """
    runs: list[dict[str, Any]] = status["runs"]
    if run_id is None or (not runs and run_id == 0):  # Treeherder shows a task that waits as run 0
        return runs[-1] if runs else None
    for run in runs:
        if run["runId"] == run_id:
            return run
    raise ActionRejectedError(f"task {status['taskId']} has no run {run_id}: it has {len(runs)}")
