"""Graphs and helpers that tests of retriggers share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sandbox.taskcluster.queue import Queue
from service.engine.leases import Lease
from service.flow.actions import retrigger
from service.flow.actions.kinds import Plan
from service.flow.actions.subject import Subject
from service.store.models import Action, PlannedTask, Repository, Source
from tests.service.flow.graph_factory import (
    Definition,
    slug,
)
from tests.service.harness import FlowHarness, open_harness

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


async def store_whole_plan(harness: FlowHarness, lease: Lease[Action]) -> list[PlannedTask]:
    """Plan and store all copies, and create none."""
    planning = retrigger.PlanWriter(harness.services, lease, [])
    async for _ in planning.stored_parts():
        pass
    return planning.tasks


STREAMED = {**{f"t{n}": ["a"] for n in range(6)}, **{f"u{n}": [f"t{n}"] for n in range(6)}}
