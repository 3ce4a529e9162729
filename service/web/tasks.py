"""The page of a task."""

from fastapi import APIRouter, Request, Response

from service.api.deps import Reader, Reading
from service.api.push_tasks import task_states
from service.api.tasks import TaskNumber, get_task
from service.web.asking import ON_TASKS, buttons_for
from service.web.pages import PageRoute, SiteDep, show

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/tasks/{task_id}")
async def get_task_page(
    request: Request, task_id: TaskNumber, session: Reading, caller: Reader, site: SiteDep
) -> Response:
    """Show a task: the push or action that it belongs to, its runs, its copies, and the actions on it."""
    task = await get_task(task_id, session, caller)
    states = await task_states(session, [task.task_id, *(copy.task_id for copy in task.copies if copy.task_id)])
    projects = [run.project for run in task.runs] + [action.project for action in task.actions]
    project = task.push.repository if task.push is not None else next(iter(projects), None)
    return show(
        request,
        "task.html",
        task=task,
        states=states,
        root=site.settings.taskcluster.root,
        project=project,
        buttons=[] if project is None else buttons_for(caller, ON_TASKS, project),
    )
