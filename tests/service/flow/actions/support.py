"""Graphs and helpers that tests of actions share."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlmodel import select

from sandbox.taskcluster.queue import Queue
from service.clock import now
from service.engine.leases import Lease
from service.flow.actions import retrigger
from service.flow.tasks.action_kinds import Plan
from service.flow.tasks.subject import Subject
from service.store.models import Action, PlannedTask, Push, PushStep, Repository, Source, State, StepKind
from tests.service.flow.graph_factory import (
    WORKER,
    Definition,
    action_on,
    build,
    carry_out,
    slug,
)
from tests.service.harness import FlowHarness, open_harness, push_event

DIAMOND = {"group": [], "a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "other": []}


@asynccontextmanager
async def open_monitored(sqlite_url: str, **settings: Any) -> AsyncIterator[FlowHarness]:
    async with open_harness(sqlite_url, **settings) as harness:
        await harness.add_repository()
        yield harness


def existing_task(harness: FlowHarness, task_id: str) -> Definition:
    return harness.tc.queue.task(task_id)


def add_dependency(queue: Queue, name: str, needs: str) -> None:
    """Let a task need another one, which the real queue would never allow afterwards."""
    task = queue.find(slug(name))
    task.definition = {**task.definition, "dependencies": [*task.definition["dependencies"], slug(needs)]}
    queue.find(slug(needs)).dependents.append(slug(name))


async def plan_retrigger(services: Any, queue: Queue, name: str) -> Plan:
    task_id = slug(name)
    subject = Subject(
        Repository(alias="mc", url="u", host="h", level="1", last_push_id=0),
        queue.task(task_id),
        queue.status(task_id)["status"],
        [],
    )
    action = Action(kind="retrigger", project="mc", task_id=task_id, requester="me", source=Source.API, lane="x")
    return await retrigger.plan_copies(services, subject, action)


async def push_with_graph(
    harness: FlowHarness,
    graph: Mapping[str, Iterable[str]],
    *,
    push_id: int = 7,
    planned: Iterable[str] = ("group",),
    user: str = "dev@example.com",
    **fields: Any,
) -> PushStep:
    """Store a push whose graph was created, with these tasks in Taskcluster; return the step of the graph.

    The push's own plan has the tasks `planned`; the others were created by a decision task.
    """
    build(harness.tc.queue, graph, **fields)
    await harness.store(push_event(push_id, user=user))
    async with harness.database.writing() as session:
        push = (await session.exec(select(Push).where(Push.push_id == push_id))).one()
        of_push = (PushStep.push_id == push.id, PushStep.kind == StepKind.GRAPH)
        step = (await session.exec(select(PushStep).where(*of_push))).one()
        step.state, step.due_at, step.done_at = State.DONE, None, now()
        for position, name in enumerate(planned):
            planned_task = PlannedTask(
                task_id=slug(name), step_id=step.id, position=position, label="task", name=name, definition=None
            )
            planned_task.created = True
            session.add(planned_task)
    return step


async def record_copies(
    harness: FlowHarness, copies: Mapping[str, str], *, created: bool = True, state: State = State.DONE
) -> Action:
    """Store a retrigger that made these copies, by their names with the names of the originals."""
    action = await action_on(harness, slug(next(iter(copies.values()))))
    async with harness.database.writing() as session:
        stored = await session.get_one(Action, action.id)
        stored.state, stored.due_at = state, None
        for position, (name, original) in enumerate(copies.items()):
            copy = PlannedTask(
                task_id=slug(name), action_id=action.id, position=position, label="copy", name=name, definition=None
            )
            copy.copy_of, copy.created = slug(original), created
            session.add(copy)
    return action


async def carry_out_on_push(harness: FlowHarness, kind: str, push_id: int = 7, **more: Any) -> Action:
    """Store an action on a push and carry it out; return it as it ended."""
    values: dict[str, Any] = {"generation": 0, **more}
    return await carry_out(harness, None, kind, push_id=push_id, **values)


def state_of(harness: FlowHarness, name: str) -> str:
    """Return the state of a task, or the reason for its exception."""
    task = harness.tc.queue.find(slug(name))
    return str(task.runs[-1].get("reasonResolved", task.state)) if task.state == "exception" else task.state


def run_task(harness: FlowHarness, name: str) -> None:
    """Let a worker begin with a pending task."""
    task = harness.tc.queue.find(slug(name))
    harness.tc.queue.claim_task(task.task_id, len(task.runs) - 1, WORKER)


async def store_whole_plan(harness: FlowHarness, lease: Lease[Action]) -> list[PlannedTask]:
    """Plan and store all copies, and create none."""
    source = retrigger.TaskSource(harness.services, lease.item)
    planning = retrigger.PlanWriter(harness.services, lease, [], source)
    async for _ in planning.stored_parts():
        pass
    return planning.tasks


STREAMED = {**{f"t{n}": ["a"] for n in range(6)}, **{f"u{n}": [f"t{n}"] for n in range(6)}}
