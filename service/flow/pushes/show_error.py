"""Show on a push why it gets no graph: by a task, or by a job if the project may not create such a task."""

from dataclasses import dataclass, field

import structlog
from sqlmodel import col, select, update

from service.clients.taskcluster import named
from service.clients.treeherder import DECISION_PLACE, failed_job
from service.engine.leases import Lease
from service.engine.render import Renderer, TemplateError
from service.flow.pushes.template import MAX_OWNER, address_of, context_of, owner_of, plan_of, scopes_of
from service.flow.tasks.create import PlanRefusedError, create_tasks
from service.flow.tasks.ids import DeriveId, derive, graph_ids
from service.flow.tasks.plan import store_plan
from service.services import Services
from service.settings import Settings
from service.slugids import OWN_LABEL
from service.store.models import Notice, NoticeKind, PlannedTask, Push, PushStep, Repository

log = structlog.get_logger()

_ROUTE = "queue:route:"


@dataclass
class ErrorDisplay:
    """The task or the jobs that show an error; `refused` says what was left out of the task, or why there is none."""

    task_id: str | None = None
    created: list[PlannedTask] = field(default_factory=list)
    refused: str | None = None
    notices: list[Notice] = field(default_factory=list)


async def show_error(services: Services, lease: Lease[PushStep], push: Push, repository: Repository) -> ErrorDisplay:
    """Create the error task with the routes that the project may use; if it may create none, return jobs instead.

    Raises Unavailable.
    """
    try:
        task = await _make_error_task(services, lease, push, repository)
        scopes = scopes_of(services.settings, repository, push)
        left_out = []
        while True:
            try:
                created = await create_tasks(services, lease, [task], scopes)
            except PlanRefusedError as error:
                routes = _missing_routes(error, task)
                if not routes:
                    raise
                left_out += routes
                await _drop_routes(lease, task, routes)
            else:
                why = f"the project's scopes lack {named([_ROUTE + route for route in left_out])}" if left_out else None
                return ErrorDisplay(task.task_id, created, why)
    except (TemplateError, PlanRefusedError) as error:
        log.warning("error-task-refused", repository=repository.alias, push=push.push_id, why=str(error))
        return ErrorDisplay(refused=str(error), notices=_error_jobs(services, lease.item, push, repository))


def _missing_routes(error: PlanRefusedError, task: PlannedTask) -> list[str]:
    """Return the routes for which the task was refused; none if it was also refused for anything else."""
    missing = [scope.removeprefix(_ROUTE) for scope in error.missing]
    routes = set((task.definition or {})["routes"])
    return missing if missing and all(route in routes for route in missing) else []


async def _drop_routes(lease: Lease[PushStep], task: PlannedTask, routes: list[str]) -> None:
    """Remove routes from a task that was refused and so does not exist; commit that before the task is sent."""
    assert task.definition is not None
    kept = [route for route in task.definition["routes"] if route not in routes]
    task.definition = {**task.definition, "routes": kept}
    async with lease.writing() as session:
        await session.exec(
            update(PlannedTask).where(col(PlannedTask.task_id) == task.task_id).values(definition=task.definition)
        )


async def _make_error_task(
    services: Services, lease: Lease[PushStep], push: Push, repository: Repository
) -> PlannedTask:
    step = lease.item
    query = select(PlannedTask).where(
        PlannedTask.step_id == step.id,
        PlannedTask.plan_attempt == step.plan_attempt,
        PlannedTask.label == "error",
    )
    async with services.database.reading() as session:
        stored = (await session.exec(query)).first()
    if stored is not None:
        return stored
    ids = graph_ids(services.secret, services.settings.deployment, repository, push, step.plan_attempt, "error")
    task = await render_error_task(services.settings, services.renderer, step, push, repository, ids)
    await store_plan(lease, [task])
    return task


async def render_error_task(
    settings: Settings, renderer: Renderer, step: PushStep, push: Push, repository: Repository, ids: DeriveId
) -> PlannedTask:
    """Return the task that shows why the step was refused. Raises TemplateError."""
    context = context_of(settings, repository, push)
    context = {
        **context,
        "repository": {**context["repository"], "trust_domain": repository.trust_domain},
        "owner": owner_of(settings, push)[:MAX_OWNER] or "unknown",
        "error": step.refused,
        "environments": _environments(settings, repository),
        "notify": address_of(settings, push),
    }
    rendering = (await renderer.template(settings.error_task, context, step.share)).parse(ids)
    task_id = ids(OWN_LABEL)
    try:
        (task,) = plan_of([{**rendering.result[0], "taskId": task_id}], rendering.ids, step)
    except TypeError:
        raise TemplateError("the setting error_task renders to something that is not a task") from None
    task.label = "error"
    return task


def _environments(settings: Settings, repository: Repository) -> list[str]:
    """Return the route prefixes of the Treeherders that show the repository."""
    return [
        prefix
        for prefix in settings.environments
        if repository.environments is None or prefix in repository.environments
    ]


def _error_jobs(services: Services, step: PushStep, push: Push, repository: Repository) -> list[Notice]:
    """Return a completed job for each Treeherder that takes jobs over REST; `notice` adds the reason."""
    digest = derive(services.secret, "error job", push.id, step.plan_attempt)
    entry = {
        "project": repository.alias,
        "revision": push.revision,
        "revision_hash": push.revision_hash,
        "job": failed_job(digest, "taskcluster.yml error", push.user, DECISION_PLACE),
    }
    return [
        Notice(
            kind=NoticeKind.JOB,
            lane=f"failure {prefix}",
            share=step.share,
            step_id=step.id or 0,
            target=prefix,
            key=repository.alias,
            body=entry,
        )
        for prefix in _environments(services.settings, repository)
        if services.settings.environments[prefix].jobs == "rest"
    ]
