"""Messages get lost: what has not been heard of for long is asked about, and after a deleted queue all of it.

What the queue answers is noted as if a message had told of it.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import func, update
from sqlmodel import col, or_, select

from service.database import Session, now
from service.door import reason_of
from service.flow import report, settle
from service.flow.report import Target, TaskStatus
from service.models import Action, GroupCheck, JobReport, PlannedTask, PushStep, Stage, State
from service.parts import Parts
from service.work import Hold

log = structlog.get_logger()

ONE_CALL = 1_000
"""Statuses in one call."""

LANE = "task-groups"
"""Of the groups that are to be listed."""

GRAPHS_OF = timedelta(days=1)
_R = JobReport.__table__.c  # type: ignore[attr-defined]  # SQLModel does not declare it


async def check_quiet(parts: Parts) -> int:
    """Ask after up to a call's worth of runs that are not at their end and were not heard of; how many these were."""
    async with parts.database.writing() as session:
        quiet = await _claim(session, parts.settings.reports.quiet)
    if not quiet:
        return 0
    targets: dict[str, set[Target]] = {}
    for task_id, environment, project, revision, revision_hash in quiet:
        targets.setdefault(task_id, set()).add(Target(environment, project, revision, revision_hash))
    found = await parts.queue.statuses(sorted(targets))
    gone = targets.keys() - found.keys()
    async with parts.database.writing() as session:
        await report.note(session, _understood(found, targets))
    if gone:  # apart from those: each transaction locks its rows in one order
        async with parts.database.writing() as session:
            await settle.skip(session, gone, "Taskcluster has no such task any more")
    log.info("quiet-runs-checked", runs=len(quiet), gone=len(gone))
    return len(quiet)


def _understood(
    found: dict[str, dict[str, Any]], targets: dict[str, set[Target]]
) -> Iterable[tuple[TaskStatus, Iterable[Target]]]:
    for task_id, status in found.items():
        try:
            yield TaskStatus.model_validate(status), targets[task_id]
        except ValidationError as error:
            log.warning("status-not-understood", task_id=task_id, why=reason_of(error))


async def _claim(session: Session, quiet: timedelta) -> list[tuple[str, str, str, str | None, str | None]]:
    """Whoever asks notes the time first: then no other replica asks the same, and a failed call is made again later."""
    at = now()
    due = (
        select(JobReport.id)
        .where(
            col(JobReport.stage) < Stage.RESOLVED,
            col(JobReport.heard_at) <= at - quiet,
            col(JobReport.state).in_([State.PENDING, State.DONE]),
        )
        .order_by(col(JobReport.heard_at))
        .limit(ONE_CALL)
        .with_for_update(skip_locked=True)
        .cte()
    )
    claimed = await (await session.connection()).execute(
        update(JobReport)
        .where(col(JobReport.id).in_(select(due.c.id)))
        .values(heard_at=at)
        .returning(_R.task_id, _R.environment, _R.project, _R.revision, _R.revision_hash)
    )
    return [(row[0], row[1], row[2], row[3], row[4]) for row in claimed]


async def queue_was_deleted(session: Session) -> None:
    """Messages of task events were lost: all runs that are not at their end are asked after, and the task groups of
    the last day's graphs and retriggers are listed once, for what was defined meanwhile."""
    since = now() - GRAPHS_OF
    seen = select(JobReport.task_group_id).where(col(JobReport.heard_at) > since).distinct()
    groups = set(await session.exec(seen))
    group = func.coalesce(col(PlannedTask.definition)["taskGroupId"].as_string(), PlannedTask.task_id)
    ours = (
        select(group)
        .outerjoin(PushStep, col(PushStep.id) == PlannedTask.step_id)
        .outerjoin(Action, col(Action.id) == PlannedTask.action_id)
        .where(or_(col(PushStep.since) > since, col(Action.since) > since), col(PlannedTask.created).is_(True))
        .distinct()
    )
    groups |= set(await session.exec(ours))
    waiting = set(await session.exec(select(GroupCheck.task_group_id).where(col(GroupCheck.due_at).is_not(None))))
    session.add_all([GroupCheck(task_group_id=each, lane=LANE) for each in sorted(groups - waiting)])
    unfinished = (
        select(JobReport.id)
        .where(col(JobReport.stage) < Stage.RESOLVED)
        .with_for_update(skip_locked=True)  # what is locked is heard of at this moment
        .cte()
    )
    await session.exec(
        update(JobReport).where(col(JobReport.id).in_(select(unfinished.c.id))).values(heard_at=report.NEVER),
        execution_options={"synchronize_session": False},
    )
    log.warning("all-runs-will-be-checked", why="a queue of task events was deleted", task_groups=len(groups))


async def list_group(parts: Parts, hold: Hold[GroupCheck]) -> None:
    """Note each task of the group as it stands."""
    async for page in parts.queue.group(hold.item.task_group_id):
        found: dict[str, dict[str, Any]] = {}
        targets: dict[str, set[Target]] = {}
        for status, definition in page:
            if shown := report.targets(parts.settings, definition.get("routes", [])):
                task_id = str(status.get("taskId"))
                found[task_id], targets[task_id] = status, set(shown)
        async with hold.writing() as session:
            await report.note(session, _understood(found, targets))
    await hold.finish(State.DONE)
