"""Pushes with a decision task in the sandbox's Taskcluster, which offers in-tree actions."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlmodel import col, select

from sandbox.taskcluster.tasks import Task
from service.clients.hooks import fires_scope, trigger_scope
from service.clients.treeherder import DECISION_PLACE, failed_job
from service.clock import now
from service.flow.actions.offers import FILE
from service.store.models import PlannedTask, Push, PushStep, State, StepKind
from tests.service.flow.graph_factory import WORKER, build, slug
from tests.service.harness import ROOT, FlowHarness, node, push_event

HOOK_GROUP, HOOK = "project-mc", "in-tree-action-1-generic/abc"
HOOK_ACTION = f"in-tree:hook-action:{HOOK_GROUP}/in-tree-action-1-*"
DECISION = "decision"

ACTION: dict[str, Any] = {
    "name": "backfill",
    "title": "Backfill",
    "description": "Run it on earlier pushes.",
    "kind": "hook",
    "context": [{"kind": "test"}],
    "hookGroupId": HOOK_GROUP,
    "hookId": HOOK,
    "hookPayload": {
        "decision": {"action": {"name": "backfill", "taskGroupId": {"$eval": "taskGroupId"}}, "owner": "${owner}"},
        "user": {"input": {"$eval": "input"}, "taskId": {"$eval": "taskId"}, "taskGroupId": {"$eval": "taskGroupId"}},
    },
    "schema": {
        "type": "object",
        "properties": {"depth": {"type": "integer", "default": 9, "minimum": 1, "maximum": 25}},
        "additionalProperties": False,
    },
}
CANCEL_ALL = {**ACTION, "name": "cancel-all", "title": "Cancel All", "context": [], "schema": None}
RETRIGGER = {**ACTION, "name": "retrigger", "title": "Retrigger", "context": [{}], "schema": None}

TASK_ACTION: dict[str, Any] = {
    "name": "clone",
    "title": "Clone",
    "description": "Create a task.",
    "kind": "task",
    "context": [{}],
    "task": {
        "taskGroupId": "${taskGroupId}",
        "taskQueueId": "sandbox/test",
        "schedulerId": "test",
        "created": {"$fromNow": ""},
        "deadline": {"$fromNow": "1 hour"},
        "payload": {"of": "${task.metadata.name}"},
        "tags": {"kind": "action-callback"},
        "metadata": {"name": "clone", "description": "", "owner": "o@example.com", "source": "https://example.com"},
    },
}

HOOK_TASK: dict[str, Any] = {
    "taskQueueId": "sandbox/test",
    "schedulerId": "test",
    "taskGroupId": "${payload.user.taskGroupId}",
    "created": {"$fromNow": ""},
    "deadline": {"$fromNow": "1 hour"},
    "tags": {"kind": "action-callback"},
    "payload": {"env": {"ACTION_INPUT": {"$json": {"$eval": "payload.user.input"}}}},
    "extra": {
        "parent": "${payload.user.taskGroupId}",
        "action": {
            "name": "${payload.decision.action.name}",
            "context": {
                "taskGroupId": "${payload.user.taskGroupId}",
                "taskId": {"$eval": "payload.user.taskId"},
                "input": {"$eval": "payload.user.input"},
                "clientId": "${clientId}",
            },
        },
    },
    "metadata": {"name": "action", "description": "", "owner": "o@example.com", "source": "https://example.com"},
}
"""What taskgraph's hooks create."""


def file_of(*actions: Any, **more: Any) -> bytes:
    """Return an `actions.json` with these actions."""
    return json.dumps({"version": 1, "variables": {"owner": "dev@example.com"}, "actions": actions, **more}).encode()


def add_decision(
    harness: FlowHarness,
    content: bytes | None,
    name: str = DECISION,
    *,
    scopes: tuple[str, ...] = (HOOK_ACTION,),
    state: str = "completed",
    **fields: Any,
) -> Task:
    """Create a task that begins a group, and let it end with this `actions.json`; None: it has none."""
    queue, task_id = harness.tc.queue, slug(name)
    fields = {"taskGroupId": task_id, "scopes": list(scopes), "routes": [route(7)], **fields}
    build(queue, {name: []}, **fields)
    task = queue.find(task_id)
    queue.claim_task(task_id, 0, WORKER)
    if content is not None:
        harness.tc.artifacts.store(task_id, 0, FILE, content, "application/json")
    if state == "completed":
        queue.report_completed(task_id, 0)
    elif state == "failed":
        queue.report_failed(task_id, 0)
    return task


def route(push_id: int, project: str = "mc") -> str:
    """Return the route that names a push of the project."""
    return f"tc-treeherder.v2.{project}.{node(f'{project} {push_id}')}.{push_id}"


def add_task(harness: FlowHarness, name: str = "test", *, group: str = DECISION, **fields: Any) -> str:
    """Create a task in the group of a decision task; return its id."""
    values = {"tags": {"kind": "test"}, "routes": [route(7)], **fields}
    return build(harness.tc.queue, {name: []}, taskGroupId=slug(group), **values)[name]


async def add_push(harness: FlowHarness, *planned: str, push_id: int = 7) -> Push:
    """Store a push whose own graph are these tasks."""
    await harness.store(push_event(push_id))
    async with harness.database.writing() as session:
        push = (await session.exec(select(Push).where(Push.push_id == push_id))).one()
        of_push = (PushStep.push_id == push.id, PushStep.kind == StepKind.GRAPH)
        step = (await session.exec(select(PushStep).where(*of_push))).one()
        step.state, step.due_at, step.done_at = State.DONE, None, now()
        for step in await session.exec(select(PushStep).where(col(PushStep.due_at).is_not(None))):
            step.state, step.due_at = State.SKIPPED, None
        for position, name in enumerate(planned):
            task = PlannedTask(
                task_id=slug(name), step_id=step.id, position=position, label="task", name=name, definition=None
            )
            task.step_id, task.created = (await session.exec(select(PushStep.id).where(*of_push))).one(), True
            session.add(task)
    return push


def add_hook(
    harness: FlowHarness, hook: str = HOOK, *, task: Mapping[str, Any] = HOOK_TASK, schema: Any = True
) -> None:
    """Define the hook of the actions, with a role that may create its task."""
    metadata = {"name": "h", "description": "d", "owner": "o@example.com"}
    body = {"metadata": metadata, "task": task, "triggerSchema": {"type": "object"} if schema is True else schema}
    harness.tc.hooks.define(HOOK_GROUP, hook, body)
    scopes = ["queue:create-task:lowest:sandbox/test", "queue:create-task:project:none", "queue:scheduler-id:test"]
    harness.tc.auth.set_roles({f"hook-id:{HOOK_GROUP}/*": scopes})


def show_in_treeherder(harness: FlowHarness, task_id: str) -> None:
    """Let the Treeherder be one of today that shows push 7, with this task as its decision task."""
    revision = node("mc 7")
    commit = {"revision": revision, "author": "D", "comment": "", "files": [], "branch": "default", "repository": "mc"}
    resultset = {
        "revision": revision,
        "revision_hash": hashlib.sha1(f"{revision}default".encode(), usedforsecurity=False).hexdigest(),
        "push_timestamp": 1_700_000_000,
        "author": "dev@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": [commit],
    }
    job = {
        **failed_job(hashlib.sha256(task_id.encode()).digest(), "Gecko Decision Task", "dev", DECISION_PLACE),
        "reason": "scheduled",
        "result": "success",
        **{f"{name}_timestamp": 1_700_000_000 for name in ("submit", "start", "end")},
        "taskcluster_task_id": task_id,
        "taskcluster_retry_id": 0,
    }
    harness.th.store.store_resultsets("mc", [resultset])
    harness.th.store.store_jobs("mc", [{"project": "mc", "revision": revision, "superseded": [], "job": job}])
    harness.th.behaviour.year = "today"
    today = {
        prefix: environment.model_copy(update={"pushes": "off"})
        for prefix, environment in harness.settings.environments.items()
    }
    harness.services.settings = harness.settings.model_copy(update={"environments": today})


def allow(harness: FlowHarness, *more: str, trigger: bool = True, fires: bool = True) -> None:
    """Give the service's client what it needs for in-tree actions, and nothing else."""
    scopes = ["queue:get-task:*", "queue:status:*", "queue:list-task-group:*", "queue:get-artifact:public/*"]
    scopes += ["auth:expand-scopes", "auth:current-scopes", *more]
    scopes += [trigger_scope(HOOK_GROUP, HOOK)] if trigger else []
    scopes += [fires_scope(HOOK_GROUP, HOOK)] if fires else []
    harness.tc.auth.add_client(
        ROOT.client_id, ROOT.access_token, [*scopes, "auth:expand-scopes", "auth:current-scopes"]
    )
