"""Parts of the OpenAPI document that FastAPI does not read off the routes: credentials, errors, examples.

`tc-treeherder openapi > docs/openapi.json` renews the copy that is checked in.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.api.schemas.common import examples
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
from service.errors import problem_type
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
    {"name": "actions", "description": "What is done to tasks, such as a retrigger, and what became of it."},
    {"name": "reports", "description": "The reports of runs to each Treeherder, and those that wait."},
    {"name": "pulse queues", "description": "The queues of the Pulse listeners, and whether anybody reads them."},
    {"name": "dead letters", "description": "What could not be understood, or ran out of retries: nothing disappears."},
    {"name": "audit", "description": "Who changed, asked for, retried, replayed or dropped what, and who signed in."},
    {"name": "health", "description": "Dockerflow's endpoints and Prometheus' metrics. They need no credentials."},
    {"name": "internal", "description": "The listeners' way in, signed; it may change with any release."},
]

_PROBLEMS = {
    400: "The body ended early, or is not JSON.",
    401: "There are no credentials, or they are no good; `missing_scope` names the scope that is needed.",
    403: "The caller is known, and lacks the scope that `missing_scope` names.",
    404: "Nothing has this name or id.",
    408: "The body did not come in time.",
    409: "It conflicts with the present state.",
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
        "type": {"type": "string", "format": "uri-reference", "description": "leads to an explanation"},
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
    """Pushes of the pushlog. Each gets its own verdict, so that one that is not understood delays no other."""

    events: list[PushEvent | OversizedPush] = Field(max_length=MAX_EVENTS)


class PulseMessages(BaseModel):
    """Messages as Pulse delivered them. Each gets its own verdict."""

    events: list[PulseMessage] = Field(max_length=MAX_EVENTS)


class JobActionMessages(Acknowledged):
    """Buttons pressed in Treeherder, each with its own verdict, and the acknowledgements that the broker confirmed."""

    events: list[JobActionMessage] = Field(max_length=MAX_EVENTS)


class Renewal(ShiftRequest):
    """The renewal of a listener's shift: the repositories that it has polled since the last one, and its news."""

    news: list[PollNews] = Field([], max_length=MAX_EVENTS)


class Announced(AnnouncedPushes):
    """The repositories in which pushes were announced."""


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
    """Return the `responses` of a route: its own errors, and the scope that callers need."""
    lacking = {**_problem(403), "description": f"{_PROBLEMS[403]} It is `{scope}`."}
    return {403: lacking, **{status: _problem(status) for status in statuses}}


WRITES = REPOSITORIES_WRITE


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


MERGE_PATCH: Json = {"requestBody": {"content": {"application/merge-patch+json": {"schema": _ref("RepositoryPatch")}}}}
"""RFC 7396 has a media type of its own; plain JSON is taken too."""


def signed(body: type[BaseModel]) -> Json:
    """Return the `openapi_extra` of a route that reads the raw, signed bytes."""
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
    for schema, example in examples().items():  # FastAPI would leave out what is null
        schemas[schema.__name__]["examples"] = [example]
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
        operation["security"] = []
        operation["responses"]["422"] = {"$ref": "#/components/responses/422"}
        return
    if method == "patch":  # a merge patch has a media type of its own; plain JSON is taken too
        del operation["requestBody"]["content"]["application/json"]
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


EXAMPLES: dict[str, Json] = {
    "Problem": {
        "type": problem_type("Scope missing"),
        "title": "Scope missing",
        "status": 403,
        "detail": f"reader needs the scope {REPOSITORIES_WRITE} for this",
        "missing_scope": REPOSITORIES_WRITE,
    },
    "Verdicts": {"verdicts": [{"verdict": "accepted", "repository": "mozilla-central", "cursor": 43210}]},
}
"""Examples of what is no schema of `service.api.schemas`: those have their own."""
