"""Pushes, and what became of each step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from sqlalchemy import bindparam, func, text
from sqlalchemy.orm import defer
from sqlmodel import col, or_, select

from service import auth
from service.api.audit import record
from service.api.deps import (
    After,
    CallerDep,
    Limit,
    PushNumber,
    Reader,
    Reading,
    RepositoryAlias,
    ServicesDep,
)
from service.api.openapi import problems
from service.api.paging import page
from service.api.repositories import unknown_repository
from service.api.route import API, Route
from service.api.schemas.common import StepState
from service.api.schemas.pushes import (
    ChangesetRead,
    GraphRead,
    PushPage,
    PushRead,
    PushSummary,
    ResultsetRead,
    TaskRead,
)
from service.engine import leases
from service.errors import Problem
from service.sanitize import escape_unstorable
from service.store.database import Session
from service.store.models import (
    UNCREATED,
    AuditEvent,
    DeadLetter,
    PlannedTask,
    Push,
    PushStep,
    Repository,
    State,
    StepKind,
)
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/pushes", tags=["pushes"], route_class=Route)

TASKS_IN_A_LIST = 20

SAME_ALIAS = 100
"""Repositories that had the same alias, one after the other: the newest are looked at."""

_WITHOUT_CHANGESETS = (defer(Push.changesets, raiseload=True), defer(Push.nodes, raiseload=True))  # type: ignore[arg-type]  # columns, of which mypy sees the values


@router.get("", operation_id="listPushes", responses=problems(404))
async def list_pushes(
    session: Reading,
    _: Reader,
    repository: Annotated[str | None, Query(max_length=50, description="alias")] = None,
    state: Annotated[StepState | None, Query(description="pushes with a step in this state")] = None,
    revision: Annotated[str | None, Query(max_length=40, description="of the tip, all 40 digits")] = None,
    user: Annotated[str | None, Query(max_length=1_000, description="who pushed, exactly")] = None,
    limit: Limit = 50,
    after: After = None,
) -> PushPage:
    """List pushes, the newest first.

    With several filters a page can be shorter than `limit`, even empty, while `next` says that there are more.
    """
    filters: dict[str, Any] = {"repository": repository, "state": state, "revision": revision, "user": user}
    return await summarize_pushes(session, **filters, limit=limit, after=after, tasks=TASKS_IN_A_LIST)


async def summarize_pushes(
    session: Session,
    *,
    repository: str | None = None,
    state: StepState | None = None,
    revision: str | None = None,
    user: str | None = None,
    limit: int,
    after: str | None = None,
    tasks: int = 0,
) -> PushPage:
    """Return pushes, the newest first, each with its first `tasks` tasks."""
    filters: list[Any] = []
    if repository is not None:
        await check_alias(session, repository)
        filters.append(Repository.alias == escape_unstorable(repository))
    if revision is not None:
        filters.append(Push.revision == escape_unstorable(revision))
    if user is not None:
        filters.append(Push.user == escape_unstorable(user))
    if state is not None:
        filters.append(select(PushStep.id).where(PushStep.push_id == Push.id, PushStep.state == State(state)).exists())

    def matching(among: Callable[[Any], Any]) -> Any:
        query = select(Push.id, Push, Repository.alias).join(Repository, col(Repository.id) == Push.repository_id)
        return query.options(*_WITHOUT_CHANGESETS).where(among(Push.id), *filters)

    candidates, key = await _candidates(session, repository, state, revision, user)
    rows, following = await page(session, candidates, key, matching, limit, after)
    steps = await _steps(session, [push_id for push_id, _, _ in rows])
    graphs = await _graphs(session, [step for of_push in steps.values() for step in of_push], first=tasks)
    items = [PushSummary(**_summary(push, alias, steps[push_id], graphs)) for push_id, push, alias in rows]
    return PushPage(items=items, next=following)


async def _candidates(
    session: Session, repository: str | None, state: StepState | None, revision: str | None, user: str | None
) -> tuple[Sequence[Any], Any]:
    """Return queries of ids by the filter that leaves fewest, and the column of these ids."""
    of_state = select(PushStep.push_id).where(PushStep.state == (state and State(state))).distinct()
    if revision is not None:
        return [select(Push.id).where(Push.revision == escape_unstorable(revision))], Push.id
    if user is not None:
        return [select(Push.id).where(Push.user == escape_unstorable(user))], Push.id
    if state is not None and state not in {StepState.DONE, StepState.SKIPPED}:
        return [of_state], PushStep.push_id
    if repository is not None:
        with_alias = select(Repository.id).where(Repository.alias == escape_unstorable(repository))
        ids = (await session.exec(with_alias.order_by(col(Repository.id).desc()).limit(SAME_ALIAS))).all()
        return [select(Push.id).where(Push.repository_id == one) for one in ids], Push.id
    return ([of_state], PushStep.push_id) if state is not None else ([select(Push.id)], Push.id)


Generation = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="the newest that has the push, if not given")]


@router.get("/{alias}/{push_id}", operation_id="getPush", responses=problems(404))
async def get_push(
    alias: RepositoryAlias, push_id: PushNumber, session: Reading, _: Reader, generation: Generation = None
) -> PushRead:
    """Return one push, with the state of each step and its tasks."""
    push = await find_push(session, alias, push_id, generation)
    return await read_push(session, push, alias)


@router.post(
    "/{alias}/{push_id}/retry",
    status_code=202,
    operation_id="retryPush",
    responses=problems(404, 409, scope="tc-treeherder:action:retry:<alias>"),
)
async def retry_push(
    alias: RepositoryAlias,
    push_id: PushNumber,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    generation: Generation = None,
) -> PushRead:
    """Retry the failed steps: with the stored plan if nothing was refused, otherwise with a new one."""
    auth.require(services.settings, caller, f"tc-treeherder:action:retry:{alias}")
    async with services.database.writing() as session:
        push = await find_push(session, alias, push_id, generation)
        await refuse_deleted(session, push.repository_id)
        failed = (
            await session.exec(
                select(PushStep)
                .where(PushStep.push_id == push.id, PushStep.state == State.FAILED)
                .order_by(col(PushStep.id))
                .with_for_update()
            )
        ).all()
        if not failed:
            raise Problem(409, "Nothing failed", f"no step of push {push_id} of {alias} has failed: nothing to retry")
        leases.requeue(failed)
        for step in failed:
            if step.refused is not None:
                step.plan_attempt, step.refused = step.plan_attempt + 1, None
                step.error_task = step.error_task_refused = None
        letters = select(DeadLetter).where(col(DeadLetter.step_id).in_([step.id for step in failed]))
        for letter in await session.exec(letters):
            await session.delete(letter)
        await session.flush()
        read = await read_push(session, push, alias)
        steps = [f"{step.kind} {step.environment}".strip() for step in failed]
        about = {"repository": alias, "subject": f"push {push_id}"}
        record(session, AuditEvent.PUSH_RETRIED, caller, **about, push=push_id, generation=push.generation, steps=steps)
    log.info("push-retried", repository=alias, push=push_id, steps=len(failed), by=caller.name)
    services.database.wakeups.wake(Topic.WORK)
    return read


async def check_alias(session: Session, alias: str) -> None:
    """Raise a 404 if no repository has or had this alias: the pushes of a deleted one can still be read."""
    query = select(Repository.id).where(Repository.alias == escape_unstorable(alias)).limit(1)
    if (await session.exec(query)).first() is None:
        raise await unknown_repository(session, alias)


async def refuse_deleted(session: Session, repository_id: int) -> None:
    """Raise a 409 if the repository was deleted: nothing is done for it any more."""
    repository = await session.get_one(Repository, repository_id, with_for_update={"read": True})
    if repository.deleted_at is not None:
        detail = (
            f"the repository {repository.alias} ({repository.url}) was deleted: add it again to go on with its pushes"
        )
        raise Problem(409, "Repository deleted", detail)


async def find_push(session: Session, alias: str, push_id: int, generation: int | None) -> Push:
    """Return the push of this id, of the newest generation that has it unless one is given. Raises a 404."""
    query = (
        select(Push.id, Push.generation, Repository.deleted_at)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(Repository.alias == escape_unstorable(alias), Push.push_id == push_id)
    )
    if generation is not None:
        query = query.where(Push.generation == generation)
    # of each repository that had the alias, and each generation: the live one's newest
    storable = all(0 <= number < 2**31 for number in (push_id, generation or 0))
    known = (await session.exec(query)).all() if storable else []
    if not known:
        await check_alias(session, alias)
        detail = f"no push {push_id} of {alias!r} is known: `tc-treeherder pushes list --repository {alias}` lists them"
        raise Problem(404, "Unknown push", detail)
    newest, _, _ = max(known, key=lambda row: (row[2] is None, row[1], row[0]))
    return await session.get_one(Push, newest)


# Made once: to build these statements for each page took more time than to execute them.
_IDS: Any = bindparam("ids", expanding=True)

_STEPS = select(PushStep).where(col(PushStep.push_id).in_(_IDS))


async def _steps(session: Session, push_ids: list[int]) -> dict[int, list[PushStep]]:
    steps: dict[int, list[PushStep]] = defaultdict(list)
    if not push_ids:  # SQLite would read the whole table to find none
        return steps
    # sorted here: for many pushes, SQLite would go through the whole table in the order of its key
    rows = await session.exec(_STEPS, params={"ids": push_ids})
    for step in sorted(rows, key=lambda step: step.id or 0):
        steps[step.push_id].append(step)
    return steps


async def _graphs(session: Session, steps: list[PushStep], first: int | None = None) -> dict[int, GraphRead]:
    """Return the graph of each push with the tasks of its present plan, of each the `first` ones.

    Without their definitions, which can be large, and without the error task.
    """
    graphs = [step for step in steps if step.kind == StepKind.GRAPH]
    ids = [step.id for step in graphs]
    bounds = {} if first is None else {"first": first}
    rows: Any = ()
    if first != 0:
        rows = await session.exec(_planned_tasks(bounded=first is not None), params={"ids": ids, **bounds})
    tasks: dict[int, list[TaskRead]] = defaultdict(list)
    for step_id, _, task_id, name, created in sorted(rows, key=lambda row: row[:2]):
        tasks[step_id].append(TaskRead(task_id=task_id if created else None, name=name, created=created))
    counts = {step_id: (last, left) for step_id, last, left in await session.exec(_counts(), params={"ids": ids})}
    supersedes = await _supersedes(session, graphs)
    return {
        step.id or 0: _graph(step, tasks[step.id or 0], *counts[step.id or 0], supersedes[step.push_id])
        for step in graphs
    }


@cache
def _planned_tasks(*, bounded: bool) -> Any:
    """Select the tasks of these steps' present plans, of each the first ones if it is bounded."""
    query: Any = (
        select(PushStep.id, PlannedTask.position, PlannedTask.task_id, PlannedTask.name, PlannedTask.created)  # type: ignore[call-overload]  # SQLModel has types for four columns
        .join(PushStep, col(PushStep.id) == PlannedTask.step_id)
        .where(col(PushStep.id).in_(_IDS), PlannedTask.plan_attempt == PushStep.plan_attempt, *_OF_GRAPH)
    )
    return query.where(PlannedTask.position < bindparam("first")) if bounded else query


_NUMBERS = select(Push.id, Push.repository_id, Push.generation, Push.push_id).where(col(Push.id).in_(_IDS))

_SUPERSEDED = (
    select(Push.repository_id, Push.generation, Push.push_id, PushStep.superseded_by)
    .join(PushStep, col(PushStep.push_id) == Push.id)
    .where(col(PushStep.superseded_by).in_(_IDS))
    .order_by(col(Push.push_id))
)


async def _supersedes(session: Session, graphs: list[PushStep]) -> dict[int, list[int]]:
    """Return the pushes that each push of these graphs supersedes, by the ids of the pushes."""
    ids = [step.push_id for step in graphs]
    newer = await session.exec(_NUMBERS, params={"ids": ids})
    rows = {(repository_id, generation, number): row_id or 0 for row_id, repository_id, generation, number in newer}
    earlier = await session.exec(_SUPERSEDED, params={"ids": list({number for _, _, number in rows})})
    pushes: dict[int, list[int]] = defaultdict(list)
    for repository_id, generation, number, by in earlier:
        if by is not None and (newer_id := rows.get((repository_id, generation, by))) is not None:
            pushes[newer_id].append(number)
    return pushes


_OF_GRAPH = (or_(col(PlannedTask.label) != "error", col(PlannedTask.label).is_(None)),)


@cache
def _counts() -> Any:
    """Select of each of these steps the position of its plan's last task, and how many of its tasks are not created.

    Neither looks at more than the latter.
    """
    of_step = (PlannedTask.step_id == PushStep.id, PlannedTask.plan_attempt == PushStep.plan_attempt)
    last = select(func.max(PlannedTask.position)).where(*of_step, *_OF_GRAPH).scalar_subquery()
    left = select(func.count()).select_from(PlannedTask).where(*of_step, text(UNCREATED)).scalar_subquery()
    return select(PushStep.id, last, left).where(col(PushStep.id).in_(_IDS))


async def read_push(session: Session, push: Push, alias: str) -> PushRead:
    """Return a push with the state of each step and its tasks."""
    steps = (await _steps(session, [push.id or 0]))[push.id or 0]
    return PushRead(
        **_summary(push, alias, steps, await _graphs(session, steps)),
        changesets_count=len(push.nodes),
        changesets=[ChangesetRead(node=node) for node in push.nodes[: len(push.nodes) - len(push.changesets)]]
        + [ChangesetRead.model_validate(changeset) for changeset in push.changesets],
    )


def _summary(push: Push, alias: str, steps: list[PushStep], graphs: dict[int, GraphRead]) -> dict[str, object]:
    return {
        "repository": alias,
        **push.model_dump(include={"push_id", "generation", "user", "date", "revision", "revision_hash", "noticed_at"}),
        "resultsets": [
            ResultsetRead(
                environment=step.environment,
                state=StepState(step.state),
                working=step.working,
                attempts=step.attempts,
                error=step.error,
                at=step.done_at,
                next_attempt_at=step.next_attempt_at,
            )
            for step in steps
            if step.kind == StepKind.RESULTSET
        ],
        "graph": next((graphs[step.id or 0] for step in steps if step.kind == StepKind.GRAPH), None),
    }


def _graph(step: PushStep, tasks: list[TaskRead], last: int | None, uncreated: int, supersedes: list[int]) -> GraphRead:
    planned = 0 if last is None else last + 1
    return GraphRead.model_validate(
        {
            "state": step.state,
            "working": step.working,
            "reason": step.error,
            "attempts": step.attempts,
            "at": step.done_at,
            "next_attempt_at": step.next_attempt_at,
            "error_task": step.error_task,
            "error_task_refused": step.error_task_refused,
            "superseded_by": step.superseded_by,
            "supersedes": supersedes,
            "tasks_planned": planned,
            "tasks_created": planned - uncreated,
            "tasks": tasks,
        }
    )
