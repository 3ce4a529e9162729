"""The task of an in-tree action: record that it was created, and follow it until it ends.

Its runs are known from task events, if it carries a route (the table of job reports). What is not known from there is
looked up in the queue, as quiet runs are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import text
from sqlmodel import col, select, update

from service.clock import now
from service.engine.leases import Lease
from service.engine.registry import WORK
from service.errors import PermanentUpstreamError, UpstreamError
from service.flow.actions import notice
from service.flow.tasks.status import RESOLVED
from service.services import Services
from service.store.commits import Statement
from service.store.database import Session
from service.store.models import FOLLOWED_TASKS, NEVER, Action, JobReport, Stage, State
from service.store.wakeups import Topic

log = structlog.get_logger()

MOST = 500
"""Action tasks that are looked at in one step."""

SECONDS = 5.0
"""Seconds between two looks at what events have told."""

EXPIRED = "expired"
"""The state of an action task that Taskcluster does not have any more."""

_STATES = {
    Stage.UNSCHEDULED: "unscheduled",
    Stage.PENDING: "pending",
    Stage.RUNNING: "running",
}


async def finish_created(
    services: Services, lease: Lease[Action], task_id: str, also: Sequence[Statement] = ()
) -> None:
    """End the action as done: its task was created. From now on, the task is followed."""
    action = lease.item
    notices = [] if services.publisher is None else [notice.action_notice(action, task_id)]
    await lease.finish(State.DONE, None, also, notices, action_task=task_id, action_task_seen_at=NEVER)
    log.info(
        "in-tree-action-done",
        action=action.id,
        kind=action.kind,
        subject=action.subject,
        task_id=task_id,
        requester=action.requester,
    )


async def follow_action_tasks(services: Services) -> float:
    """Record the states of action tasks that have not ended; return the seconds until the next time."""
    await _record_reported(services)
    looked_up = await _look_up_quiet(services)
    return 0 if looked_up == MOST else SECONDS


async def _record_reported(services: Services) -> None:
    """Record what task events have told of the runs of action tasks."""
    followed = (
        select(Action.action_task, Action.action_task_state)
        .where(text(FOLLOWED_TASKS), col(Action.action_task_seen_at) >= NEVER)
        .order_by(col(Action.action_task_seen_at))
        .limit(MOST * 10)
        .cte()
    )
    query = select(JobReport, followed.c.action_task_state).join(followed, followed.c.action_task == JobReport.task_id)
    async with services.database.reading() as session:
        rows = sorted(await session.exec(query), key=lambda row: (row[0].run_id, row[0].stage))
    newest = {report.task_id: (_state_of(report.stage, report.run), known) for report, known in rows}
    changed = {task_id: state for task_id, (state, known) in newest.items() if state not in {None, known}}
    if changed:
        async with services.database.writing() as session:
            await _record(session, changed, now())


def _state_of(stage: int, run: Mapping[str, Any]) -> str | None:
    """Return the state of a task by its newest run; None if another one is to follow."""
    if stage == Stage.RESOLVED:
        return str(run.get("state"))
    return None if stage == Stage.FOLLOWED else _STATES[Stage(stage)]


async def _look_up_quiet(services: Services) -> int:
    """Look up action tasks that were not seen for `reports.quiet`; return how many."""
    at = now()
    quiet = (
        select(Action.id)
        .where(text(FOLLOWED_TASKS), col(Action.action_task_seen_at) <= at - services.settings.reports.quiet)
        .order_by(col(Action.action_task_seen_at))
        .limit(MOST)
    )
    async with services.database.reading() as session:
        found = (await session.exec(quiet.limit(1))).first() is not None
    if not found:
        return 0
    async with services.database.writing() as session:
        # their time is set first, so that no other replica looks them up, too
        due = quiet.with_for_update(skip_locked=True).cte()
        claimed = await session.exec(
            update(Action)
            .where(col(Action.id).in_(select(due.c.id)))
            .values(action_task_seen_at=at)
            .returning(col(Action.action_task))
        )
        task_ids = [task_id for task_id in claimed.scalars() if task_id is not None]
    try:
        statuses = await services.queue.statuses(sorted(task_ids))
    except UpstreamError as error:
        wait = "for good" if isinstance(error, PermanentUpstreamError) else "for now"
        log.warning("action-tasks-not-seen", tasks=len(task_ids), refused=wait, why=str(error))
        return 0
    states = {task_id: str(statuses.get(task_id, {}).get("state", EXPIRED)) for task_id in task_ids}
    async with services.database.writing() as session:
        await _record(session, states, at)
    if not notice.FAILED_TASK.isdisjoint(states.values()):  # which has notices
        services.database.wakeups.wake(Topic.WORK)
    return len(task_ids)


async def _record(session: Session, states: dict[str, str], at: datetime) -> None:
    """Record the states of action tasks. One that has failed is shown on the push, once, as a failed action is."""
    query = select(Action).where(text(FOLLOWED_TASKS), col(Action.action_task).in_(sorted(states)))
    for action in await session.exec(query.order_by(col(Action.id)).with_for_update()):
        state = states[action.action_task or ""]
        ended = state in RESOLVED or state == EXPIRED
        action.action_task_state, action.action_task_seen_at = state, None if ended else at
        if state in notice.FAILED_TASK:
            session.add_all(action.failure_notices())
        if ended:
            log.info("action-task-ended", action=action.id, kind=action.kind, task_id=action.action_task, state=state)


WORK.add_step(follow_action_tasks)
