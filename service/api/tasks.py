"""A task of Taskcluster's, as far as this service has to do with it."""

import re
from typing import Annotated

from fastapi import APIRouter, Path
from sqlmodel import col, select

from service.api.actions import WITHOUT_BODIES, state_of
from service.api.deps import Reader, Reading
from service.api.openapi import problems
from service.api.reports import run_of
from service.api.route import API, Route
from service.api.schemas.actions import MadeTask
from service.api.schemas.tasks import RunRead, TaskAction, TaskOwner, TaskPush
from service.errors import Problem
from service.flow.tasks.definition import SLUGID
from service.sanitize import escape_unstorable
from service.store.database import Session
from service.store.models import Action, JobReport, PlannedTask, Push, PushStep, Repository

router = APIRouter(prefix=f"{API}/tasks", tags=["tasks"], route_class=Route)

MOST = 100
"""Actions, copies and runs that are shown of one task: the newest."""

TaskNumber = Annotated[str, Path(max_length=100, description="a taskId", examples=["fN1SbArXTPSVFNUvaOlinQ"])]


@router.get("/{task_id}", operation_id="getTask", responses=problems(404))
async def get_task(task_id: TaskNumber, session: Reading, _: Reader) -> TaskOwner:
    """Return what a task belongs to, the reports of its runs, and the actions on it with their copies."""
    task_id = escape_unstorable(task_id)
    planned = await session.get(PlannedTask, task_id)
    none = "" if re.fullmatch(SLUGID, task_id) else ", which is no taskId (22 characters of A-Z a-z 0-9 _ -)"
    unknown = Problem(404, "Unknown task", f"no push, action or report of this service names a task {task_id!r}{none}")
    if planned is not None and not planned.created:  # nobody is to know an id before its task is created
        raise unknown
    owner = TaskOwner(
        task_id=task_id,
        actions=await _actions(session, task_id),
        copies=await _copies(session, task_id),
        runs=await _runs(session, task_id),
    )
    if planned is not None:
        owner.name, owner.copy_of, owner.made_by = planned.name, planned.copy_of, planned.action_id
        owner.push = None if planned.step_id is None else await _push(session, planned.step_id)
    elif not (owner.actions or owner.copies or owner.runs):
        raise unknown
    return owner


async def _push(session: Session, step_id: int) -> TaskPush:
    query = (
        select(Repository.alias, Push.push_id, Push.generation, Push.revision)
        .join(Push, col(Push.repository_id) == Repository.id)
        .join(PushStep, col(PushStep.push_id) == Push.id)
        .where(PushStep.id == step_id)
    )
    alias, push_id, generation, revision = (await session.exec(query)).one()
    return TaskPush(repository=alias, push_id=push_id, generation=generation, revision=revision)


async def _actions(session: Session, task_id: str) -> list[TaskAction]:
    query = select(Action).options(*WITHOUT_BODIES).where(Action.task_id == task_id)
    query = query.order_by(col(Action.id).desc()).limit(MOST)
    return [
        TaskAction(
            id=action.id or 0,
            action=action.kind,
            project=action.project,
            requester=action.requester,
            state=state_of(action),
            reason=action.error,
            received_at=action.received_at,
        )
        for action in await session.exec(query)
    ]


async def _copies(session: Session, task_id: str) -> list[MadeTask]:
    query = (
        select(PlannedTask.task_id, PlannedTask.name)
        .where(PlannedTask.copy_of == task_id, col(PlannedTask.created).is_(True))
        .order_by(col(PlannedTask.action_id).desc())
        .limit(MOST)
    )
    rows = await session.exec(query)
    return [MadeTask(copy_of=task_id, task_id=copy, name=name, created=True) for copy, name in rows]


async def _runs(session: Session, task_id: str) -> list[RunRead]:
    query = (
        select(JobReport)
        .where(JobReport.task_id == task_id)
        .order_by(col(JobReport.run_id).desc(), col(JobReport.environment).desc())
        .limit(MOST)
    )
    return [
        RunRead(**run_of(report))
        for report in sorted(await session.exec(query), key=lambda report: (-report.run_id, report.environment))
    ]
