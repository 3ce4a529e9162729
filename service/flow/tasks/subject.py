"""Fetch what an action is about: the task or the push that it names, and the repository that it belongs to."""

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
from service.settings import Settings
from service.store.database import Session
from service.store.models import Action, Push, Repository

KNOWN_PREFIXES = ("tc-treeherder", "tc-treeherder-stage")
"""Route prefixes of Mozilla's Treeherders, for a service without configured environments."""


class ActionRejectedError(Exception):
    """The action must not be done; the message says why."""


class NothingToDoError(Exception):
    """There is nothing that the action could do; the message says why."""


class ActionFailedError(Exception):
    """The action cannot be done; the message says why."""


@dataclass
class PushSubject:
    """The push that an action is about, and its repository."""

    repository: Repository
    push: Push

    @property
    def name(self) -> str:
        return f"push {self.push.push_id} of {self.repository.alias}"


@dataclass
class Subject:
    """The task that an action is about, as it is now, and its repository."""

    repository: Repository
    definition: Definition
    status: Status
    routes: list[tuple[str, Route]]  # each with its prefix; only those that name the project

    @property
    def name(self) -> str:
        return name_of(self.definition)


async def find_repository(services: Services, project: str) -> Repository:
    """Return the monitored repository of this alias. Raises ActionRejectedError if there is none, or it is disabled."""
    query = select(Repository).where(Repository.alias == project, col(Repository.deleted_at).is_(None))
    async with services.database.reading() as session:
        repository = (await session.exec(query)).first()
    if repository is None:
        remedy = "`tc-treeherder repositories list` lists those that are"
        raise ActionRejectedError(f"no repository {project!r} is monitored: {remedy}")
    if not repository.enabled:
        remedy = f"`tc-treeherder repositories set {project} --enabled` enables it"
        raise ActionRejectedError(f"the repository {project} is disabled: {remedy}")
    return repository


async def newest_generation(session: Session, project: str, push_id: int) -> int | None:
    """Return the newest generation of the monitored repository that has the push, None if none has."""
    query = (
        select(Push.generation)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(Repository.alias == project, col(Repository.deleted_at).is_(None), Push.push_id == push_id)
        .order_by(col(Push.generation).desc())
    )
    return (await session.exec(query)).first()


async def find_push(services: Services, action: Action) -> PushSubject:
    """Return the push that an action is about, of the generation that it was asked for. Raises ActionRejectedError."""
    repository = await find_repository(services, action.project)
    query = select(Push).where(
        Push.repository_id == repository.id,
        Push.push_id == action.push_id,
        Push.generation == action.generation,
    )
    async with services.database.reading() as session:
        push = (await session.exec(query)).first()
    if push is None:
        raise ActionRejectedError(
            f"no push {action.push_id} of {action.project} is known here: "
            f"`tc-treeherder pushes list --repository {action.project}` lists those that are"
        )
    return PushSubject(repository, push)


async def find_projects(services: Services, definition: Definition) -> list[str]:
    """Return the aliases of the monitored repositories that the task's routes name."""
    names = {
        route.full_project
        for text in definition["routes"]
        for prefix in known_prefixes(services.settings)
        if (route := parse_route(prefix, text)) is not None
    }
    named = col(Repository.alias).in_(names) | col(Repository.route_project).in_(names)
    query = select(Repository).where(col(Repository.deleted_at).is_(None), col(Repository.enabled).is_(True), named)
    async with services.database.reading() as session:
        repositories = (await session.exec(query.order_by(col(Repository.alias)))).all()
    return [each.alias for each in repositories if routes_naming(services.settings, each, definition)]


async def fetch_subject(services: Services, project: str, task_id: str) -> Subject:
    """Fetch the task anew, because a message is only a hint. Raises ActionRejectedError and ActionFailedError."""
    repository = await find_repository(services, project)
    if re.fullmatch(SLUGID, task_id) is None:
        raise ActionRejectedError(f"there is no task {task_id} in Taskcluster: this is not the form of a taskId")
    try:
        definition, status = await asyncio.gather(services.queue.task(task_id), services.queue.status(task_id))
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(
            f"Taskcluster does not let us see task {task_id} ({refusal.status}): {refusal}"
        ) from None
    if definition is None or status is None:
        raise ActionRejectedError(f"there is no task {task_id} in Taskcluster: it may have expired")
    definition, status = validate_definition(definition), validate_status(status)
    routes = routes_naming(services.settings, repository, definition)
    if not routes:
        prefixes = " and ".join(known_prefixes(services.settings))
        raise ActionRejectedError(
            f"none of the {prefixes} routes of task {task_id} ({name_of(definition)}) names {project}: "
            "it is not a task of that project"
        )
    return Subject(repository, definition, status, routes)


def known_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return the prefixes of routes that name projects."""
    return tuple(settings.environments) or KNOWN_PREFIXES


def routes_naming(settings: Settings, repository: Repository, definition: Definition) -> list[tuple[str, Route]]:
    """Return the routes of a task that name this repository exactly, each with its prefix."""
    return [
        (prefix, route)
        for text in definition["routes"]
        for prefix in known_prefixes(settings)
        if (route := parse_route(prefix, text)) and route.full_project in {repository.alias, repository.route_project}
    ]


def find_run(status: Status, run_id: int | None) -> dict[str, Any] | None:
    """Return the run that an action names, the latest if it names none; None if the task has never run.

    Raises ActionRejectedError if there is no such run.
    """
    runs: list[dict[str, Any]] = status["runs"]
    if run_id is None or (not runs and run_id == 0):  # Treeherder shows a waiting task as run 0
        return runs[-1] if runs else None
    for run in runs:
        if run["runId"] == run_id:
            return run
    raise ActionRejectedError(f"task {status['taskId']} has no run {run_id}: it has {len(runs)}")
