"""The list of actions, and the page of one."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.actions import get_action, list_actions
from service.api.deps import ActionNumber, After, Reader, Reading
from service.api.push_tasks import MOST, task_states
from service.api.schemas.actions import ActionState
from service.web.pages import PageRoute, SiteDep, show

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/actions")
async def get_actions_page(
    request: Request,
    session: Reading,
    caller: Reader,
    state: ActionState | Literal[""] = "",
    project: Annotated[str, Query(max_length=1_000)] = "",
    task_id: Annotated[str, Query(max_length=100)] = "",
    requester: Annotated[str, Query(max_length=1_000)] = "",
    after: After = None,
) -> Response:
    """List actions, the newest first."""
    filters = {
        "state": state,
        "project": project.strip(),
        "task_id": task_id.strip(),
        "requester": requester.strip(),
    }
    given = {name: value or None for name, value in filters.items()}
    page = await list_actions(session, caller, **given, after=after)  # type: ignore[arg-type]  # each is of its type
    return show(request, "actions.html", page=page, filters=filters, states=list(ActionState))


@router.get("/actions/{action_id}")
async def get_action_page(
    request: Request, action_id: ActionNumber, session: Reading, caller: Reader, site: SiteDep
) -> Response:
    """Show an action: who asked for what, and what came of it."""
    action = await get_action(action_id, session, caller)
    states = await task_states(session, [task.task_id for task in action.tasks if task.task_id is not None])
    return show(
        request,
        "action.html",
        action=action,
        tasks=action.tasks[:MOST],
        states=states,
        root=site.settings.taskcluster.root,
    )
