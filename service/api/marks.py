"""Read cheaply whether something changed of what people watch, such as pushes, tasks and what waits: one mark for each.

A mark is any value that differs after a change. All marks of all watchers are read at once, in few statements.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import bindparam, func, literal, text, true
from sqlmodel import col, select

from service.engine.registry import WORK
from service.store.database import Session
from service.store.distinct import distinct_of
from service.store.models import (
    UNCREATED,
    Action,
    AuditEntry,
    DeadLetter,
    JobReport,
    PlannedTask,
    PulseQueue,
    Push,
    PushStep,
    Repository,
    Work,
)

MOST_TASKS = 2_000
"""Tasks whose marks are read at once; those of further pages have their turn at the next poll."""

MOST_ROWS = 1_000
"""Pushes, actions, and rows of each other kind whose marks are read at once."""

MOST_LANES = 400
"""Lanes of each kind of work whose marks are read."""

NEWEST: dict[str, Any] = {
    "push": Push,
    "action": Action,
    "report": JobReport,
    "letter": DeadLetter,
    "audit": AuditEntry,
    "repository": Repository,
}
"""Tables whose newest row can be watched."""

ROWS: dict[str, tuple[Any, ...]] = {
    "letter": (DeadLetter.id, DeadLetter.kind),
    "report": (JobReport.id, JobReport.state, JobReport.stage, JobReport.due_at, JobReport.attempts),
    # not the time of the last good poll, which changes with every renewal of a shift
    "repository": (
        Repository.alias,
        Repository.enabled,
        Repository.last_push_id,
        Repository.generation,
        Repository.poll_failures,
        Repository.reset_suspected_at,
    ),
}
"""The key of each other kind of row that can be watched, and the columns that are its mark."""

_ALIVE = {"repository": col(Repository.deleted_at).is_(None)}
"""What else holds for rows of a kind."""


@dataclass(frozen=True)
class Watched:
    """Rows of the database whose changes a page shows."""

    push_ids: frozenset[int] = field(default_factory=frozenset)  # of rows, not of the pushlog
    action_ids: frozenset[int] = field(default_factory=frozenset)
    task_ids: frozenset[str] = field(default_factory=frozenset)
    rows: frozenset[tuple[str, Any]] = field(default_factory=frozenset)  # of other kinds: kind and key, see ROWS
    newest: frozenset[str] = field(default_factory=frozenset)  # kinds of which rows are added, see NEWEST
    waiting: bool = False  # unfinished work
    pulse_queues: bool = False

    @property
    def keys(self) -> set[tuple[str, Any]]:
        """Return the keys of its marks."""
        ids = {"push": self.push_ids, "action": self.action_ids, "task": self.task_ids}
        keys: set[tuple[str, Any]] = {(kind, each) for kind, of_kind in ids.items() for each in of_kind}
        keys |= self.rows | {("newest", kind) for kind in self.newest}
        keys |= {("waiting", 0)} if self.waiting else set()
        return keys | {("pulse queues", 0)} if self.pulse_queues else keys


@dataclass
class WatchedSum:
    """What several pages watch, with the tasks of as many of them as are looked at at once."""

    push_ids: set[int] = field(default_factory=set)
    action_ids: set[int] = field(default_factory=set)
    task_ids: set[str] = field(default_factory=set)
    rows: set[tuple[str, Any]] = field(default_factory=set)
    newest: set[str] = field(default_factory=set)
    waiting: bool = False
    pulse_queues: bool = False
    full: bool = False  # there are as many tasks as are looked at

    def add(self, watched: Watched) -> bool:
        """Add what a page watches; return False if its tasks are too many together with those that are there."""
        self.push_ids |= watched.push_ids
        self.action_ids |= watched.action_ids
        self.rows |= watched.rows
        self.newest |= watched.newest
        self.waiting = self.waiting or watched.waiting
        self.pulse_queues = self.pulse_queues or watched.pulse_queues
        if self.full:
            return not watched.task_ids
        more = watched.task_ids - self.task_ids
        self.full = bool(self.task_ids) and len(self.task_ids) + len(more) > MOST_TASKS
        if not self.full:
            self.task_ids |= more
        return not self.full

    @property
    def watched(self) -> Watched:
        ids = frozenset(self.push_ids), frozenset(self.action_ids), frozenset(self.task_ids)
        return Watched(*ids, frozenset(self.rows), frozenset(self.newest), self.waiting, self.pulse_queues)


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
    for kind in sorted({kind for kind, _ in watched.rows}):
        marks |= await _rows(session, kind, sorted(key for of_kind, key in watched.rows if of_kind == kind))
    if watched.newest:
        kinds = sorted(watched.newest)
        ids = [select(func.max(NEWEST[kind].id)).scalar_subquery() for kind in kinds]
        row: Any = (await session.exec(select(literal(0), *ids))).one()
        marks |= {("newest", kind): number for kind, number in zip(kinds, row[1:], strict=True)}
    if watched.waiting:
        lanes = [await session.exec(_select_lanes(model)) for model in WORK.tables]
        marks["waiting", 0] = [tuple(row) for of_table in lanes for row in of_table]
    if watched.pulse_queues:
        queues = select(func.count(), func.max(PulseQueue.seen_at), func.sum(PulseQueue.deletions))
        marks["pulse queues", 0] = tuple((await session.exec(queues)).one())
    return marks


# made once: to build these statements each second took more time than to execute them
_IDS: Any = bindparam("ids", expanding=True)


@cache
def _select_pushes() -> Any:
    of_step = (PlannedTask.step_id == PushStep.id, PlannedTask.plan_attempt == PushStep.plan_attempt)
    left = select(func.count()).select_from(PlannedTask).where(*of_step, text(UNCREATED)).scalar_subquery()
    step: tuple[Any, ...] = (PushStep.state, PushStep.fencing_token, PushStep.attempts, PushStep.due_at, left)
    return select(PushStep.push_id, PushStep.id, *step).where(col(PushStep.push_id).in_(_IDS))


async def _pushes(session: Session, ids: Iterable[int]) -> Marks:
    rows = await session.exec(_select_pushes(), params={"ids": list(ids)})
    marks: dict[tuple[str, Any], list[Any]] = {}
    for push_id, *mark in rows:
        marks.setdefault(("push", push_id), []).append(tuple(mark))
    return {key: sorted(steps, key=lambda mark: mark[0]) for key, steps in marks.items()}


@cache
def _select_actions() -> Any:
    of_action = (PlannedTask.action_id == Action.id, PlannedTask.plan_attempt == Action.plan_attempt)
    left = select(func.count()).select_from(PlannedTask).where(*of_action, text(UNCREATED)).scalar_subquery()
    mark: tuple[Any, ...] = (Action.state, Action.fencing_token, Action.planned_at, Action.action_task_state, left)
    return select(Action.id, *mark).where(col(Action.id).in_(_IDS))


async def _actions(session: Session, ids: Iterable[int]) -> Marks:
    rows = await session.exec(_select_actions(), params={"ids": list(ids)})
    return {("action", action_id): tuple(values) for action_id, *values in rows}


@cache
def _select_tasks() -> Any:
    newest = func.max(col(JobReport.run_id) * 8 + col(JobReport.stage))
    return select(JobReport.task_id, newest).where(col(JobReport.task_id).in_(_IDS)).group_by(col(JobReport.task_id))


async def _tasks(session: Session, ids: Iterable[str]) -> Marks:
    rows = await session.exec(_select_tasks(), params={"ids": list(ids)})
    return {("task", task_id): mark for task_id, mark in rows}


@cache
def _select_rows(kind: str) -> Any:
    key, *columns = ROWS[kind]
    return select(key, *columns).where(col(key).in_(_IDS), _ALIVE.get(kind, true()))


async def _rows(session: Session, kind: str, keys: list[Any]) -> Marks:
    """Return a mark for each of these rows: None if it has gone."""
    keys = keys[:MOST_ROWS]
    rows = await session.exec(_select_rows(kind), params={"ids": keys})
    return {(kind, each): None for each in keys} | {(kind, row[0]): tuple(row[1:]) for row in rows}


@cache
def _select_lanes(model: type[Work]) -> Any:
    """Select of each lane when its oldest work began to wait, and when work is due: look-ups in two indexes."""
    waiting = col(model.due_at).is_not(None)
    lanes = distinct_of(model.lane, "lanes", waiting)
    of_lane = (col(model.lane) == lanes.c.lane, waiting)
    oldest, due = (
        select(func.min(column)).where(*of_lane).correlate(lanes).scalar_subquery()
        for column in (model.since, model.due_at)
    )
    return select(lanes.c.lane, oldest, due).limit(MOST_LANES)
