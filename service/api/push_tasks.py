"""Read what became of the tasks of a graph: the state of each, and the copies that actions made of them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlmodel import col, select

from service.store.database import Session
from service.store.models import Action, JobReport, PlannedTask, Stage

MOST = 1_000
"""Tasks whose states and copies are read at most, and copies of them."""

MAX_GENERATIONS = 5
"""How far copies of copies are followed."""


@dataclass(frozen=True)
class RunState:
    """A run of a task."""

    run_id: int
    state: str  # pending, running, completed, failed, exception, or why it is one: canceled, …
    scheduled: datetime | None
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True)
class TaskState:
    """The newest that is known of a task."""

    run_id: int
    state: str  # unscheduled, or that of its newest run
    started: datetime | None
    ended: datetime | None
    task_group_id: str
    runs: tuple[RunState, ...] = ()  # all that are known, the first one first

    @property
    def rank(self) -> tuple[int, int]:
        """Return how far the task is: a state of a higher rank is newer."""
        return self.run_id, _ORDER.get(self.state, RESOLVED_RANK)


_ORDER = {"unscheduled": 0, "pending": 1, "running": 2}
RESOLVED_RANK = len(_ORDER)
"""How far a run is that has ended."""


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
    copies: list["Copy"] = field(default_factory=list)  # of this copy


async def task_states(session: Session, task_ids: Sequence[str]) -> dict[str, TaskState]:
    """Return the state of each of these tasks that was reported, of the first `MOST` ones."""
    wanted = list(task_ids)[:MOST]
    if not wanted:
        return {}
    runs: dict[str, dict[int, tuple[int, RunState]]] = defaultdict(dict)
    groups: dict[str, str] = {}
    query = select(JobReport.task_id, JobReport.run_id, JobReport.stage, JobReport.run, JobReport.task_group_id)  # type: ignore[call-overload]  # SQLModel has types for four columns
    for task_id, run_id, stage, run, group in await session.exec(query.where(col(JobReport.task_id).in_(wanted))):
        groups[task_id] = group
        known = runs[task_id].get(run_id)
        if known is None or stage > known[0]:  # one environment may be ahead of another
            times = (_time(run, "scheduled"), _time(run, "started"), _time(run, "resolved"))
            runs[task_id][run_id] = stage, RunState(run_id, run_state(stage, run), *times)
    return {
        task_id: state_of_runs([run for _, (_, run) in sorted(of_task.items())], groups[task_id])
        for task_id, of_task in runs.items()
    }


def state_of_runs(runs: Sequence[RunState], task_group_id: str) -> TaskState:
    """Return the state of a task with these runs, the first one first."""
    if not runs:
        return TaskState(0, "unscheduled", None, None, task_group_id)
    newest = runs[-1]
    return TaskState(newest.run_id, newest.state, newest.started, newest.ended, task_group_id, tuple(runs))


def newest_states(*sources: dict[str, TaskState]) -> dict[str, TaskState]:
    """Return of each task the newest state among those that several sources tell, with the runs that any knows."""
    states: dict[str, TaskState] = {}
    for source in sources:
        for task_id, state in source.items():
            known = states.get(task_id)
            if known is None:
                states[task_id] = state
                continue
            older, newer = (known, state) if state.rank > known.rank else (state, known)
            runs = {run.run_id: run for run in (*older.runs, *newer.runs)}
            states[task_id] = replace(newer, runs=tuple(run for _, run in sorted(runs.items())))
    return states


def run_state(stage: int, run: dict[str, Any]) -> str:
    """Return the state of a run as people know it, from what its report has of it."""
    if stage < Stage.RESOLVED:
        return ("unscheduled", "pending", "running")[stage]
    state = str(run.get("state", "exception"))
    return str(run.get("reason") or state) if state == "exception" else state


def _time(run: dict[str, Any], name: str) -> datetime | None:
    seconds = run.get(name)
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None


async def copies_of(session: Session, task_ids: Sequence[str]) -> dict[str, list[Copy]]:
    """Return the copies that exist of each of these tasks, the oldest first, each with the copies of it."""
    copies: dict[str, list[Copy]] = defaultdict(list)
    wanted, count = list(dict.fromkeys(task_ids))[:MOST], 0
    places = {task_id: copies[task_id] for task_id in wanted}
    for _ in range(MAX_GENERATIONS):
        if not wanted or count >= MOST:
            break
        generation = await _copies(session, wanted, MOST - count)
        for copy in generation:
            places[copy.copy_of].append(copy)
        count += len(generation)
        places = {copy.task_id: copy.copies for copy in generation}
        wanted = list(places)
    return {task_id: of_task for task_id, of_task in copies.items() if of_task}


def all_copies(copies: Iterable[Copy]) -> list[Copy]:
    """Return these copies and all copies of them."""
    return [each for copy in copies for each in (copy, *all_copies(copy.copies))]


async def _copies(session: Session, task_ids: Sequence[str], most: int) -> list[Copy]:
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
        .where(col(PlannedTask.copy_of).in_(task_ids), col(PlannedTask.created).is_(True))
        .limit(most)
    )
    return [Copy(*row) for row in sorted(await session.exec(query), key=lambda row: row[3])]
