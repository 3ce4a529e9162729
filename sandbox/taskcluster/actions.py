"""Write what a decision task offers: `public/actions.json` as taskgraph writes it, and the hooks behind its actions.

A decision task is a task that says so in its payload, with what `.taskcluster.yml` is rendered with:

    payload: {"sandbox": {"decision": {"repository": {"url", "project", "level"},
                                       "push": {"owner", "revision", "base_revision", "pushlog_id"}}}}

The worker stores the artifact when the task completes, and defines the hooks, as ci-admin does for the tree's
`.taskcluster.yml`. `callbacks.py` does what the action tasks of these hooks are for.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from sandbox.taskcluster.tasks import Json

ARTIFACT = "public/actions.json"
CALLBACK, CALLBACK_KIND = "ACTION_CALLBACK", "action-callback"
PERMISSIONS = ("generic", "retrigger-decision")
HOOK_GROUP = "project-sandbox"

_ANY_TASK: list[Json] = [{}]
_TIMES = {
    "type": "integer",
    "title": "Times",
    "description": "Number of copies of each task.",
    "default": 1,
    "minimum": 1,
    "maximum": 100,
}
_DOWNSTREAM = {"type": "boolean", "description": "Copy what depends on the task, too.", "default": False}
_LABELS = {"type": "array", "description": "Labels of tasks", "items": {"type": "string"}}
_BACKFILL = {
    "type": "object",
    "properties": {
        "depth": {
            "type": "integer",
            "title": "Depth",
            "description": "Number of earlier pushes on which to run the task.",
            "default": 9,
            "minimum": 1,
            "maximum": 25,
        },
        "inclusive": {"type": "boolean", "description": "Run the task on this push, too.", "default": False},
        "times": _TIMES,
    },
    "additionalProperties": False,
}
_INTERACTIVE = {
    "type": "object",
    "properties": {
        "notify": {"type": "string", "format": "email", "title": "Who is told", "description": "An address."},
        "features": {
            "type": "array",
            "title": "Features of the worker",
            "items": {"enum": ["interactive", "loopbackVideo"]},
            "uniqueItems": True,
            "default": ["interactive"],
        },
        "priority": {"enum": ["low", "very-low", "lowest"], "title": "Priority", "default": "very-low"},
        "hours": {"type": "number", "title": "Hours", "exclusiveMinimum": 0, "maximum": 4, "default": 1.5},
        "keep": {"type": "boolean", "title": "Keep artifacts", "default": False},
        "environment": {
            "type": "object",
            "title": "Environment variables",
            "additionalProperties": {"type": "string", "maxLength": 1000},
            "default": {},
        },
    },
    "required": ["notify"],
    "additionalProperties": False,
}

# In the order of the file: of several actions of one name that fit a task, the first counts.
_ACTIONS: tuple[Json, ...] = (
    {
        "name": "retrigger",
        "cb_name": "retrigger-decision",
        "title": "Retrigger",
        "symbol": "rt",
        "description": "Copy the decision, action or cron task; this needs scopes of its own.",
        "context": [{"kind": "decision-task"}, {"kind": CALLBACK_KIND}, {"kind": "cron-task"}],
        "permission": "retrigger-decision",
    },
    {
        "name": "retrigger",
        "title": "Retrigger",
        "symbol": "rt",
        "description": "Copy the task.",
        "context": [{"retrigger": "true"}],
        "schema": {"type": "object", "properties": {"downstream": _DOWNSTREAM, "times": _TIMES}},
    },
    {
        "name": "retrigger",
        "cb_name": "retrigger-disabled",
        "title": "Retrigger (disabled)",
        "symbol": "rt",
        "description": "Copy the task.\n\nA task of this kind is rather rerun than retriggered.",
        "context": _ANY_TASK,
        "schema": {
            "type": "object",
            "properties": {
                "downstream": _DOWNSTREAM,
                "times": _TIMES,
                "force": {"type": "boolean", "description": "Copy it nevertheless.", "default": False},
            },
        },
    },
    {
        "name": "add-new-jobs",
        "title": "Add new jobs",
        "symbol": "add-new",
        "description": "Add jobs by the labels of their tasks.",
        "context": [],
        "schema": {"type": "object", "properties": {"tasks": _LABELS, "times": _TIMES}},
    },
    {
        "name": "backfill",
        "title": "Backfill",
        "symbol": "Bk",
        "description": "Run the task on earlier pushes that did not run it.",
        "context": [{"kind": "test"}],
        "schema": _BACKFILL,
    },
    {
        "name": "rerun",
        "title": "Rerun",
        "symbol": "rr",
        "description": "Run the task again.\n\nThis works for failed tasks and exceptions of the push's own graph.",
        "context": _ANY_TASK,
        "schema": {"type": "object", "properties": {}},
    },
    {
        "name": "cancel",
        "title": "Cancel Task",
        "symbol": "cx",
        "description": "Cancel the task.",
        "context": _ANY_TASK,
    },
    {
        "name": "cancel-all",
        "title": "Cancel All",
        "symbol": "cAll",
        "description": "Cancel all pending and running tasks of this decision task.",
        "context": [],
    },
    {
        "name": "retrigger-multiple",
        "title": "Retrigger",
        "symbol": "rt",
        "description": "Copy several tasks.",
        "context": [],
        "schema": {
            "type": "object",
            "properties": {
                "requests": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "tasks": _LABELS,
                            "times": {key: value for key, value in _TIMES.items() if key != "default"},
                        },
                        "additionalProperties": False,
                    },
                },
                "additionalProperties": False,  # a property of this name: taskgraph writes it so
            },
        },
    },
)


_FIELDS = {"repository": ("url", "project", "level"), "push": ("owner", "revision", "base_revision", "pushlog_id")}


def is_decision(decision: Any) -> bool:
    """Return True if a payload's `decision` has what an actions.json is written from."""
    return isinstance(decision, dict) and all(
        isinstance(decision.get(part), dict) and decision[part].keys() >= {*names} for part, names in _FIELDS.items()
    )


def actions_json(decision: Json, task_id: str) -> bytes:
    """Return the content of the artifact of a decision task."""
    told = {part: {name: str(decision[part][name]) for name in names} for part, names in _FIELDS.items()}
    actions = [_hook_action(action, told, task_id) for action in _ACTIONS]
    actions.append(_interactive(task_id))
    return json.dumps({"version": 1, "variables": {}, "actions": actions}, indent=2).encode()


def _hook_action(action: Json, told: Json, task_id: str) -> Json:
    permission = action.get("permission", "generic")
    shown: Json = {key: action[key] for key in ("name", "title", "description", "context", "schema") if key in action}
    names = {
        **{key: action[key] for key in ("name", "title", "description", "symbol")},
        "taskGroupId": task_id,
        "cb_name": action.get("cb_name", action["name"]),
    }
    return {
        **shown,
        "kind": "hook",
        "hookGroupId": HOOK_GROUP,
        "hookId": _hook_id(told["repository"]["level"], permission),
        "hookPayload": {
            "decision": {"action": names, **told},
            "user": {name: {"$eval": name} for name in ("input", "taskId", "taskGroupId")},
        },
        "extra": {"actionPerm": permission},
    }


def _interactive(task_id: str) -> Json:
    """Return the action whose task the caller creates itself: a copy of a task to log in to."""
    return {
        "name": "create-interactive",
        "title": "Create Interactive Task",
        "description": "Copy the task and keep its worker, to log in to.",
        "context": [{"worker-implementation": "docker-worker"}],
        "schema": _INTERACTIVE,
        "kind": "task",
        "task": {
            "taskGroupId": task_id,
            "taskQueueId": {"$eval": "task.taskQueueId"},
            "schedulerId": {"$eval": "task.schedulerId"},
            "priority": {"$eval": "input.priority"},
            "dependencies": {"$eval": "task.dependencies"},
            "routes": {"$eval": "task.routes"},
            "created": {"$fromNow": ""},
            "deadline": {"$fromNow": "1 day"},
            "expires": {"$fromNow": "2 days"},
            "retries": 0,
            "payload": {
                "sandbox": {"seconds": 0.2},
                "env": {"$eval": "input.environment"},
                "features": {"$map": {"$eval": "input.features"}, "each(feature)": {"$eval": "feature"}},
                "maxRunTime": {"$eval": "input.hours * 3600"},
                "keep": {"$eval": "input.keep"},
            },
            "metadata": {"$merge": [{"$eval": "task.metadata"}, {"owner": {"$eval": "input.notify"}}]},
            "tags": {"kind": "interactive", "label": {"$eval": "task.metadata.name"}},
            "extra": {
                "parent": {"$eval": "taskGroupId"},
                "action": {"name": "create-interactive", "context": {"taskId": {"$eval": "taskId"}}},
                "treeherder": {
                    "$merge": [{"$eval": "task.extra.treeherder"}, {"symbol": "${task.extra.treeherder.symbol}-int"}]
                },
            },
        },
        "extra": {"actionPerm": "create-interactive"},
    }


def _hook_id(level: str, permission: str) -> str:
    """Return the id of the hook of actions with this permission; it ends in a hash of what the hook is made from."""
    digest = hashlib.sha256(json.dumps(_action_task(permission)).encode()).hexdigest()
    return f"in-tree-action-{level}-{permission}/{digest[:10]}"


def hooks_of(decision: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the hooks behind the actions: hookGroupId, hookId and a `create-hook-request.json`."""
    for permission in PERMISSIONS:
        hook_id = _hook_id(str(decision["repository"]["level"]), permission)
        metadata = {
            "name": f"{HOOK_GROUP}/{hook_id}",
            "description": f"Carries out actions of decision tasks with the permission {permission}.",
            "owner": "sandbox@example.com",
        }
        task = _action_task(permission)
        yield HOOK_GROUP, hook_id, {"metadata": metadata, "task": task, "triggerSchema": _TRIGGER_SCHEMA}


def _fields(required: Json, optional: Json | None = None) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_TRIGGER_SCHEMA = _fields(
    {
        "decision": _fields(
            {
                "action": _fields(
                    dict.fromkeys(("name", "title", "description", "taskGroupId", "cb_name", "symbol"), _TEXT)
                ),
                "push": _fields(
                    dict.fromkeys(("owner", "revision", "pushlog_id"), _TEXT),
                    dict.fromkeys(("base_revision", "branch", "base_branch"), _TEXT),
                ),
                "repository": _fields(
                    {"url": {"type": "string", "pattern": "[^/]$"}, "project": _TEXT, "level": _TEXT},
                    {"base_url": _TEXT},
                ),
            },
            {"parameters": {"type": "object", "additionalProperties": True}},
        ),
        "user": _fields({"input": {}, "taskId": {"anyOf": [_TEXT, {"const": None}]}, "taskGroupId": _TEXT}),
    }
)


def _action_task(permission: str) -> Json:
    """Return the template of action tasks: what a tree's `.taskcluster.yml` has for `tasks_for: action`."""
    roles = (f"action:{permission}", *(["branch:default"] if permission == "retrigger-decision" else []))
    return {
        "$let": {
            "action": {"$eval": "payload.decision.action"},
            "push": {"$eval": "payload.decision.push"},
            "repository": {"$eval": "payload.decision.repository"},
            "input": {"$eval": "payload.user.input"},
            "taskId": {"$eval": "payload.user.taskId"},
            "ownTaskId": {"$eval": "taskId"},
        },
        "in": {
            "taskGroupId": "${action.taskGroupId}",
            "taskQueueId": "sandbox/decision",
            "schedulerId": "sandbox-level-${repository.level}",
            "priority": "lowest",
            "created": {"$fromNow": ""},
            "deadline": {"$fromNow": "1 day"},
            "expires": {"$fromNow": "1 year"},
            "scopes": [
                *(f"assume:repo:${{split(repository.url, '://')[1]}}:{suffix}" for suffix in roles),
                "queue:cancel-task:sandbox-level-${repository.level}/*",
                "queue:rerun-task:sandbox-level-${repository.level}/*",
            ],
            "routes": [
                "tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}",
                "index.sandbox.v2.${repository.project}.revision.${push.revision}.actions.${ownTaskId}",
            ],
            "payload": {
                "env": {
                    "ACTION_TASK_GROUP_ID": "${action.taskGroupId}",
                    "ACTION_TASK_ID": {"$json": {"$eval": "taskId"}},
                    "ACTION_INPUT": {"$json": {"$eval": "input"}},
                    CALLBACK: "${action.cb_name}",
                }
            },
            "metadata": {
                "name": "Action: ${action.title}",
                "description": "${action.description}\n\nAction triggered by clientID `${clientId}`",
                "owner": "sandbox@example.com",
                "source": "${repository.url}/raw-file/${push.revision}/.taskcluster.yml",
            },
            "tags": {
                "kind": CALLBACK_KIND,
                "createdForUser": "${push.owner}",
                "worker-implementation": "docker-worker",
            },
            "extra": {
                "treeherder": {
                    "machine": {"platform": "gecko-decision"},
                    "groupName": CALLBACK_KIND,
                    "groupSymbol": "AC",
                    "symbol": "${action.symbol}",
                },
                "parent": "${action.taskGroupId}",
                "action": {
                    "name": "${action.name}",
                    "context": {
                        "taskGroupId": "${action.taskGroupId}",
                        "taskId": {"$eval": "taskId"},
                        "input": {"$eval": "input"},
                        "clientId": {"$eval": "clientId"},
                    },
                },
                "tasks_for": "action",
            },
        },
    }
