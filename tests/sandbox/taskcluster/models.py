"""JSON Schemas of requests, answers and messages, written from Taskcluster's documentation of its services.

They are written apart from the stand-in, so that each can show the other wrong. `SCHEMAS` names them as Taskcluster
names its own schemas; where those are available, `support.py` compares the verdicts of both.
"""

from typing import Any

Schema = dict[str, Any]

_SLUG_PATTERN = "^[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]$"
_STATES = ("pending", "running", "completed", "failed", "exception")
_REPORTED = ("worker-shutdown", "malformed-payload", "resource-unavailable", "internal-error", "intermittent-task")


def _text(longest: int | None = None, shortest: int = 0, pattern: str = "") -> Schema:
    limits: Schema = {"type": "string", "minLength": shortest, "pattern": pattern}
    return limits if longest is None else {**limits, "maxLength": longest}


def _one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def _whole(lowest: int, highest: int | None = None) -> Schema:
    limits: Schema = {"type": "integer", "minimum": lowest}
    return limits if highest is None else {**limits, "maximum": highest}


def _list(item: Schema, most: int | None = None, repeats: bool = False) -> Schema:
    limits: Schema = {"type": "array", "items": item, "uniqueItems": not repeats}
    return limits if most is None else {**limits, "maxItems": most}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object that has all of one group of properties, and may have those of another."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _pick(properties: Schema, *names: str) -> Schema:
    return {name: properties[name] for name in names}


# --- values ----------------------------------------------------------------------------------------------------------

_ANY_TEXT = _text()
_DATE = {"type": "string", "format": "date-time"}
_SLUG = _text(pattern=_SLUG_PATTERN)
_WORD = _text(38, 1, "^[a-zA-Z0-9_-]+$")
_PRIORITY = _one_of("highest", "very-high", "high", "medium", "low", "very-low", "lowest")
_SCOPE = _text(pattern="^[ -~]*$")
_TAGS = {"type": "object", "additionalProperties": _text(4096)}
_RUN_ID = _whole(0, 1000)
_NAME = _text(1024)
_KIND = _text(255)  # of contents, as `text/plain`
_TOKEN = {"continuationToken": _ANY_TEXT}
_CREDENTIALS = _object(dict.fromkeys(("clientId", "accessToken", "certificate"), _text(shortest=1)))

# --- tasks -----------------------------------------------------------------------------------------------------------

_METADATA = _object(
    {
        "name": _text(255),
        "description": _text(32768),
        "owner": _text(255),
        "source": _text(4096, pattern="^(https?://|ssh://|git@)"),
    }
)
_DEFINITION: Schema = {
    "provisionerId": _WORD,
    "workerType": _text(pattern="^[a-z]([-a-z0-9]{0,36}[a-z0-9])?$"),
    "taskQueueId": _text(pattern="^[a-zA-Z0-9_-]{1,38}/[a-z]([-a-z0-9]{0,36}[a-z0-9])?$"),
    "schedulerId": _WORD,
    "projectId": _text(500, 1, "^[a-zA-Z0-9._/-]+$"),
    "taskGroupId": _SLUG,
    "dependencies": _list(_SLUG, 10_000),
    "requires": _one_of("all-completed", "all-resolved"),
    "routes": _list(_text(249, 1), 64),
    "priority": _PRIORITY,
    "retries": _whole(0, 49),
    "created": _DATE,
    "deadline": _DATE,
    "expires": _DATE,
    "scopes": _list(_SCOPE, repeats=True),
    "payload": {"type": "object"},
    "metadata": _METADATA,
    "tags": _TAGS,
    "extra": {"type": "object"},
}
_ADDED_LATER = ("projectId", "expires")  # a stored task may be without them
_QUEUE = ("provisionerId", "workerType", "taskQueueId")

TASK = _object(
    {name: value for name, value in _DEFINITION.items() if name not in _ADDED_LATER},
    _pick(_DEFINITION, *_ADDED_LATER),
)
CREATE_TASK = _object(_pick(_DEFINITION, "created", "deadline", "payload", "metadata"), _DEFINITION)

_WORKER = {"workerGroup": _WORD, "workerId": _WORD}
RUN = _object(
    {
        "runId": _RUN_ID,
        "state": _one_of(*_STATES),
        "reasonCreated": _one_of("scheduled", "retry", "task-retry", "rerun", "exception"),
        "scheduled": _DATE,
    },
    {
        **_WORKER,
        "reasonResolved": _one_of(
            *("completed", "failed", "deadline-exceeded", "canceled", "superseded", "claim-expired"), *_REPORTED
        ),
        "takenUntil": _DATE,
        "started": _DATE,
        "resolved": _DATE,
    },
)
STATUS = _object(
    {
        "taskId": _SLUG,
        **_pick(_DEFINITION, *_QUEUE, "schedulerId", "projectId", "taskGroupId", "deadline", "expires"),
        "retriesLeft": _whole(0, 999),
        "state": _one_of("unscheduled", *_STATES),
        "runs": _list(RUN),
    },
    {"priority": _PRIORITY},
)
_GROUP: Schema = {"taskGroupId": _SLUG, "schedulerId": _WORD, "expires": _DATE}
_SEALED = {"sealed": _DATE}
_TASKS_WITH_STATUS = _list(_object({"task": TASK, "status": STATUS}))
_CLAIM = {"status": STATUS, "runId": _RUN_ID, **_WORKER, "takenUntil": _DATE, "credentials": _CREDENTIALS}

# --- artifacts -------------------------------------------------------------------------------------------------------


def _artifact_request(storage: str, required: Schema, optional: Schema | None = None) -> Schema:
    return _object({"storageType": _one_of(storage), "expires": _DATE, **required}, optional)


_UNREADABLE = ("file-missing-on-worker", "invalid-resource-on-worker", "too-large-file-on-worker")
_ARTIFACT_REQUEST = {
    "oneOf": [
        _artifact_request("s3", {"contentType": _KIND}, {"contentLength": _whole(0)}),
        _artifact_request("object", {"contentType": _KIND}, {"contentLength": _whole(0)}),
        _artifact_request("reference", {"contentType": _KIND, "url": _ANY_TEXT}),
        _artifact_request("link", {"artifact": _ANY_TEXT}, {"contentType": _KIND}),
        _artifact_request(
            "error", {"message": _text(4096), "reason": _one_of(*_UNREADABLE, "file-not-readable-on-worker")}
        ),
    ]
}
_OBJECT_NAME = _text(pattern="^[ -~]+$")
_ARTIFACT_CREATED = {
    "oneOf": [
        _object({"storageType": _one_of("s3"), "putUrl": _ANY_TEXT, "expires": _DATE, "contentType": _KIND}),
        _object(
            {
                "storageType": _one_of("object"),
                "name": _OBJECT_NAME,
                "projectId": _DEFINITION["projectId"],
                "uploadId": _SLUG,
                "credentials": _CREDENTIALS,
                "expires": _DATE,
            }
        ),
        _object({"storageType": _one_of("reference", "link", "error")}),
    ]
}


def _artifact(*storages: str) -> Schema:
    return _object(
        {"storageType": _one_of(*storages), "name": _NAME, "expires": _DATE, "contentType": _KIND},
        {"contentLength": _whole(0)} if "s3" in storages else None,
    )


_LISTED_ARTIFACT = _artifact("s3", "object", "reference", "link", "error")
_ARTIFACT_CONTENT = {
    "oneOf": [
        _object({"storageType": _one_of("s3", "reference"), "url": _ANY_TEXT}),
        _object({"storageType": _one_of("object"), "name": _OBJECT_NAME, "credentials": _CREDENTIALS}),
        _object({"storageType": _one_of("error"), "reason": _ANY_TEXT, "message": _ANY_TEXT}),
    ]
}

# --- auth ------------------------------------------------------------------------------------------------------------

_METHODS = (
    *("get", "post", "put", "head", "delete", "options", "trace", "copy", "lock", "mkcol", "move", "purge", "propfind"),
    *("proppatch", "unlock", "report", "mkactivity", "checkout", "merge", "m-search", "notify", "subscribe"),
    *("unsubscribe", "patch", "search", "connect"),
)
_HAWK_REQUEST = _object(
    {"method": _one_of(*_METHODS), "resource": _ANY_TEXT, "host": _ANY_TEXT, "port": _whole(0, 65535)},
    {
        "authorization": _ANY_TEXT,
        "sourceIp": {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
    },
)
_AUTHENTICATED: Schema = {"scopes": _list(_SCOPE), "expires": _DATE}
_CLIENT = _text(pattern="^[A-Za-z0-9!@/:.+|_-]+$")
_HAWK_ANSWER = {
    "oneOf": [
        _object(
            {"status": _one_of("auth-success"), "scheme": _one_of("hawk"), "clientId": _CLIENT, **_AUTHENTICATED},
            {"hash": {}},
        ),
        _object({"status": _one_of("auth-failed"), "message": _ANY_TEXT}),
        _object({"status": _one_of("no-auth"), "scheme": _one_of("none"), **_AUTHENTICATED}),
    ]
}

# --- messages --------------------------------------------------------------------------------------------------------


def _message(required: Schema, optional: Schema | None = None) -> Schema:
    return _object({"version": _one_of(1), **required}, optional)


_TAGGED = {"task": _object({"tags": _TAGS})}
_RUN_OF_WORKER = {"status": STATUS, "runId": _RUN_ID, **_WORKER}
_TASK_IDS = {"taskIds": _list(_SLUG)}

# --- hooks -----------------------------------------------------------------------------------------------------------

_HOOK_NAME = {"hookGroupId": _text(1000, 1, "^[a-zA-Z0-9_-]*$"), "hookId": _text(1000, 1, "^[a-zA-Z0-9_/-]*$")}
_FIRE = _object(
    {
        **_HOOK_NAME,
        "taskId": _SLUG,
        "firedBy": _one_of("schedule", "triggerHook", "triggerHookWithToken", "pulseMessage"),
        "taskCreateTime": _DATE,
        "result": _one_of("success", "error"),
        "error": _ANY_TEXT,
        "taskState": _one_of("unknown", "unscheduled", *_STATES),
    }
)
_TRIGGERED = {
    "oneOf": [
        {"type": "object", "properties": {"taskId": _SLUG, "status": _object({}, {"taskId": _SLUG})}}
        | {"required": ["taskId"], "additionalProperties": False},
        _object({}),
    ]
}

SCHEMAS: dict[str, Schema] = {
    "queue/v1/task.json": TASK,
    "queue/v1/task-status.json": STATUS,
    "queue/v1/create-task-request.json": CREATE_TASK,
    "queue/v1/tasks-request.json": _object({}, {"taskIds": _list(_ANY_TEXT, repeats=True)}),
    "queue/v1/task-claim-request.json": _object(_WORKER),
    "queue/v1/claim-work-request.json": _object({**_WORKER, "tasks": _whole(1, 32)}),
    "queue/v1/task-exception-request.json": _object({"reason": _one_of(*_REPORTED)}),
    "queue/v1/change-task-priority-request.json": _object({"newPriority": _PRIORITY}),
    "queue/v1/finish-artifact-request.json": _object({"uploadId": _SLUG}),
    "queue/v1/post-artifact-request.json": _ARTIFACT_REQUEST,
    "queue/v1/task-status-response.json": _object({"status": STATUS}),
    "queue/v1/tasks-statuses-response.json": _object(
        {"statuses": _list(_object({"taskId": _ANY_TEXT, "status": STATUS}))}, _TOKEN
    ),
    "queue/v1/tasks-response.json": _object({"tasks": _list(_object({"taskId": _ANY_TEXT, "task": TASK}))}, _TOKEN),
    "queue/v1/task-group-response.json": _object(_GROUP, _SEALED),
    "queue/v1/list-task-group-response.json": _object({**_GROUP, "tasks": _TASKS_WITH_STATUS}, {**_SEALED, **_TOKEN}),
    "queue/v1/list-dependent-tasks-response.json": _object({"taskId": _SLUG, "tasks": _TASKS_WITH_STATUS}, _TOKEN),
    "queue/v1/cancel-task-group-response.json": _object(
        {"taskGroupId": _SLUG, "taskGroupSize": _whole(0), "cancelledCount": _whole(0), **_TASK_IDS}
    ),
    "queue/v1/task-group-priority-change-response.json": _object(
        {
            **_pick(_GROUP, "taskGroupId", "schedulerId"),
            "newPriority": _PRIORITY,
            "tasksAffected": _whole(0),
            **_TASK_IDS,
        }
    ),
    "queue/v1/claim-work-response.json": _object({"tasks": _list(_object({**_CLAIM, "task": TASK}))}),
    "queue/v1/task-claim-response.json": _object({**_CLAIM, "task": TASK}),
    "queue/v1/task-reclaim-response.json": _object(_CLAIM),
    "queue/v1/post-artifact-response.json": _ARTIFACT_CREATED,
    "queue/v1/get-artifact-response.json": _object({"storageType": _ANY_TEXT, "url": _ANY_TEXT}),
    "queue/v1/list-artifacts-response.json": _object({"artifacts": _list(_LISTED_ARTIFACT)}, _TOKEN),
    "queue/v1/artifact-response.json": _LISTED_ARTIFACT,
    "queue/v1/artifact-content-response.json": _ARTIFACT_CONTENT,
    "queue/v1/pending-tasks-response.json": _object({**_pick(_DEFINITION, *_QUEUE), "pendingTasks": _whole(0)}),
    "queue/v1/task-queue-counts-response.json": _object(
        {**_pick(_DEFINITION, *_QUEUE), "pendingTasks": _whole(0), "claimedTasks": _whole(0)}
    ),
    "auth/v1/scopeset.json": _object({"scopes": _list(_SCOPE)}),
    "auth/v1/get-client-response.json": _object(
        {
            **dict.fromkeys(("clientId", "description"), _ANY_TEXT),
            **dict.fromkeys(("created", "expires", "lastDateUsed", "lastModified", "lastRotated"), _DATE),
            **{name: {"type": "boolean"} for name in ("deleteOnExpiration", "disabled")},
            **dict.fromkeys(("expandedScopes", "scopes"), _list(_SCOPE)),
        }
    ),
    "auth/v1/authenticate-hawk-request.json": _HAWK_REQUEST,
    "auth/v1/authenticate-hawk-response.json": _HAWK_ANSWER,
    "hooks/v1/trigger-hook.json": {"type": "object"},
    "hooks/v1/trigger-hook-response.json": _TRIGGERED,
    "hooks/v1/list-lastFires-response.json": _object({"lastFires": _list(_FIRE, repeats=True)}, _TOKEN),
    "queue/v1/task-defined-message.json": _message({"status": STATUS}, _TAGGED),
    "queue/v1/task-pending-message.json": _message({"status": STATUS, "runId": _RUN_ID}, _TAGGED),
    "queue/v1/task-running-message.json": _message({**_RUN_OF_WORKER, "takenUntil": _DATE}, _TAGGED),
    "queue/v1/task-completed-message.json": _message(_RUN_OF_WORKER, _TAGGED),
    "queue/v1/task-failed-message.json": _message(_RUN_OF_WORKER, _TAGGED),
    "queue/v1/task-exception-message.json": _message({"status": STATUS}, {"runId": _RUN_ID, **_WORKER, **_TAGGED}),
    "queue/v1/artifact-created-message.json": _message(
        {**_RUN_OF_WORKER, "artifact": _artifact("reference", "link", "error", "object")}
    ),
    "queue/v1/task-group-changed-message.json": _message(_GROUP, _SEALED),
    "queue/v1/task-priority-changed-message.json": _message(
        {"status": STATUS, "oldPriority": _PRIORITY, "newPriority": _PRIORITY}
    ),
    "queue/v1/task-group-priority-changed-message.json": _message(
        {**_pick(_GROUP, "taskGroupId", "schedulerId"), "newPriority": _PRIORITY, "tasksAffected": _whole(0)}
    ),
}

REQUESTS: dict[str, str] = {
    "triggerHook": "hooks/v1/trigger-hook.json",
    "createTask": "queue/v1/create-task-request.json",
    "statuses": "queue/v1/tasks-request.json",
    "tasks": "queue/v1/tasks-request.json",
    "changeTaskPriority": "queue/v1/change-task-priority-request.json",
    "changeTaskGroupPriority": "queue/v1/change-task-priority-request.json",
    "claimWork": "queue/v1/claim-work-request.json",
    "claimTask": "queue/v1/task-claim-request.json",
    "reportException": "queue/v1/task-exception-request.json",
    "createArtifact": "queue/v1/post-artifact-request.json",
    "finishArtifact": "queue/v1/finish-artifact-request.json",
    "expandScopes": "auth/v1/scopeset.json",
    "authenticateHawk": "auth/v1/authenticate-hawk-request.json",
}
"""Schemas of the bodies that methods take."""

ANSWERS: dict[str, str] = {
    "triggerHook": "hooks/v1/trigger-hook-response.json",
    "listLastFires": "hooks/v1/list-lastFires-response.json",
    "task": "queue/v1/task.json",
    "tasks": "queue/v1/tasks-response.json",
    "statuses": "queue/v1/tasks-statuses-response.json",
    **dict.fromkeys(
        (
            *("status", "createTask", "scheduleTask", "rerunTask", "cancelTask", "changeTaskPriority"),
            *("reportCompleted", "reportFailed", "reportException"),
        ),
        "queue/v1/task-status-response.json",
    ),
    "listTaskGroup": "queue/v1/list-task-group-response.json",
    "cancelTaskGroup": "queue/v1/cancel-task-group-response.json",
    "getTaskGroup": "queue/v1/task-group-response.json",
    "sealTaskGroup": "queue/v1/task-group-response.json",
    "listDependentTasks": "queue/v1/list-dependent-tasks-response.json",
    "changeTaskGroupPriority": "queue/v1/task-group-priority-change-response.json",
    "claimWork": "queue/v1/claim-work-response.json",
    "claimTask": "queue/v1/task-claim-response.json",
    "reclaimTask": "queue/v1/task-reclaim-response.json",
    "createArtifact": "queue/v1/post-artifact-response.json",
    "getArtifact": "queue/v1/get-artifact-response.json",
    "getLatestArtifact": "queue/v1/get-artifact-response.json",
    "listArtifacts": "queue/v1/list-artifacts-response.json",
    "listLatestArtifacts": "queue/v1/list-artifacts-response.json",
    "artifactInfo": "queue/v1/artifact-response.json",
    "latestArtifactInfo": "queue/v1/artifact-response.json",
    "artifact": "queue/v1/artifact-content-response.json",
    "latestArtifact": "queue/v1/artifact-content-response.json",
    "pendingTasks": "queue/v1/pending-tasks-response.json",
    "taskQueueCounts": "queue/v1/task-queue-counts-response.json",
    "expandScopes": "auth/v1/scopeset.json",
    "client": "auth/v1/get-client-response.json",
    "currentScopes": "auth/v1/scopeset.json",
    "authenticateHawk": "auth/v1/authenticate-hawk-response.json",
}
"""Schemas of the answers of methods; the others answer without a body, or anything."""

MESSAGES: dict[str, str] = {
    **{
        name: f"queue/v1/{name}-message.json"
        for name in (
            *("task-defined", "task-pending", "task-running", "task-completed", "task-failed", "task-exception"),
            *("artifact-created", "task-priority-changed", "task-group-priority-changed"),
        )
    },
    "task-group-resolved": "queue/v1/task-group-changed-message.json",
    "task-group-sealed": "queue/v1/task-group-changed-message.json",
}
"""Schemas of the messages of exchanges, by the last part of the exchange's name."""
