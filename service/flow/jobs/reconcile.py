"""Reconcile job reports with Taskcluster, because Pulse messages can be lost.

Unfinished runs without a recent event are looked up in the queue; after a Pulse queue was deleted, all unfinished runs
are. The answer of the queue is recorded like a task event.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError
from sqlalchemy import bindparam, func, text, update
from sqlmodel import col, select

from service.clock import now
from service.contract.validation import reason_of
from service.engine.batches import lock_reports
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.flow.jobs import events
from service.flow.jobs.events import Target, TaskStatus
from service.services import Services
from service.store.database import Session, Utc
from service.store.distinct import distinct_of
from service.store.models import NEVER, OPEN, Action, GroupCheck, JobReport, PlannedTask, PushStep, Stage, State
from service.store.wakeups import Topic

log = structlog.get_logger()

STATUSES_PER_CALL = 1_000
"""Most statuses that are looked up in one call."""

LANE = "task-groups"
"""Lane of the task groups that are to be listed."""

LOOK_BACK = timedelta(days=1)
"""Age up to which graphs and retriggers are listed after a queue was deleted."""

EVERYTHING = "*"
"""In place of the id of a task group: all groups and runs within `LOOK_BACK`."""

_R = JobReport.__table__.c  # type: ignore[attr-defined]  # SQLModel does not declare it


async def reconcile_quiet_runs(services: Services) -> int:
    """Look up unfinished runs without a recent event, at most `STATUSES_PER_CALL`, and record their current status.

    Return the number of runs that were looked up.
    """
    async with services.database.writing() as session:
        quiet = await _claim(session, services.settings.reports.quiet)
    if not quiet:
        return 0
    targets: dict[str, set[Target]] = {}
    for task_id, environment, project, revision, revision_hash in quiet:
        targets.setdefault(task_id, set()).add(Target(environment, project, revision, revision_hash))
    statuses = await services.queue.statuses(sorted(targets))
    gone = targets.keys() - statuses.keys()
    async with services.database.writing() as session:
        await events.record_seen(session, _parse_statuses(statuses, targets))
    services.database.wakeups.wake(Topic.REPORTS)
    if gone:  # in another transaction, because each locks its rows in one order
        async with services.database.writing() as session:
            await skip_reports(session, gone, "Taskcluster has no such task any more")
    log.info("quiet-runs-checked", runs=len(quiet), gone=len(gone))
    return len(quiet)


def _parse_statuses(
    statuses: dict[str, dict[str, Any]], targets: dict[str, set[Target]]
) -> Iterable[tuple[TaskStatus, Iterable[Target]]]:
    for task_id, status in statuses.items():
        try:
            yield TaskStatus.model_validate(status), targets[task_id]
        except ValidationError as error:
            log.warning("status-not-understood", task_id=task_id, why=reason_of(error))


async def _claim(session: Session, quiet: timedelta) -> list[tuple[str, str, str, str | None, str | None]]:
    """Claim quiet runs: set their time first, so that no other replica looks them up and a failed call is repeated."""
    at = now()
    due = (
        select(JobReport.id)
        .where(text(OPEN), col(JobReport.last_event_at) <= at - quiet)
        .order_by(col(JobReport.last_event_at))
        .limit(STATUSES_PER_CALL)
        .with_for_update(skip_locked=True)
        .cte()
    )
    claimed = await (await session.connection()).execute(
        update(JobReport)
        .where(col(JobReport.id).in_(select(due.c.id)))
        .values(last_event_at=at)
        .returning(_R.task_id, _R.environment, _R.project, _R.revision, _R.revision_hash)
    )
    return [(row[0], row[1], row[2], row[3], row[4]) for row in claimed]


async def request_full_check(session: Session) -> None:
    """Let a worker check all unfinished runs (`_request_checks`), because messages of task events were lost."""
    waiting = select(GroupCheck.id).where(GroupCheck.task_group_id == EVERYTHING, col(GroupCheck.due_at).is_not(None))
    if (await session.exec(waiting.limit(1))).first() is None:
        session.add(GroupCheck(task_group_id=EVERYTHING, lane=LANE))
    log.warning("all-runs-will-be-checked", why="a queue of task events was deleted")


async def _request_checks(services: Services, lease: Lease[GroupCheck]) -> None:
    """Request a check of all unfinished runs, and of the task groups of the last day's graphs and retriggers.

    The groups are listed for tasks that were defined meanwhile. The requests are stored in pieces, because a day's work
    can be large.
    """
    at = now()
    since = at - LOOK_BACK
    async with services.database.reading() as session:
        groups: set[str] = set()
        for lane in (await session.exec(select(_LANES.c.lane).where(_LANES.c.lane.is_not(None)))).all():
            groups |= set(await session.exec(_GROUPS_DUE, params={"since": since, "of_lane": lane}))
        groups |= set(await session.exec(_GROUPS_ENDED, params={"since": since}))
        groups |= set(await session.exec(_GROUPS_OPEN, params={"since": since}))
        steps = await session.exec(select(PushStep.id).where(col(PushStep.since) > since))
        groups |= await _groups_of(session, col(PlannedTask.step_id), steps.all())
        actions = await session.exec(select(Action.id).where(col(Action.since) > since))
        groups |= await _groups_of(session, col(PlannedTask.action_id), actions.all())
    for piece in _pieces(sorted(groups)):
        async with lease.writing() as session:
            query = select(GroupCheck.task_group_id)
            query = query.where(col(GroupCheck.task_group_id).in_(piece), col(GroupCheck.due_at).is_not(None))
            waiting = set(await session.exec(query))
            session.add_all([GroupCheck(task_group_id=group, lane=LANE) for group in piece if group not in waiting])
    marked = STATUSES_PER_CALL
    while marked == STATUSES_PER_CALL:
        async with lease.writing() as session:
            marked = await _mark_unheard(session, at)
    await lease.finish(State.DONE)
    services.database.wakeups.wake(Topic.WORK)


_SINCE = bindparam("since", type_=Utc)
_LANES = distinct_of(JobReport.lane, "lanes", col(JobReport.due_at).is_not(None))
_SEEN = select(JobReport.task_group_id).where(col(JobReport.last_event_at) > _SINCE).distinct()
# runs with an event since then are due, or have ended since then, or are unfinished although nothing is due
_GROUPS_DUE = _SEEN.where(col(JobReport.lane) == bindparam("of_lane"), col(JobReport.due_at).is_not(None))
_GROUPS_ENDED = _SEEN.where(col(JobReport.due_at).is_(None), col(JobReport.done_at) > _SINCE)
_GROUPS_OPEN = _SEEN.where(text(OPEN))


async def _groups_of(session: Session, column: Any, owners: Sequence[int | None]) -> set[str]:
    """Return the groups of the tasks that were created for these steps or actions."""
    group = func.coalesce(col(PlannedTask.definition)["taskGroupId"].as_string(), PlannedTask.task_id)
    groups: set[str] = set()
    for piece in _pieces(owners):
        created = select(group).where(column.in_(piece), col(PlannedTask.created).is_(True))
        groups |= set(await session.exec(created.distinct()))
    return groups


async def _mark_unheard(session: Session, before: datetime) -> int:
    """Mark unfinished runs as if no event of them had ever come, at most `STATUSES_PER_CALL`; return how many."""
    unfinished = (
        select(JobReport.id)
        .where(text(OPEN), col(JobReport.last_event_at) > NEVER, col(JobReport.last_event_at) <= before)
        .order_by(col(JobReport.last_event_at))
        .limit(STATUSES_PER_CALL)
        .with_for_update(skip_locked=True)  # an event of a locked run comes at this moment
        .cte()
    )
    marked = await (await session.connection()).execute(
        update(JobReport)
        .where(col(JobReport.id).in_(select(unfinished.c.id)))
        .values(last_event_at=NEVER)
        .returning(_R.id)
    )
    return len(marked.all())  # Python's sqlite3 gives no rowcount for a statement that begins with WITH


async def skip_reports(session: Session, task_ids: Iterable[str], why: str) -> None:
    """Skip the unfinished runs of these tasks, whoever holds their reports."""
    open_ = (col(JobReport.task_id).in_(task_ids), col(JobReport.stage) < Stage.RESOLVED)
    reports = (await session.exec(select(JobReport).where(*open_))).all()
    await lock_reports(session, reports)
    await (await session.connection()).execute(
        update(JobReport)
        .where(_R.id.in_([report.id for report in reports]), _R.stage < Stage.RESOLVED)
        .values(
            fencing_token=_R.fencing_token + 1,
            holder=None,
            state=State.SKIPPED,
            error=why,
            due_at=None,
            done_at=now(),
            no_push_since=None,
        )
    )


T = TypeVar("T")


def _pieces(values: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


async def check_group(services: Services, lease: Lease[GroupCheck]) -> None:
    """Record the current status of each task of the group."""
    if lease.item.task_group_id == EVERYTHING:
        await _request_checks(services, lease)
        return
    async for page in services.queue.group(lease.item.task_group_id):
        statuses: dict[str, dict[str, Any]] = {}
        targets: dict[str, set[Target]] = {}
        for status, definition in page:
            if task_targets := events.find_targets(services.settings, definition.get("routes", [])):
                task_id = str(status.get("taskId"))
                statuses[task_id], targets[task_id] = status, set(task_targets)
        async with lease.writing() as session:
            await events.record_seen(session, _parse_statuses(statuses, targets))
        services.database.wakeups.wake(Topic.REPORTS)
    await lease.finish(State.DONE)


async def reconcile_when_due(services: Services) -> float:
    """Reconcile quiet runs as often as `reports.quiet` needs it; return the seconds until the next time."""
    checked = await reconcile_quiet_runs(services)
    return 0 if checked == STATUSES_PER_CALL else min(services.settings.reports.quiet.total_seconds() / 4, 30)


async def _replay(session: Session, _services: Services, payload: bytes) -> None:
    session.add(GroupCheck(task_group_id=payload.decode(), lane=LANE))


WORK.add_replay("group-check", _replay)
WORK.add_table(WorkTable(GroupCheck, "the log says why a task group cannot be listed"))
WORK.add_kind(GroupCheck, "group_check", check_group)
WORK.add_step(reconcile_when_due)
