"""Collect the tasks of a push as they are now: those of its graph, and the copies that were made of them.

    planned tasks      of the push's graph, and of our plans that copy one of its tasks
    task groups        those that a planned task names and began, as a decision task does: all of their tasks
    copies             of all of these, and copies of copies

A task group that none of the push's own tasks began is not listed, because other pushes' tasks can be in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import col, select

from service.clients.taskcluster import Definition, Status, validate_definition, validate_status
from service.errors import PermanentUpstreamError
from service.flow.tasks.create import created_without_answer
from service.flow.tasks.definition import name_of
from service.flow.tasks.plan import read_plan
from service.flow.tasks.status import RESOLVED, was_cancelled
from service.flow.tasks.subject import ActionFailedError, PushSubject, routes_naming
from service.sanitize import escape_unstorable
from service.services import Services
from service.store.database import Database, Session
from service.store.models import Action, PlannedTask, PushStep, State, StepKind

NO_ROUTE = "none of its routes names the project exactly, and this service did not create it"
"""Reason why a task of a push is not touched."""

KEYS_PER_QUERY = 10_000

MAX_TASKS = 100_000
"""Tasks of one push that are collected at most: each takes some kilobytes of memory."""


MAX_DEPENDENCIES = 5_000_000
"""Dependencies of these tasks together: each takes eight bytes."""


@dataclass(slots=True)
class PushTask:
    """A task of a push, as it is now, without the parts of its definition that nobody needs here."""

    name: str
    status: Status
    dependencies: list[str]
    requires: str
    authorised: bool  # it is our own plan's, or one of its routes names the project exactly

    @property
    def task_id(self) -> str:
        task_id: str = self.status["taskId"]
        return task_id

    @property
    def group(self) -> str:
        group: str = self.status["taskGroupId"]
        return group

    @property
    def state(self) -> str:
        state: str = self.status["state"]
        return state

    @property
    def unfinished(self) -> bool:
        return self.state not in RESOLVED

    @property
    def cancelled(self) -> bool:
        return was_cancelled(self.status)

    def entry(self) -> dict[str, str]:
        """Return the task as an action lists it."""
        return {"task_id": self.task_id, "name": self.name}


@dataclass(slots=True)
class RecordedCopy:
    """A copy in a plan of ours. One that is not created yet will be, while its action is pending."""

    task_id: str
    copy_of: str
    action_id: int
    created: bool
    adopted: bool
    pending: bool


@dataclass
class PushTasks:
    """The tasks of a push by their ids, and the recorded copies of them, the oldest first."""

    tasks: dict[str, PushTask] = field(default_factory=dict)
    copies: list[RecordedCopy] = field(default_factory=list)
    unrecorded: list[PlannedTask] = field(default_factory=list)
    """Tasks of the graph that exist and are not recorded as created: `adopted` unless it is proven that we did it."""


async def graph_step(session: Session, push_id: int, *, lock: bool = False) -> PushStep | None:
    """Return the step of a push that makes its graph, None if it has none."""
    query = select(PushStep).where(PushStep.push_id == push_id, PushStep.kind == StepKind.GRAPH)
    return (await session.exec(query.with_for_update() if lock else query)).first()


async def collect_tasks(services: Services, subject: PushSubject, *, dependencies: bool = True) -> PushTasks:
    """Collect the tasks of a push, with their `dependencies` or without. Raises ActionFailedError and Unavailable."""
    collection = _Collection(services, subject, dependencies=dependencies)
    try:
        await collection.run()
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(
            f"Taskcluster refuses to list the tasks of {subject.name} ({refusal.status}): {refusal}"
        ) from None
    return collection.result


async def read_copies(database: Database, task_ids: Iterable[str]) -> list[RecordedCopy]:
    """Return the copies of these tasks in plans of ours."""
    keys = sorted(task_ids)
    copies: list[RecordedCopy] = []
    async with database.reading() as session:
        for start in range(0, len(keys), KEYS_PER_QUERY):
            copy_of: Any = col(PlannedTask.copy_of)
            query = (
                select(  # type: ignore[call-overload]  # SQLModel has types for four columns
                    PlannedTask.task_id,
                    PlannedTask.copy_of,
                    PlannedTask.action_id,
                    PlannedTask.created,
                    PlannedTask.adopted,
                    Action.state,
                )
                .join(Action, col(Action.id) == PlannedTask.action_id)
                .where(
                    copy_of.in_(keys[start : start + KEYS_PER_QUERY]),
                    copy_of.is_not(None),
                    PlannedTask.plan_attempt == Action.plan_attempt,
                )
            )
            copies += [
                RecordedCopy(task_id, original, action_id, created, adopted, state == State.PENDING)
                for task_id, original, action_id, created, adopted, state in await session.exec(query)
            ]
    return copies


class _Collection:
    def __init__(self, services: Services, subject: PushSubject, *, dependencies: bool) -> None:
        self.result = PushTasks()
        self._services, self._subject = services, subject
        self._ours: set[str] = set()  # created by our own createTask
        self._members: set[str] = set()  # planned tasks, which may have begun a group
        self._listed: set[str] = set()
        self._ids: dict[str, str] = {}  # each id once: a task can depend on 10,000 others
        self._with_dependencies, self._dependencies = dependencies, 0

    async def run(self) -> None:
        """Collect the tasks of the graph, then copies until there are no more."""
        planned = await self._planned_tasks()
        await self._add([task.task_id for task in planned])
        tasks = self.result.tasks
        unrecorded = [task for task in planned if not task.created and task.task_id in tasks]
        proven = {task.task_id for task in await created_without_answer(self._services, unrecorded)}
        for task in unrecorded:
            task.adopted = task.task_id not in proven
        self.result.unrecorded = unrecorded
        self._ours |= {task.task_id for task in planned if task.created and not task.adopted} | proven
        examined: set[str] = set()
        while unexamined := tasks.keys() - examined:
            examined |= unexamined
            copies = await read_copies(self._services.database, unexamined)
            self.result.copies += copies
            self._ours |= {copy.task_id for copy in copies if copy.created and not copy.adopted}
            await self._add([copy.task_id for copy in copies if copy.created])
        for task_id in self._ours & tasks.keys():
            tasks[task_id].authorised = True
        self.result.copies.sort(key=lambda copy: copy.action_id)

    async def _planned_tasks(self) -> list[PlannedTask]:
        """Return the tasks of the graph's plan, without their definitions and without the error task."""
        async with self._services.database.reading() as session:
            step = await graph_step(session, self._subject.push.id or 0)
        if step is None:
            return []
        own = (PlannedTask.step_id == step.id, PlannedTask.plan_attempt == step.plan_attempt)
        return await read_plan(self._services.database, *own, PlannedTask.label != "error", bodies=False)

    async def _add(self, task_ids: list[str]) -> None:
        """Add tasks, and all tasks of the groups that one of the push's own tasks began."""
        self._members |= set(task_ids)
        missing = [task_id for task_id in task_ids if task_id not in self.result.tasks]
        if not missing:
            return
        statuses = await self._services.queue.statuses(missing)
        groups = {validate_status(status)["taskGroupId"] for status in statuses.values()}
        for group in sorted(groups & self._members - self._listed):
            self._listed.add(group)
            async for page in self._services.queue.group(group):
                for status, definition in page:
                    self._add_task(status, definition)
        alone = [task_id for task_id in statuses if task_id not in self.result.tasks]
        definitions = await self._services.queue.tasks(alone) if alone else {}
        for task_id, definition in definitions.items():
            self._add_task(statuses[task_id], definition)

    def _add_task(self, status: Status, definition: Definition) -> None:
        task_id: str = validate_status(status)["taskId"]
        validate_definition(definition)
        if len(self.result.tasks) >= MAX_TASKS:
            raise ActionFailedError(f"{self._subject.name} has more than {MAX_TASKS:,} tasks, too many for one action")
        dependencies = definition["dependencies"] if self._with_dependencies else []
        self._dependencies += len(dependencies)
        if self._dependencies > MAX_DEPENDENCIES:
            many = f"more than {MAX_DEPENDENCIES:,} dependencies"
            raise ActionFailedError(f"the tasks of {self._subject.name} have {many}, too many for one action")
        self.result.tasks[task_id] = PushTask(
            escape_unstorable(name_of(definition)),
            status,
            [self._ids.setdefault(needed, needed) for needed in dependencies],
            definition["requires"],
            bool(routes_naming(self._services.settings, self._subject.repository, definition)),
        )
