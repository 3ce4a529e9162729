"""Routes for actions: ask for one, plan one, see what became of them."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Text, cast, func, text
from sqlalchemy.orm import defer
from sqlmodel import col, select

from service import auth
from service.api.audit import record
from service.api.deps import ActionNumber, After, CallerDep, Limit, Reader, Reading, ServicesDep
from service.api.openapi import LOCATION, problems
from service.api.paging import page
from service.api.repositories import unknown_repository
from service.api.route import API, Route
from service.api.schemas.actions import (
    ActionCreate,
    ActionKindRead,
    ActionKinds,
    ActionPage,
    ActionPlan,
    ActionRead,
    ActionState,
    ActionSummary,
    ActionTask,
    LeftOut,
    ListedDelivery,
    MadeTask,
    MissingScope,
    PlannedCancel,
    PlannedCopy,
    PlannedInTree,
)
from service.engine.worker import Worker
from service.errors import Problem, UpstreamError
from service.flow.actions import in_tree
from service.flow.actions.receive import Rules, load_rules, new_action, store_idempotent
from service.flow.tasks.action_kinds import ACTIONS, is_of_tree, scope_of
from service.flow.tasks.subject import ActionFailedError, ActionRejectedError, NothingToDoError, newest_generation
from service.sanitize import escape_unstorable
from service.services import Services
from service.store.database import Session
from service.store.models import (
    PLANNED,
    RECEIVED,
    UNCREATED,
    Action,
    AuditEvent,
    Delivery,
    PlannedTask,
    Repository,
    Source,
    State,
)
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/actions", tags=["actions"], route_class=Route)

TASKS_IN_A_LIST = 20
DELIVERIES = 100

MAX_LISTED_INPUT = 4_000
"""Characters of an input, as JSON, that a list of actions shows: a page of 500 can have 250 MB of inputs."""

_BODIES: tuple[Any, ...] = (Action.left_out, Action.cancels, Action.failure_jobs, Action.input)
WITHOUT_BODIES = tuple(defer(column, raiseload=True) for column in _BODIES)
"""Columns of actions that a list does not read, because they can be large."""

_SCOPE = scope_of("<action>", "<project>")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="of the caller's choice: the same call with the same key is the same action, done once",
    ),
]


@router.post("", status_code=202, operation_id="createAction", responses={202: LOCATION, **problems(scope=_SCOPE)})
async def create_action(
    body: ActionCreate,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    key: IdempotencyKey = None,
) -> ActionRead:
    """Store an action to be done on a task or a push.

    The answer goes out after the commit; `Location` shows the progress.
    """
    _require(services, caller, body)
    worker: Worker = request.app.state.worker
    requester = caller.name if body.requester is None else body.requester
    taken = []
    async with services.database.writing() as session:
        wanted = _action_of(body, requester, await _rules(session, body))
        action: Action | None = wanted
        if wanted.push_id is not None:
            wanted.generation = await newest_generation(session, wanted.project, wanted.push_id)
        if key is None:
            session.add(wanted)
        else:
            digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
            # quoted, so that where the caller's name ends and the key begins is never a guess
            action = await store_idempotent(session, wanted, f"api {quote(caller.key)} {key}", digest)
        if action is None:
            detail = f"the Idempotency-Key {key!r} was used for another action: choose a new one for each"
            raise Problem(422, "Key used before", detail)
        if action is wanted:
            taken = worker.preclaim([action])
        await session.flush()
        if action is wanted:
            _record(session, caller, action)
        read = await _read(session, action)
    worker.begin(taken)
    if action is wanted and not taken:
        services.database.wakeups.wake(Topic.WORK)
    log.info(
        "action-asked",
        action=read.id,
        kind=read.action,
        project=read.project,
        subject=wanted.subject,
        by=caller.name,
    )
    response.headers["Location"] = f"/api/v1/actions/{read.id}"
    return read


def _record(session: Session, caller: auth.Caller, action: Action) -> None:
    """Record who has asked for an action, and on whose behalf."""
    details: dict[str, Any] = {"action": action.id, "kind": action.kind}
    if action.requester != caller.name:
        details["requester"] = action.requester
    about = {"repository": action.project, "subject": f"{action.kind} of {action.subject}"}
    record(session, AuditEvent.ACTION_ASKED, caller, **about, **details)


@router.post("/plan", response_model=ActionPlan, operation_id="planAction", responses=problems(502, scope=_SCOPE))
async def plan_action(body: ActionCreate, services: ServicesDep, caller: CallerDep) -> Response:
    """Return what that action would do now. Nothing changes."""
    plan = await plan_of(body, services, caller)
    # in a thread, for it can have ten thousand copies, or a payload of a megabyte
    return Response(await asyncio.to_thread(plan.model_dump_json), media_type="application/json")


async def plan_of(body: ActionCreate, services: Services, caller: auth.Caller) -> ActionPlan:
    """Return the plan of an action. Raises a 422, a 502 and a 403."""
    _require(services, caller, body)
    async with services.database.reading() as session:
        rules = await _rules(session, body)
    plan = ActionPlan(
        **body.model_dump(exclude={"requester"}),
        state=ActionState.PLANNED,
        reason=None,
        notes=[],
        tasks=[],
        cancels=[],
        left_out=[],
    )
    try:
        await _plan(services, body, rules, plan)
    except NothingToDoError as error:
        plan.state, plan.reason = ActionState.NOTHING_TO_DO, str(error)
    except ActionRejectedError as error:
        plan.state, plan.reason = ActionState.REJECTED, str(error)
    except ActionFailedError as error:
        plan.state, plan.reason = ActionState.FAILED, str(error)
    except UpstreamError as error:
        raise Problem(502, "Upstream unavailable", f"{error}: try again later") from None
    return plan


async def _plan(services: Services, body: ActionCreate, rules: Rules, plan: ActionPlan) -> None:
    action = _action_of(body, "", rules)
    if action.push_id is not None:
        async with services.database.reading() as session:
            action.generation = await newest_generation(session, action.project, action.push_id)
    preview = await (in_tree.plan if action.in_tree else ACTIONS[body.action].plan)(services, action)
    if preview.tree is not None:
        plan.in_tree = PlannedInTree(
            decision_task=preview.tree.decision_task,
            hook=preview.tree.hook,
            input=preview.tree.told,
            rendered=preview.tree.rendered,
            missing_scopes=[MissingScope(scope=scope, holder=holder) for scope, holder in preview.tree.missing],
        )
        if preview.tree.missing:
            scope, holder = preview.tree.missing[0]
            plan.state, plan.reason = ActionState.FAILED, f"{holder} lacks {scope}"
    if preview.nothing_to_do is not None:
        plan.state, plan.reason = ActionState.NOTHING_TO_DO, preview.nothing_to_do
    plan.notes = preview.notes
    plan.cancels = [PlannedCancel.model_validate(task) for task in preview.cancels]
    plan.left_out = [LeftOut.model_validate(task) for task in preview.left_out]
    plan.tasks = [
        PlannedCopy(
            copy_of=copy.old_id,
            task_id=copy.new_id,
            name=copy.name,
            task_group_id=copy.definition["taskGroupId"],
            created=copy.definition["created"],
            deadline=copy.definition["deadline"],
            expires=copy.definition["expires"],
            dependencies=copy.definition["dependencies"],
        )
        for copy in preview.copies
    ]


def _action_of(body: ActionCreate, requester: str, rules: Rules) -> Action:
    action = new_action(body.action, body.project, body.task_id, body.run_id, requester, Source.API, body.push, rules)
    action.input = body.input
    return action


async def _rules(session: Session, body: ActionCreate) -> Rules:
    """Return what the repository says of its actions. Raises a 422 for an input that does not fit one of ours."""
    rules = (await load_rules(session, [body.project]))[body.project]
    if not is_of_tree(body.action, rules.actions):
        try:
            body.fit_input()
        except ValueError as error:
            raise RequestValidationError([_input_error(body, error)]) from None
    return rules


def _input_error(body: ActionCreate, error: ValueError) -> dict[str, Any]:
    return {"type": "value_error", "loc": ("body",), "msg": str(error), "input": body.input, "ctx": {"error": error}}


def _require(services: Services, caller: auth.Caller, body: ActionCreate) -> None:
    auth.require(services.settings, caller, scope_of(body.action, body.project))


@router.get("", operation_id="listActions", responses=problems(404))
async def list_actions(
    session: Reading,
    _: Reader,
    state: ActionState | None = None,
    project: Annotated[str | None, Query(max_length=1_000, description="alias")] = None,
    task_id: Annotated[str | None, Query(max_length=100, description="the task that it was asked for")] = None,
    push: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="the push that it was asked for")] = None,
    requester: Annotated[str | None, Query(max_length=1_000, description="who asked, exactly")] = None,
    limit: Limit = 50,
    after: After = None,
) -> ActionPage:
    """List actions, the newest first.

    With several filters a page can be shorter than `limit`, even empty, while `next` says that there are more.
    """
    filters: list[tuple[Any, Any]] = [  # those that leave fewest come first
        (task_id, Action.task_id == escape_unstorable(task_id or "")),
        (push, Action.push_id == push),
        (requester, Action.requester == escape_unstorable(requester or "")),
        (state, _in_state(state) if state is not None else None),
        (project, Action.project == escape_unstorable(project or "")),
    ]
    conditions = [condition for value, condition in filters if value is not None]
    if project is not None:
        await _check_project(session, escape_unstorable(project))

    def matching(among: Callable[[Any], Any]) -> Any:
        lengths = [func.json_array_length(column) for column in (Action.left_out, Action.cancels)]
        query = select(Action.id, Action, *lengths).options(*WITHOUT_BODIES)
        return query.where(among(Action.id), *conditions)

    rows, following = await page(session, [select(Action.id).where(*conditions[:1])], Action.id, matching, limit, after)
    actions = [action for _, action, _, _ in rows]
    counts = await _counts(session, actions)
    tasks = await _tasks(session, actions, first=TASKS_IN_A_LIST)
    told = await _small_inputs(session, actions)
    items = [
        ActionSummary.model_validate(
            _summary(action, left_out, cancels, counts.get(number, (0, 0)), tasks[number]) | {"input": told.get(number)}
        )
        for number, action, left_out, cancels in rows
    ]
    return ActionPage(items=items, next=following)


async def _check_project(session: Session, project: str) -> None:
    """Raise a 404 for a project that no repository has as its alias, or had, and no action names."""
    repositories, actions = select(Repository.id).where(Repository.alias == project), select(Action.id)
    for query in (repositories, actions.where(Action.project == project)):
        if (await session.exec(query.limit(1))).first() is not None:
            return
    raise await unknown_repository(session, project)


@router.get("/kinds", operation_id="listActionKinds", responses=problems(422))
async def list_action_kinds(_: Reader) -> ActionKinds:
    """List the actions that can be asked for, each with the scope and the input that it needs."""
    return ActionKinds(
        items=[
            ActionKindRead(
                name=name,
                summary=kind.summary,
                scope=kind.scope("<project>"),
                subjects=sorted(kind.subjects),
                input=kind.input.model_json_schema(),
            )
            for name, kind in sorted(ACTIONS.items())
        ]
    )


@router.get("/{action_id}", operation_id="getAction", responses=problems(404))
async def get_action(action_id: ActionNumber, session: Reading, _: Reader) -> ActionRead:
    """Return one action, with all tasks that it created."""
    action = await session.get(Action, action_id) if 0 < action_id < 2**31 else None
    if action is None:
        raise Problem(404, "Unknown action", f"there is no action {action_id}: `tc-treeherder actions list` lists them")
    return await _read(session, action)


def _in_state(state: ActionState) -> Any:
    if state == ActionState.RECEIVED:
        return text(RECEIVED)
    if state == ActionState.PLANNED:
        return text(PLANNED)
    return Action.state == State(state.value)


def state_of(action: Action) -> ActionState:
    """Return the state of an action as the API shows it."""
    if action.state != State.PENDING:
        return ActionState(str(action.state))
    return ActionState.RECEIVED if action.planned_at is None else ActionState.PLANNED


async def _counts(session: Session, actions: Sequence[Action]) -> dict[int, tuple[int, int]]:
    """Return the numbers of planned and of created tasks of each action; created tasks are not counted one by one."""
    of_action = (PlannedTask.action_id == Action.id, PlannedTask.plan_attempt == Action.plan_attempt)
    last = select(func.max(PlannedTask.position)).where(*of_action).scalar_subquery()
    left = select(func.count()).select_from(PlannedTask).where(*of_action, text(UNCREATED)).scalar_subquery()
    rows = await session.exec(select(Action.id, last, left).where(col(Action.id).in_(_ids(actions))))
    return {action_id or 0: (last + 1, last + 1 - left) for action_id, last, left in rows if last is not None}


async def _small_inputs(session: Session, actions: Sequence[Action]) -> dict[int, Any]:
    """Return the inputs of actions that a list shows."""
    length = func.length(cast(Action.input, Text))
    query = select(Action.id, Action.input).where(col(Action.id).in_(_ids(actions)), length <= MAX_LISTED_INPUT)
    return {action_id or 0: told for action_id, told in await session.exec(query)}


async def _tasks(session: Session, actions: Sequence[Action], first: int | None = None) -> dict[int, list[MadeTask]]:
    """Return the copies of each action, without their definitions, which can be large."""
    query = (
        select(  # type: ignore[call-overload]  # SQLModel has types for four columns
            PlannedTask.action_id,
            PlannedTask.position,
            PlannedTask.copy_of,
            PlannedTask.task_id,
            PlannedTask.name,
            PlannedTask.created,
        )
        .join(Action, col(Action.id) == PlannedTask.action_id)
        .where(col(Action.id).in_(_ids(actions)), PlannedTask.plan_attempt == Action.plan_attempt)
    )
    if first is not None:
        query = query.where(PlannedTask.position < first)
    tasks: dict[int, list[MadeTask]] = defaultdict(list)
    for action_id, _, copy_of, task_id, name, created in sorted(await session.exec(query), key=lambda row: row[:2]):
        tasks[action_id].append(
            MadeTask(copy_of=copy_of, task_id=task_id if created else None, name=name, created=created)
        )
    return tasks


def _ids(actions: Sequence[Action]) -> list[int]:
    return [action.id or 0 for action in actions]


async def _read(session: Session, action: Action) -> ActionRead:
    counts = (await _counts(session, [action])).get(action.id or 0, (0, 0))
    tasks = (await _tasks(session, [action]))[action.id or 0]
    rows = select(Delivery).where(Delivery.action_id == action.id, Delivery.channel != "").order_by(col(Delivery.at))
    deliveries = [
        ListedDelivery(received_at=row.at, redelivered=row.redelivered, acknowledged=row.acknowledged)
        for row in await session.exec(rows.limit(DELIVERIES))
    ]
    return ActionRead.model_validate(
        {
            **_summary(action, len(action.left_out), len(action.cancels), counts, tasks),
            "input": action.input,
            "left_out": action.left_out,
            "cancels": action.cancels,
            "deliveries": deliveries,
        }
    )


def _summary(
    action: Action, left_out: int, cancels: int, counts: tuple[int, int], tasks: list[MadeTask]
) -> dict[str, object]:
    names = ["id", "project", "task_id", "run_id", "generation", "requester", "source", "notes", "attempts"]
    names += ["received_at", "planned_at", "done_at"]
    return {
        **{name: getattr(action, name) for name in names},
        "action": action.kind,
        "push": action.push_id,
        "state": state_of(action),
        "working": action.working,
        "reason": action.error,
        "left_out_count": left_out,
        "cancels_count": cancels,
        "tasks_planned": counts[0],
        "tasks_created": counts[1],
        "tasks": tasks,
        "in_tree": _action_task(action) if action.in_tree else None,
        "next_attempt_at": action.next_attempt_at,
    }


def _action_task(action: Action) -> ActionTask:
    return ActionTask(
        decision_task=action.decision_task,
        hook=action.hook,
        triggered_at=action.triggered_at,
        task_id=action.action_task,
        state=action.action_task_state,
    )
