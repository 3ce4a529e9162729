"""The page of a task."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.deps import Reader, ServicesDep
from service.api.marks import Watched
from service.api.push_tasks import task_states
from service.api.queued_task import find_queued_task
from service.api.tasks import TaskNumber, get_task
from service.auth import LOCAL
from service.errors import Problem
from service.services import Services
from service.web.asking import ON_TASKS, buttons_for
from service.web.pages import PageRoute, Site, SiteDep, show
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)

TASK_AGAIN = 15.0
"""Seconds after which a task that is watched is read again: somebody may have asked for something."""


@live
@dataclass(frozen=True)
class TaskView(View):
    """A task: the push or action that it belongs to, its runs, its copies, and the actions on it."""

    name = "task"
    template = "task.html"
    personal = {"buttons": ()}  # noqa: RUF012 - nobody changes it

    task_id: str

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the task, and the states of its copies; the queue is asked for one that is not known here."""
        try:
            return await self._read_stored(services, site)
        except Problem as unknown:
            if unknown.status != 404:
                raise
            found = await find_queued_task(services, site.task_looks, self.task_id)
            if found is None:
                raise
        values = {
            "task": found.task,
            "states": {self.task_id: found.state},
            "root": site.settings.taskcluster.root,
            "project": found.project,
        }
        return Shown(values, Watched(task_ids=frozenset({self.task_id})), again=TASK_AGAIN)

    async def _read_stored(self, services: Services, site: Site) -> Shown:
        async with services.database.reading() as session:
            task = await get_task(self.task_id, session, LOCAL)
            ids = [task.task_id, *(copy.task_id for copy in task.copies if copy.task_id)]
            states = await task_states(session, ids)
        projects = [run.project for run in task.runs] + [action.project for action in task.actions]
        values = {
            "task": task,
            "states": states,
            "root": site.settings.taskcluster.root,
            "project": task.push.repository if task.push is not None else next(iter(projects), None),
        }
        unfinished = frozenset(action.id for action in task.actions if action.state in {"received", "planned"})
        return Shown(values, Watched(action_ids=unfinished, task_ids=frozenset(ids)), again=TASK_AGAIN)


@router.get("/tasks/{task_id}")
async def get_task_page(
    request: Request, task_id: TaskNumber, services: ServicesDep, caller: Reader, site: SiteDep
) -> Response:
    """Show a task: the push or action that it belongs to, its runs, its copies, and the actions on it."""
    view = TaskView(task_id)
    shown = await view.read(services, site)
    project = shown.values["project"]
    buttons = [] if project is None else buttons_for(caller, ON_TASKS, project)
    return show(request, view.template, view=view, buttons=buttons, **shown.values)
