"""The list of pushes, and the page of one."""

import asyncio
from collections import Counter
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response

from service.api.actions import list_actions
from service.api.deps import After, CallerDep, PushNumber, Reader, Reading, RepositoryAlias, ServicesDep
from service.api.file_excerpt import QuotedLine
from service.api.push_tasks import MOST
from service.api.push_view import view_push
from service.api.pushes import Generation, get_push, list_pushes, retry_push
from service.api.repositories import get_repository
from service.api.schemas.common import StepState
from service.api.schemas.pushes import PushRead
from service.api.schemas.repositories import RepositoryRead
from service.clock import now
from service.errors import Problem
from service.flow.pushes.template import FILE
from service.flow.tasks.action_kinds import scope_of
from service.services import Services
from service.settings import Settings
from service.store.database import Session
from service.web.asking import ON_PUSHES, buttons_for
from service.web.pages import FormDep, PageRoute, Site, SiteDep, show
from service.web.picture import draw
from service.web.rendering import path_of
from service.web.words import Explanation, explain_graph, explain_resultset, tone_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

TASKS = 100
"""Tasks on one page, so that a page stays small: those that failed come first."""

NOT_REPORTED = "not reported"

ACTIONS = 20
"""Actions on a push that its page shows."""

CHANGESETS = 20
"""Changesets that the page of a push shows, the newest."""


@router.get("/pushes")
async def get_pushes_page(
    request: Request,
    session: Reading,
    caller: Reader,
    repository: Annotated[str, Query(max_length=50)] = "",
    user: Annotated[str, Query(max_length=1_000)] = "",
    state: StepState | Literal[""] = "",
    after: After = None,
) -> Response:
    """List pushes, the newest first."""
    filters = {"repository": repository.strip(), "user": user.strip(), "state": state}
    given = {name: value or None for name, value in filters.items()}
    page = await list_pushes(session, caller, **given, after=after)  # type: ignore[arg-type]  # each is of its type
    return show(request, "pushes.html", page=page, filters=filters, states=list(StepState))


@router.get("/pushes/{alias}/{push_id}")
async def get_push_page(
    request: Request,
    alias: RepositoryAlias,
    push_id: PushNumber,
    services: ServicesDep,
    caller: Reader,
    site: SiteDep,
    generation: Generation = None,
    first: Annotated[int, Query(ge=0, le=MOST, description="the task that is shown first")] = 0,
) -> Response:
    """Show a push: its steps, its tasks with their states, their copies, and what went wrong."""
    async with services.database.reading() as session:
        push = await get_push(alias, push_id, session, caller, generation)
        repository = await _repository(session, alias, caller)
        actions = await list_actions(session, caller, project=push.repository, push=push_id, limit=ACTIONS)
    # no connection to the database is held while Taskcluster and hg are asked
    view, failures = await asyncio.gather(
        view_push(services.database, site.looks, push), _quoted(services, site, push, repository)
    )
    tasks = sorted(view.tasks, key=lambda task: task.state is None or tone_of(task.state.state) != "bad")
    created = [task for task in tasks if task.task_id is not None]
    counts = Counter(NOT_REPORTED if task.state is None else task.state.state for task in created)
    retry = scope_of("retry", push.repository)
    return show(
        request,
        "push.html",
        push=push,
        links=links_of(site.settings, push, repository, view.groups[:3]),
        tip=push.changesets[-1] if push.changesets else None,
        changesets=push.changesets[::-1][:CHANGESETS],
        view=view,
        tasks=tasks[first : first + TASKS],
        first=first,
        following=first + TASKS if len(tasks) > first + TASKS else None,
        counts=counts.most_common(),
        by_tasks=sum(not task.planned for task in tasks),
        picture=draw(push, view.tasks, now()),
        failures=failures,
        scopes=None if repository is None else repository.scopes,
        actions=actions.items,
        root=site.settings.taskcluster.root,
        buttons=buttons_for(caller, ON_PUSHES, push.repository),
        retry_missing=None if caller.has(retry) else retry,
    )


async def _quoted(
    services: Services, site: Site, push: PushRead, repository: RepositoryRead | None
) -> list[tuple[str, Explanation, list[QuotedLine]]]:
    """Return what failed, each with the lines of the file where one is the cause."""
    failures = []
    for title, failure in failures_of(push):
        lines: list[QuotedLine] = []
        if failure.line is not None and repository is not None and push.revision is not None:
            lines = await site.excerpts.quote(services.hg, repository.url, push.revision, FILE, failure.line)
        failures.append((title, failure, lines))
    return failures


@router.post("/pushes/{alias}/{push_id}/retry")
async def retry_push_form(
    request: Request,
    alias: RepositoryAlias,
    push_id: PushNumber,
    services: ServicesDep,
    caller: CallerDep,
    _: FormDep,
    site: SiteDep,
    generation: Generation = None,
) -> Response:
    """Retry the failed steps of a push, and lead back to its page."""
    push = await retry_push(alias, push_id, request, services, caller, generation)
    return site.redirect(path_of("pushes", alias, push_id, generation=push.generation or None))


async def _repository(session: Session, alias: str, caller: Any) -> RepositoryRead | None:
    """Return the monitored repository; None if it was deleted: its pushes can still be read."""
    try:
        return await get_repository(alias, session, caller)
    except Problem:
        return None


def links_of(
    settings: Settings, push: PushRead, repository: RepositoryRead | None, groups: list[str]
) -> list[tuple[str, str]]:
    """Return links to a push in other systems, each with its name."""
    links = []
    if push.revision is not None:
        if repository is not None:
            links.append(("hg", f"{repository.url}/rev/{quote(push.revision, safe='')}"))
        query = urlencode({"repo": push.repository, "revision": push.revision})
        for resultset in push.resultsets:
            if (environment := settings.environments.get(resultset.environment)) is not None:
                links.append((resultset.environment, f"{str(environment.url).rstrip('/')}/jobs?{query}"))
    links += [("task group", f"{settings.taskcluster.root}/tasks/groups/{quote(group)}") for group in groups]
    return links


def failures_of(push: PushRead) -> list[tuple[str, Explanation]]:
    """Return what failed of a push for good, with the explanation."""
    failures = [
        (
            f"No resultset in {resultset.environment}",
            explain_resultset(resultset.error or "", push.repository, push.push_id),
        )
        for resultset in push.resultsets
        if resultset.state == "failed"
    ]
    if push.graph is not None and push.graph.state == "failed":
        explanation = explain_graph(push.graph.reason or "", push.repository, push.push_id)
        failures.insert(0, ("No task graph", explanation))
    return failures
