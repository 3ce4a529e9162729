"""Retention: delete what has ended and is old, a few hundred rows at a time, and nothing else.

Each step finds its rows by an index, and changes at most `BATCH` of them in one transaction, however much hangs on one
push or action; between two transactions it leaves the database to others for as long.

Ids of planned tasks and delivery keys go last, with the push or action that they belong to: they outlast any retry.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Table, delete, null, update
from sqlmodel import SQLModel, col, select

from service import metrics
from service.clock import clock_usable, now
from service.settings import RetentionSettings
from service.store.database import Database, Session
from service.store.models import (
    REDELIVERED_WITHIN,
    Action,
    AuditEntry,
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

log = structlog.get_logger()

BATCH = 300
"""Rows that one transaction changes: nobody waits longer for the database."""

OWNERS = 50
"""Pushes or actions that one transaction deletes, each with everything that belongs to it."""

Swept = tuple[int, bool]
"""The number of rows that one transaction deleted, and True if there may be more."""

Step = Callable[[Session, datetime], Awaitable[Swept]]


async def run(database: Database, settings: RetentionSettings) -> None:
    """Sweep every `retention.every` until cancelled. Any number of replicas may sweep the same database."""
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
    """Delete everything that is old enough; return the number of rows by what they are."""
    swept = {}
    for name, steps in steps_of(settings).items():
        swept[name] = sum([await _all(database, step, before) for step, before in steps])
        metrics.swept(name, swept[name])
    return swept


def steps_of(settings: RetentionSettings) -> dict[str, list[tuple[Step, datetime]]]:
    """Return the steps of a sweep in their order, each with the time before which ended work is old."""
    at = now()
    with_keys = at - max(settings.pushes, REDELIVERED_WITHIN)
    return {
        "plan_bodies": [
            (_PlanBodies(PushStep, "step_id"), at - settings.plans),
            (_PlanBodies(Action, "action_id"), at - settings.plans),
        ],
        "job_reports": [(_job_reports, at - settings.job_reports)],
        "group_checks": [(_group_checks, at - settings.job_reports)],
        "dead_letters": [(_dead_letters, at - settings.dead_letters)],
        "actions": [(_actions, with_keys)],
        "pushes": [(_pushes, at - settings.pushes)],
        "deliveries": [(_deliveries, with_keys)],
        "audit": [(_audit, at - settings.pushes)],
    }


async def _all(database: Database, step: Step, before: datetime) -> int:
    total = 0
    while True:
        async with database.writing() as session:
            began = time.monotonic()
            rows, more = await step(session, before)
        total += rows
        if not more:
            return total
        await asyncio.sleep(time.monotonic() - began)


class _PlanBodies:
    """Delete the definitions of plans that were carried out; ids and names stay. A failed plan may be retried.

    The step goes from owner to owner among those that still have definitions, the younger and failed ones included.
    """

    def __init__(self, owner: type[PushStep] | type[Action], column: str) -> None:
        self._owner, self._column = owner, _table(PlannedTask).c[column]
        self._after = 0

    async def __call__(self, session: Session, before: datetime) -> Swept:
        with_body = col(PlannedTask.definition).is_not(None)
        following = select(self._column).where(with_body, self._column > self._after).order_by(self._column)
        owners = set(await session.exec(following.limit(BATCH)))
        if not owners:
            return 0, False
        owner = self._owner
        ended = select(owner.id).where(
            col(owner.id).in_(owners), owner.state == State.DONE, col(owner.done_at) < before
        )
        tasks = select(PlannedTask.task_id).where(self._column.in_((await session.exec(ended)).all()), with_body)
        ids = (await session.exec(tasks.limit(BATCH))).all()
        await session.exec(update(PlannedTask).where(col(PlannedTask.task_id).in_(ids)).values(definition=null()))
        if len(ids) < BATCH:
            self._after = max(owners)
        return len(ids), True


async def _job_reports(session: Session, before: datetime) -> Swept:
    """Delete reports that were delivered, skipped or buried, and for which no event came since."""
    old = select(JobReport.id).where(
        col(JobReport.due_at).is_(None), col(JobReport.done_at) < before, col(JobReport.last_event_at) < before
    )
    ids = (
        await session.exec(old.order_by(col(JobReport.done_at)).limit(BATCH).with_for_update(skip_locked=True))
    ).all()
    await _delete(session, DeadLetter, "report_id", ids)
    await _delete(session, JobReport, "id", ids)
    return len(ids), len(ids) == BATCH


async def _group_checks(session: Session, before: datetime) -> Swept:
    old = select(GroupCheck.id).where(col(GroupCheck.due_at).is_(None), col(GroupCheck.done_at) < before)
    ids = (await session.exec(old.order_by(col(GroupCheck.done_at)).limit(BATCH))).all()
    await _delete(session, GroupCheck, "id", ids)
    return len(ids), len(ids) == BATCH


async def _dead_letters(session: Session, before: datetime) -> Swept:
    old = select(DeadLetter.id).where(col(DeadLetter.since) < before).order_by(col(DeadLetter.since))
    ids = (await session.exec(old.limit(BATCH))).all()
    await _delete(session, DeadLetter, "id", ids)
    return len(ids), len(ids) == BATCH


async def _actions(session: Session, before: datetime) -> Swept:
    """Delete actions that have ended, once all their notices have."""
    unfinished = select(Notice.id).where(Notice.action_id == Action.id, col(Notice.due_at).is_not(None))
    old = (
        select(Action.id)
        .where(col(Action.due_at).is_(None), col(Action.done_at) < before, ~unfinished.exists())
        .order_by(col(Action.done_at))
        .limit(OWNERS)
        .with_for_update(skip_locked=True)
    )
    ids = (await session.exec(old)).all()
    if not ids:
        return 0, False
    notices = (await session.exec(select(Notice.id).where(col(Notice.action_id).in_(ids)))).all()
    return await _delete_owners(
        session,
        (DeadLetter, "notice_id", notices),
        (DeadLetter, "action_id", ids),
        (Notice, "id", notices),
        (PlannedTask, "action_id", ids),
        (Delivery, "action_id", ids),
        (Action, "id", ids),
    )


async def _pushes(session: Session, before: datetime) -> Swept:
    """Delete pushes without unfinished work; never the one at a cursor, which tells a strip from a reset."""
    unfinished = select(PushStep.id).where(PushStep.push_id == Push.id, col(PushStep.due_at).is_not(None))
    old = (
        select(Push.id)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(
            col(Push.noticed_at) < before,
            (Push.push_id < Repository.last_push_id) | (Push.generation < Repository.generation),
            ~unfinished.exists(),
        )
        .order_by(col(Push.noticed_at))
        .limit(OWNERS)
    )
    ids = set((await session.exec(old)).all())
    if not ids:
        return 0, False
    locked = select(PushStep).where(col(PushStep.push_id).in_(ids)).order_by(col(PushStep.id)).with_for_update()
    steps = (await session.exec(locked)).all()
    ids -= {step.push_id for step in steps if step.due_at is not None}  # retried just now
    step_ids = [step.id for step in steps if step.push_id in ids]
    # a retry must not carry out the rest of a plan that is half deleted
    failed = update(PushStep).where(col(PushStep.id).in_(step_ids), col(PushStep.state) == State.FAILED)
    await session.exec(failed.values(state=State.SKIPPED, error=TAKEN_AWAY))
    notices = (await session.exec(select(Notice.id).where(col(Notice.step_id).in_(step_ids)))).all()
    return await _delete_owners(
        session,
        (DeadLetter, "notice_id", notices),
        (Notice, "id", notices),
        (DeadLetter, "step_id", step_ids),
        (PlannedTask, "step_id", step_ids),
        (PushStep, "id", step_ids),
        (Push, "id", list(ids)),
    )


TAKEN_AWAY = "this push is older than retention.pushes: it is being deleted"


async def _deliveries(session: Session, before: datetime) -> Swept:
    """Delete keys of actions that are gone: an earlier release kept them by themselves."""
    old = select(Delivery.key).where(col(Delivery.at) < before, col(Delivery.action_id).is_(None))
    keys = (await session.exec(old.order_by(col(Delivery.at)).limit(BATCH))).all()
    await _delete(session, Delivery, "key", keys)
    return len(keys), len(keys) == BATCH


async def _audit(session: Session, before: datetime) -> Swept:
    old = select(AuditEntry.id).where(col(AuditEntry.at) < before).order_by(col(AuditEntry.at))
    ids = (await session.exec(old.limit(BATCH))).all()
    await _delete(session, AuditEntry, "id", ids)
    return len(ids), len(ids) == BATCH


def _table(model: type[SQLModel]) -> Table:
    table: Table = model.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
    return table


async def _delete(session: Session, model: type[SQLModel], column: str, values: Any) -> None:
    await session.exec(delete(model).where(_table(model).c[column].in_(values)))


async def _delete_owners(session: Session, *rows: tuple[type[SQLModel], str, Sequence[Any]]) -> Swept:
    """Delete the rows that have these values in a column, in this order; the owners come last.

    What exceeds a batch is left to the next transaction, which finds the same owners again.
    """
    room = BATCH
    for model, column, values in rows:
        table = _table(model)
        (key,) = table.primary_key.columns
        query = select(key).where(table.c[column].in_(values)).limit(room)
        keys = (await session.exec(query)).all() if values else []
        await session.exec(delete(model).where(key.in_(keys)))
        room -= len(keys)
        if room <= 0:
            return len(keys) if model is rows[-1][0] else 0, True
    return len(keys), len(keys) == OWNERS
