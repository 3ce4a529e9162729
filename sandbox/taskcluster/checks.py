"""Check requests before the state is read, as Taskcluster's queue and auth services do.

The published request schemas (`create-task-request.json` and others) are written as code, because the files are not
part of this project; the tests compare the two.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from sandbox.taskcluster.clock import DAY, MINUTE, a_year_later, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scopes import is_valid

PRIORITIES = ("highest", "very-high", "high", "medium", "low", "very-low", "lowest")
RETRIED_REASONS = {"worker-shutdown": "retry", "intermittent-task": "task-retry", "claim-expired": "retry"}
"""Exceptions that are retried, with the `reasonCreated` of the next run."""
REPORTED_REASONS = (
    "worker-shutdown",
    "malformed-payload",
    "resource-unavailable",
    "internal-error",
    "intermittent-task",
)

SLUG = re.compile(r"[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]")
_PROVISIONER = re.compile(r"[a-zA-Z0-9-_]{1,38}")
_WORKER_TYPE = re.compile(r"[a-z]([-a-z0-9]{0,36}[a-z0-9])?")
_NAME = re.compile(r"[a-zA-Z0-9-_]{1,38}")
_PROJECT = re.compile(r"[a-zA-Z0-9._/-]{1,500}")
_SOURCE = re.compile(r"(https?://|ssh://|git@)")
_QUEUE = re.compile(rf"{_PROVISIONER.pattern}/{_WORKER_TYPE.pattern}")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # an escaped \u is no NUL
_RUN = re.compile(r"0|[1-9][0-9]{0,2}|1000")

_PARAMETERS = {
    "taskId": SLUG,
    "taskGroupId": SLUG,
    "taskQueueId": _QUEUE,
    "runId": _RUN,
    "name": re.compile(r"[\x20-\x7e]{1,1024}"),
    "clientId": re.compile(r"[A-Za-z0-9!@/:.+|_-]{1,1000}"),
    "hookGroupId": re.compile(r"[a-zA-Z0-9-_]{1,1000}"),
    "hookId": re.compile(r"[a-zA-Z0-9-_/]{1,1000}"),
}

MAX_ROUTES = 64
MAX_DEPENDENCIES = 10_000
CREATED_DRIFT = 15 * MINUTE
MAX_DEADLINE = 5 * DAY

Problems = list[str]
Check = Callable[[Any, str, Problems], None]


def check_parameters(parameters: dict[str, str]) -> None:
    """Raise ApiError unless every path parameter has its form (`taskId` is a slugid, and so on)."""
    wrong = [
        f'URL parameter \'{name}\' given as "{value}" must match regular expression: "{_PARAMETERS[name].pattern}"'
        for name, value in parameters.items()
        if not _PARAMETERS[name].fullmatch(value)
    ]
    if wrong:
        raise ApiError("InvalidRequestArguments", "Invalid URL patterns:\n" + "\n".join(wrong))


def page_size(limit: str | None) -> int:
    """Return the size of a page: `limit`, by default and at most 1,000."""
    if limit is None:
        return 1000
    if not limit.isdigit():
        raise ApiError(
            "InvalidRequestArguments",
            f'Query-string parameter: "limit" given as "{limit}" must match regular expression: "/^[0-9]+$/"',
        )
    return max(1, min(1000, int(limit)))


def _string(longest: int, shortest: int = 0, pattern: re.Pattern[str] | None = None) -> Check:
    def check(value: Any, where: str, problems: Problems) -> None:
        if not isinstance(value, str):
            problems.append(f"{where} must be string")
        elif len(value) > longest:
            problems.append(f"{where} must NOT have more than {longest} characters")
        elif len(value) < shortest:
            problems.append(f"{where} must NOT have fewer than {shortest} characters")
        elif pattern is not None and not pattern.fullmatch(value):
            problems.append(f'{where} must match pattern "^{pattern.pattern}$"')

    return check


def _one_of(values: Iterable[str]) -> Check:
    allowed = tuple(values)

    def check(value: Any, where: str, problems: Problems) -> None:
        if value not in allowed:
            problems.append(f"{where} must be equal to one of the allowed values: {', '.join(allowed)}")

    return check


def _integer(lowest: int, highest: int | None = None) -> Check:
    def check(value: Any, where: str, problems: Problems) -> None:
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            problems.append(f"{where} must be integer")
        elif value < lowest or (highest is not None and value > highest):
            problems.append(f"{where} must be >= {lowest}" + ("" if highest is None else f" and <= {highest}"))

    return check


def _list(item: Check, most: int | None = None, unique: bool = False) -> Check:
    def check(value: Any, where: str, problems: Problems) -> None:
        if not isinstance(value, list):
            problems.append(f"{where} must be array")
            return
        if most is not None and len(value) > most:
            problems.append(f"{where} must NOT have more than {most} items")
            return
        before = len(problems)
        for index, element in enumerate(value):
            item(element, f"{where}[{index}]", problems)
        if unique and len(problems) == before and len(set(value)) < len(value):
            problems.append(f"{where} must NOT have duplicate items")

    return check


def _date(value: Any, where: str, problems: Problems) -> None:
    if parse(value) is None:
        problems.append(f'{where} must match format "date-time"')


def _object(value: Any, where: str, problems: Problems) -> None:
    if not isinstance(value, dict):
        problems.append(f"{where} must be object")


def _boolean(value: Any, where: str, problems: Problems) -> None:
    if not isinstance(value, bool):
        problems.append(f"{where} must be boolean")


def _scope(value: Any, where: str, problems: Problems) -> None:
    if not is_valid(value):
        problems.append(f'{where} must match pattern "^[ -~]*$"')


def _source(value: Any, where: str, problems: Problems) -> None:
    _string(4096)(value, where, problems)
    if isinstance(value, str) and not _SOURCE.match(value):
        problems.append(f'{where} must match pattern "^{_SOURCE.pattern}"')


def _address(value: Any, where: str, problems: Problems) -> None:
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        problems.append(f'{where} must match format "ipv4" or "ipv6"')


def _tags(value: Any, where: str, problems: Problems) -> None:
    _object(value, where, problems)
    if isinstance(value, dict):
        for key, tag in value.items():
            _string(4096)(tag, f"{where}[{key!r}]", problems)


class Schema:
    """A JSON object without other properties than the named ones."""

    def __init__(self, name: str, required: Iterable[str], properties: dict[str, Check]) -> None:
        self.name = name
        self._required = tuple(required)
        self.properties = properties

    def __call__(self, value: Any, where: str, problems: Problems) -> None:
        """Append the problems of the value."""
        if not isinstance(value, dict):
            problems.append(f"{where} must be object")
            return
        problems.extend(f"{where} must have required property '{name}'" for name in self._required if name not in value)
        for name, field in value.items():
            check = self.properties.get(name)
            if check is None:
                problems.append(f"{where} must NOT have additional properties: '{name}'")
            else:
                check(field, f"{where}.{name}", problems)

    def check(self, value: Any) -> None:
        """Raise `InputValidationError` with all problems of the value, if there are any."""
        problems: Problems = []
        self(value, "data", problems)
        if problems:
            reject(self.name, problems)


def reject(name: str, problems: Problems) -> None:
    """Raise the error that names the schema and the problems."""
    listed = "\n".join(f"  * {problem}" for problem in problems[:50])
    raise ApiError(
        "InputValidationError",
        f"Schema Validation Failed!\nRejecting Schema: /schemas/{name}#\nErrors:\n{listed}",
    )


_slug = _string(22, 22, SLUG)
_metadata = Schema(
    "queue/v1/task-metadata.json",
    ("name", "description", "owner", "source"),
    {"name": _string(255), "description": _string(32768), "owner": _string(255), "source": _source},
)

CREATE_TASK = Schema(
    "queue/v1/create-task-request.json",
    ("created", "deadline", "payload", "metadata"),
    {
        "provisionerId": _string(38, 1, _PROVISIONER),
        "workerType": _string(38, 1, _WORKER_TYPE),
        "taskQueueId": _string(77, 3, _QUEUE),
        "schedulerId": _string(38, 1, _NAME),
        "projectId": _string(500, 1, _PROJECT),
        "taskGroupId": _slug,
        "dependencies": _list(_slug, MAX_DEPENDENCIES, unique=True),
        "requires": _one_of(("all-completed", "all-resolved")),
        "routes": _list(_string(249, 1), MAX_ROUTES, unique=True),
        "priority": _one_of(PRIORITIES),
        "retries": _integer(0, 49),
        "created": _date,
        "deadline": _date,
        "expires": _date,
        "scopes": _list(_scope),
        "payload": _object,
        "metadata": _metadata,
        "tags": _tags,
        "extra": _object,
    },
)
TASKS = Schema("queue/v1/tasks-request.json", (), {"taskIds": _list(_string(10_000))})
CLAIM_TASK = Schema(
    "queue/v1/task-claim-request.json",
    ("workerGroup", "workerId"),
    {"workerGroup": _string(38, 1, _NAME), "workerId": _string(38, 1, _NAME)},
)
CLAIM_WORK = Schema(
    "queue/v1/claim-work-request.json",
    ("workerGroup", "workerId"),
    {"workerGroup": _string(38, 1, _NAME), "workerId": _string(38, 1, _NAME), "tasks": _integer(1, 32)},
)
EXCEPTION = Schema("queue/v1/task-exception-request.json", ("reason",), {"reason": _one_of(REPORTED_REASONS)})
CHANGE_PRIORITY = Schema(
    "queue/v1/change-task-priority-request.json", ("newPriority",), {"newPriority": _one_of(PRIORITIES)}
)
FINISH_ARTIFACT = Schema("queue/v1/finish-artifact-request.json", ("uploadId",), {"uploadId": _slug})
SCOPESET = Schema("auth/v1/scopeset.json", ("scopes",), {"scopes": _list(_scope, unique=True)})
CREATE_HOOK = Schema(
    "hooks/v1/create-hook-request.json",
    ("metadata", "task"),
    {
        "hookGroupId": _string(1000, 1, _PARAMETERS["hookGroupId"]),
        "hookId": _string(1000, 1, _PARAMETERS["hookId"]),
        "metadata": Schema(
            "hooks/v1/hook-metadata.json",
            ("name", "description", "owner"),
            {"name": _string(255), "description": _string(32768), "owner": _string(255), "emailOnError": _boolean},
        ),
        "task": _object,
        "triggerSchema": _object,
        "schedule": _list(_string(1000), 0),
        "bindings": _list(_object, 0),
    },
)

_METHODS = (
    *("get", "post", "put", "head", "delete", "options", "trace", "copy", "lock", "mkcol", "move", "purge", "propfind"),
    *("proppatch", "unlock", "report", "mkactivity", "checkout", "merge", "m-search", "notify", "subscribe"),
    *("unsubscribe", "patch", "search", "connect"),
)
AUTHENTICATE_HAWK = Schema(
    "auth/v1/authenticate-hawk-request.json",
    ("method", "resource", "host", "port"),
    {
        "method": _one_of(_METHODS),
        "resource": _string(1_000_000),
        "host": _string(1_000_000, 1),
        "port": _integer(0, 65535),
        "authorization": _string(1_000_000),
        "sourceIp": _address,
    },
)

_ARTIFACT_NAME = "queue/v1/post-artifact-request.json"
_kind = _string(255)
_ARTIFACTS = {
    kind: Schema(_ARTIFACT_NAME, required, {"storageType": _one_of((kind,)), "expires": _date, **others})
    for kind, required, others in (
        ("s3", ("expires", "contentType"), {"contentType": _kind, "contentLength": _integer(0)}),
        ("object", ("expires", "contentType"), {"contentType": _kind, "contentLength": _integer(0)}),
        ("reference", ("expires", "url", "contentType"), {"contentType": _kind, "url": _string(100_000, 1)}),
        ("link", ("expires", "artifact"), {"contentType": _kind, "artifact": _string(100_000)}),
        (
            "error",
            ("expires", "reason", "message"),
            {
                "message": _string(4096),
                "reason": _one_of(
                    (
                        "file-missing-on-worker",
                        "invalid-resource-on-worker",
                        "too-large-file-on-worker",
                        "file-not-readable-on-worker",
                    )
                ),
            },
        ),
    )
}


def check_artifact(value: Any) -> None:
    """Raise unless this is a `post-artifact-request.json` of one of the five storage types."""
    kind = value.get("storageType") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _ARTIFACTS:
        reject(_ARTIFACT_NAME, [f"data.storageType must be one of {', '.join(_ARTIFACTS)}"])
    else:
        _ARTIFACTS[kind].check(value)


def complete(task_id: str, definition: dict[str, Any], now: int) -> dict[str, Any]:
    """Return the definition as the queue stores it: with defaults, and with dates in the queue's form.

    Raises `InputError` for dates that the queue refuses at the moment `now`, even if the task exists already.
    """
    task = {
        "taskGroupId": task_id,
        "schedulerId": "-",
        "projectId": "none",
        "dependencies": [],
        "requires": "all-completed",
        "routes": [],
        "priority": "lowest",
        "retries": 5,
        "scopes": [],
        "tags": {},
        "extra": {},
        **definition,
    }
    _complete_queue(task)
    created, deadline = _moment(task, "created"), _moment(task, "deadline")
    if created < now - CREATED_DRIFT:
        raise ApiError(
            "InputError", f"`created` {task['created']} cannot be in the past (max 15min drift from {iso(now)})"
        )
    if created > now + CREATED_DRIFT:
        raise ApiError(
            "InputError", f"`created` {task['created']} cannot be in the future (max 15min drift from {iso(now)})"
        )
    if created > deadline:
        raise ApiError("InputError", f"`deadline` {task['deadline']} cannot be before `created` {task['created']}")
    if deadline < now:
        raise ApiError("InputError", f"`deadline` {task['deadline']} cannot be in the past (it is {iso(now)})")
    if deadline > created + MAX_DEADLINE:
        raise ApiError("InputError", f"`deadline` {task['deadline']} cannot be more than 5 days into the future")
    expires = _moment(task, "expires") if "expires" in task else a_year_later(deadline)
    if expires < deadline:
        raise ApiError("InputError", f"`expires` {task['expires']} cannot be before `deadline` {task['deadline']}")
    task.update(created=iso(created), deadline=iso(deadline), expires=iso(expires))
    for scope in task["scopes"]:
        if scope.endswith("**"):
            raise ApiError("InputError", f"`scopes` must not end in more than one `*`: {scope}")
    return task


def check_storable(task: dict[str, Any]) -> None:
    """Raise the 500 for text that PostgreSQL's jsonb refuses: NUL characters and lone surrogates."""
    text = json.dumps(task, ensure_ascii=False)
    if _NUL.search(text):
        raise ApiError(
            "InternalServerError", "unsupported Unicode escape sequence: \\u0000 cannot be converted to text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError("InternalServerError", f"invalid input syntax for type json: {error.reason}") from None


def _complete_queue(task: dict[str, Any]) -> None:
    """Derive `taskQueueId` from `provisionerId` and `workerType`, or the reverse; raise ApiError if they disagree."""
    parts = {name: task.get(name) for name in ("provisionerId", "workerType")}
    if "taskQueueId" in task:
        provisioner, worker_type = task["taskQueueId"].split("/")
        for name, value in (("provisionerId", provisioner), ("workerType", worker_type)):
            if parts[name] not in (None, value):
                raise ApiError(
                    "InputError", f"`{name}` {parts[name]} does not match `taskQueueId` {task['taskQueueId']}"
                )
            task[name] = value
    elif None in parts.values():
        raise ApiError(
            "InputError", "at least a `provisionerId` and a `workerType`, or a `taskQueueId`, must be provided"
        )
    else:
        task["taskQueueId"] = f"{parts['provisionerId']}/{parts['workerType']}"


def _moment(task: dict[str, Any], name: str) -> int:
    moment = parse(task[name])
    if moment is None:
        raise ApiError("InputError", f"`{name}` {task[name]!r} is not a date-time")
    return moment
