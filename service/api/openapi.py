"""What the OpenAPI document says beyond what FastAPI reads off the routes: who may call, how errors look, examples.

`tc-treeherder openapi > docs/openapi.json` renews the copy that is checked in.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.contract.events import (
    MAX_EVENTS,
    Acknowledged,
    AnnouncedPushes,
    JobActionMessage,
    OversizedPush,
    PollNews,
    PulseMessage,
    PushEvent,
    QueueReport,
    ShiftRequest,
)
from service.settings import READ, REPOSITORIES_WRITE

Json = dict[str, Any]

DESCRIPTION = """\
Ties Mercurial's pushlog, Taskcluster and Treeherder together: monitored repositories, their pushes, and the actions
that are carried out on tasks.

Lists answer `{items, next}`: `next` goes into `after` for the following page, null is the last one. Every error is
`application/problem+json` (RFC 9457) and says what to do. People and programs bring a bearer token, or Taskcluster
credentials where the service takes them (Hawk); listeners sign (Standard Webhooks)."""

TAGS = [
    {"name": "repositories", "description": "The monitored repositories."},
    {"name": "pushes", "description": "Pushes, and what became of each step: resultsets and the task graph."},
    {"name": "tasks", "description": "What a task belongs to, and what was reported of it."},
    {"name": "actions", "description": "A retrigger or a cancel asked for, and what became of each."},
    {"name": "reports", "description": "What each Treeherder has been told of each run, and what waits."},
    {"name": "dead letters", "description": "What could not be understood, or ran out of retries: nothing disappears."},
    {"name": "health", "description": "Dockerflow's endpoints and Prometheus' metrics. They need no credentials."},
    {"name": "internal", "description": "The listeners' way in, signed; it may change with any release."},
]

_PROBLEMS = {
    400: "The body ended early, or is not JSON.",
    401: "There are no credentials, or they are no good; `missing_scope` names the scope that is needed.",
    403: "The caller is known, and lacks the scope that `missing_scope` names.",
    404: "It is not there.",
    408: "The body did not come in time.",
    409: "It does not go with what is there.",
    413: "The body is too large, or holds too many events or members of objects and lists.",
    422: "Something in the request is wrong; `errors`, where it is there, lists each place.",
    429: "The caller writes too often.",
    502: "An upstream did not answer: try again.",
    503: "Taskcluster does not say whose credentials these are: try again, or use a token.",
}

_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "the kinds of credentials"}},
    429: {"Retry-After": {"schema": {"type": "string"}, "description": "seconds", "required": True}},
    503: {"Retry-After": {"schema": {"type": "string"}, "description": "seconds", "required": True}},
}

LOCATION: Json = {"headers": {"Location": {"schema": {"type": "string"}, "required": True, "description": "its path"}}}

_PROBLEM: Json = {
    "title": "Problem",
    "description": "An error that says what is wrong, with which value, and what to do (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "the kind of error, in two or three words"},
        "status": {"type": "integer", "description": "HTTP's"},
        "detail": {"type": "string", "description": "what is wrong, and what to do"},
        "missing_scope": {"type": "string", "description": "the scope that the caller would need"},
        "errors": {
            "type": "array",
            "description": "each place of the request that is wrong",
            "items": {
                "type": "object",
                "properties": {"at": {"type": "string"}, "message": {"type": "string"}},
                "required": ["at", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": True,
}


class Pushes(BaseModel):
    """Pushes of the pushlog. Each gets a verdict of its own, so one that is not understood does not hold up others."""

    events: list[PushEvent | OversizedPush] = Field(max_length=MAX_EVENTS)


class PulseMessages(BaseModel):
    """Messages as Pulse delivered them, each with a verdict of its own."""

    events: list[PulseMessage] = Field(max_length=MAX_EVENTS)


class JobActionMessages(Acknowledged):
    """Buttons pressed in Treeherder, each with a verdict of its own, and what the broker has confirmed."""

    events: list[JobActionMessage] = Field(max_length=MAX_EVENTS)


class Renewal(ShiftRequest):
    """A listener renews its shift: what it has polled since it did so last, and what it found."""

    news: list[PollNews] = Field([], max_length=MAX_EVENTS)


class Announced(AnnouncedPushes):
    """Pushes were announced in these repositories."""


_SIGNED: tuple[type[BaseModel], ...] = (Pushes, PulseMessages, JobActionMessages, Renewal, Announced, QueueReport)

_WEBHOOK: Json = {
    "webhookId": {"name": "webhook-id", "description": "drawn anew for each message"},
    "webhookTimestamp": {"name": "webhook-timestamp", "description": "seconds since 1970, at most five minutes off"},
    "webhookSignature": {
        "name": "webhook-signature",
        "description": "v1,<base64 of HMAC-SHA256 over id.timestamp.body>, made with one of `webhook_secrets`",
    },
    "webhookRouteSignature": {
        "name": "webhook-route-signature",
        "description": "the same over id.timestamp.POST /api/v1/..., that is method, space and path without the prefix "
        "of a proxy, in place of the body: a request is good for one route only, and is refused before its body is "
        "read. Whoever signs draws a new id for each message, so that the two signatures cannot be combined anew",
    },
}

_SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a token of the setting `tokens`"},
    "hawk": {
        "type": "http",
        "scheme": "hawk",
        "description": "Taskcluster credentials, permanent or temporary, where `taskcluster_logins` is on; "
        "signed for `public_url`",
    },
    "bewit": {
        "type": "apiKey",
        "in": "query",
        "name": "bewit",
        "description": "a signed URL of Taskcluster credentials, for reads",
    },
    **{name: {"type": "apiKey", "in": "header", **header} for name, header in _WEBHOOK.items()},
}


def problems(*statuses: int, scope: str = READ) -> dict[int | str, Json]:
    """For the `responses` of a route: its own errors, and the scope that callers need. Those of all are added below."""
    lacking = {**_problem(403), "description": f"{_PROBLEMS[403]} It is `{scope}`."}
    return {403: lacking, **{status: _problem(status) for status in statuses}}


WRITES = REPOSITORIES_WRITE


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


MERGE_PATCH: Json = {"requestBody": {"content": {"application/merge-patch+json": {"schema": _ref("RepositoryPatch")}}}}
"""RFC 7396 has a media type of its own; plain JSON is taken too."""


def signed(body: type[BaseModel]) -> Json:
    """For the `openapi_extra` of a route that reads the raw bytes, which were signed."""
    assert body in _SIGNED
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body.__name__)}}}}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` the whole document."""
    plain = app.openapi

    def whole() -> Json:
        if app.openapi_schema is None:
            _finish(plain())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = whole  # type: ignore[method-assign]  # FastAPI's own way of changing the document


def _finish(document: Json) -> None:
    schemas = document["components"]["schemas"]
    schemas["Problem"] = _PROBLEM
    schemas.update(
        models_json_schema([(body, "validation") for body in _SIGNED], ref_template="#/components/schemas/{model}")[1][
            "$defs"
        ]
    )
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which errors.py replaces
        schemas.pop(name, None)
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    document["components"]["responses"] = {str(status): _problem(status) for status in _PROBLEMS if status != 403}
    document["components"]["securitySchemes"] = dict(_SECURITY)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _finish_operation(path, method, operation)


def _finish_operation(path: str, method: str, operation: Json) -> None:
    responses = operation["responses"]
    if "422" in responses:
        responses["422"] = _problem(422)
    if not path.startswith("/api/v1/"):
        return
    if "internal" in operation["tags"]:
        operation["security"] = [{name: [] for name in _WEBHOOK}]
        also = {400, 401, 408, 413, 422}
    else:
        operation["security"] = [{"bearer": []}, {"hawk": []}, *([{"bewit": []}] if method == "get" else [])]
        also = {401, 403, 503} | (set() if method == "get" else {400, 408, 413, 429})
    for status in also:
        responses.setdefault(str(status), _problem(status))
    operation["responses"] = {
        # the 403 has the scope in it
        status: response
        if status == "403" or not _is_problem(response)
        else {"$ref": f"#/components/responses/{status}"}
        for status, response in sorted(responses.items())
    }


def _is_problem(response: Json) -> bool:
    return "application/problem+json" in response.get("content", {})


def _problem(status: int) -> Json:
    answer: Json = {
        "description": _PROBLEMS[status],
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }
    return {**answer, "headers": _HEADERS[status]} if status in _HEADERS else answer


_TASK, _COPY = "fN1SbArXTPSVFNUvaOlinQ", "TqW1Kq2eQ0mX3v8h0cFJbA"
_NODE = "3d0f1c5b2a4e6978869504132231405f6e7d8c9b"
_REPOSITORY: Json = {
    "alias": "mozilla-central",
    "url": "https://hg.mozilla.org/mozilla-central",
    "level": "3",
    "trust_domain": "gecko",
    "route_project": None,
    "scopes": ["assume:repo:hg.mozilla.org/mozilla-central:branch:default"],
    "contains": None,
    "graph": True,
    "environments": ["tc-treeherder"],
    "enabled": True,
    "last_push_id": 43210,
}
_PUSH: Json = {
    "repository": "mozilla-central",
    "push_id": 43210,
    "generation": 0,
    "user": "dev@example.com",
    "date": "2026-01-15T12:00:00Z",
    "revision": _NODE,
    "revision_hash": "9b8c7d6e5f40312213049586877869e4a2b5c1f0",
    "noticed_at": "2026-01-15T12:00:02Z",
    "resultsets": [
        {
            "environment": "tc-treeherder",
            "state": "done",
            "attempts": 1,
            "error": None,
            "at": "2026-01-15T12:00:03Z",
            "next_attempt_at": None,
        }
    ],
    "graph": {
        "state": "created",
        "reason": None,
        "attempts": 1,
        "at": "2026-01-15T12:00:04Z",
        "next_attempt_at": None,
        "error_task": None,
        "error_task_refused": None,
        "tasks_planned": 1,
        "tasks_created": 1,
        "tasks": [{"task_id": _TASK, "name": "Decision task", "created": True}],
    },
}
_ACTION: Json = {"action": "retrigger", "project": "mozilla-central", "task_id": _TASK, "run_id": 0, "input": {}}
_ACTION_READ: Json = {
    **_ACTION,
    "id": 17,
    "requester": "sheriff@example.com",
    "source": "api",
    "state": "done",
    "reason": None,
    "notes": [],
    "tasks_planned": 1,
    "tasks_created": 1,
    "left_out_count": 0,
    "tasks": [{"copy_of": _TASK, "task_id": _COPY, "name": "test-linux64/opt-xpcshell-1", "created": True}],
    "attempts": 1,
    "received_at": "2026-01-15T12:30:00Z",
    "planned_at": "2026-01-15T12:30:01Z",
    "done_at": "2026-01-15T12:30:02Z",
    "next_attempt_at": None,
}

EXAMPLES: dict[str, Json] = {
    "Problem": {
        "type": "about:blank",
        "title": "Scope missing",
        "status": 403,
        "detail": f"reader needs the scope {REPOSITORIES_WRITE} for this",
        "missing_scope": REPOSITORIES_WRITE,
    },
    "RepositoryCreate": _REPOSITORY,
    "RepositoryPatch": {"level": "3", "contains": None},
    "RepositoryRead": {
        **_REPOSITORY,
        "last_changeset": _NODE,
        "generation": 0,
        "created_at": "2026-01-01T00:00:00Z",
        "shift_ends_at": "2026-01-15T12:00:12Z",
        "last_polled_at": "2026-01-15T12:00:00Z",
        "last_good_poll_at": "2026-01-15T12:00:00Z",
        "poll_error": None,
        "poll_failures": 0,
        "reset_suspected_at": None,
    },
    "Reset": {"last_push_id": 0},
    "PushSummary": _PUSH,
    "PushRead": {
        **_PUSH,
        "changesets_count": 1,
        "changesets": [
            {
                "node": _NODE,
                "branch": "default",
                "author": "Dev <dev@example.com>",
                "desc": "Bug 1 - a change",
                "parents": ["0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"],
                "files": ["README.md"],
                "files_count": 1,
            }
        ],
    },
    "ActionCreate": {**_ACTION, "requester": "sheriff@example.com"},
    "ActionSummary": _ACTION_READ,
    "ActionRead": {**_ACTION_READ, "left_out": [], "deliveries": []},
    "TaskOwner": {
        "task_id": _COPY,
        "name": "test-linux64/opt-xpcshell-1",
        "push": None,
        "made_by": 17,
        "copy_of": _TASK,
        "actions": [],
        "copies": [],
        "runs": [
            {
                "run_id": 0,
                "environment": "tc-treeherder",
                "project": "mozilla-central",
                "stage": "running",
                "told": "pending",
                "state": "pending",
                "error": None,
                "last_event_at": "2026-01-15T12:31:00Z",
                "next_attempt_at": "2026-01-15T12:31:01Z",
            }
        ],
    },
    "ReportRead": {
        "id": 5,
        "task_id": _TASK,
        "run_id": 0,
        "environment": "tc-treeherder",
        "project": "mozilla-central",
        "revision": _NODE,
        "revision_hash": None,
        "stage": "running",
        "told": None,
        "state": "pending",
        "error": f"Treeherder does not know the push {_NODE} of mozilla-central (yet)",
        "attempts": 3,
        "last_event_at": "2026-01-15T12:31:00Z",
        "waiting_since": "2026-01-15T12:31:00Z",
        "no_push_since": "2026-01-15T12:31:01Z",
        "next_attempt_at": "2026-01-15T12:31:30Z",
    },
    "ActionPlan": {
        **_ACTION,
        "state": "planned",
        "reason": None,
        "notes": [],
        "tasks": [
            {
                "copy_of": _TASK,
                "task_id": _COPY,
                "name": "test-linux64/opt-xpcshell-1",
                "task_group_id": "VhNn4z3pR1aF6m0kq1xW5w",
                "created": "2026-01-15T12:30:01.000Z",
                "deadline": "2026-01-16T12:30:01.000Z",
                "expires": "2026-02-12T12:30:01.000Z",
                "dependencies": [],
            }
        ],
        "left_out": [],
    },
    "DeadLetterRead": {
        "id": 3,
        "kind": "push-event",
        "subject": "mozilla-central, push 43211",
        "reason": "not understood: push.changesets: Field required",
        "since": "2026-01-15T12:00:00Z",
        "payload_bytes": 56,
        "payload": '{"repository": "mozilla-central", "push": {"id": 43211}}',
    },
    "Heartbeat": {
        "status": "warning",
        "checks": [
            {"name": "database", "status": "ok", "detail": ""},
            {"name": "work", "status": "warning", "detail": "the oldest unfinished work has waited since 12:00"},
        ],
    },
    "Verdicts": {"verdicts": [{"verdict": "accepted", "repository": "mozilla-central", "cursor": 43210}]},
}
"""An example of each, held against its model by a test."""
