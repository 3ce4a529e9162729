"""Pushes, and what became of each step."""

from collections import defaultdict
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request
from sqlmodel import col, or_, select

from service import auth, work
from service.api.deps import (
    After,
    CallerDep,
    Limit,
    PartsDep,
    PushNumber,
    Reader,
    Reading,
    RepositoryAlias,
    cursor,
    opaque,
)
from service.api.openapi import problems
from service.api.route import Route
from service.database import Session
from service.door import visible
from service.errors import Problem
from service.models import DeadLetter, PlannedTask, Push, PushStep, Repository, State, StepKind
from service.schemas import ChangesetRead, GraphRead, PushPage, PushRead, PushSummary, ResultsetRead, TaskRead

log = structlog.get_logger()
router = APIRouter(prefix="/pushes", tags=["pushes"], route_class=Route)

_GRAPH_STATES = {State.PENDING: "pending", State.DONE: "created", State.SKIPPED: "skipped", State.FAILED: "failed"}


@router.get("", operation_id="listPushes", responses=problems())
async def list_pushes(
    session: Reading,
    _: Reader,
    repository: Annotated[str | None, Query(max_length=50, description="alias")] = None,
    state: Annotated[State | None, Query(description="pushes with a step in this state")] = None,
    revision: Annotated[str | None, Query(max_length=40, description="of the tip, all 40 digits")] = None,
    user: Annotated[str | None, Query(max_length=1_000, description="who pushed, exactly")] = None,
    limit: Limit = 50,
    after: After = None,
) -> PushPage:
    """Pushes, the newest first."""
    query = select(Push, Repository.alias).where(col(Repository.id) == Push.repository_id).order_by(col(Push.id).desc())
    if repository is not None:
        query = query.where(Repository.alias == visible(repository))
    if revision is not None:
        query = query.where(Push.revision == visible(revision))
    if user is not None:
        query = query.where(Push.user == visible(user))
    if state is not None:
        query = query.where(col(Push.id).in_(select(PushStep.push_id).where(PushStep.state == state)))
    if (before := cursor(after)) is not None:
        query = query.where(col(Push.id) < before)
    found = (await session.exec(query.limit(limit + 1))).all()
    rows = found[:limit]
    steps = await _steps(session, [push.id or 0 for push, _ in rows])
    tasks = await _tasks(session, [step for of_push in steps.values() for step in of_push])
    items = [PushSummary(**_summary(push, alias, steps[push.id or 0], tasks)) for push, alias in rows]
    return PushPage(items=items, next=opaque(rows[-1][0].id or 0) if len(found) > limit else None)


Generation = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="the newest that has the push, if not given")]


@router.get("/{alias}/{push_id}", operation_id="getPush", responses=problems(404))
async def get_push(
    alias: RepositoryAlias, push_id: PushNumber, session: Reading, _: Reader, generation: Generation = None
) -> PushRead:
    """One push, with the state of each step and its tasks."""
    push = await find_push(session, alias, push_id, generation)
    return await _read(session, push, alias)


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
    parts: PartsDep,
    caller: CallerDep,
    generation: Generation = None,
) -> PushRead:
    """Do the failed steps again: with the stored plan where nothing was refused, otherwise rendered anew."""
    auth.require(parts.settings, caller, f"tc-treeherder:action:retry:{alias}")
    async with parts.database.writing() as session:
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
        work.again(failed)
        for step in failed:
            if step.refused is not None:
                step.plan_attempt, step.refused = step.plan_attempt + 1, None
                step.error_task = step.error_task_refused = None
        letters = select(DeadLetter).where(col(DeadLetter.step_id).in_([step.id for step in failed]))
        for letter in await session.exec(letters):
            await session.delete(letter)
        await session.flush()
        read = await _read(session, push, alias)
    log.info("push-retried", repository=alias, push=push_id, steps=len(failed), by=caller.name)
    request.app.state.worker.wake()
    return read


async def refuse_deleted(session: Session, repository_id: int) -> None:
    """Raise a 409 if the repository was deleted: nothing is done for it any more."""
    repository = await session.get_one(Repository, repository_id, with_for_update={"read": True})
    if repository.deleted_at is not None:
        detail = (
            f"the repository {repository.alias} ({repository.url}) was deleted: add it again to go on with its pushes"
        )
        raise Problem(409, "Repository deleted", detail)


async def find_push(session: Session, alias: str, push_id: int, generation: int | None) -> Push:
    query = (
        select(Push)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(Repository.alias == visible(alias), Push.push_id == push_id)
        .order_by(col(Repository.deleted_at).is_not(None), col(Push.generation).desc(), col(Push.id).desc())
    )
    if generation is not None:
        query = query.where(Push.generation == generation)
    push = (await session.exec(query.limit(1))).first() if 0 <= push_id < 2**31 else None
    if push is None:
        raise Problem(404, "Unknown push", f"no push {push_id} of {alias!r} is known; GET /api/v1/pushes lists them")
    return push


async def _steps(session: Session, push_ids: list[int]) -> dict[int, list[PushStep]]:
    steps: dict[int, list[PushStep]] = defaultdict(list)
    for step in await session.exec(
        select(PushStep).where(col(PushStep.push_id).in_(push_ids)).order_by(col(PushStep.id))
    ):
        steps[step.push_id].append(step)
    return steps


async def _tasks(session: Session, steps: list[PushStep]) -> dict[int, list[TaskRead]]:
    """The tasks of each graph's present plan; without their definitions, which can be large."""
    tasks: dict[int, list[TaskRead]] = defaultdict(list)
    rows = await session.exec(
        select(PushStep.id, PlannedTask.task_id, PlannedTask.name, PlannedTask.created)
        .join(PushStep, col(PushStep.id) == PlannedTask.step_id)
        .where(
            col(PlannedTask.step_id).in_([step.id for step in steps if step.kind == StepKind.GRAPH]),
            or_(col(PlannedTask.label) != "error", col(PlannedTask.label).is_(None)),
            PlannedTask.plan_attempt == PushStep.plan_attempt,
        )
        .order_by(col(PlannedTask.position))
    )
    for step_id, task_id, name, created in rows:
        tasks[step_id or 0].append(TaskRead(task_id=task_id if created else None, name=name, created=created))
    return tasks


async def _read(session: Session, push: Push, alias: str) -> PushRead:
    steps = (await _steps(session, [push.id or 0]))[push.id or 0]
    return PushRead(
        **_summary(push, alias, steps, await _tasks(session, steps)),
        changesets_count=len(push.nodes),
        changesets=[ChangesetRead(node=node) for node in push.nodes[: len(push.nodes) - len(push.changesets)]]
        + [ChangesetRead.model_validate(changeset) for changeset in push.changesets],
    )


def _summary(push: Push, alias: str, steps: list[PushStep], tasks: dict[int, list[TaskRead]]) -> dict[str, object]:
    graphs = [step for step in steps if step.kind == StepKind.GRAPH]
    return {
        "repository": alias,
        **push.model_dump(include={"push_id", "generation", "user", "date", "revision", "revision_hash", "noticed_at"}),
        "resultsets": [
            ResultsetRead(
                environment=step.environment,
                state=step.state,
                attempts=step.attempts,
                error=step.error,
                at=step.done_at,
                next_attempt_at=step.next_attempt_at,
            )
            for step in steps
            if step.kind == StepKind.RESULTSET
        ],
        "graph": _graph(graphs[0], tasks) if graphs else None,
    }


def _graph(step: PushStep, tasks: dict[int, list[TaskRead]]) -> GraphRead:
    return GraphRead.model_validate(
        {
            "state": _GRAPH_STATES[State(step.state)],
            "reason": step.error,
            "attempts": step.attempts,
            "at": step.done_at,
            "next_attempt_at": step.next_attempt_at,
            "error_task": step.error_task,
            "error_task_refused": step.error_task_refused,
            "tasks": tasks[step.id or 0],
        }
    )
