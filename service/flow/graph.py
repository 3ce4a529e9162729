"""A push becomes a task graph: its `.taskcluster.yml`, rendered, stored as a plan, and then created.

What keeps a push from a graph for good is shown where people look: a task on the push that carries the error.
"""

import hashlib
import hmac
import json
import re
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from service import metrics
from service.clients.taskcluster import Definition
from service.database import now
from service.door import problems_of
from service.errors import Refusal
from service.flow.create import RefusedError, cancel_tasks, create_tasks, record
from service.flow.definition import MAX_BODY, SLUGID, CircleError, complete, in_order, name_of, stamp
from service.flow.ids import push_key, slugid
from service.flow.resultset import push_of
from service.models import PlannedTask, Push, PushStep, Repository, State
from service.parts import Parts
from service.render import TemplateError
from service.settings import Settings
from service.work import Hold

log = structlog.get_logger()

FILE = ".taskcluster.yml"
MAX_ERROR = 8_000
_EMAIL = re.compile(r"[^@\s<>]+@[^@\s<>]+")


async def run(parts: Parts, hold: Hold[PushStep]) -> None:
    """Plan the graph unless there is a plan, then create what is not there yet."""
    step = hold.item
    async with parts.database.reading() as session:
        push, repository = await push_of(session, step)
        plan = await _stored_plan(session, step)
    structlog.contextvars.bind_contextvars(repository=repository.alias, push=push.push_id)
    if step.refused is None:
        try:
            if not plan:
                reason, tasks = await _planned(parts, step, push, repository)
                if reason is not None:
                    await hold.finish(State.SKIPPED, reason)
                    return
                plan = await _store(parts, hold, tasks)
            made = await create_tasks(parts, hold, plan, scopes_of(parts.settings, repository, push))
            async with hold.finishing(State.DONE) as session:
                await record(session, made)
            metrics.graph_created(push.noticed_at)
            log.info("graph-created", repository=repository.alias, push=push.push_id, tasks=len(plan))
            return
        except (TemplateError, RefusedError) as error:
            log.warning("graph-refused", repository=repository.alias, push=push.push_id, why=str(error))
            async with hold.writing(refused=str(error)[:MAX_ERROR]):
                step.refused = str(error)[:MAX_ERROR]
    await _give_up(parts, hold, push, repository)


async def _stored_plan(session: Any, step: PushStep) -> list[PlannedTask]:
    tasks = await session.exec(
        select(PlannedTask)
        .where(
            PlannedTask.step_id == step.id,
            PlannedTask.plan_attempt == step.plan_attempt,
            col(PlannedTask.label) != "error",
        )
        .order_by(col(PlannedTask.position))
    )
    return list(tasks)


# --- the plan ----------------------------------------------------------------------------------------------------


def why_not(settings: Settings, repository: Repository, push: Push) -> str | None:
    """Why this push gets no graph, in plain words; None: it gets one, if it has a `.taskcluster.yml`."""
    if not repository.graph:
        return f"graphs are off for {repository.alias}"
    if push.revision is None:
        return "no changesets are left of this push"
    comment = comment_of(push)
    if "DONTBUILD" in comment:
        return "DONTBUILD in the tip's message"
    if repository.contains is not None and repository.contains not in comment:
        return f"the tip's message does not contain {repository.contains!r}"
    if now() - push.date > settings.max_push_age:
        return f"pushed on {push.date:%F %T}Z, longer ago than max_push_age ({settings.max_push_age})"
    return None


def comment_of(push: Push) -> str:
    """The message of the push's tip."""
    return (push.changesets[-1].get("desc") or "") if push.changesets else ""


async def _planned(
    parts: Parts, step: PushStep, push: Push, repository: Repository
) -> tuple[str | None, list[PlannedTask]]:
    """The plan of a push; or the reason why it gets none."""
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
    key = push_key(parts.secret, repository, push, step.plan_attempt)
    try:
        rendered = await parts.renderer.taskcluster_yml(text, context_of(parts.settings, repository, push, key), key)
    except TemplateError as error:
        raise TemplateError(f"{FILE} {error}") from None
    return None, plan_of(rendered, step)


def context_of(settings: Settings, repository: Repository, push: Push, key: bytes) -> dict[str, Any]:
    """What a `.taskcluster.yml` may use. `as_slugid` is added where it is rendered."""
    parents = (push.changesets[0].get("parents") or []) if len(push.changesets) == len(push.nodes) else []
    return {
        "tasks_for": "hg-push",
        "push": {
            "owner": owner_of(settings, push),
            "revision": push.revision,
            "revision_hash": push.revision_hash,
            "base_revision": parents[0] if parents else "0" * 40,
            "comment": comment_of(push),
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
        "ownTaskId": slugid(key, "decision"),
    }


def owner_of(settings: Settings, push: Push) -> str:
    """The pusher's e-mail address, made up where the pushlog has a bare user name."""
    return push.user if _EMAIL.fullmatch(push.user) else f"{push.user}@{settings.owner_domain}"


def scopes_of(settings: Settings, repository: Repository, push: Push) -> list[str]:
    """`authorizedScopes` of the project, and that its pusher may be told by mail. Nothing of our own."""
    return [*repository.scopes, f"queue:route:notify.email.{owner_of(settings, push)}.*"]


def plan_of(rendered: list[Any], step: PushStep) -> list[PlannedTask]:
    """Rendered tasks, completed as the queue completes them, in dependency order. Raises TemplateError."""
    definitions: dict[str, Definition] = {}
    for number, task in enumerate(rendered, 1):
        where = f"{FILE}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("taskId"), str):
            raise TemplateError(f"{where} has no taskId: give it one, such as {{$eval: as_slugid('build')}}")
        task_id = task["taskId"]
        if not re.fullmatch(SLUGID, task_id):
            raise TemplateError(f"{where} has the taskId {task_id[:100]!r}, which is no slugid: use as_slugid")
        if task_id in definitions:
            raise TemplateError(f"{where} has the taskId {task_id} of an earlier one: each needs a label of its own")
        try:
            definition = complete(task_id, {key: value for key, value in task.items() if key != "taskId"})
        except ValidationError as error:
            raise TemplateError(f"{where} ({name_of(task)}) is no task definition: {problems_of(error)}") from None
        size = len(json.dumps(definition))
        if size > MAX_BODY:
            raise TemplateError(f"{where} ({name_of(task)}) is {size:,} bytes: Taskcluster takes {MAX_BODY:,} at most")
        definitions[task_id] = definition
    try:
        order = in_order(definitions, but_itself=True)
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


async def _store(parts: Parts, hold: Hold[PushStep], plan: list[PlannedTask]) -> list[PlannedTask]:
    """Raises TemplateError when a taskId stands in another plan."""
    ids = [task.task_id for task in plan]
    try:
        async with hold.writing() as session:
            session.add_all(plan)
    except IntegrityError:
        async with parts.database.reading() as session:
            taken = await session.exec(select(PlannedTask.task_id).where(col(PlannedTask.task_id).in_(ids[:1000])))
        raise TemplateError(
            f"{FILE}: taskId {taken.first() or ''} is that of another push or attempt: use as_slugid for all of them"
        ) from None
    return plan


# --- when it was refused -----------------------------------------------------------------------------------------


async def _give_up(parts: Parts, hold: Hold[PushStep], push: Push, repository: Repository) -> None:
    """Cancel what was made of the plan, show the error as a task on the push, and end the step."""
    step = hold.item
    async with parts.database.reading() as session:
        plan = await _stored_plan(session, step)
    stood = await cancel_tasks(parts, plan)
    error_task: str | None = None
    made: list[PlannedTask] = []
    try:
        task = await _error_task(parts, hold, push, repository)
        made = await create_tasks(parts, hold, [task], scopes_of(parts.settings, repository, push))
        error_task = task.task_id
    except (TemplateError, RefusedError) as error:
        # then the reason stands alone
        log.warning("error-task-refused", repository=repository.alias, push=push.push_id, why=str(error))
    async with hold.finishing(State.FAILED, step.refused, error_task=error_task) as session:
        await record(session, [*stood, *made])


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
    key = push_key(parts.secret, repository, push, step.plan_attempt)
    # a key of its own: the template may use any label, "error" too
    task_id = slugid(hmac.digest(key, b"error task", hashlib.sha256), "error")
    prefixes = [
        p for p in parts.settings.environments if repository.environments is None or p in repository.environments
    ]
    context = {
        **context_of(parts.settings, repository, push, key),
        "ownTaskId": task_id,
        "error": step.refused,
        "environments": prefixes,
    }
    rendered = await parts.renderer.template(parts.settings.error_task, context, key)
    try:
        (task,) = plan_of([{**rendered, "taskId": task_id}], step)
    except TypeError:
        raise TemplateError("the setting error_task renders to something that is no task") from None
    task.label = "error"
    await _store(parts, hold, [task])
    return task
