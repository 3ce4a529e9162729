"""Actions that the tree offers: find one by its name, render it, and trigger its hook or create its task.

    prepare     fetch the task or the push, find the action in the decision task's file, and have it rendered
    missing     the scopes that are missing: of the decision task first, then of our own client
    carry out   `trigger` for a hook; for a task, a plan of one task with the scopes of the decision task

With `actions: auto`, a name that the tree does not offer is carried out by this service, if it knows that name.
"""

from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from service.clients.hooks import trigger_scope
from service.clients.taskcluster import ScopeSet, ScopesRefusal
from service.clock import now
from service.contract.validation import closest, problems_of
from service.engine.leases import Lease
from service.engine.render import TemplateError
from service.errors import PermanentUpstreamError, UpstreamError
from service.flow.actions import notice
from service.flow.actions.action_task import finish_created
from service.flow.actions.decision import Decision
from service.flow.actions.offers import FILE, Offered, offered_for_push, offered_for_task, tags_of
from service.flow.actions.trigger import settle, trigger
from service.flow.tasks.action_kinds import ACTIONS, Plan, TreePlan, register_internal
from service.flow.tasks.create import PlanRefusedError, create_tasks
from service.flow.tasks.definition import TaskDefinition, complete, format_date, name_of, needed_scopes
from service.flow.tasks.ids import slugid
from service.flow.tasks.plan import mark_created, read_plan, store_plan
from service.flow.tasks.subject import (
    ActionFailedError,
    ActionRejectedError,
    PushSubject,
    Subject,
    fetch_subject,
    find_push,
)
from service.services import Services
from service.slugids import OWN_LABEL
from service.store.models import IN_TREE, Action, PlannedTask, TreeActions

log = structlog.get_logger()


@dataclass(frozen=True)
class Prepared:
    """An action of the tree, ready to be carried out. `rendered` is the hook's payload, or a task's definition."""

    name: str
    decision: Decision
    hook: tuple[str, str] | None
    told: Any
    rendered: dict[str, Any]
    task_id: str
    """The id of the task that is created, if there is no hook."""

    @property
    def stored_input(self) -> Any:
        """Return the input as it is stored: an empty object if the action takes none."""
        return {} if self.told is None else self.told


async def run(services: Services, lease: Lease[Action]) -> None:
    """Trigger the action's hook or create its task, once; or find out whether a hook was triggered."""
    action = lease.item
    if action.triggered_at is not None:
        await settle(services, lease)
        return
    stored = await read_plan(services.database, PlannedTask.action_id == action.id)
    if stored:
        await _create(services, lease, stored)
        return
    prepared = await _prepare(services, action)
    if prepared is None:
        await lease.commit(in_tree=False)  # whoever continues must not look again
        action.in_tree = False
        fit_input(action.kind, action.input)
        await ACTIONS[action.kind].run(services, lease)
        return
    missing = await missing_scopes(services, prepared, surely=True)
    if missing:
        raise ActionFailedError(_missing_text(services, prepared, *missing[0]))
    if prepared.hook is not None:
        values = {"decision_task": prepared.decision.task_id, "input": prepared.stored_input}
        await trigger(services, lease, prepared.hook, prepared.rendered, values)
        return
    task = PlannedTask(
        task_id=prepared.task_id,
        action_id=action.id,
        position=0,
        label="task",
        name=name_of(prepared.rendered),
        definition=prepared.rendered,
    )
    values = {"decision_task": prepared.decision.task_id, "input": prepared.stored_input, "planned_at": now()}
    for name, value in values.items():
        setattr(action, name, value)
    await _create(services, lease, await store_plan(lease, [task], failure_jobs=action.failure_jobs, **values))


async def plan(services: Services, action: Action) -> Plan:
    """Return what the action would trigger or create now, and which scopes are missing."""
    prepared = await _prepare(services, action)
    if prepared is None:
        fit_input(action.kind, action.input)
        return await ACTIONS[action.kind].plan(services, action)
    missing = await missing_scopes(services, prepared)
    hook = None if prepared.hook is None else "/".join(prepared.hook)
    return Plan(
        tree=TreePlan(
            decision_task=prepared.decision.task_id,
            hook=hook,
            told=prepared.told,
            rendered=prepared.rendered,
            missing=[(scope, _holder(services, prepared, ours=ours)) for scope, ours in missing],
        )
    )


def fit_input(name: str, told: Any) -> dict[str, Any]:
    """Return the input of one of our own actions without defaults. Raises ActionRejectedError."""
    model: type[BaseModel] = ACTIONS[name].input
    try:
        return model.model_validate(told).model_dump(mode="json", exclude_defaults=True)
    except ValidationError as error:
        raise ActionRejectedError(f"input of {name}: {problems_of(error, model, quote=True)}") from None


# --- what is to be done ------------------------------------------------------------------------------------------


async def _prepare(services: Services, action: Action) -> Prepared | None:
    """Return the rendered action; None if this service carries it out itself.

    Raises ActionRejectedError, ActionFailedError and Unavailable.
    """
    subject: Subject | PushSubject
    if action.task_id is not None:
        subject = await fetch_subject(services, action.project, action.task_id)
        action.failure_jobs = notice.failure_jobs(services, action, subject)
    else:
        subject = await find_push(services, action)
        action.failure_jobs = notice.push_failure_jobs(services, action, subject)
    own = action.kind in ACTIONS and subject.repository.actions == TreeActions.AUTO
    try:
        offered = await _offered(services, subject, action.share)
    except ActionFailedError as error:
        if not own:
            raise
        offered = Offered(reason=str(error))
    if own and all(offer["name"] != action.kind for offer in offered.actions):
        return None
    if offered.offer is None:
        meant = closest(action.kind, _own_names(action))
        guess = f" ({meant}?)" if meant else ""
        raise ActionRejectedError(f"the tree offers no action {action.kind!r}{guess}: {offered.reason}")
    return await _render(services, action, subject, offered)


def _own_names(action: Action) -> list[str]:
    """Return the other actions of this service on what this one is about: one of them may have been meant."""
    subject = "push" if action.task_id is None else "task"
    return [name for name, kind in ACTIONS.items() if subject in kind.subjects and name != action.kind]


async def _offered(services: Services, subject: Subject | PushSubject, share: str) -> Offered:
    if isinstance(subject, PushSubject):
        return await offered_for_push(services, subject, share)
    return await offered_for_task(services, subject, share)


async def _render(services: Services, action: Action, subject: Subject | PushSubject, offered: Offered) -> Prepared:
    """Have the action rendered, with the input that it gets. Raises ActionRejectedError and ActionFailedError."""
    assert offered.offer is not None
    decision = offered.offer.decision
    context: dict[str, Any] = {"taskGroupId": decision.task_id, "taskId": None, "now": format_date(now())}
    if isinstance(subject, Subject):
        context |= {"taskId": subject.status["taskId"], "task": subject.definition}
    tags = tags_of(subject.definition) if isinstance(subject, Subject) else None
    wanted = {"name": action.kind, "tags": tags, "input": action.input, "context": context, "own": _own_names(action)}
    task_id = slugid(services.secret, "in-tree action", action.key, OWN_LABEL)
    try:
        rendered = await services.renderer.action(offered.offer.file.document, wanted, action.share)
        parsed = (
            rendered.parse(lambda _: task_id)
            if rendered.small
            else await services.compute(action.share, rendered.parse, lambda _: task_id)
        )
    except TemplateError as error:
        place = f"{FILE} of the decision task {decision.task_id}"
        raise ActionFailedError(f"the tree's action {action.kind} cannot be used: {place} {error}") from None
    (result,) = parsed.result
    if "rejected" in result:
        raise ActionRejectedError(result["rejected"])
    if "failed" in result:
        raise ActionFailedError(result["failed"])
    hook = None if result["hook"] is None else (result["hook"][0], result["hook"][1])
    content = result["rendered"] if hook is not None else _definition(action.kind, task_id, result["rendered"])
    return Prepared(action.kind, decision, hook, result["input"], content, task_id)


def _definition(name: str, task_id: str, rendered: dict[str, Any]) -> dict[str, Any]:
    """Return a rendered task as the queue will complete it. Raises ActionFailedError."""
    try:
        return complete(task_id, {key: value for key, value in rendered.items() if key != "taskId"})
    except ValidationError as error:
        problems = problems_of(error, TaskDefinition, quote=True)
        raise ActionFailedError(
            f"the tree's action {name} cannot be used: its task is no definition: {problems}"
        ) from None


# --- scopes ------------------------------------------------------------------------------------------------------


async def missing_scopes(services: Services, prepared: Prepared, *, surely: bool = False) -> list[tuple[str, bool]]:
    """Return the scopes that are missing, those of the decision task first: each with True if our client lacks it.

    With `surely`, the client's scopes are read anew before one of them is said to be missing. What may not be looked up
    is not said to be missing: then Taskcluster decides when the call is made. Raises ActionFailedError and Unavailable.
    """
    scopes = [scope for scope in prepared.decision.definition.get("scopes", []) if isinstance(scope, str)]
    try:
        held = ScopeSet(await services.queue.expand_scopes(scopes))
    except ScopesRefusal:
        client = _holder(services, prepared, ours=True)
        raise ActionFailedError(f"{client} lacks auth:expand-scopes: grant that to the client") from None
    except PermanentUpstreamError as refusal:
        of_task = f"the scopes of the decision task {prepared.decision.task_id}"
        raise ActionFailedError(f"Taskcluster refuses to expand {of_task} ({refusal.status}): {refusal}") from None
    if prepared.hook is not None:
        wanted = [[f"in-tree:hook-action:{'/'.join(prepared.hook)}"]]
        ours = [trigger_scope(*prepared.hook)]
    else:
        wanted, ours = needed_scopes(prepared.rendered), scopes
    missing = [(any_of[-1], False) for any_of in wanted if not any(map(held.satisfies, any_of))]
    return missing + [(scope, True) for scope in await _missing_of_client(services, ours, surely=surely)]


async def _missing_of_client(services: Services, wanted: list[str], *, surely: bool) -> list[str]:
    missing = list(wanted)
    for fresh in (False, True) if surely else (False,):
        try:
            own = ScopeSet(await services.queue.own_scopes(fresh=fresh))
        except UpstreamError as error:
            log.info("own-scopes-unknown", why=str(error))
            return []
        missing = [scope for scope in wanted if not own.satisfies(scope)]
        if not missing:
            return []
    return missing


def _missing_text(services: Services, prepared: Prepared, scope: str, ours: bool) -> str:
    holder = _holder(services, prepared, ours=ours)
    if ours:
        return f"{holder} lacks {scope}: grant that to the client"
    return f"the tree's action {prepared.name} is misconfigured: {holder} lacks {scope}"


def _holder(services: Services, prepared: Prepared, *, ours: bool) -> str:
    if ours:
        return f"the service's Taskcluster client ({services.settings.taskcluster.client_id})"
    return f"the decision task {prepared.decision.task_id}"


# --- a task ------------------------------------------------------------------------------------------------------


async def _create(services: Services, lease: Lease[Action], tasks: list[PlannedTask]) -> None:
    """Create the planned task with the scopes of the decision task, and none other. Raises ActionFailedError."""
    action, (task,) = lease.item, tasks
    try:
        decision = await services.queue.task(action.decision_task or "")
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(f"Taskcluster does not let us see task {action.decision_task}: {refusal}") from None
    if decision is None:
        raise ActionFailedError(f"the decision task {action.decision_task} has expired, whose scopes the action needs")
    scopes = [scope for scope in decision.get("scopes", []) if isinstance(scope, str)]
    try:
        created = await create_tasks(services, lease, tasks, scopes)
    except PlanRefusedError as error:
        if error.missing:
            lacking = f"the decision task {action.decision_task} lacks {', '.join(error.missing)}"
            raise ActionFailedError(f"the tree's action {action.kind} is misconfigured: {lacking}") from None
        raise ActionFailedError(str(error)) from None
    await finish_created(services, lease, task.task_id, mark_created(created))


register_internal(IN_TREE, run)
