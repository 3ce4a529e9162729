"""Ask the queue for the tasks of a push when somebody looks at it: once for all who look within some seconds.

    planned tasks      of the push's graph: their states, and what they depend on
    task groups        those that a planned task began, as a decision task does: their tasks, too

Job reports tell states without a question. The queue alone knows the tasks that a decision task creates, and tells the
states where no environment reports jobs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from service.api.push_tasks import MOST, RunState, TaskState, state_of_runs
from service.clients.taskcluster import Definition, Queue, Status, validate_definition, validate_status
from service.engine.sized_cache import SizedCache
from service.errors import UpstreamError
from service.flow.tasks.definition import name_of, parse_date
from service.sanitize import escape_unstorable
from service.services import Services

log = structlog.get_logger()

MOST_GROUPS = 3
"""Task groups of one push that are listed."""

FRESH = 5.0
"""Seconds for which an answer is kept."""

STALE = 30.0
"""Seconds after which an answer that stands for a newer one is told to be old."""

DEFINITIONS_PER_SECOND = 20
"""A list of a thousand tasks is some megabytes, so it is asked for more rarely than a small one."""

PAGE = 100
"""Tasks in one answer with definitions, which is parsed at once."""

WAIT = 1.0
"""Seconds that a page waits for the queue."""

MOST_RUNNING = 20
"""Pushes for which the queue is asked at a time; for others, those who look have to look again."""

MOST_DEPENDENCIES, MOST_ROUTES = 20, 8
"""Dependencies and routes of a task that are kept."""

CACHE = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task as the queue has it."""

    task_id: str
    name: str
    kind: str
    dependencies: tuple[str, ...]
    routes: tuple[str, ...]
    state: TaskState


@dataclass
class Look:
    """Tasks that the queue told of; `problem` says why they are not all, or not as they are now."""

    tasks: dict[str, QueuedTask] = field(default_factory=dict)
    more: bool = False  # there are more than `MOST`
    problem: str | None = None
    asked_at: float = 0.0
    listed_at: float = 0.0
    wanted: frozenset[str] = frozenset()  # the tasks that the queue was asked for, known to it or not

    @property
    def states(self) -> dict[str, TaskState]:
        return {task_id: task.state for task_id, task in self.tasks.items()}

    @property
    def keep_list(self) -> float:
        """Return the seconds until the task groups are listed again."""
        return max(FRESH, len(self.tasks) / DEFINITIONS_PER_SECOND)

    @property
    def size(self) -> int:
        """Return about how many bytes it takes."""
        runs = sum(len(task.state.runs) + len(task.dependencies) + len(task.routes) for task in self.tasks.values())
        return 1_000 + 100 * len(self.wanted) + 1_000 * len(self.tasks) + 200 * runs


class QueueLooks:
    """What the queue told of pushes within the last seconds."""

    def __init__(self, queue: Callable[[], Queue], clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._clock = queue, clock
        self._looks = SizedCache(CACHE)
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(2)

    async def look(self, key: Hashable, task_ids: Sequence[str], wait: float = WAIT) -> Look:
        """Return what the queue tells of these tasks, and of those in groups that they began.

        After `wait` seconds it is what was told before; the question goes on, for whoever looks next.
        """
        wanted = list(task_ids)[:MOST]
        look: Look | None = self._looks.get(key)
        if not wanted:
            return Look()
        if key not in self._running and (look is None or self._is_old(look, wanted)):
            if len(self._running) >= MOST_RUNNING:
                return look or Look(problem="Taskcluster is asked for too many pushes at once: look again in a moment")
            self._running[key] = asyncio.create_task(self._run(key, wanted, look))
        if (task := self._running.get(key)) is not None:
            await asyncio.wait({task}, timeout=wait)
            look = self._looks.get(key) or look
        if look is None:
            return Look(problem="Taskcluster has not answered yet: look again in a moment")
        age = self._clock() - look.asked_at
        if look.problem is None and age > STALE:
            return replace(
                look, problem=f"it was asked {age:.0f} s ago, and has not answered again: look again in a moment"
            )
        return look

    async def close(self) -> None:
        """Cancel the questions that are under way."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _is_old(self, look: Look, wanted: Sequence[str]) -> bool:
        is_new = look.problem is None and not look.wanted.issuperset(wanted)
        return is_new or self._clock() - look.asked_at >= FRESH

    async def _run(self, key: Hashable, wanted: Sequence[str], before: Look | None) -> None:
        look = Look() if before is None else Look(dict(before.tasks), before.more, listed_at=before.listed_at)
        try:
            async with self._slots:
                await self._ask(look, wanted)
        except UpstreamError as error:
            look.problem = escape_unstorable(str(error))
        except Exception:  # whatever it is, the page says that it does not know
            log.exception("queue-look-failed")
            look.problem = "Taskcluster's answer cannot be read"
        finally:
            self._running.pop(key, None)
        look.wanted, look.asked_at = frozenset(wanted), self._clock()
        self._looks.put(key, look, look.size)

    async def _ask(self, look: Look, wanted: Sequence[str]) -> None:
        queue = self._queue()
        known = list(dict.fromkeys((*wanted, *look.tasks)))[:MOST]
        statuses = {task_id: validate_status(status) for task_id, status in (await queue.statuses(known)).items()}
        for task_id, status in statuses.items():
            if (task := look.tasks.get(task_id)) is not None:
                look.tasks[task_id] = _with_state(task, status)
        groups = [task_id for task_id in wanted if task_id in statuses and statuses[task_id]["taskGroupId"] == task_id]
        if self._clock() - look.listed_at >= look.keep_list or not look.tasks:
            look.more = look.more or len(groups) > MOST_GROUPS
            for group in groups[:MOST_GROUPS]:
                await self._list(look, group)
            look.listed_at = self._clock()
        unknown = [task_id for task_id in statuses if task_id not in look.tasks]
        for start in range(0, len(unknown), PAGE):
            for task_id, definition in (await queue.tasks(unknown[start : start + PAGE])).items():
                if task_id in statuses:
                    look.tasks[task_id] = _task(statuses[task_id], definition)

    async def _list(self, look: Look, group: str) -> None:
        async for page in self._queue().group(group, PAGE):
            for status, definition in page:
                if len(look.tasks) >= MOST and status.get("taskId") not in look.tasks:
                    look.more = True
                    return
                task = _task(validate_status(status), definition)
                look.tasks[task.task_id] = task


@asynccontextmanager
async def open_looks(services: Services) -> AsyncIterator[QueueLooks]:
    """Open what the API of this process asks the queue; close it at the end."""
    looks = QueueLooks(lambda: services.queue)
    try:
        yield looks
    finally:
        await looks.close()


def _task(status: Status, definition: Definition) -> QueuedTask:
    dependencies = tuple(validate_definition(definition)["dependencies"][:MOST_DEPENDENCIES])
    tags = definition.get("tags")
    kind = tags.get("kind") if isinstance(tags, dict) else None
    kind = kind[:100] if isinstance(kind, str) else ""
    routes = tuple(definition["routes"][:MOST_ROUTES])
    return QueuedTask(
        status["taskId"], escape_unstorable(name_of(definition)), kind, dependencies, routes, state_of_status(status)
    )


def _with_state(task: QueuedTask, status: Status) -> QueuedTask:
    return replace(task, state=state_of_status(status))


def state_of_status(status: Status) -> TaskState:
    """Return the state of a task by the queue's status of it."""
    runs = sorted((_run(run) for run in status["runs"]), key=lambda run: run.run_id)
    if not runs and status["state"] != "unscheduled":  # its deadline passed before it ever ran
        return TaskState(0, str(status["state"]), None, None, status["taskGroupId"])
    return state_of_runs(runs, status["taskGroupId"])


def _run(run: dict[str, Any]) -> RunState:
    state = run["state"]
    if state == "exception" and isinstance(run.get("reasonResolved"), str):
        state = escape_unstorable(run["reasonResolved"])
    return RunState(run["runId"], state, *(_date(run.get(name)) for name in ("scheduled", "started", "resolved")))


def _date(text: Any) -> datetime | None:
    try:
        return parse_date(text) if isinstance(text, str) else None
    except ValueError:
        return None
