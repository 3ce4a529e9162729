"""Retention: what is ended and old is taken away, a few hundred rows at a time, and nothing else ever is.

Ids of planned tasks and delivery keys go last, with the push or action that they belong to: they outlast any retry.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Table, delete, null, update
from sqlmodel import SQLModel, col, select

from service import metrics
from service.database import Database, Session, clock_usable, now
from service.flow.action import REDELIVERED_WITHIN
from service.models import (
    Action,
    DeadLetter,
    Delivery,
    GroupCheck,
    JobReport,
    Notice,
    PlannedTask,
    Push,
    PushStep,
    Repository,
    State,
)
from service.settings import RetentionSettings

log = structlog.get_logger()

BATCH = 500
"""Rows in one transaction: whoever waits for the database waits for no more."""


async def run(database: Database, settings: RetentionSettings) -> None:
    """Sweep now and then until cancelled. Any number of replicas may: what is gone is gone."""
    while True:
        await asyncio.sleep(settings.every.total_seconds() * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret
        if not clock_usable():
            continue
        try:
            swept = await sweep(database, settings)
        except Exception:  # the database is away: next time, then
            log.exception("sweep-failed")
        else:
            log.info("swept", **swept)


async def sweep(database: Database, settings: RetentionSettings) -> dict[str, int]:
    """Take away all that is old enough; how many rows of what."""
    at = now()
    steps: dict[str, tuple[Callable[[Session, datetime], Awaitable[int]], datetime]] = {
        "plan_bodies": (_plan_bodies, at - settings.plans),
        "job_reports": (_job_reports, at - settings.job_reports),
        "dead_letters": (_dead_letters, at - settings.dead_letters),
        "actions": (_actions, at - max(settings.pushes, REDELIVERED_WITHIN)),
        "pushes": (_pushes, at - settings.pushes),
        "deliveries": (_deliveries, at - max(settings.pushes, REDELIVERED_WITHIN)),
    }
    swept = {}
    for name, (step, before) in steps.items():
        swept[name] = await _all(database, step, before)
        metrics.swept(name, swept[name])
    return swept


async def _all(database: Database, step: Callable[[Session, datetime], Awaitable[int]], before: datetime) -> int:
    total = 0
    while True:
        async with database.writing() as session:
            rows = await step(session, before)
        total += rows
        if rows < BATCH:
            return total


async def _plan_bodies(session: Session, before: datetime) -> int:
    """The definitions of plans that were carried out; their ids and names stay. A failed one may be retried."""
    ended = (
        select(PlannedTask.task_id)
        .outerjoin(PushStep, col(PushStep.id) == PlannedTask.step_id)
        .outerjoin(Action, col(Action.id) == PlannedTask.action_id)
        .where(
            col(PlannedTask.definition).is_not(None),
            ((col(PushStep.state) == State.DONE) & (col(PushStep.done_at) < before))
            | ((col(Action.state) == State.DONE) & (col(Action.done_at) < before)),
        )
        .limit(BATCH)
    )
    ids = (await session.exec(ended)).all()
    await session.exec(update(PlannedTask).where(col(PlannedTask.task_id).in_(ids)).values(definition=null()))
    return len(ids)


async def _job_reports(session: Session, before: datetime) -> int:
    """Reports that were delivered, skipped or buried, and have heard nothing since."""
    old = select(JobReport.id).where(
        col(JobReport.due_at).is_(None), col(JobReport.done_at) < before, col(JobReport.heard_at) < before
    )
    ids = (await session.exec(old.limit(BATCH))).all()
    await _delete(session, DeadLetter, "report_id", ids)
    await _delete(session, JobReport, "id", ids)
    await session.exec(delete(GroupCheck).where(col(GroupCheck.due_at).is_(None), col(GroupCheck.done_at) < before))
    return len(ids)


async def _dead_letters(session: Session, before: datetime) -> int:
    ids = (await session.exec(select(DeadLetter.id).where(col(DeadLetter.since) < before).limit(BATCH))).all()
    await _delete(session, DeadLetter, "id", ids)
    return len(ids)


async def _actions(session: Session, before: datetime) -> int:
    unfinished = select(Notice.action_id).where(col(Notice.due_at).is_not(None))
    old = select(Action.id).where(
        col(Action.due_at).is_(None), col(Action.done_at) < before, col(Action.id).not_in(unfinished)
    )
    ids = (await session.exec(old.limit(BATCH))).all()
    notices = (await session.exec(select(Notice.id).where(col(Notice.action_id).in_(ids)))).all()
    await _delete(session, DeadLetter, "notice_id", notices)
    await _delete(session, DeadLetter, "action_id", ids)
    await _delete(session, Notice, "id", notices)
    await _delete(session, PlannedTask, "action_id", ids)
    await _delete(session, Delivery, "action_id", ids)
    await _delete(session, Action, "id", ids)
    return len(ids)


async def _pushes(session: Session, before: datetime) -> int:
    """Pushes with nothing left to do; never the one at a cursor, which tells a strip from a reset."""
    unfinished = select(PushStep.push_id).where(col(PushStep.due_at).is_not(None))
    old = (
        select(Push.id)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(
            col(Push.noticed_at) < before,
            (Push.push_id < Repository.last_push_id) | (Push.generation < Repository.generation),
            col(Push.id).not_in(unfinished),
        )
    )
    ids = (await session.exec(old.limit(BATCH))).all()
    steps = (await session.exec(select(PushStep.id).where(col(PushStep.push_id).in_(ids)))).all()
    notices = (await session.exec(select(Notice.id).where(col(Notice.step_id).in_(steps)))).all()
    await _delete(session, DeadLetter, "notice_id", notices)
    await _delete(session, Notice, "id", notices)
    await _delete(session, DeadLetter, "step_id", steps)
    await _delete(session, PlannedTask, "step_id", steps)
    await _delete(session, PushStep, "id", steps)
    await _delete(session, Push, "id", ids)
    return len(ids)


async def _deliveries(session: Session, before: datetime) -> int:
    """Keys of actions that are gone: a release before kept them by themselves."""
    old = select(Delivery.key).where(col(Delivery.at) < before, col(Delivery.action_id).is_(None))
    keys = (await session.exec(old.limit(BATCH))).all()
    await _delete(session, Delivery, "key", keys)
    return len(keys)


def _table(model: type[SQLModel]) -> Table:
    table: Table = model.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
    return table


async def _delete(session: Session, model: type[SQLModel], column: str, values: Any) -> None:
    await session.exec(delete(model).where(_table(model).c[column].in_(values)))
