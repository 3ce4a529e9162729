"""Schemathesis: requests drawn from the OpenAPI document, and every answer held against it, by callers of every kind.

FUZZ_EXAMPLES is how many requests are drawn for each operation besides those that cover its bounds (default 10).
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.python.asgi import ASGIClient, get_client, shutdown_lifespans
from schemathesis.specs.openapi import checks
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.settings import Settings
from tests.service.asgi import (
    ADMIN,
    NO_CERTIFICATES,
    READER,
    RETRIER,
    WRITER,
    PushlogEnds,
    push_event,
    settings_for,
    signature,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))


class Late:
    """The app, which is made once there is a database; its document is needed before."""

    app: FastAPI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


APP = Late()


def _document() -> dict[str, Any]:
    """Return the document of a service that takes no Taskcluster credentials: to it a bewit is an unknown parameter."""
    document = create_app(Settings.model_construct()).openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"] = [each for each in operation["security"] if "bewit" not in each]
    del document["components"]["securitySchemes"]["bewit"]
    return document


SCHEMA = schemathesis.openapi.from_dict(_document())
SCHEMA.app = APP
SCHEMA.config.checks.negative_data_rejection.expected_statuses.append("413")  # too many members, whatever they are

TELLING = {
    # where a request can be of the right shape and still be refused with a 422
    "listRepositories": "`after` is opaque",
    "listPushes": "`after` is opaque",
    "listActions": "`after` is opaque",
    "listReports": "`after` is opaque",
    "listDeadLetters": "`after` is opaque",
    "listAudit": "`after` is opaque",
    "addRepository": "the host must be among allowed_hosts, environments must be configured",
    "planRepository": "likewise",
    "changeRepository": "environments must be configured",
    "replayDeadLetter": "what was not understood may still not be",
    "createAction": "an Idempotency-Key belongs to one action, which is about a task or a push as its kind says",
    "planAction": "it is about a task or a push as its kind says",
}


class Signed(requests.auth.AuthBase):
    """Signs the bytes that are sent, as a listener does."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body or b""
        assert isinstance(body, str | bytes)
        raw = body.encode() if isinstance(body, str) else body
        try:
            signed = signature(raw, path=str(urlsplit(request.url or "").path).removeprefix("/api/v1"))
        except UnicodeDecodeError:  # which nobody signs
            return request
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature", "webhook-route-signature"):
            request.headers[name] = signed[name]
        return request


class NoTasks:
    """A Taskcluster without any task."""

    def __init__(self, _: Any) -> None: ...

    async def task(self, _: str) -> None: ...

    async def status(self, _: str) -> None: ...

    async def close(self) -> None: ...


class NoHg(PushlogEnds):
    def __init__(self, _: Any) -> None:
        super().__init__()

    async def close(self) -> None: ...


PLANS = {"planRepository", "planAction"}
"""Their paths are also those of a repository or action called `plan`, with the methods that these have."""


@dataclass
class Fuzzed:
    client: ASGIClient

    def call(self, case: Case[Any], token: str | None) -> None:
        """Make the request, and hold the answer against the document."""
        operation = case.operation.definition.raw["operationId"]
        excluded: list[Any] = []
        how: dict[str, Any] = {}
        if case.operation.tags == ["internal"]:
            how["auth"] = Signed()
            excluded.append(checks.missing_required_header)  # which is signed all the same, just here
            excluded.append(checks.negative_data_rejection)  # each event has a verdict of its own
            if operation == "leasePolls" and isinstance(case.body, dict):
                wait = case.body.get("wait", 5)
                if isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait <= 5:
                    case.body["wait"] = 0  # nothing is due, and the test has no time
        elif token is not None:
            how["headers"] = {"Authorization": f"Bearer {token}"}
        if operation in TELLING:
            excluded.append(checks.positive_data_acceptance)
        if operation in PLANS:
            excluded += [checks.unsupported_method, checks.allow_header_conformance]
        case.call_and_validate(session=self.client, excluded_checks=excluded, **how)


@pytest.fixture(scope="module")
def fuzzed(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    path = tmp_path_factory.mktemp("fuzz") / "x.sqlite"
    shutil.copy(sqlite_template, path)
    APP.app = create_app(settings_for(f"sqlite+aiosqlite:///{path}", writes_per_minute=0), work=False)
    with (
        mock.patch("ssl.create_default_context", return_value=NO_CERTIFICATES),
        mock.patch("service.services.HttpHg", NoHg),
        mock.patch("service.services.TaskclusterQueue", NoTasks),
        get_client(APP) as client,  # type: ignore[arg-type]  # its scope is a dict, as ASGI's are
    ):
        yield Fuzzed(client)
        shutdown_lifespans()


@pytest.fixture
def seeded(fuzzed: Fuzzed) -> Fuzzed:
    """Store the objects that the examples name, and one of each kind that can be acted upon."""
    admin = {"Authorization": f"Bearer {ADMIN}"}
    for alias in ("mozilla-central", "mc"):
        repository = {"alias": alias, "url": f"https://hg.mozilla.org/{alias}", "level": "1", "last_push_id": 43209}
        fuzzed.client.post("/api/v1/repositories", json=repository, headers=admin)
        event = push_event(43210, alias=alias)
        for each in (event, {**event, "push": "nonsense"}):
            answer = fuzzed.client.post("/api/v1/events/pushes", json={"events": [each]}, auth=Signed())
            assert answer.status_code == 202, answer.text
    return fuzzed


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@SCHEMA.parametrize()
@examples(EXAMPLES)
def test_with_every_scope(case: Case[Any], seeded: Fuzzed) -> None:
    seeded.call(case, ADMIN)


OTHERS = SCHEMA.exclude(tag=["internal", "health"])
OTHERS.config.phases.coverage.enabled = False  # of the document's bounds, who may do everything has seen enough


@pytest.mark.parametrize("token", [WRITER, READER, RETRIER, None], ids=["writer", "reader", "retrier", "nobody"])
@OTHERS.parametrize()
@examples(max(EXAMPLES // 5, 1))
def test_with_some_scopes_or_none(case: Case[Any], seeded: Fuzzed, token: str | None) -> None:
    seeded.call(case, token)
