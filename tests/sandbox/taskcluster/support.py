"""Call the stand-in as a client does, and validate every request and answer.

They are held against our own schemas (`models.py`), and against the published ones where those are available.
"""

import asyncio
import base64
import contextlib
import functools
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import jsonschema
import pytest
import uvicorn
from mohawk import Sender
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7
from taskcluster import slugId

from sandbox.taskcluster import Client, Taskcluster, create_app
from sandbox.taskcluster.clock import DAY, HOUR, iso
from sandbox.taskcluster.methods import Method, api_methods
from sandbox.taskcluster.tasks import EXCHANGES, Message
from tests.published_schemas import published_folder
from tests.sandbox.taskcluster.models import ANSWERS, MESSAGES, REQUESTS, SCHEMAS

ROOT = Client("root", "root-secret", ("*",))
_PARAMETER = re.compile(r"{(\w+)(?::path)?}")


_FORMATS = jsonschema.FormatChecker(["ipv4", "ipv6"])
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@_FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """Return True for a date-time; this is not the stand-in's parser, so that each can show the other wrong."""
    if not isinstance(value, str):
        return True
    return _RFC3339.fullmatch(value) is not None and datetime.fromisoformat(value) is not None


@functools.cache
def _published_registry() -> Any:
    folder = published_folder() / "taskcluster" / "schemas"
    contents = [json.loads(path.read_text()) for path in folder.rglob("*.json")]
    return Registry().with_resources((schema["$id"], DRAFT7.create_resource(schema)) for schema in contents)


@functools.cache
def _published_validator(schema: str) -> jsonschema.protocols.Validator:
    resource: Resource[Any] = _published_registry()[f"/schemas/{schema}"]
    return jsonschema.Draft7Validator(
        {**resource.contents, "$schema": "http://json-schema.org/draft-07/schema#"},
        registry=_published_registry(),
        format_checker=_FORMATS,
    )


@functools.cache
def _validator(schema: str) -> jsonschema.protocols.Validator:
    return jsonschema.Draft7Validator(SCHEMAS[schema], format_checker=_FORMATS)


@functools.cache
def is_published(schema: str) -> bool:
    """Return True if the published schema is available (some of auth's are not)."""
    return (published_folder() / "taskcluster" / "schemas" / schema).is_file()


def validate(value: Any, schema: str) -> None:
    """Raise unless the value is valid; `schema` is a name of `SCHEMAS`: `queue/v1/task.json`.

    Where the published schema is available, the value must be valid by that too.
    """
    _validator(schema).validate(value)
    if is_published(schema):
        _published_validator(schema).validate(value)


def is_valid(value: Any, schema: str) -> bool:
    """Return True if the value is valid; see `validate`. Raises if the published schema disagrees with ours."""
    valid = _validator(schema).is_valid(value)
    if is_published(schema):
        assert valid == _published_validator(schema).is_valid(value), f"{schema} disagrees with the published one"
    return valid


def spoiled(value: Any, depth: int = 2) -> Iterator[Any]:
    """Yield the value with one part of it changed, missing or added, in objects down to a depth."""
    if isinstance(value, dict):
        yield {**value, "unknown": 1}
        if depth == 0:
            return
        for name, inner in value.items():
            yield {key: other for key, other in value.items() if key != name}
            for changed in spoiled(inner, depth - 1):
                yield {**value, name: changed}
    elif isinstance(value, list):
        yield value * 2
        yield []
        for element in value:
            for changed in spoiled(element, depth):
                yield [changed]
    else:
        yield from (None, True, -1, 1.5, 1_000_000, "", "a b", "\x7f", "x" * 50_000, [], {})


@functools.cache
def _methods(service: str) -> dict[str, Method]:
    return {method.name: method for owner, method in api_methods(Taskcluster([])) if owner == service}


def validate_message(message: Message) -> None:
    """Raise unless the message has the form of its exchange."""
    name = message.exchange.removeprefix(EXCHANGES)
    assert name in MESSAGES, f"no exchange {message.exchange}"
    validate(message.payload, MESSAGES[name])


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body['code']}: {body['message']}")
        self.status = status
        self.code = body["code"]
        self.message = body["message"]
        self.body = body


def sign(
    client: Client, method: str, url: str, body: str = "", ext: dict[str, Any] | None = None, **more: Any
) -> dict[str, str]:
    """Return the headers of a request that mohawk signed."""
    kind = "application/json" if body else ""
    packed = base64.b64encode(json.dumps(ext or {}).encode()).decode()
    sender = Sender(
        {"id": client.client_id, "key": client.access_token, "algorithm": "sha256"},
        url,
        method,
        content=body,
        content_type=kind,
        ext=packed,
        **more,
    )
    return {"Authorization": str(sender.request_header), **({"Content-Type": kind} if body else {})}


class Api:
    """A client: `await api("status", task_id)` signs a call by a method's name, and validates the answer.

    `tc` is the stand-in; definitions are dated by its clock.
    """

    def __init__(self, tc: Taskcluster, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.tc = tc
        self.client = ROOT
        self.ext: dict[str, Any] = {}
        self.http = httpx.AsyncClient(
            transport=transport or httpx.ASGITransport(create_app(tc)), base_url="http://taskcluster.example"
        )

    async def __call__(
        self,
        method: str,
        *args: str | int,
        body: Any = None,
        query: dict[str, Any] | None = None,
        service: str = "queue",
        client: Client | None = ROOT,
    ) -> Any:
        """Return the JSON of the answer. Raises `Refused` for an error."""
        entry = _methods(service)[method]
        names = _PARAMETER.findall(entry.path)
        values = {name: quote(str(value), safe="") for name, value in zip(names, args, strict=True)}
        route = _PARAMETER.sub(lambda match: values[match[1]], entry.path)
        url = f"http://taskcluster.example/api/{service}/v1{route}" + (f"?{urlencode(query)}" if query else "")
        text = "" if body is None else json.dumps(body)
        signer = self.client if client is ROOT else client
        headers = {"Content-Type": "application/json"} if text else {}
        if signer is not None:
            headers = sign(signer, entry.verb, url, text, self.ext)
        answer = await self.http.request(entry.verb, url, content=text, headers=headers)
        if method in REQUESTS and answer.status_code not in (401, 429):
            accepted = answer.status_code != 400 or answer.json()["code"] != "InputValidationError"
            assert accepted == is_valid(body, REQUESTS[method]), f"the schema disagrees: {answer.text}"
        if answer.status_code >= 400:
            failure = answer.json()
            assert set(failure) == {"code", "message", "requestInfo"}, failure
            raise Refused(answer.status_code, failure)
        if answer.status_code == 204:
            return None
        result = answer.json()
        if method in ANSWERS:
            validate(result, ANSWERS[method])
        return result

    def define(self, **more: Any) -> dict[str, Any]:
        """Return a task definition dated now; a property given as None is left out."""
        now = self.tc.clock.now()
        definition = {
            "provisionerId": "prov",
            "workerType": "w",
            "schedulerId": "sched",
            "created": iso(now),
            "deadline": iso(now + HOUR),
            "expires": iso(now + 30 * DAY),
            "payload": {},
            "metadata": {"name": "a task", "description": "", "owner": "a@b.example", "source": "https://hg.example/x"},
            **more,
        }
        return {key: value for key, value in definition.items() if value is not None}

    async def state(self, task_id: str) -> str:
        return str((await self("status", task_id))["status"]["state"])

    async def claim(self, queue_id: str = "prov/w") -> dict[str, Any]:
        """Claim one task of the queue."""
        worker = {"workerGroup": "wg", "workerId": "w1", "tasks": 1}
        (claim,) = (await self("claimWork", queue_id, body=worker))["tasks"]
        return dict(claim)


def now_seconds() -> int:
    return int(time.time())


WORKER = {"workerGroup": "wg", "workerId": "w1"}


async def create(api: Api, task_id: str | None = None, **more: Any) -> str:
    task_id = task_id or str(slugId())
    await api("createTask", task_id, body=api.define(**more))
    return task_id


async def refused(call: Any, status: int, code: str, message: str | None = None) -> None:
    with pytest.raises(Refused, match=message) as why:
        await call
    assert (why.value.status, why.value.code) == (status, code)


async def finish(api: Api, task_id: str, how: str = "completed", queue_id: str = "prov/w") -> None:
    claim = await api.claim(queue_id)
    assert claim["status"]["taskId"] == task_id
    if how.startswith("exception:"):
        await api("reportException", task_id, claim["runId"], body={"reason": how.partition(":")[2]})
    else:
        await api("reportCompleted" if how == "completed" else "reportFailed", task_id, claim["runId"])


def kinds(messages: list[Message], task_id: str) -> list[str]:
    """Return the exchanges, without their prefix, of the messages about a task."""
    return [m.exchange.rpartition("/")[2] for m in messages if m.payload.get("status", {}).get("taskId") == task_id]


@contextlib.asynccontextmanager
async def served(tc: Taskcluster) -> AsyncIterator[str]:
    """Run a real server on a free port; yield its root URL."""
    async with serve_app(create_app(tc)) as root:
        try:
            yield root
        finally:
            tc.faults.remove()


@contextlib.asynccontextmanager
async def serve_app(app: Any) -> AsyncIterator[str]:
    """Serve an app on a free port; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
