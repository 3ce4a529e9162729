"""Trigger the hook of an in-tree action at most once.

That it is about to be triggered is committed before the call. After an answer that leaves open whether it was, or if
this process ends meanwhile, nobody calls again. Once the call's time limit has passed, whoever has the lease looks for
the task in two places:

    the last fires of the hook     since the record, over the API
    the decision task's group      tasks with the tag `kind: action-callback`, created since the record

A task counts if its definition holds our task, group and input. If exactly one does, it is the action's. Otherwise a
person has to decide: the action is failed, and says that it may have been triggered.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import structlog
from sqlmodel import col, select

from service.clients.taskcluster import Definition, NotSentError, ScopesRefusal
from service.clock import now
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.actions.action_task import finish_created
from service.flow.actions.decision import CALLBACK
from service.flow.tasks.definition import parse_date
from service.flow.tasks.subject import ActionFailedError
from service.services import Services
from service.store.models import Action, State

log = structlog.get_logger()

CLOCKS_DIFFER = timedelta(seconds=10)
"""Time by which Taskcluster's clock may be behind the database's."""

NOTHING_DONE = frozenset({401, 429})
"""Statuses of answers that say that nothing was done, and that may be another next time."""

_JSON_BEGINS = frozenset('{["')

MAX_LOOK = 200_000
"""Values of one definition that are compared."""

PIECE = 100
"""Definitions of tasks that a hook created that are held at a time."""


async def trigger(
    services: Services, lease: Lease[Action], hook: tuple[str, str], payload: dict[str, Any], values: dict[str, Any]
) -> None:
    """Trigger the hook, and end the action with the task that it created. Raises ActionFailedError and Unavailable."""
    action, at = lease.item, now()
    values = {
        **values,
        "failure_jobs": action.failure_jobs,
        "hook": "/".join(hook),
        "planned_at": at,
        "triggered_at": at,
    }
    await lease.commit(**values)
    for name, value in values.items():
        setattr(action, name, value)
    try:
        task_id = await services.hooks.trigger(*hook, payload)
    except NotSentError:
        await _forget(lease)
        raise
    except PermanentUpstreamError as refusal:
        if refusal.status < 500:
            raise ActionFailedError(_refusal_text(action, refusal)) from None
        raise _unclear(services, action, str(refusal)) from None
    except Unavailable as error:
        if error.status in NOTHING_DONE:
            await _forget(lease)
            raise
        raise _unclear(services, action, str(error)) from None
    if task_id is None:
        await lease.finish(State.NOTHING_TO_DO, f"the hook {action.hook} was triggered, and creates no task for this")
        return
    await finish_created(services, lease, task_id)


async def _forget(lease: Lease[Action]) -> None:
    """Record that the hook was certainly not triggered, so that it may be tried again."""
    await lease.commit(triggered_at=None)
    lease.item.triggered_at = None


def _refusal_text(action: Action, refusal: PermanentUpstreamError) -> str:
    if isinstance(refusal, ScopesRefusal):
        return str(refusal)
    if refusal.status == 404:
        return f"Taskcluster has no hook {action.hook}, which the tree's action {action.kind} names"
    return f"Taskcluster refuses to trigger the hook {action.hook} with {refusal.status}: {refusal}"


def _unclear(services: Services, action: Action, reason: str) -> Unavailable:
    """Return the error that postpones the action until it can be looked up whether the hook was triggered."""
    assert action.triggered_at is not None
    wait = max(action.triggered_at + services.settings.taskcluster.timeout - now(), timedelta(0))
    text = f"whether the hook {action.hook} was triggered is looked up soon: {reason}"
    return Unavailable("taskcluster", text, wait)


# --- was it triggered? -------------------------------------------------------------------------------------------


async def settle(services: Services, lease: Lease[Action]) -> None:
    """Find out what became of a trigger without a clear answer. Raises ActionFailedError and Unavailable."""
    action, limit = lease.item, services.settings.taskcluster.timeout
    assert action.triggered_at is not None
    if now() < action.triggered_at + limit:
        raise _unclear(services, action, "its call may still be under way")
    try:
        matches = await _matches(services, action)
    except PermanentUpstreamError as refusal:
        raise _undecided(
            services, action, f"Taskcluster does not let us look ({refusal.status}): {refusal}", []
        ) from None
    rivals = await _rivals(services, action)
    if len(matches) == 1 and not rivals:
        log.info("trigger-found", action=action.id, hook=action.hook, task_id=matches[0])
        await finish_created(services, lease, matches[0])
        return
    if len(matches) <= 1 and now() < action.triggered_at + 2 * limit:
        # the hooks service may be slow; or an equal action is just finding out which task is its own
        wait = max(action.triggered_at + 2 * limit - now(), timedelta(0))
        raise Unavailable("taskcluster", f"no task of the hook {action.hook} is there yet for this action", wait)
    if rivals:
        equal = ", ".join(map(str, rivals[:5]))
        raise _undecided(services, action, f"it is equal to action {equal}, which has no clear answer either", matches)
    if not matches:
        raise _undecided(services, action, "no task that would be its own can be found", matches)
    raise _undecided(services, action, f"{len(matches)} tasks may be its own", matches)


def _undecided(services: Services, action: Action, why: str, matches: list[str]) -> ActionFailedError:
    root = services.settings.taskcluster.root
    group, _, hook = (action.hook or "").partition("/")
    links = [f"{root}/tasks/{task_id}" for task_id in matches[:5]]
    links += [f"{root}/hooks/{group}/{quote(hook, safe='')}", f"{root}/tasks/groups/{action.decision_task}"]
    return ActionFailedError(
        f"it may have been triggered: Taskcluster gave no clear answer to triggerHook of {action.hook} at "
        f"{action.triggered_at:%F %T}Z, and {why}. Look at {' and '.join(links)} before you ask again"
    )


async def _matches(services: Services, action: Action) -> list[str]:
    """Return the tasks that may be this action's, and that are no other action's."""
    assert action.triggered_at is not None
    group, _, hook = (action.hook or "").partition("/")
    since = action.triggered_at - CLOCKS_DIFFER
    fired = {fire.task_id for fire in await services.hooks.last_fires(group, hook, since)}
    matches: set[str] = set()
    examined: set[str] = set()

    async def examine(definitions: dict[str, Definition]) -> None:
        # in a thread and piece by piece, because a definition can have megabytes, and strangers write them
        examined.update(definitions)
        client = services.settings.taskcluster.client_id
        matches.update(await services.compute(action.share, _those_of, definitions, action, client))

    async for page in services.queue.group(action.decision_task or ""):
        await examine(
            {
                str(status.get("taskId")): definition
                for status, definition in page
                if _is_callback(definition) and parse_date(definition["created"]) >= since
            }
        )
    others = sorted(fired - examined)
    for start in range(0, len(others), PIECE):
        await examine(await services.queue.tasks(others[start : start + PIECE]))
    async with services.database.reading() as session:
        query = select(Action.action_task).where(
            col(Action.action_task).in_(sorted(matches)), col(Action.action_task).is_not(None)
        )
        taken = set(await session.exec(query))
    return sorted(matches - taken)


def _is_callback(definition: Definition) -> bool:
    tags = definition.get("tags")
    return isinstance(tags, dict) and tags.get("kind") == CALLBACK


def _those_of(definitions: dict[str, Definition], action: Action, client: str | None) -> set[str]:
    return {task_id for task_id, definition in definitions.items() if is_of(definition, action, client)}


async def _rivals(services: Services, action: Action) -> list[int]:
    """Return the equal actions that were triggered and have no clear answer yet.

    It is asked after the tasks were listed: whatever created one of them had been recorded by then.
    """
    query = select(Action.id, Action.input).where(
        Action.lane == action.lane,
        col(Action.due_at).is_not(None),
        Action.id != action.id,
        col(Action.triggered_at).is_not(None),
        Action.kind == action.kind,
        Action.hook == action.hook,
        Action.task_id == action.task_id,
        Action.decision_task == action.decision_task,
    )
    async with services.database.reading() as session:
        rivals = await session.exec(query)
        return [action_id or 0 for action_id, told in rivals if told == action.input]


def is_of(definition: Definition, action: Action, client: str | None) -> bool:
    """Return True if the task may have been created for this action.

    Its definition must hold the task group, the task and the input of the action, as values or as JSON in texts. What
    it says of the action's name and of who triggered it must not be something else. An input that is a single value,
    such as `true`, tells no task from another: then none is found.
    """
    if not isinstance(action.input, dict | list):
        return False
    extra = definition.get("extra")
    told = extra.get("action") if isinstance(extra, dict) else None
    if isinstance(told, dict):
        context = told.get("context")
        said = context.get("clientId") if isinstance(context, dict) else None
        if told.get("name") not in {None, action.kind} or said not in {None, client}:
            return False
    wanted = [action.decision_task]
    wanted += [] if action.task_id is None else [action.task_id]
    missing: list[Any] = [*wanted, *([] if action.input == {} else [action.input])]
    for value in _values(definition):
        missing = [item for item in missing if not _equal(item, value)]
        if not missing:
            return True
    return False


def _values(definition: Definition) -> Iterator[Any]:
    """Yield all values in a definition, and what texts hold as JSON."""
    waiting: list[Any] = [definition]
    for _ in range(MAX_LOOK):
        if not waiting:
            return
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and value[:1] in _JSON_BEGINS:
            try:
                waiting.append(json.loads(value))
            except (ValueError, RecursionError):
                continue


def _equal(wanted: Any, value: Any) -> bool:
    return type(wanted) is type(value) and bool(wanted == value)
