"""The list of pushes, and the page of one."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response

from service.api.actions import list_actions
from service.api.deps import After, CallerDep, PushNumber, Reader, RepositoryAlias, ServicesDep
from service.api.file_excerpt import QuotedLine
from service.api.marks import Watched
from service.api.push_tasks import MOST, RESOLVED_RANK
from service.api.push_view import PushTasks, view_push
from service.api.pushes import Generation, find_push, read_push, retry_push, summarize_pushes
from service.api.repositories import get_repository
from service.api.schemas.common import StepState
from service.api.schemas.pushes import PushRead
from service.api.schemas.repositories import RepositoryRead
from service.auth import LOCAL
from service.clock import now
from service.errors import Problem
from service.flow.pushes.template import FILE
from service.flow.tasks.action_kinds import scope_of
from service.services import Services
from service.settings import Settings
from service.store.database import Session
from service.web.asking import ON_PUSHES, buttons_for
from service.web.pages import FormDep, PageRoute, Site, SiteDep, show_view
from service.web.picture import draw
from service.web.rendering import path_of
from service.web.views import Shown, View, live
from service.web.words import Explanation, explain_graph, explain_resultset, tone_of

router = APIRouter(route_class=PageRoute)

TASKS = 100
"""Tasks on one page, so that a page stays small: those that failed come first."""

NOT_REPORTED = "not reported"

ACTIONS = 20
"""Actions on a push that its page shows."""

CHANGESETS = 20
"""Changesets that the page of a push shows, the newest."""

WATCHED_TASKS = 300
"""Tasks of a push whose changes are noticed at once; others are read with it."""

NEW_PUSHES = frozenset({"push"})

LIST_AGAIN = 5.0
"""Seconds after which a list that is watched is read again."""

RUNNING_AGAIN = 10.0
"""Seconds after which a push that is watched is read again: the queue may know more than job reports tell."""

ENDED_AGAIN = 60.0
"""Seconds after which a push that is watched is read again although all of its tasks have ended."""


@live
@dataclass(frozen=True)
class PushesView(View):
    """A list of pushes."""

    name = "pushes"
    template = "pushes.html"
    personal = {"ingest": ()}  # noqa: RUF012 - nobody changes it

    repository: str = ""
    user: str = ""
    state: StepState | None = None
    after: str | None = None

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        given: dict[str, Any] = {"repository": self.repository or None, "user": self.user or None}
        async with services.database.reading() as session:
            page = await summarize_pushes(session, **given, state=self.state, limit=50, after=self.after)
        filters = {"repository": self.repository, "user": self.user, "state": self.state or ""}
        return Shown(
            {"page": page, "filters": filters, "states": list(StepState)}, Watched(newest=NEW_PUSHES), LIST_AGAIN
        )


@router.get("/pushes")
async def get_pushes_page(
    request: Request,
    caller: Reader,
    repository: Annotated[str, Query(max_length=50)] = "",
    user: Annotated[str, Query(max_length=1_000)] = "",
    state: StepState | Literal[""] = "",
    after: After = None,
) -> Response:
    """List pushes, the newest first."""
    view = PushesView(repository.strip(), user.strip(), state or None, after)
    ingest = buttons_for(caller, ("ingest",), view.repository) if view.repository else []
    return await show_view(request, view, ingest=ingest)


@live
@dataclass(frozen=True)
class PushView(View):
    """A push: its steps, its tasks with their states, their copies, and what went wrong."""

    name = "push"
    template = "push.html"
    personal = {"buttons": ()}  # noqa: RUF012 - nobody changes it

    alias: str
    push_id: int
    generation: int | None
    first: int
    may_retry: bool

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the push; no connection to the database is held while Taskcluster and hg are asked."""
        async with services.database.reading() as session:
            row = await find_push(session, self.alias, self.push_id, self.generation)
            push = await read_push(session, row, self.alias)
            repository = await _repository(session, self.alias)
            actions = await list_actions(session, LOCAL, project=push.repository, push=self.push_id, limit=ACTIONS)
        view, failures = await asyncio.gather(
            view_push(services.database, site.looks, push), _quoted(services, site, push, repository)
        )
        values = {
            "push": push,
            "links": links_of(site.settings, push, repository, view.groups[:3]),
            "tip": push.changesets[-1] if push.changesets else None,
            "changesets": push.changesets[::-1][:CHANGESETS],
            "seen": view,
            "picture": draw(push, view.tasks, now()),
            "failures": failures,
            "scopes": None if repository is None else repository.scopes,
            "actions": actions.items,
            "root": site.settings.taskcluster.root,
            "retry_missing": None if self.may_retry else scope_of("retry", push.repository),
            **self._tasks(view),
        }
        watched = Watched(
            frozenset({row.id or 0}),
            frozenset(action.id for action in actions.items if action.done_at is None),
            frozenset(_watched_tasks(view)),
        )
        return Shown(values, watched, _again(view))

    def _tasks(self, view: PushTasks) -> dict[str, Any]:
        """Return the tasks that are shown, those that failed first, and how many there are of each state."""
        tasks = sorted(view.tasks, key=lambda task: task.state is None or tone_of(task.state.state) != "bad")
        created = [task for task in tasks if task.task_id is not None]
        counts = Counter(NOT_REPORTED if task.state is None else task.state.state for task in created)
        return {
            "tasks": tasks[self.first : self.first + TASKS],
            "first": self.first,
            "following": self.first + TASKS if len(tasks) > self.first + TASKS else None,
            "counts": counts.most_common(),
            "by_tasks": sum(not task.planned for task in tasks),
        }


def _watched_tasks(view: PushTasks) -> list[str]:
    """Return the tasks and copies whose states are watched, those first that have not ended."""
    ids = [*(task.task_id for task in view.tasks if task.task_id is not None), *view.states]
    ids.sort(key=lambda task_id: task_id in view.states and view.states[task_id].rank[1] == RESOLVED_RANK)
    return list(dict.fromkeys(ids))[:WATCHED_TASKS]


def _again(view: PushTasks) -> float:
    """Return the seconds after which a push is read again, whatever the database says."""
    states = [task.state for task in view.tasks if task.task_id is not None]
    if view.problem is None and all(state is not None and state.rank[1] == RESOLVED_RANK for state in states):
        return ENDED_AGAIN
    return RUNNING_AGAIN


@router.get("/pushes/{alias}/{push_id}")
async def get_push_page(
    request: Request,
    alias: RepositoryAlias,
    push_id: PushNumber,
    caller: Reader,
    generation: Generation = None,
    first: Annotated[int, Query(ge=0, le=MOST, description="the task that is shown first")] = 0,
) -> Response:
    """Show a push: its steps, its tasks with their states, their copies, and what went wrong."""
    view = PushView(alias, push_id, generation, first, caller.has(scope_of("retry", alias)))
    return await show_view(request, view, buttons=buttons_for(caller, ON_PUSHES, alias))


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


async def _repository(session: Session, alias: str) -> RepositoryRead | None:
    """Return the monitored repository; None if it was deleted: its pushes can still be read."""
    try:
        return await get_repository(alias, session, LOCAL)
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
                links.append(
                    (f"Treeherder ({resultset.environment})", f"{str(environment.url).rstrip('/')}/jobs?{query}")
                )
    links += [("task group", f"{settings.taskcluster.root}/tasks/groups/{quote(group)}") for group in groups]
    return links


def failures_of(push: PushRead) -> list[tuple[str, Explanation]]:
    """Return what failed of a push for good, with the explanation."""
    failures = [
        (
            f"No resultset in Treeherder ({resultset.environment})",
            explain_resultset(resultset.error or "", push.repository, push.push_id),
        )
        for resultset in push.resultsets
        if resultset.state == "failed"
    ]
    if push.graph is not None and push.graph.state == "failed":
        explanation = explain_graph(push.graph.reason or "", push.repository, push.push_id)
        failures.insert(0, ("No task graph", explanation))
    return failures
