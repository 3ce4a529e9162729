"""Messages get lost: what has not been heard of for long is asked about, and after a deleted queue all of it.

What the queue answers is noted as if a message had told of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError
from sqlalchemy import bindparam, func, text, update
from sqlmodel import col, select

from service.clock import now
from service.engine.batches import lock_reports
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.flow.jobs import events
from service.flow.jobs.events import Target, TaskStatus
from service.sanitize import reason_of
from service.services import Services
from service.store.database import Session, Utc
from service.store.distinct import distinct_of
from service.store.models import NEVER, OPEN, Action, GroupCheck, JobReport, PlannedTask, PushStep, Stage, State
from service.store.wakeups import Topic

log = structlog.get_logger()

ONE_CALL = 1_000
"""Statuses in one call."""

LANE = "task-groups"
"""Of the groups that are to be listed."""

GRAPHS_OF = timedelta(days=1)
_R = JobReport.__table__.c  # type: ignore[attr-defined]  # SQLModel does not declare it


async def check_quiet(services: Services) -> int:
    """Ask after up to a call's worth of runs that are not at their end and were not heard of; how many these were."""
    async with services.database.writing() as session:
        quiet = await _claim(session, services.settings.reports.quiet)
    if not quiet:
        return 0
    targets: dict[str, set[Target]] = {}
    for task_id, environment, project, revision, revision_hash in quiet:
        targets.setdefault(task_id, set()).add(Target(environment, project, revision, revision_hash))
    found = await services.queue.statuses(sorted(targets))
    gone = targets.keys() - found.keys()
    async with services.database.writing() as session:
        await events.note(session, _understood(found, targets))
    services.database.wakeups.wake(Topic.REPORTS)
    if gone:  # apart from those: each transaction locks its rows in one order
        async with services.database.writing() as session:
            await skip(session, gone, "Taskcluster has no such task any more")
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
            text(OPEN),
            col(JobReport.last_event_at) <= at - quiet,
        )
        .order_by(col(JobReport.last_event_at))
        .limit(ONE_CALL)
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


async def queue_was_deleted(session: Session) -> None:
    """Messages of task events were lost: have a worker find out what is to be asked about (`_find_lost`)."""
    waiting = select(GroupCheck.id).where(GroupCheck.task_group_id == EVERYTHING, col(GroupCheck.due_at).is_not(None))
    if (await session.exec(waiting.limit(1))).first() is None:
        session.add(GroupCheck(task_group_id=EVERYTHING, lane=LANE))
    log.warning("all-runs-will-be-checked", why="a queue of task events was deleted")


async def _find_lost(services: Services, lease: Lease[GroupCheck]) -> None:
    """Have all runs asked after that are not at their end, and the task groups of the last day's graphs and retriggers
    listed once, for what was defined meanwhile. Piece by piece: a day's work can be much."""
    at = now()
    since = at - GRAPHS_OF
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
    for some in _pieces(sorted(groups)):
        async with lease.writing() as session:
            query = select(GroupCheck.task_group_id)
            query = query.where(col(GroupCheck.task_group_id).in_(some), col(GroupCheck.due_at).is_not(None))
            waiting = set(await session.exec(query))
            session.add_all([GroupCheck(task_group_id=each, lane=LANE) for each in some if each not in waiting])
    asked_after = ONE_CALL
    while asked_after == ONE_CALL:
        async with lease.writing() as session:
            asked_after = await _ask_after(session, at)
    await lease.finish(State.DONE)
    services.database.wakeups.wake(Topic.WORK)


EVERYTHING = "*"
"""In place of a task group's id: all of the last day."""


_SINCE = bindparam("since", type_=Utc)
_LANES = distinct_of(JobReport.lane, "lanes", col(JobReport.due_at).is_not(None))
_SEEN = select(JobReport.task_group_id).where(col(JobReport.last_event_at) > _SINCE).distinct()
# what was heard of since then is due, or has ended since then, or is looked after although nothing is due
_GROUPS_DUE = _SEEN.where(col(JobReport.lane) == bindparam("of_lane"), col(JobReport.due_at).is_not(None))
_GROUPS_ENDED = _SEEN.where(col(JobReport.due_at).is_(None), col(JobReport.done_at) > _SINCE)
_GROUPS_OPEN = _SEEN.where(text(OPEN))


async def _groups_of(session: Session, column: Any, owners: Sequence[int | None]) -> set[str]:
    """Return the groups of the tasks that were created for these steps or actions."""
    group = func.coalesce(col(PlannedTask.definition)["taskGroupId"].as_string(), PlannedTask.task_id)
    groups: set[str] = set()
    for some in _pieces(owners):
        created = select(group).where(column.in_(some), col(PlannedTask.created).is_(True))
        groups |= set(await session.exec(created.distinct()))
    return groups


async def _ask_after(session: Session, before: datetime) -> int:
    """Let up to a call's worth of runs look as if they had never been heard of; return how many."""
    unfinished = (
        select(JobReport.id)
        .where(text(OPEN), col(JobReport.last_event_at) > NEVER, col(JobReport.last_event_at) <= before)
        .order_by(col(JobReport.last_event_at))
        .limit(ONE_CALL)
        .with_for_update(skip_locked=True)  # what is locked is heard of at this moment
        .cte()
    )
    asked = await (await session.connection()).execute(
        update(JobReport)
        .where(col(JobReport.id).in_(select(unfinished.c.id)))
        .values(last_event_at=NEVER)
        .returning(_R.id)
    )
    return len(asked.all())  # Python's sqlite3 counts nothing of a statement that begins with WITH


async def skip(session: Session, task_ids: Iterable[str], why: str) -> None:
    """Skip what is not at its end of these tasks, whoever holds it."""
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


async def list_group(services: Services, lease: Lease[GroupCheck]) -> None:
    """Note each task of the group as it stands."""
    if lease.item.task_group_id == EVERYTHING:
        await _find_lost(services, lease)
        return
    async for page in services.queue.group(lease.item.task_group_id):
        found: dict[str, dict[str, Any]] = {}
        targets: dict[str, set[Target]] = {}
        for status, definition in page:
            if shown := events.targets(services.settings, definition.get("routes", [])):
                task_id = str(status.get("taskId"))
                found[task_id], targets[task_id] = status, set(shown)
        async with lease.writing() as session:
            await events.note(session, _understood(found, targets))
        services.database.wakeups.wake(Topic.REPORTS)
    await lease.finish(State.DONE)


async def check_now_and_then(services: Services) -> float:
    """Ask after quiet runs, as often as `reports.quiet` needs it; return the seconds until the next time."""
    checked = await check_quiet(services)
    return 0 if checked == ONE_CALL else min(services.settings.reports.quiet.total_seconds() / 4, 30)


async def _replay(session: Session, _services: Services, payload: bytes) -> None:
    session.add(GroupCheck(task_group_id=payload.decode(), lane=LANE))


WORK.add_replay("group-check", _replay)
WORK.add_table(WorkTable(GroupCheck, "the log says why a task group cannot be listed"))
WORK.add_kind(GroupCheck, "group_check", list_group)
WORK.add_step(check_now_and_then)
