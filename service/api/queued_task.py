"""Tell of a task that no push, action or report here names: what the queue says, and to which push its routes lead.

A decision task creates such tasks where no environment reports jobs. Nothing is told of a task whose routes name no
repository that is monitored here.
"""

import re
from dataclasses import dataclass

from sqlmodel import col, select

from service.api.push_tasks import TaskState
from service.api.queue_look import QueuedTask, QueueLooks
from service.api.schemas.tasks import TaskOwner, TaskPush
from service.flow.tasks.definition import SLUGID
from service.flow.tasks.subject import find_projects, routes_naming
from service.services import Services
from service.store.models import Push, Repository


@dataclass(frozen=True)
class FoundTask:
    """A task of the queue, and the monitored repository that its routes name."""

    task: TaskOwner
    state: TaskState
    project: str


async def find_queued_task(services: Services, looks: QueueLooks, task_id: str) -> FoundTask | None:
    """Return a task of the queue; None if there is none, or it is no monitored repository's."""
    if re.fullmatch(SLUGID, task_id) is None:
        return None
    look = await looks.look(("task", task_id), [task_id])
    queued = look.tasks.get(task_id)
    projects = [] if queued is None else await find_projects(services, {"routes": list(queued.routes)})
    if queued is None or not projects:
        return None
    push = await _push_of(services, queued, projects[0])
    owner = TaskOwner(task_id=task_id, name=queued.name, push=push, actions=[], copies=[], runs=[])
    return FoundTask(owner, queued.state, projects[0])


async def _push_of(services: Services, queued: QueuedTask, project: str) -> TaskPush | None:
    """Return the newest push that the task's routes name, if it is stored."""
    alias, deleted = col(Repository.alias), col(Repository.deleted_at)
    async with services.database.reading() as session:
        live = select(Repository).where(alias == project, deleted.is_(None))
        repository = (await session.exec(live)).one_or_none()
        if repository is None:
            return None
        routes = routes_naming(services.settings, repository, {"routes": list(queued.routes)})
        revisions = sorted({route.revision for _, route in routes if route.revision is not None})
        query = select(Push.push_id, Push.generation, Push.revision)
        query = query.where(Push.repository_id == repository.id, col(Push.revision).in_(revisions))
        row = (await session.exec(query.order_by(col(Push.id).desc()).limit(1))).first()
    return None if row is None else TaskPush(repository=project, push_id=row[0], generation=row[1], revision=row[2])
