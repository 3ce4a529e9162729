"""A push becomes a task graph: its `.taskcluster.yml`, rendered, stored as a plan, and then created.

What keeps a push from a graph for good is shown where people look: a task on the push that carries the error.
"""

import asyncio
import json
import re
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Text, cast, func
from sqlalchemy.orm import defer
from sqlmodel import col, select

from service import metrics
from service.clients.taskcluster import Definition
from service.database import now
from service.door import problems_of
from service.errors import Refusal
from service.flow.create import RefusedError, cancel_created, create_tasks
from service.flow.definition import MAX_BODY, CircleError, complete, creation_order, name_of, stamp
from service.flow.ids import DeriveId, graph_ids
from service.flow.plan import record, store_plan
from service.flow.resultset import push_of
from service.models import PlannedTask, Push, PushStep, Repository, State
from service.parts import Parts
from service.render import Rendered, TemplateError
from service.render_child import OWN_LABEL
from service.settings import Settings
from service.work import Hold

log = structlog.get_logger()

FILE = ".taskcluster.yml"
MAX_ERROR = 8_000
_ADDRESS = re.compile(r"[!-?A-~]+@[!-?A-~]+")
MAX_ADDRESS = 254
MAX_OWNER = 255
"""Characters of `metadata.owner`."""


async def run(parts: Parts, hold: Hold[PushStep]) -> None:
    """Plan the graph unless there is a plan, then create what is not there yet."""
    step = hold.item
    async with parts.database.reading() as session:
        push, repository = await push_of(session, step)
    structlog.contextvars.bind_contextvars(repository=repository.alias, push=push.push_id)
    if step.refused is None:
        try:
            async with AsyncExitStack() as stack:
                await _make_graph(parts, hold, push, repository, stack)
            return
        except (TemplateError, RefusedError) as error:
            log.warning("graph-refused", repository=repository.alias, push=push.push_id, why=str(error))
            async with hold.writing(refused=str(error)[:MAX_ERROR]):
                step.refused = str(error)[:MAX_ERROR]
    await _give_up(parts, hold, push, repository)


async def _make_graph(
    parts: Parts, hold: Hold[PushStep], push: Push, repository: Repository, stack: AsyncExitStack
) -> None:
    """Make the graph, or end the step because the push gets none; a large plan is in `stack` while it is in memory.

    Raises TemplateError and RefusedError.
    """
    plan = await _stored_plan(parts, hold, stack)
    if not plan:
        reason, tasks = await _planned(parts, hold.item, push, repository, stack)
        if reason is not None:
            await hold.finish(State.SKIPPED, reason)
            return
        if not tasks:
            await hold.finish(State.SKIPPED, f"{FILE}: the template has no tasks for this push")
            return
        plan = await store_plan(hold, tasks)
    made = await create_tasks(parts, hold, plan, scopes_of(parts.settings, repository, push))
    async with hold.finishing(State.DONE) as session:
        await record(session, made)
    metrics.graph_created(push.noticed_at)
    log.info("graph-created", repository=repository.alias, push=push.push_id, tasks=len(plan))


LARGE = 1024 * 1024
"""Characters of a plan's definitions; of larger plans one is in memory at a time."""


async def _stored_plan(parts: Parts, hold: Hold[PushStep], stack: AsyncExitStack) -> list[PlannedTask]:
    step = hold.item
    if step.lease == 1:  # nobody can have planned it before
        return []
    own = (
        PlannedTask.step_id == step.id,
        PlannedTask.plan_attempt == step.plan_attempt,
        col(PlannedTask.label) != "error",
    )
    size = select(func.sum(func.length(cast(PlannedTask.definition, Text)))).where(*own)
    async with parts.database.reading() as session:
        large = ((await session.exec(size)).one() or 0) > LARGE
    if large:
        await stack.enter_async_context(parts.large_plans)
    async with parts.database.reading() as session:
        return list(await session.exec(select(PlannedTask).where(*own).order_by(col(PlannedTask.position))))


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


def message_of(push: Push) -> str:
    """Return the message of the push's tip."""
    return (push.changesets[-1].get("desc") or "") if push.changesets else ""


def try_line(message: str) -> str:
    """Return what follows `try:` in the message, to the end of that line and with it; one blank if there is none.

    Chain of trust renders the file with exactly this.
    """
    _, found, rest = message.partition("try:")
    return found + re.split(r"[\r\n\u2028\u2029]", rest, maxsplit=1)[0] if found else " "


async def _planned(
    parts: Parts, step: PushStep, push: Push, repository: Repository, stack: AsyncExitStack
) -> tuple[str | None, list[PlannedTask]]:
    """Return the plan of a push; or the reason why it gets none. Raises TemplateError."""
    reason = why_not(parts.settings, repository, push)
    if reason is not None:
        return reason, []
    assert push.revision is not None
    try:
        raw = await parts.hg.raw_file(repository.url, push.revision, FILE)
    except Refusal as refusal:
        raise TemplateError(str(refusal)) from None
    if raw is None:
        return f"no {FILE} at {push.revision}", []
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise TemplateError(f"{FILE} is not UTF-8: {error}") from None
    try:
        context = context_of(parts.settings, repository, push)
        rendered = await parts.renderer.taskcluster_yml(text, context, step.share)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    ids = graph_ids(parts.secret, parts.settings.deployment, repository, push, step.plan_attempt, "graph")
    if rendered.small:
        return None, _checked(rendered, ids, step)
    if len(rendered.answer) > LARGE:
        await stack.enter_async_context(parts.large_plans)
    return None, await asyncio.to_thread(_checked, rendered, ids, step)


def _checked(rendered: Rendered, ids: DeriveId, step: PushStep) -> list[PlannedTask]:
    try:
        rendering = rendered.parse(ids)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    return plan_of(rendering.result, rendering.ids, step)


def context_of(settings: Settings, repository: Repository, push: Push) -> dict[str, Any]:
    """What a `.taskcluster.yml` may use. `as_slugid` and `ownTaskId` are added where it is rendered."""
    return {
        "tasks_for": "hg-push",
        "push": {
            "owner": owner_of(settings, push),
            "revision": push.revision,
            "revision_hash": push.revision_hash,
            "base_revision": push.base_revision or "0" * 40,
            "comment": try_line(message_of(push)),
            "pushlog_id": push.push_id,
            "pushdate": int(push.date.timestamp()),
        },
        "repository": {
            "url": repository.url,
            "project": repository.alias,
            "level": repository.level,
            "type": "hg",
        },
        "now": stamp(now()),
        "taskcluster_root_url": settings.taskcluster.root,
    }


def owner_of(settings: Settings, push: Push) -> str:
    """Return the pushlog's user as it stands; where `owner_domain` is set, a bare user name becomes an address."""
    return f"{push.user}@{settings.owner_domain}" if settings.owner_domain and "@" not in push.user else push.user


def scopes_of(settings: Settings, repository: Repository, push: Push) -> list[str]:
    """`authorizedScopes` of the project, and that its pusher may be told by mail. Nothing of our own.

    A user who has no address of printable ASCII gets no mail: such a scope would make every call 401.
    """
    owner = owner_of(settings, push)
    if len(owner) > MAX_ADDRESS or not _ADDRESS.fullmatch(owner):
        return repository.scopes
    return [*repository.scopes, f"queue:route:notify.email.{owner}.*"]


def plan_of(rendered: list[Any], ids: Collection[str], step: PushStep) -> list[PlannedTask]:
    """Return rendered tasks as the queue completes them, in the order of creation.

    Each must have one of `ids`, which were derived for this attempt: a task under any other id may be somebody else's.
    Raises TemplateError.
    """
    definitions: dict[str, Definition] = {}
    for number, task in enumerate(rendered, 1):
        where = f"{FILE}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("taskId"), str):
            raise TemplateError(f"{where} has no taskId: give it one, such as {{$eval: as_slugid('build')}}")
        task_id = task["taskId"]
        if task_id not in ids:
            raise TemplateError(
                f"{where} has the taskId {task_id[:100]!r}, which as_slugid and ownTaskId of this push did not return: "
                "use {$eval: as_slugid('a label')}"
            )
        if task_id in definitions:
            raise TemplateError(f"{where} has the taskId of an earlier one: each needs a label of its own")
        try:
            definition = complete(task_id, {key: value for key, value in task.items() if key != "taskId"})
        except ValidationError as error:
            raise TemplateError(f"{where} ({name_of(task)}) is no task definition: {problems_of(error)}") from None
        size = len(json.dumps(definition))
        if size > MAX_BODY:
            raise TemplateError(f"{where} ({name_of(task)}) is {size:,} bytes: Taskcluster takes {MAX_BODY:,} at most")
        definitions[task_id] = definition
    try:
        order = creation_order(definitions)
    except CircleError as error:
        names = ", ".join(name_of(definitions[task_id]) for task_id in error.circle[:10])
        raise TemplateError(f"{FILE}: {error}: {names}") from None
    return [
        PlannedTask(
            task_id=task_id,
            step_id=step.id or 0,
            plan_attempt=step.plan_attempt,
            position=position,
            label="task",
            name=name_of(definitions[task_id]),
            definition=definitions[task_id],
        )
        for position, task_id in enumerate(order)
    ]


# --- when it was refused -----------------------------------------------------------------------------------------


async def _give_up(parts: Parts, hold: Hold[PushStep], push: Push, repository: Repository) -> None:
    """Cancel what was made of the plan, show the error as a task on the push, and end the step."""
    step = hold.item
    unrecorded, not_cancelled = await cancel_created(parts, hold, await _outline(parts, step))
    error_task: str | None = None
    made: list[PlannedTask] = []
    try:
        task = await _error_task(parts, hold, push, repository)
        made = await create_tasks(parts, hold, [task], scopes_of(parts.settings, repository, push))
        error_task = task.task_id
    except (TemplateError, RefusedError) as error:
        # then the reason stands alone
        log.warning("error-task-refused", repository=repository.alias, push=push.push_id, why=str(error))
    reason = "; ".join([step.refused or "", *not_cancelled])[:MAX_ERROR]
    async with hold.finishing(State.FAILED, reason, error_task=error_task) as session:
        await record(session, [*unrecorded, *made])


async def _outline(parts: Parts, step: PushStep) -> list[PlannedTask]:
    """Return the plan without its definitions, which can be large."""
    async with parts.database.reading() as session:
        tasks = await session.exec(
            select(PlannedTask)
            .options(defer(PlannedTask.definition))  # type: ignore[arg-type]  # SQLModel types columns as their values
            .where(
                PlannedTask.step_id == step.id,
                PlannedTask.plan_attempt == step.plan_attempt,
                col(PlannedTask.label) != "error",
            )
            .order_by(col(PlannedTask.position))
        )
        return list(tasks)


async def _error_task(parts: Parts, hold: Hold[PushStep], push: Push, repository: Repository) -> PlannedTask:
    step = hold.item
    async with parts.database.reading() as session:
        found = await session.exec(
            select(PlannedTask).where(
                PlannedTask.step_id == step.id,
                PlannedTask.plan_attempt == step.plan_attempt,
                PlannedTask.label == "error",
            )
        )
        stored = found.first()
    if stored is not None:
        return stored
    ids = graph_ids(parts.secret, parts.settings.deployment, repository, push, step.plan_attempt, "error")
    prefixes = [
        p for p in parts.settings.environments if repository.environments is None or p in repository.environments
    ]
    context = {
        **context_of(parts.settings, repository, push),
        "owner": owner_of(parts.settings, push)[:MAX_OWNER] or "unknown",
        "error": step.refused,
        "environments": prefixes,
    }
    rendering = (await parts.renderer.template(parts.settings.error_task, context, step.share)).parse(ids)
    task_id = ids(OWN_LABEL)
    try:
        (task,) = plan_of([{**rendering.result[0], "taskId": task_id}], rendering.ids, step)
    except TypeError:
        raise TemplateError("the setting error_task renders to something that is no task") from None
    task.label = "error"
    await store_plan(hold, [task])
    return task
