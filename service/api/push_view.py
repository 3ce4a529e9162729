"""Read all tasks of a push for people who look: those of its graph, and those that a decision task of it created."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter

from service.api.deps import LooksDep, PushNumber, Reader, RepositoryAlias, ServicesDep
from service.api.openapi import problems
from service.api.push_tasks import MOST, Copy, TaskState, all_copies, copies_of, newest_states, task_states
from service.api.pushes import Generation, find_push, read_push
from service.api.queue_look import Look, QueueLooks
from service.api.route import API, Route
from service.api.schemas.pushes import CopyRead, PushRead, PushTaskRead, PushTasksRead, TaskRead
from service.store.database import Database

router = APIRouter(prefix=f"{API}/pushes", tags=["pushes"], route_class=Route)


@dataclass
class PushTask:
    """A task of a push."""

    task_id: str | None  # None: it is not created yet
    name: str
    kind: str
    dependencies: tuple[str, ...]  # as far as they are known
    state: TaskState | None  # None: nobody told of it
    planned: bool  # this service creates it; otherwise a task of the push did
    copies: list[Copy] = field(default_factory=list)


@dataclass
class PushTasks:
    """The tasks of a push, at most `MOST`."""

    tasks: list[PushTask]
    states: dict[str, TaskState]  # of the copies, too
    more: bool
    problem: str | None  # why the queue does not tell all of it

    @property
    def groups(self) -> list[str]:
        """Return the task groups that its tasks are in."""
        states = [task.state for task in self.tasks if task.state is not None]
        return list(dict.fromkeys(state.task_group_id for state in states))


@router.get("/{alias}/{push_id}/tasks", operation_id="listPushTasks", responses=problems(404))
async def list_push_tasks(
    alias: RepositoryAlias,
    push_id: PushNumber,
    services: ServicesDep,
    looks: LooksDep,
    _: Reader,
    generation: Generation = None,
) -> PushTasksRead:
    """Return the tasks of a push with their states: those of its graph, those that these created, and their copies.

    States come from job reports, and from the queue, which is asked of a push every five seconds at most.
    """
    async with services.database.reading() as session:
        push = await read_push(session, await find_push(session, alias, push_id, generation), alias)
    view = await view_push(services.database, looks, push)
    tasks = [_read(task, view.states) for task in view.tasks]
    states = Counter(task.state for task in tasks if task.state is not None)
    return PushTasksRead(tasks=tasks, states=dict(states.most_common()), more=view.more, problem=view.problem)


def _read(task: PushTask, states: Mapping[str, TaskState]) -> PushTaskRead:
    state = task.state
    copies = [
        CopyRead(
            task_id=copy.task_id,
            copy_of=copy.copy_of,
            name=copy.name,
            state=states[copy.task_id].state if copy.task_id in states else None,
            action_id=copy.action_id,
            requester=copy.requester,
        )
        for copy in all_copies(task.copies)
    ]
    return PushTaskRead(
        task_id=task.task_id,
        name=task.name,
        planned=task.planned,
        state=state and state.state,
        run_id=state.run_id if state and state.runs else None,
        started=state and state.started,
        ended=state and state.ended,
        copies=copies,
    )


async def view_push(database: Database, looks: QueueLooks, push: PushRead) -> PushTasks:
    """Return the tasks of a push. The queue is asked while no database connection is held."""
    planned = [] if push.graph is None else push.graph.tasks[:MOST]
    ids = [task.task_id for task in planned if task.task_id is not None]
    look = await looks.look((push.repository, push.generation, push.push_id, push.revision_hash), ids)
    every = list(dict.fromkeys((*ids, *look.tasks)))[:MOST]
    async with database.reading() as session:
        copies = await copies_of(session, every)
        copied = [copy.task_id for of_task in copies.values() for copy in all_copies(of_task)]
        reported = await task_states(session, every) | await task_states(session, copied)
    states = newest_states(look.states, reported)  # of two that are as far, the queue knows times to the millisecond
    tasks = _tasks(planned, every, look, states, copies)
    all_planned = 0 if push.graph is None else len(push.graph.tasks)
    more = look.more or all_planned > MOST or len({*ids, *look.tasks}) > MOST or len(tasks) > MOST
    return PushTasks(tasks[:MOST], states, more, look.problem)


def _tasks(
    planned: Sequence[TaskRead],
    every: Sequence[str],
    look: Look,
    states: Mapping[str, TaskState],
    copies: Mapping[str, list[Copy]],
) -> list[PushTask]:
    ids = {task.task_id for task in planned}
    copied = {copy.task_id for of_task in copies.values() for copy in all_copies(of_task)}
    tasks = [_task(task.task_id, task.name, look, states, copies, planned=True) for task in planned]
    for task_id in every:
        if task_id not in ids and task_id not in copied:
            tasks.append(_task(task_id, look.tasks[task_id].name, look, states, copies, planned=False))
    return tasks


def _task(
    task_id: str | None,
    name: str,
    look: Look,
    states: Mapping[str, TaskState],
    copies: Mapping[str, list[Copy]],
    *,
    planned: bool,
) -> PushTask:
    if task_id is None:
        return PushTask(None, name, "", (), None, planned)
    queued = look.tasks.get(task_id)
    kind, dependencies = ("", ()) if queued is None else (queued.kind, queued.dependencies)
    return PushTask(task_id, name, kind, dependencies, states.get(task_id), planned, copies.get(task_id, []))
