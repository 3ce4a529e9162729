"""Routes for the in-tree actions that decision tasks offer."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.deps import PushNumber, Reader, RepositoryAlias, ServicesDep
from service.api.openapi import problems
from service.api.pushes import Generation, find_push
from service.api.route import API, Route
from service.api.schemas.offers import OfferedAction, OfferedActions
from service.api.tasks import TaskNumber
from service.auth import Caller
from service.clients.taskcluster import validate_definition
from service.errors import PermanentUpstreamError, Problem, UpstreamError
from service.flow.actions.offers import Offered, offered_for_push, offered_for_task
from service.flow.tasks.action_kinds import scope_of
from service.flow.tasks.definition import SLUGID
from service.flow.tasks.subject import (
    ActionFailedError,
    ActionRejectedError,
    PushSubject,
    fetch_subject,
    find_projects,
)
from service.services import Services
from service.store.models import Repository

router = APIRouter(prefix=API, tags=["actions"], route_class=Route)


@router.get(
    "/tasks/{task_id}/actions",
    response_model=OfferedActions,
    operation_id="listTaskActions",
    responses=problems(404, 502),
)
async def list_task_actions(
    task_id: TaskNumber,
    services: ServicesDep,
    caller: Reader,
    project: Annotated[
        str | None, Query(max_length=1_000, description="alias; the first that the task's routes name, if not given")
    ] = None,
) -> Response:
    """List the in-tree actions for a task, and whether the caller may use them."""
    return await _respond(await read_task_offers(task_id, services, caller, project))


async def read_task_offers(task_id: str, services: Services, caller: Caller, project: str | None) -> OfferedActions:
    """Return the in-tree actions for a task, of this project if it is given. Raises a 404 and a 502."""

    async def offered() -> Offered:
        subject = await fetch_subject(services, shown.project, task_id)
        return await offered_for_task(services, subject, f"offers {caller.key}")

    async with services.previews.use(caller.key):
        alias = project or await _project_of(services, task_id)
        shown = OfferedActions(project=alias, task_id=task_id, push=None, decision_task=None, reason=None, items=[])
        return await _fill(shown, caller, offered)


@router.get(
    "/pushes/{alias}/{push_id}/actions",
    response_model=OfferedActions,
    operation_id="listPushActions",
    responses=problems(404, 502),
)
async def list_push_actions(
    alias: RepositoryAlias, push_id: PushNumber, services: ServicesDep, caller: Reader, generation: Generation = None
) -> Response:
    """List the in-tree actions for a push, and whether the caller may use them."""
    return await _respond(await read_push_offers(alias, push_id, services, caller, generation))


async def read_push_offers(
    alias: str, push_id: int, services: Services, caller: Caller, generation: int | None = None
) -> OfferedActions:
    """Return the in-tree actions for a push. Raises a 404 and a 502."""

    async def offered() -> Offered:
        return await offered_for_push(services, subject, f"offers {caller.key}")

    async with services.previews.use(caller.key):
        async with services.database.reading() as session:
            push = await find_push(session, alias, push_id, generation)
            subject = PushSubject(await session.get_one(Repository, push.repository_id), push)
        shown = OfferedActions(project=alias, task_id=None, push=push_id, decision_task=None, reason=None, items=[])
        return await _fill(shown, caller, offered)


async def _project_of(services: Services, task_id: str) -> str:
    """Return the first monitored repository that the task's routes name. Raises a 404 and a 502."""
    try:
        definition = await services.queue.task(task_id) if re.fullmatch(SLUGID, task_id) else None
        projects = [] if definition is None else await find_projects(services, validate_definition(definition))
    except UpstreamError as error:
        raise _unavailable(error) from None
    if definition is None:
        raise Problem(404, "Unknown task", f"there is no task {task_id!r} in Taskcluster: it may have expired")
    if not projects:
        raise Problem(404, "Unknown task", f"no route of task {task_id} names a repository that is monitored here")
    return projects[0]


async def _fill(shown: OfferedActions, caller: Caller, offered: Callable[[], Awaitable[Offered]]) -> OfferedActions:
    """Add what is offered. Raises a 404 for a task that is not the project's, and a 502."""
    try:
        found = await offered()
    except ActionRejectedError as error:
        raise Problem(404, "Unknown task", str(error)) from None
    except ActionFailedError as error:
        shown.reason = str(error)
        return shown
    except UpstreamError as error:
        raise _unavailable(error) from None
    shown.reason = found.reason
    if found.offer is not None:
        shown.decision_task = found.offer.decision.task_id
    for action in found.actions:
        scope = scope_of(action["name"], shown.project)
        allowed = caller.has(scope)
        shown.items.append(
            OfferedAction(
                name=action["name"],
                title=action["title"],
                description=action["description"],
                input=action["schema"],
                allowed=allowed,
                missing_scope=None if allowed else scope,
                broken=action["broken"],
            )
        )
    return shown


async def _respond(shown: OfferedActions) -> Response:
    # in a thread, for schemas can have two megabytes
    return Response(await asyncio.to_thread(shown.model_dump_json), media_type="application/json")


def _unavailable(error: UpstreamError) -> Problem:
    doubt = "" if isinstance(error, PermanentUpstreamError) else ": try again later"
    return Problem(502, "Upstream unavailable", f"{error}{doubt}")
