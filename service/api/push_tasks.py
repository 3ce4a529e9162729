"""Read what became of the tasks of a graph: the state of each, and the copies that actions made of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlmodel import col, select

from service.store.database import Session
from service.store.models import Action, JobReport, PlannedTask, Stage

MOST = 1_000
"""Tasks whose states and copies are read at most, and copies of them."""


@dataclass(frozen=True)
class TaskState:
    """The newest that job reports tell of a task."""

    run_id: int
    state: str  # unscheduled, pending, running, completed, failed, exception, or what became of it: canceled, …
    started: datetime | None
    ended: datetime | None
    task_group_id: str


@dataclass(frozen=True)
class Copy:
    """A copy of a task, and the action that made it."""

    copy_of: str
    task_id: str
    name: str
    action_id: int
    action: str
    requester: str
    made_at: datetime


async def task_states(session: Session, task_ids: Sequence[str]) -> dict[str, TaskState]:
    """Return the state of the newest run of each of these tasks that was reported, of the first `MOST` ones."""
    wanted = list(task_ids)[:MOST]
    if not wanted:
        return {}
    newest: dict[str, tuple[tuple[int, int], TaskState]] = {}
    query = select(JobReport.task_id, JobReport.run_id, JobReport.stage, JobReport.run, JobReport.task_group_id)  # type: ignore[call-overload]  # SQLModel has types for four columns
    for task_id, run_id, stage, run, group in await session.exec(query.where(col(JobReport.task_id).in_(wanted))):
        rank = (run_id, stage)
        if task_id not in newest or rank > newest[task_id][0]:
            times = (_time(run, "started"), _time(run, "resolved"))
            newest[task_id] = rank, TaskState(run_id, _state_of(stage, run), *times, group)
    return {task_id: state for task_id, (_, state) in newest.items()}


def _state_of(stage: int, run: dict[str, Any]) -> str:
    if stage < Stage.RESOLVED:
        return ("unscheduled", "pending", "running")[stage]
    state = str(run.get("state", "exception"))
    return str(run.get("reason") or state) if state == "exception" else state


def _time(run: dict[str, Any], name: str) -> datetime | None:
    seconds = run.get(name)
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None


async def copies_of(session: Session, task_ids: Sequence[str]) -> dict[str, list[Copy]]:
    """Return the copies that exist of each of these tasks, the oldest first."""
    wanted = list(task_ids)[:MOST]
    if not wanted:
        return {}
    query = (
        select(  # type: ignore[call-overload]  # as above
            PlannedTask.copy_of,
            PlannedTask.task_id,
            PlannedTask.name,
            Action.id,
            Action.kind,
            Action.requester,
            Action.received_at,
        )
        .join(Action, col(Action.id) == PlannedTask.action_id)
        .where(col(PlannedTask.copy_of).in_(wanted), col(PlannedTask.created).is_(True))
        .limit(MOST)
    )
    copies: dict[str, list[Copy]] = defaultdict(list)
    for row in sorted(await session.exec(query), key=lambda row: row[3]):
        copies[row[0]].append(Copy(*row))
    return copies
