"""Create the task graph of a push: render its `.taskcluster.yml`, store the tasks as a plan, and create them.

An error that keeps a push from a graph for good is shown on the push by a task that carries it.
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
from service.flow.pushes.push import load_push
from service.flow.pushes.show_error import show_error
from service.flow.pushes.template import FILE, context_of, message_of, plan_of, scopes_of
from service.flow.tasks.create import MAX_REASON, PlanRefusedError, cancel_created, create_tasks
from service.flow.tasks.ids import DeriveId, graph_ids
from service.flow.tasks.plan import mark_created, read_plan, store_plan
from service.services import Services
from service.settings import Settings
from service.store.database import insertion
from service.store.models import (
    Action,
    PlannedTask,
    Push,
    PushStep,
    Repository,
    Source,
    State,
    StepKind,
    Supersede,
    action_lane,
)
from service.store.wakeups import Topic

log = structlog.get_logger()


async def run(services: Services, lease: Lease[PushStep]) -> None:
    """Plan the graph unless it is planned, then create the tasks that do not exist yet."""
    step = lease.item
    push, repository = await load_push(services, lease)
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
    """Create the graph, or end the step because the push gets none.

    `stack` holds the slot for a large plan while it is in memory. Raises TemplateError and PlanRefusedError.
    """
    plan = await _stored_plan(services, lease, stack)
    if not plan:
        reason, tasks = await _plan_tasks(services, lease, push, repository, stack)
        if reason is not None:
            await lease.finish(State.SKIPPED, reason)
            return
        if not tasks:
            await lease.finish(State.SKIPPED, f"{FILE}: the template has no tasks for this push")
            return
        plan = await store_plan(lease, tasks)
    created = await create_tasks(services, lease, plan, scopes_of(services.settings, repository, push))
    superseding = _superseding(lease.item, push, repository)
    await lease.finish(State.DONE, also=[*mark_created(created), *insertion(superseding)], rows=len(created))
    if superseding:
        services.database.wakeups.wake(Topic.WORK)
    metrics.graph_created(push.noticed_at)
    log.info("graph-created", repository=repository.alias, push=push.push_id, tasks=len(plan))


def _superseding(step: PushStep, push: Push, repository: Repository) -> list[Action]:
    """Return the action by which a newer push supersedes an earlier one, if the repository wants that."""
    if repository.supersede == Supersede.OFF:
        return []
    kind = "supersede"
    action = Action(
        kind=kind,
        lane=action_lane(kind),
        share=step.share,
        project=repository.alias,
        push_id=push.push_id,
        generation=push.generation,
        requester=push.user,
        source=Source.SERVICE,
    )
    return [action]


LARGE = 1024 * 1024
"""Characters of the definitions of a plan that is large; only one large plan is in memory at a time."""


async def _wait_for_large_plan_slot(services: Services, lease: Lease[PushStep], stack: AsyncExitStack) -> None:
    """Wait until no other large plan is in memory, and let this one give way to waiting ones of other shares."""
    share = lease.item.share
    await stack.enter_async_context(services.large_plans.use(share))
    lease.also_wanted = lambda: services.large_plans.others_wait(share)


def _plan_conditions(step: PushStep) -> tuple[Any, ...]:
    """Return the conditions that select the tasks of the step's present plan, without the error task."""
    return (
        PlannedTask.step_id == step.id,
        PlannedTask.plan_attempt == step.plan_attempt,
        col(PlannedTask.label) != "error",
    )


async def _stored_plan(services: Services, lease: Lease[PushStep], stack: AsyncExitStack) -> list[PlannedTask]:
    step = lease.item
    if step.fencing_token == 1:  # no earlier attempt can have planned it
        return []
    conditions = _plan_conditions(step)
    size = select(func.sum(func.length(cast(PlannedTask.definition, Text)))).where(*conditions)
    async with services.database.reading() as session:
        large = ((await session.exec(size)).one() or 0) > LARGE
    if large:
        await _wait_for_large_plan_slot(services, lease, stack)
    return await read_plan(services.database, *conditions)


# --- the plan ----------------------------------------------------------------------------------------------------


def reason_for_no_graph(settings: Settings, repository: Repository, push: Push) -> str | None:
    """Return the reason why this push gets no graph; None if it gets one, provided it has a `.taskcluster.yml`."""
    if not repository.graph:
        return f"graphs are off for {repository.alias}"
    if push.revision is None:
        return "no changesets are left of this push"
    message = message_of(push)
    if "DONTBUILD" in message:
        return "DONTBUILD in the tip's message"
    if repository.contains is not None and repository.contains not in message:
        return f"the tip's message does not contain {repository.contains!r}"
    if not push.any_age and now() - push.date > settings.max_push_age:
        return f"the push is older than max_push_age ({settings.max_push_age}): it was pushed on {push.date:%F %R} UTC"
    return None


async def _plan_tasks(
    services: Services, lease: Lease[PushStep], push: Push, repository: Repository, stack: AsyncExitStack
) -> tuple[str | None, list[PlannedTask]]:
    """Return the reason why a push gets no graph, or None and its plan. Raises TemplateError."""
    step = lease.item
    reason = reason_for_no_graph(services.settings, repository, push)
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
    await lease.wait_until_stored()  # the plan needs the step's id
    ids = graph_ids(services.secret, services.settings.deployment, repository, push, step.plan_attempt, "graph")
    if rendered.small:
        return None, _parse_rendered(rendered, ids, step)
    if len(rendered.answer) > LARGE:
        await _wait_for_large_plan_slot(services, lease, stack)
    return None, await services.compute(step.share, _parse_rendered, rendered, ids, step)


def _parse_rendered(rendered: Rendered, ids: DeriveId, step: PushStep) -> list[PlannedTask]:
    try:
        rendering = rendered.parse(ids)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    return plan_of(rendering.result, rendering.ids, step)


# --- when it was refused -----------------------------------------------------------------------------------------


async def _give_up(services: Services, lease: Lease[PushStep], push: Push, repository: Repository) -> None:
    """Cancel the tasks that were created of the plan, show the error on the push, and end the step."""
    step = lease.item
    unrecorded, not_cancelled = await cancel_created(services, lease, await _read_outline(services, step))
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


async def _read_outline(services: Services, step: PushStep) -> list[PlannedTask]:
    """Return the plan without its definitions, which can be large."""
    return await read_plan(services.database, *_plan_conditions(step), bodies=False)


WORK.add_kind(PushStep, StepKind.GRAPH, run, early=True)
