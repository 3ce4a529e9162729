"""A push becomes a task graph: its `.taskcluster.yml`, rendered, stored as a plan, and then created.

What keeps a push from a graph for good is shown where people look: a task on the push that carries the error.
"""

from contextlib import AsyncExitStack
from typing import Any

import structlog
from sqlalchemy import Text, cast, func
from sqlmodel import col, select

from service import metrics
from service.clock import now
from service.engine.leases import Lease
from service.engine.registry import WORK
from service.engine.render import Rendered, TemplateError
from service.errors import PermanentUpstreamError
from service.flow.pushes.push import push_of
from service.flow.pushes.show_error import show_error
from service.flow.pushes.template import FILE, context_of, message_of, plan_of, scopes_of
from service.flow.tasks.create import MAX_REASON, PlanRefusedError, cancel_created, create_tasks
from service.flow.tasks.ids import DeriveId, graph_ids
from service.flow.tasks.plan import mark_created, read_plan, store_plan
from service.services import Services
from service.settings import Settings
from service.store.models import PlannedTask, Push, PushStep, Repository, State, StepKind

log = structlog.get_logger()


async def run(services: Services, lease: Lease[PushStep]) -> None:
    """Plan the graph unless there is a plan, then create what is not there yet."""
    step = lease.item
    push, repository = await push_of(services, lease)
    structlog.contextvars.bind_contextvars(repository=repository.alias, push=push.push_id)
    if step.refused is None:
        try:
            async with AsyncExitStack() as stack:
                await _make_graph(services, lease, push, repository, stack)
            return
        except (TemplateError, PlanRefusedError) as error:
            log.warning("graph-refused", repository=repository.alias, push=push.push_id, why=str(error))
            await lease.commit(refused=str(error)[:MAX_REASON])
            step.refused = str(error)[:MAX_REASON]
    await _give_up(services, lease, push, repository)


async def _make_graph(
    services: Services, lease: Lease[PushStep], push: Push, repository: Repository, stack: AsyncExitStack
) -> None:
    """Make the graph, or end the step because the push gets none; a large plan is in `stack` while it is in memory.

    Raises TemplateError and RefusedError.
    """
    plan = await _stored_plan(services, lease, stack)
    if not plan:
        reason, tasks = await _planned(services, lease, push, repository, stack)
        if reason is not None:
            await lease.finish(State.SKIPPED, reason)
            return
        if not tasks:
            await lease.finish(State.SKIPPED, f"{FILE}: the template has no tasks for this push")
            return
        plan = await store_plan(lease, tasks)
    made = await create_tasks(services, lease, plan, scopes_of(services.settings, repository, push))
    await lease.finish(State.DONE, also=mark_created(made), rows=len(made))
    metrics.graph_created(push.noticed_at)
    log.info("graph-created", repository=repository.alias, push=push.push_id, tasks=len(plan))


LARGE = 1024 * 1024
"""Characters of a plan's definitions; of larger plans one is in memory at a time."""


async def _alone(services: Services, lease: Lease[PushStep], stack: AsyncExitStack) -> None:
    """Wait until no other large plan is in memory; this one then gives way to those of others who wait."""
    share = lease.item.share
    await stack.enter_async_context(services.large_plans.use(share))
    lease.also_wanted = lambda: services.large_plans.others_wait(share)


def _own(step: PushStep) -> tuple[Any, ...]:
    """Select the tasks of the step's present plan; the error task is none of them."""
    return (
        PlannedTask.step_id == step.id,
        PlannedTask.plan_attempt == step.plan_attempt,
        col(PlannedTask.label) != "error",
    )


async def _stored_plan(services: Services, lease: Lease[PushStep], stack: AsyncExitStack) -> list[PlannedTask]:
    step = lease.item
    if step.fencing_token == 1:  # nobody can have planned it before
        return []
    own = _own(step)
    size = select(func.sum(func.length(cast(PlannedTask.definition, Text)))).where(*own)
    async with services.database.reading() as session:
        large = ((await session.exec(size)).one() or 0) > LARGE
    if large:
        await _alone(services, lease, stack)
    return await read_plan(services.database, *own)


# --- the plan ----------------------------------------------------------------------------------------------------


def why_not(settings: Settings, repository: Repository, push: Push) -> str | None:
    """Why this push gets no graph, in plain words; None: it gets one, if it has a `.taskcluster.yml`."""
    if not repository.graph:
        return f"graphs are off for {repository.alias}"
    if push.revision is None:
        return "no changesets are left of this push"
    message = message_of(push)
    if "DONTBUILD" in message:
        return "DONTBUILD in the tip's message"
    if repository.contains is not None and repository.contains not in message:
        return f"the tip's message does not contain {repository.contains!r}"
    if now() - push.date > settings.max_push_age:
        return f"pushed on {push.date:%F %T}Z, longer ago than max_push_age ({settings.max_push_age})"
    return None


async def _planned(
    services: Services, lease: Lease[PushStep], push: Push, repository: Repository, stack: AsyncExitStack
) -> tuple[str | None, list[PlannedTask]]:
    """Return the plan of a push; or the reason why it gets none. Raises TemplateError."""
    step = lease.item
    reason = why_not(services.settings, repository, push)
    if reason is not None:
        return reason, []
    assert push.revision is not None
    try:
        raw = await services.hg.raw_file(repository.url, push.revision, FILE)
    except PermanentUpstreamError as refusal:
        raise TemplateError(str(refusal)) from None
    if raw is None:
        return f"no {FILE} at {push.revision}", []
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise TemplateError(f"{FILE} is not UTF-8: {error}") from None
    try:
        context = context_of(services.settings, repository, push)
        rendered = await services.renderer.taskcluster_yml(text, context, step.share)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    ids = graph_ids(services.secret, services.settings.deployment, repository, push, step.plan_attempt, "graph")
    if rendered.small:
        return None, _checked(rendered, ids, step)
    if len(rendered.answer) > LARGE:
        await _alone(services, lease, stack)
    return None, await services.compute(step.share, _checked, rendered, ids, step)


def _checked(rendered: Rendered, ids: DeriveId, step: PushStep) -> list[PlannedTask]:
    try:
        rendering = rendered.parse(ids)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    return plan_of(rendering.result, rendering.ids, step)


# --- when it was refused -----------------------------------------------------------------------------------------


async def _give_up(services: Services, lease: Lease[PushStep], push: Push, repository: Repository) -> None:
    """Cancel what was made of the plan, show the error as a task on the push, and end the step."""
    step = lease.item
    unrecorded, not_cancelled = await cancel_created(services, lease, await _outline(services, step))
    shown = await show_error(services, lease, push, repository)
    reasons = [step.refused or "", *not_cancelled]
    if shown.task_id is None:
        reasons.append(f"no task could show this on the push: {shown.refused}")
    await lease.finish(
        State.FAILED,
        "; ".join(reasons)[:MAX_REASON],
        also=mark_created([*unrecorded, *shown.created]),
        notices=shown.notices,
        error_task=shown.task_id,
        error_task_refused=shown.refused,
    )


async def _outline(services: Services, step: PushStep) -> list[PlannedTask]:
    """Return the plan without its definitions, which can be large."""
    return await read_plan(services.database, *_own(step), bodies=False)


WORK.add_kind(PushStep, StepKind.GRAPH, run)
