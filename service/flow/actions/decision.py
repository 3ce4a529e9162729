"""Find the decision task whose in-tree actions are for a task or for a push.

    the task's group      if the task of that id is a decision task
    its origin            of a copy of ours: the original; of an action task: what it names as its parent
    its push              the newest decision task of the push that succeeded: of our own graph; or, without one, the
                          one that a Treeherder names which reads tasks by itself

A decision task counts only if its routes name the repository exactly, or if it is of the push's own graph: what a task
says of its origin is free text, and with another project's decision task, a caller would use that project's rights.
One that a Treeherder names must name the push, too.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, select

from service.clients.taskcluster import Definition, Status, validate_definition, validate_status
from service.errors import PermanentUpstreamError
from service.flow.tasks.definition import SLUGID
from service.flow.tasks.subject import ActionFailedError, PushSubject, Subject, routes_naming
from service.services import Services
from service.store.models import PlannedTask, Push, PushStep, Repository, StepKind

MAX_STEPS = 5
"""Tasks from which a task's origin is followed: an action of an action of a copy."""

MAX_CANDIDATES = 10
"""Tasks of a push that are looked at: a graph without a decision task can have thousands that begin a group."""

MAX_REVISIONS = 3
"""Pushes that are asked for if a task of an unknown push names several."""

MAX_KEYS = 500
"""Tasks whose copies one query looks for."""

CALLBACK = "action-callback"
"""The tag `kind` of an action task."""


@dataclass(frozen=True)
class Decision:
    """A decision task, and its latest run; None: it has not run yet."""

    task_id: str
    definition: Definition
    run_id: int | None
    ended: bool


async def decisions_of_task(services: Services, subject: Subject) -> list[Decision]:
    """Return the decision task of a task, and those of its push, the likeliest first. Raises ActionFailedError."""
    task_id = str(subject.status["taskId"])
    decisions: list[Decision] = []
    try:
        origin = await _Search(services, subject.repository).follow(task_id, subject.definition)
        status = None if origin is None else await services.queue.status(origin[0])
        if origin is not None and status is not None:
            decisions.append(_decision(origin[0], origin[1], validate_status(status)))
    except PermanentUpstreamError as refusal:
        raise _failure(f"task {task_id}", refusal) from None
    push = await _push_of(services, subject)
    if push is not None:
        of_push = await _decisions_of_graph(services, PushSubject(subject.repository, push))
        decisions += [decision for decision in of_push if decision.task_id not in {d.task_id for d in decisions}]
    if not decisions:
        named = sorted({route.revision for _, route in subject.routes if route.revision is not None})
        for revision in [push.revision] if push is not None else named[:MAX_REVISIONS]:
            decisions += await _decisions_of_treeherder(services, subject.repository, revision)
    return decisions


async def decisions_of_push(services: Services, subject: PushSubject) -> list[Decision]:
    """Return the decision tasks of a push that succeeded, the newest first.

    Raises ActionFailedError and Unavailable.
    """
    decisions = await _decisions_of_graph(services, subject)
    return decisions or await _decisions_of_treeherder(services, subject.repository, subject.push.revision)


async def _decisions_of_treeherder(services: Services, repository: Repository, revision: str | None) -> list[Decision]:
    """Return the decision task that a Treeherder names for a push, if it is one of this push."""
    if revision is None:  # of a push without changesets
        return []
    for prefix, environment in services.settings.environments.items():
        # one that takes resultsets is older than this call
        shown = repository.environments is None or prefix in repository.environments
        if environment.pushes == "rest" or not shown:
            continue
        try:
            task_id = await services.treeherders[prefix].decision_task(repository.alias, revision)
            if task_id is None or re.fullmatch(SLUGID, task_id) is None:
                continue
            definition, status = await asyncio.gather(services.queue.task(task_id), services.queue.status(task_id))
        except PermanentUpstreamError as refusal:
            raise _failure(f"the push {revision} of {repository.alias}", refusal) from None
        if definition is None or status is None or validate_status(status)["state"] != "completed":
            continue
        named = {route.revision for _, route in routes_naming(services.settings, repository, definition)}
        if _begins_a_group(task_id, definition) and revision in named:
            return [_decision(task_id, definition, status)]
    return []


async def _decisions_of_graph(services: Services, subject: PushSubject) -> list[Decision]:
    """Return the decision tasks of a push's own graph that succeeded, the newest first. Raises ActionFailedError."""
    async with services.database.reading() as session:
        own = select(PlannedTask.task_id).join(PushStep, col(PushStep.id) == PlannedTask.step_id)
        own = own.where(PushStep.push_id == subject.push.id, PushStep.kind == StepKind.GRAPH)
        own = own.where(PlannedTask.plan_attempt == PushStep.plan_attempt, col(PlannedTask.created).is_(True))
        task_ids = set(await session.exec(own.where(PlannedTask.label != "error")))
        originals = sorted(task_ids)
        while originals:  # a decision task that failed may have been copied
            piece, originals = originals[:MAX_KEYS], originals[MAX_KEYS:]
            copy_of: Any = col(PlannedTask.copy_of)
            query = select(PlannedTask.task_id).where(copy_of.in_(piece), copy_of.is_not(None))
            copies = set(await session.exec(query.where(col(PlannedTask.created).is_(True)))) - task_ids
            task_ids |= copies
            originals += sorted(copies)
    try:
        statuses = await services.queue.statuses(sorted(task_ids)) if task_ids else {}
        newest = _newest_that_succeeded(statuses.values())
        definitions = await services.queue.tasks([status["taskId"] for status in newest]) if newest else {}
    except PermanentUpstreamError as refusal:
        raise _failure(subject.name, refusal) from None
    return [
        _decision(status["taskId"], validate_definition(definition), status)
        for status in newest
        if (definition := definitions.get(status["taskId"])) is not None
    ]


def _newest_that_succeeded(statuses: Any) -> list[Status]:
    succeeded = [
        status
        for status in map(validate_status, statuses)
        if status["state"] == "completed" and status["taskGroupId"] == status["taskId"]
    ]
    succeeded.sort(key=lambda status: str(status["runs"][-1].get("resolved", "")), reverse=True)
    return succeeded[:MAX_CANDIDATES]


def _decision(task_id: str, definition: Definition, status: Status) -> Decision:
    run_id = status["runs"][-1]["runId"] if status["runs"] else None
    return Decision(task_id, definition, run_id, status["state"] in {"completed", "failed", "exception"})


def _failure(name: str, refusal: PermanentUpstreamError) -> ActionFailedError:
    return ActionFailedError(
        f"Taskcluster does not let us see the decision task of {name} ({refusal.status}): {refusal}"
    )


async def _push_of(services: Services, subject: Subject) -> Push | None:
    """Return the newest push that the task's routes name, if it is stored."""
    revisions = {route.revision for _, route in subject.routes if route.revision is not None}
    hashes = {route.revision_hash for _, route in subject.routes if route.revision_hash is not None}
    column, values = (Push.revision, revisions) if revisions else (Push.revision_hash, hashes)
    query = select(Push).where(Push.repository_id == subject.repository.id, col(column).in_(sorted(values)))
    async with services.database.reading() as session:
        return (await session.exec(query.order_by(col(Push.id).desc()).limit(1))).first()


class _Search:
    """Follows a task to the decision task that its group, its original or its parent leads to."""

    def __init__(self, services: Services, repository: Repository) -> None:
        self._services, self._repository = services, repository
        self._seen: set[str] = set()

    async def follow(self, task_id: str, definition: Definition) -> tuple[str, Definition] | None:
        """Return the decision task with its definition, None if nothing leads to one."""
        if task_id in self._seen or len(self._seen) >= MAX_STEPS:
            return None
        self._seen.add(task_id)
        group_id: str = validate_definition(definition)["taskGroupId"]
        group = definition if group_id == task_id else await self._services.queue.task(group_id)
        if group is not None:
            original_id = await self._original_of(group_id)
            if original_id is not None:
                original = await self._services.queue.task(original_id)
                if original is not None and not _begins_a_group(original_id, original):
                    return await self.follow(original_id, original)
            if _begins_a_group(group_id, group) and routes_naming(self._services.settings, self._repository, group):
                return group_id, group
        for child in (definition, group):
            parent_id = _parent_of(child)
            parent = None if parent_id is None else await self._services.queue.task(parent_id)
            if parent_id is not None and parent is not None:
                return await self.follow(parent_id, parent)
        return None

    async def _original_of(self, task_id: str) -> str | None:
        """Return the task that this one is a copy of, by our own records."""
        async with self._services.database.reading() as session:
            planned = await session.get(PlannedTask, task_id)
        return None if planned is None or not planned.created else planned.copy_of


def _begins_a_group(task_id: str, definition: Definition) -> bool:
    """Return True if the task may be a decision task: its id is its group's, and it is no action task."""
    tags, extra = definition.get("tags"), definition.get("extra")
    is_action = (isinstance(tags, dict) and tags.get("kind") == CALLBACK) or (
        isinstance(extra, dict) and "action" in extra
    )
    return validate_definition(definition)["taskGroupId"] == task_id and not is_action


def _parent_of(definition: Definition | None) -> str | None:
    """Return the task group that an action task names as the one that it is about."""
    extra = (definition or {}).get("extra")
    if not isinstance(extra, dict):
        return None
    action = extra.get("action")
    context = action.get("context") if isinstance(action, dict) else None
    named: Sequence[Any] = [context.get("taskGroupId")] if isinstance(context, dict) else []
    return next((value for value in [*named, extra.get("parent")] if isinstance(value, str) and len(value) == 22), None)
