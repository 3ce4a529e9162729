"""Task graphs in the sandbox's queue, and actions on them as a worker does them."""

import asyncio
import json
import uuid
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import col, select

from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Task
from service.clients.taskcluster import Page
from service.clock import now
from service.engine.leases import Lease, claim
from service.engine.registry import WORK
from service.engine.worker import Worker
from service.errors import PermanentUpstreamError
from service.flow.tasks.definition import format_date
from service.store.models import Action, Notice, PlannedTask, Source, State, Work
from tests.service.harness import FlowHarness, node

Definition = dict[str, Any]

WORKER = {"workerGroup": "g", "workerId": "w"}


def slug(name: str) -> str:
    """Return a task id that is the same for the same name."""
    return urlsafe_b64encode(uuid.UUID(bytes=uuid.uuid5(uuid.NAMESPACE_OID, name).bytes, version=4).bytes).decode()[:22]


GROUP = slug("group")


def definition_of(name: str, dependencies: Iterable[str] = (), **fields: Any) -> Definition:
    """Return a definition of project mc; dependencies are names."""
    at = now()
    return {
        "taskQueueId": "sandbox/test",
        "schedulerId": "test",
        "taskGroupId": GROUP,
        "dependencies": [slug(dependency) for dependency in dependencies],
        "created": format_date(at),
        "deadline": format_date(at + timedelta(days=1)),
        "expires": format_date(at + timedelta(days=30)),
        "routes": [f"tc-treeherder.v2.mc.{node('tip')}.1"],
        "payload": {},
        "metadata": {"name": name, "description": "d", "owner": "dev@example.com", "source": "https://example.com/x"},
        "extra": {"treeherder": {"symbol": name[:20], "machine": {"platform": "linux64"}}},
        **fields,
    }


def build(queue: Queue, graph: Mapping[str, Iterable[str]], **fields: Any) -> dict[str, str]:
    """Create tasks, each after those that it depends on; `graph` has names. Their ids."""
    for name, dependencies in graph.items():
        queue.create_task(slug(name), definition_of(name, dependencies, **fields))
    return {name: slug(name) for name in graph}


def end(queue: Queue, name: str, state: str = "failed") -> Task:
    """Let a pending task run to an end: completed, failed, or exception."""
    task = queue.find(slug(name))
    run = len(task.runs) - 1
    queue.claim_task(task.task_id, run, WORKER)
    if state == "completed":
        queue.report_completed(task.task_id, run)
    elif state == "failed":
        queue.report_failed(task.task_id, run)
    else:
        queue.report_exception(task.task_id, run, {"reason": "malformed-payload"})
    return task


async def action_on(
    harness: FlowHarness,
    task_id: str | None,
    kind: str = "retrigger",
    *,
    project: str = "mc",
    run_id: int | None = None,
    **more: Any,
) -> Action:
    """Store an action, as from the API."""
    action = Action(
        kind=kind,
        project=project,
        task_id=task_id,
        run_id=run_id,
        requester="sheriff@example.com",
        source=Source.API,
        lane=f"action {kind}",
        **more,
    )
    async with harness.database.writing() as session:
        session.add(action)
    return action


async def claim_work(harness: FlowHarness, model: type[Work] = Action) -> Lease[Any]:
    """Hold the first piece of that kind of work that is due."""
    async with harness.database.writing() as session:
        lanes = await session.exec(select(model.lane).where(col(model.due_at) <= now()).limit(1))
        (item,) = await claim(session, model, lanes.one(), 1, harness.settings.work.lease)
    return Lease(harness.database, harness.settings.work, item)


async def carry_out(harness: FlowHarness, task_id: str | None, kind: str = "retrigger", **more: Any) -> Action:
    """Store an action and carry it out; return it as it ended."""
    action = await action_on(harness, task_id, kind, **more)
    lease = await claim_work(harness)
    assert lease.item.id == action.id
    await WORK.run_of(lease.item)(harness.services, lease)
    return await reload_action(harness, action)


async def reload_action(harness: FlowHarness, action: Action) -> Action:
    async with harness.database.reading() as session:
        return await session.get_one(Action, action.id)


async def read_copies(harness: FlowHarness, action: Action) -> dict[str, str]:
    """Return the ids of the copies by the names of the originals, in the order of the plan."""
    async with harness.database.reading() as session:
        tasks = await session.exec(
            select(PlannedTask)
            .where(PlannedTask.action_id == action.id, PlannedTask.plan_attempt == action.plan_attempt)
            .order_by(col(PlannedTask.position))
        )
        return {task.name: task.task_id for task in tasks}


async def read_notices(harness: FlowHarness) -> list[Notice]:
    async with harness.database.reading() as session:
        return list(await session.exec(select(Notice).order_by(col(Notice.id))))


async def work_until_done(harness: FlowHarness, action: Action, seconds: float = 20) -> Action:
    """Let a real worker do it, with its retries; what became of it."""
    worker = Worker(harness.services)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(seconds):
            while (action := await reload_action(harness, action)).state == State.PENDING:  # noqa: ASYNC110 - in the database
                await asyncio.sleep(0.02)
    finally:
        worker.stop()
        await running
    return action


def parse_moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class Direct:
    """The sandbox's queue behind the client's Protocol, without HTTP, for tests of many graphs; it counts calls."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.calls: Counter[str] = Counter()

    async def create_task(self, task_id: str, definition: Definition, scopes: list[str]) -> Any:
        return self._call("createTask", lambda: self._queue.create_task(task_id, definition)["status"])

    async def task(self, task_id: str) -> Any:
        return self._found("task", lambda: self._queue.task(task_id))

    async def status(self, task_id: str) -> Any:
        return self._found("status", lambda: self._queue.status(task_id)["status"])

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for start in range(0, len(task_ids), 1000):
            body = {"taskIds": list(task_ids[start : start + 1000])}
            answer = self._call("tasks", lambda body=body: self._queue.get_tasks(body))  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
            answers |= {item["taskId"]: item["task"] for item in answer["tasks"]}
        return answers

    async def statuses(self, task_ids: Sequence[str]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for start in range(0, len(task_ids), 1000):
            body = {"taskIds": list(task_ids[start : start + 1000])}
            answer = self._call("statuses", lambda body=body: self._queue.statuses(body))  # type: ignore[misc]  # mypy cannot infer lambdas
            answers |= {item["taskId"]: item["status"] for item in answer["statuses"]}
        return answers

    async def dependents(self, task_id: str, token: str | None = None, limit: int = 1000) -> Page:
        answer = self._call("dependents", lambda: self._queue.list_dependent_tasks(task_id, None, token, str(limit)))
        return Page([(item["status"], item["task"]) for item in answer["tasks"]], answer.get("continuationToken"))

    async def group_sealed(self, group_id: str) -> bool:
        return "sealed" in self._call("getTaskGroup", lambda: self._queue.get_task_group(group_id))

    async def group(self, group_id: str, limit: int = 1000) -> AsyncIterator[list[tuple[Any, Definition]]]:
        token = None
        while True:
            answer = self._call(
                "group",
                lambda token=token: self._queue.list_task_group(group_id, None, token, str(limit)),  # type: ignore[misc]  # mypy cannot infer lambdas
            )
            yield [(item["status"], item["task"]) for item in answer["tasks"]]
            token = answer.get("continuationToken")
            if token is None:
                return

    async def schedule_task(self, task_id: str, scope: str) -> Any:
        return self._call("scheduleTask", lambda: self._queue.schedule_task(task_id)["status"])

    async def cancel_task(self, task_id: str, scope: str) -> Any:
        return self._call("cancelTask", lambda: self._queue.cancel_task(task_id)["status"])

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls[name] += 1
        try:
            return json.loads(json.dumps(call()))  # what comes over HTTP is nobody else's
        except ApiError as error:
            raise PermanentUpstreamError("taskcluster", error.message, error.status) from None

    def _found(self, name: str, call: Callable[[], Any]) -> Any:
        try:
            return self._call(name, call)
        except PermanentUpstreamError as refusal:
            if refusal.status == 404:
                return None
            raise
