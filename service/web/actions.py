"""The page of an action."""

from fastapi import APIRouter, Request, Response

from service.api.actions import get_action
from service.api.deps import ActionNumber, Reader, Reading
from service.api.push_tasks import MOST, task_states
from service.web.pages import PageRoute, SiteDep, show

router = APIRouter(route_class=PageRoute)


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
