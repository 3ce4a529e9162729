"""The list of actions, and the page of one."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.actions import get_action, list_actions
from service.api.deps import ActionNumber, After, Reader
from service.api.marks import Watched
from service.api.push_tasks import MOST, task_states
from service.api.schemas.actions import ActionState
from service.auth import LOCAL
from service.services import Services
from service.web.pages import PageRoute, Site, show_view
from service.web.pushes import LIST_AGAIN
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)


@live
@dataclass(frozen=True)
class ActionsView(View):
    """A list of actions."""

    name = "actions"
    template = "actions.html"

    state: ActionState | None = None
    project: str = ""
    task_id: str = ""
    requester: str = ""
    after: str | None = None

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        names = ("state", "project", "task_id", "requester")
        given: dict[str, Any] = {name: getattr(self, name) or None for name in names}
        async with services.database.reading() as session:
            page = await list_actions(session, LOCAL, limit=50, after=self.after, **given)
        filters = {name: getattr(self, name) or "" for name in names}
        values = {"page": page, "filters": filters, "states": list(ActionState)}
        return Shown(values, Watched(newest=frozenset({"action"})), LIST_AGAIN)


@router.get("/actions")
async def get_actions_page(
    request: Request,
    _: Reader,
    state: ActionState | Literal[""] = "",
    project: Annotated[str, Query(max_length=1_000)] = "",
    task_id: Annotated[str, Query(max_length=100)] = "",
    requester: Annotated[str, Query(max_length=1_000)] = "",
    after: After = None,
) -> Response:
    """List actions, the newest first."""
    view = ActionsView(state or None, project.strip(), task_id.strip(), requester.strip(), after)
    return await show_view(request, view)


@live
@dataclass(frozen=True)
class ActionView(View):
    """An action: who asked for what, and what came of it."""

    name = "action"
    template = "action.html"

    action_id: int

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the action and the states of its copies."""
        async with services.database.reading() as session:
            action = await get_action(self.action_id, session, LOCAL)
            ids = [task.task_id for task in action.tasks if task.task_id is not None][:MOST]
            states = await task_states(session, ids)
        values = {
            "action": action,
            "tasks": action.tasks[:MOST],
            "states": states,
            "root": site.settings.taskcluster.root,
        }
        return Shown(values, Watched(action_ids=frozenset({action.id}), task_ids=frozenset(ids)))


@router.get("/actions/{action_id}")
async def get_action_page(request: Request, action_id: ActionNumber, _: Reader) -> Response:
    """Show an action: who asked for what, and what came of it."""
    return await show_view(request, ActionView(action_id))
