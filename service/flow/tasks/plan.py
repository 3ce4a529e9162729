"""Stored plans: tasks with their exact definitions, which are committed before the first of them is created."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Text, bindparam, cast, null, update
from sqlmodel import SQLModel, col, select

from service.engine.leases import Lease
from service.flow.tasks.definition import prerequisites_of
from service.slugids import find_ids, replace_ids
from service.store.commits import Statement
from service.store.database import Database
from service.store.models import PlannedTask
from service.store.rows import new_row

CHUNK_BYTES, CHUNK_TASKS = 1024 * 1024, 500
"""Parts in which a large plan is stored, so that the event loop does other work between two of them.

A plan of up to `CHUNK_TASKS` tasks is stored in a transaction that it may share.
"""

_PLANNED = SQLModel.metadata.tables["planned_task"]
_OTHERS = [column for column in _PLANNED.c if column.key != "definition"]
_INSERT = _PLANNED.insert()
_SET_DEFINITION = (
    update(_PLANNED).where(_PLANNED.c.task_id == bindparam("its_id")).values(definition=bindparam("definition"))
)


async def store_plan(lease: Lease[Any], plan: list[PlannedTask], **values: Any) -> list[PlannedTask]:
    """Store a plan or a part of it, and set `values` on its work. A large one gets a transaction of its own."""
    rows = [{column.key: vars(task)[column.key] for column in _PLANNED.c} for task in plan]
    await _execute(lease, _INSERT, rows, values)
    return plan


async def store_definitions(lease: Lease[Any], tasks: list[PlannedTask], **values: Any) -> None:
    """Store the definitions of tasks that were stored without them, and set `values` on the work."""
    rows = [{"its_id": task.task_id, "definition": task.definition} for task in tasks]
    await _execute(lease, _SET_DEFINITION, rows, values)


async def _execute(lease: Lease[Any], statement: Any, rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    if len(rows) <= CHUNK_TASKS:
        await lease.commit([(statement, rows)], len(rows), **values)
        return
    async with lease.writing(**values) as session:
        connection = await session.connection()
        for chunk in _chunks(rows):
            await connection.execute(statement, chunk)


def _chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in chunks; the event loop does other work after each."""
    chunk: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(json.dumps(row["definition"]))
        if size >= CHUNK_BYTES or len(chunk) >= CHUNK_TASKS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


async def read_plan(database: Database, *own: Any, bodies: bool = True) -> list[PlannedTask]:
    """Return the stored tasks that the conditions `own` select, in the order of creation.

    Without `bodies`, the tasks have no definitions. Rows are read in chunks and parsed in a thread, because that takes
    seconds for a large plan.
    """
    definition: Any = cast(PlannedTask.definition, Text) if bodies else null()
    query = select(*_OTHERS, definition.label("definition")).where(*own).order_by(col(PlannedTask.position))  # type: ignore[call-overload]  # SQLModel has types for four columns
    plan: list[PlannedTask] = []
    last = -1
    while True:
        async with database.reading() as session:
            rows = (await session.exec(query.where(col(PlannedTask.position) > last).limit(CHUNK_TASKS))).all()
        plan += await asyncio.to_thread(_planned, rows)
        if len(rows) < CHUNK_TASKS:
            return plan
        last = plan[-1].position


def _planned(rows: Iterable[Any]) -> list[PlannedTask]:
    return [
        new_row(
            PlannedTask,
            **{**row._mapping, "definition": None if row.definition is None else json.loads(row.definition)},
        )
        for row in rows
    ]


_CREATED = (
    update(_PLANNED)
    .where(_PLANNED.c.task_id == bindparam("its_id"))
    .values(created=True, adopted=bindparam("was_adopted"))
)


def mark_created(tasks: list[PlannedTask]) -> list[Statement]:
    """Mark tasks as created or adopted, and return the statements that record this."""
    for task in tasks:
        task.created = True
    return [(_CREATED, [{"its_id": task.task_id, "was_adopted": task.adopted} for task in tasks])] if tasks else []


class PlannedIds:
    """The ids of the tasks of a plan that were added so far, in the order of creation: which are still secret."""

    def __init__(self) -> None:
        self._tasks: dict[str, PlannedTask] = {}
        self._parts = 0
        self._revealed: tuple[int, set[str]] = (0, set())  # the number of parts, and their revealed ids

    def add(self, part: list[PlannedTask]) -> None:
        """Add a stored part of the plan; a task without a definition is added once more when it has one."""
        self._tasks |= {task.task_id: task for task in part}
        self._parts += 1

    def hide_ids(self, text: str) -> str:
        """Return `text` with the ids of tasks that were not created yet replaced by the tasks' names.

        Whoever learns such an id can create a task under it before we do.
        """
        hidden = {task.task_id: f"(the id of {task.name})" for task in self._tasks.values() if not task.created}
        return str(replace_ids(text, hidden))

    async def revealed(self) -> set[str]:
        """Return the ids that appear in a task which may be created before the task of that id.

        Everybody can read the definition of a created task, so anybody can have used such an id first.
        """
        parts, revealed = self._revealed
        if parts < self._parts:
            parts = self._parts
            revealed = await asyncio.to_thread(_find_revealed, list(self._tasks.values()))
            self._revealed = parts, revealed
        return revealed


def _find_revealed(tasks: list[PlannedTask]) -> set[str]:
    number_of = {task.task_id: number for number, task in enumerate(tasks)}
    before: list[int] = []  # for each task a bit set of the tasks that exist once it is created
    revealed: set[str] = set()
    for number, task in enumerate(tasks):
        exist = 1 << number
        for task_id in prerequisites_of(task.definition) if task.definition else ():
            if (needed := number_of.get(task_id, number)) < number:
                exist |= before[needed]
        before.append(exist)
        named = find_ids(json.dumps(task.definition), number_of)
        revealed |= {task_id for task_id in named if not exist >> number_of[task_id] & 1}
    return revealed
