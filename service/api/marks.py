"""Read cheaply whether something changed of pushes, actions and tasks that people watch: one mark for each.

A mark is any value that differs after a change. All marks of all watchers are read at once, in few statements.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, text
from sqlmodel import col, select

from service.store.database import Session
from service.store.models import UNCREATED, Action, JobReport, PlannedTask, Push, PushStep

MOST_TASKS = 2_000
"""Tasks whose marks are read at once; of more, the rest has its turn at the next poll."""

MOST_ROWS = 1_000
"""Pushes, and actions, whose marks are read at once."""


@dataclass(frozen=True)
class Watched:
    """Rows of the database whose changes a page shows."""

    push_ids: frozenset[int] = field(default_factory=frozenset)  # of rows, not of the pushlog
    action_ids: frozenset[int] = field(default_factory=frozenset)
    task_ids: frozenset[str] = field(default_factory=frozenset)
    newest: bool = False  # pushes and actions that are added

    def __or__(self, other: "Watched") -> "Watched":
        return Watched(
            self.push_ids | other.push_ids,
            self.action_ids | other.action_ids,
            self.task_ids | other.task_ids,
            self.newest or other.newest,
        )

    @property
    def keys(self) -> set[tuple[str, Any]]:
        """Return the keys of its marks."""
        ids = {"push": self.push_ids, "action": self.action_ids, "task": self.task_ids}
        keys: set[tuple[str, Any]] = {(kind, each) for kind, of_kind in ids.items() for each in of_kind}
        return keys | {("newest", 0)} if self.newest else keys


Marks = dict[tuple[str, Any], Any]
"""The mark of each row that has one, by kind and id."""


async def read_marks(session: Session, watched: Watched) -> Marks:
    """Return the marks of what is watched, as far as there is something."""
    marks: Marks = {}
    if watched.push_ids:
        marks |= await _pushes(session, sorted(watched.push_ids)[:MOST_ROWS])
    if watched.action_ids:
        marks |= await _actions(session, sorted(watched.action_ids)[:MOST_ROWS])
    if watched.task_ids:
        marks |= await _tasks(session, sorted(watched.task_ids)[:MOST_TASKS])
    if watched.newest:
        ids = [select(func.max(model.id)).scalar_subquery() for model in (Push, Action)]
        marks["newest", 0] = tuple((await session.exec(select(*ids))).one())
    return marks


async def _pushes(session: Session, ids: Iterable[int]) -> Marks:
    of_step = (PlannedTask.step_id == PushStep.id, PlannedTask.plan_attempt == PushStep.plan_attempt)
    left = select(func.count()).select_from(PlannedTask).where(*of_step, text(UNCREATED)).scalar_subquery()
    step: tuple[Any, ...] = (PushStep.state, PushStep.fencing_token, PushStep.attempts, PushStep.due_at, left)
    rows = await session.exec(select(PushStep.push_id, PushStep.id, *step).where(col(PushStep.push_id).in_(ids)))
    marks: dict[tuple[str, Any], list[Any]] = {}
    for push_id, *mark in rows:
        marks.setdefault(("push", push_id), []).append(tuple(mark))
    return {key: sorted(steps, key=lambda mark: mark[0]) for key, steps in marks.items()}


async def _actions(session: Session, ids: Iterable[int]) -> Marks:
    of_action = (PlannedTask.action_id == Action.id, PlannedTask.plan_attempt == Action.plan_attempt)
    left = select(func.count()).select_from(PlannedTask).where(*of_action, text(UNCREATED)).scalar_subquery()
    mark: tuple[Any, ...] = (Action.state, Action.fencing_token, Action.planned_at, Action.action_task_state, left)
    rows = await session.exec(select(Action.id, *mark).where(col(Action.id).in_(ids)))
    return {("action", action_id): tuple(values) for action_id, *values in rows}


async def _tasks(session: Session, ids: Iterable[str]) -> Marks:
    newest = func.max(col(JobReport.run_id) * 8 + col(JobReport.stage))
    query = select(JobReport.task_id, newest).where(col(JobReport.task_id).in_(ids)).group_by(col(JobReport.task_id))
    return {("task", task_id): mark for task_id, mark in await session.exec(query)}
