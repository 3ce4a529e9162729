"""Pushes whose decision task offers actions, and actions triggered as a user interface triggers them."""

import asyncio
from typing import Any

import httpx
import jsone
from taskcluster import slugId

from sandbox import credentials
from sandbox.taskcluster.actions import ARTIFACT
from sandbox.taskcluster.clock import DAY, HOUR, iso
from tests.sandbox.taskcluster.support import Api

URL = "https://hg.example/integration/autoland"
ROLE = "assume:repo:hg.example/integration/autoland:branch:default"
USER = "dev@example.com"


class Tree:
    """Pushes of one repository: `push` creates the tasks of one, `act` does with it what its actions.json offers."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.decisions: dict[int, str] = {}

    def define(self, push_id: int, label: str, **more: Any) -> dict[str, Any]:
        """Return the definition of a task of a push, as the graph of a tree has it."""
        now = self.api.tc.clock.now()
        return {
            "taskQueueId": "sandbox/linux",
            "schedulerId": credentials.SCHEDULER,
            "created": iso(now),
            "deadline": iso(now + HOUR),
            "expires": iso(now + 30 * DAY),
            "routes": [f"tc-treeherder.v2.autoland.{push_id:040x}.{push_id}"],
            "payload": {"sandbox": {"seconds": 0}},
            "metadata": {"name": label, "description": "", "owner": USER, "source": URL},
            "tags": {"kind": label, "label": label, "createdForUser": USER, "worker-implementation": "docker-worker"},
            "extra": {"treeherder": {"symbol": label[0], "machine": {"platform": "linux64"}}},
            **more,
        }

    async def push(self, push_id: int, *labels: str, **decision: Any) -> dict[str, str]:
        """Create the decision task of a push and wait for it, then its tasks, each dependent on the one before.

        Returns the task ids by label. Tests and reports may be retriggered, builds may not.
        """
        decision_id = self.decisions[push_id] = str(slugId())
        told = {
            "repository": {"url": URL, "project": "autoland", "level": 3, "type": "hg"},
            "push": {"owner": USER, "revision": f"{push_id:040x}", "base_revision": "0" * 40, "pushlog_id": push_id},
        }
        definition = self.define(
            push_id, "decision", scopes=[ROLE], payload={"sandbox": {"seconds": 0, "decision": told}}, **decision
        )
        definition["tags"]["kind"] = "decision-task"
        self.api.tc.queue.create_task(decision_id, definition)
        assert await self.end(decision_id) == "completed"
        ids = {"decision": decision_id}
        for label in labels:
            before = list(ids.values())[-1]
            more: dict[str, Any] = {"taskGroupId": decision_id, "dependencies": [before]}
            definition = self.define(push_id, label, **more)
            if label != "build":
                definition["tags"]["retrigger"] = "true"
            ids[label] = await self.create(definition)
        return ids

    async def create(self, definition: dict[str, Any]) -> str:
        """Create a task, and wait until it has ended if it can run."""
        task_id = str(slugId())
        self.api.tc.queue.create_task(task_id, definition)
        await self.end(task_id)
        return task_id

    async def end(self, task_id: str) -> str:
        """Return the reason of the last run, once the task is resolved."""
        for _ in range(500):
            task = self.api.tc.queue.tasks[task_id]
            if task.resolved:
                return str(task.runs[-1]["reasonResolved"])
            await asyncio.sleep(0.005)
        raise AssertionError(f"the task is still {task.state}")

    async def offered(self, decision_id: str) -> dict[str, Any]:
        """Return the actions.json of a decision task."""
        url = (await self.api("getLatestArtifact", decision_id, ARTIFACT, client=None))["url"]
        answer: httpx.Response = await self.api.http.get(url)
        assert answer.headers["content-type"] == "application/json"
        return dict(answer.json())

    async def find(self, decision_id: str, name: str, task_id: str | None) -> dict[str, Any]:
        """Return the first action of this name that fits the task, or the group."""
        actions = (await self.offered(decision_id))["actions"]
        tags = (await self.api("task", task_id))["tags"].items() if task_id else None
        return next(
            action
            for action in actions
            if action["name"] == name
            and (
                not action["context"] if tags is None else any(tags >= tag_set.items() for tag_set in action["context"])
            )
        )

    async def act(
        self, decision_id: str, name: str, task_id: str | None = None, given: dict[str, Any] | None = None
    ) -> str:
        """Trigger an action as the service's client; return the id of its action task, which has ended."""
        action = await self.find(decision_id, name, task_id)
        context = {"taskGroupId": decision_id, "taskId": task_id, "input": given}
        payload = jsone.render(action["hookPayload"], context)
        self.api.client = credentials.SERVICE
        answer = await self.api("triggerHook", action["hookGroupId"], action["hookId"], body=payload, service="hooks")
        await self.end(answer["taskId"])
        return str(answer["taskId"])

    def copies(self, action_id: str) -> list[dict[str, Any]]:
        """Return the definitions of the tasks that an action task has created."""
        return [
            task.definition
            for task in self.api.tc.queue.tasks.values()
            if task.definition["extra"].get("parent") == action_id
        ]
