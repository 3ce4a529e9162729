"""Harness of the API: the app with its real lifespan over ASGI instead of a socket, and bodies to send to it."""

import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import httpx
from fastapi import FastAPI
from sqlalchemy import event
from sqlmodel import select
from standardwebhooks import Webhook

from service.api.manual import source_path
from service.app import create_app
from service.clock import now
from service.errors import problem_type
from service.services import Services
from service.settings import Settings
from service.store.database import Database
from service.store.models import DeadLetter, Push, PushStep, Repository, State

SECRETS = ["whsec_" + "bmV3" * 10, "whsec_" + "b2xk" * 10]
ADMIN, WRITER, READER, RETRIER = (f"{name}-0123456789abcdef" for name in ("admin", "writer", "reader", "retrier"))
TREEHERDER_SECRET = "treeherder-hawk-secret"
EXPLAINED = set(re.findall(r"^## (.*)$", source_path("problems").read_text(), re.M))

NEVER_SHOWN = [*SECRETS, ADMIN, WRITER, READER, RETRIER, TREEHERDER_SECRET]

LISTENER = "00000000-0000-4000-8000-000000000000"

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""To read all CA certificates takes longer than most tests, and none here speaks TLS."""


def settings_for(database_url: str, **more: Any) -> Settings:
    """Return settings with four tokens, two webhook secrets and two Treeherders; `more` override these."""
    values: dict[str, Any] = {
        "database_url": database_url,
        "tokens": [
            {"name": "admin", "value": ADMIN, "scopes": ["*"]},
            {"name": "writer", "value": WRITER, "scopes": ["tc-treeherder:repositories:write"]},
            {"name": "reader", "value": READER},
            {"name": "retrier", "value": RETRIER, "scopes": ["tc-treeherder:action:retry:mc"]},
        ],
        "webhook_secrets": SECRETS,
        "health_cache": 0,
        "write_check": 0,
        "allowed_hosts": ["hg.mozilla.org", "127.0.0.1:9", "localhost:8000", "[::1]:8000", "hg.example.com"],
        "environments": {
            prefix: {"url": "http://127.0.0.1:9", "client_id": "tc", "secret": TREEHERDER_SECRET}
            for prefix in ("tc-treeherder", "tc-treeherder-stage")
        },
        **more,
    }
    return Settings(**values)


@dataclass
class PushlogEnds:
    """A Mercurial that only has the ends of pushlogs; an exception in place of one is raised."""

    end: int | Exception = 41
    asked: list[str] = field(default_factory=list)

    async def last_push_id(self, url: str) -> int:
        self.asked.append(url)
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        raise AssertionError(f"the API asked for {url}/raw-file/{node}/{path}; only the worker does")


@dataclass
class Api:
    """A running app and a client of it. Calls use the token of `admin` unless another is given; None sends no token."""

    app: FastAPI
    client: httpx.AsyncClient
    settings: Settings
    hg: PushlogEnds

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def database(self) -> Database:
        return self.services.database

    async def call(self, method: str, path: str, *, token: str | None = ADMIN, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= more.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.call("GET", f"/api/v1{path}", **more)

    async def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return await self.call("POST", f"/api/v1{path}", json=json, **more)

    async def patch(self, path: str, json: Any, **more: Any) -> httpx.Response:
        return await self.call("PATCH", f"/api/v1{path}", json=json, **more)

    async def delete(self, path: str, **more: Any) -> httpx.Response:
        return await self.call("DELETE", f"/api/v1{path}", **more)

    async def signed(self, path: str, body: Any, secret: str = SECRETS[0]) -> httpx.Response:
        """POST `body`, bytes as they are, as a listener does."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(f"/api/v1{path}", content=raw, headers=signature(raw, secret, path=path))

    async def push(self, *events: Any) -> list[dict[str, Any]]:
        """Send events that the service must take, and return the verdicts."""
        answer = await self.signed("/events/pushes", {"events": events})
        assert answer.status_code == 202, answer.text
        verdicts: list[dict[str, Any]] = answer.json()["verdicts"]
        assert len(verdicts) == len(events)
        return verdicts

    async def lease(self, listener: str = LISTENER, **more: Any) -> dict[str, Any]:
        """Renew a listener's shift; what it tells is `told`."""
        answer = await self.signed("/polls/lease", {"listener": listener, **more})
        assert answer.status_code == 200, answer.text
        shift: dict[str, Any] = answer.json()
        return shift

    async def add(self, alias: str = "mc", **more: Any) -> dict[str, Any]:
        """Monitor hg.mozilla.org/<alias> from push 100 on, unless `more` says otherwise."""
        url = f"https://hg.mozilla.org/{alias}"
        body = {"alias": alias, "url": url, "level": "1", "last_push_id": 100, **more}
        answer = await self.post("/repositories", body)
        assert answer.status_code == 201, answer.text
        repository: dict[str, Any] = answer.json()
        return repository

    async def repository(self, alias: str = "mc") -> Repository:
        """Return the row of the live repository."""
        async with self.database.reading() as session:
            rows = await session.exec(
                select(Repository).where(Repository.alias == alias, Repository.deleted_at == None)  # noqa: E711 - SQL
            )
            return rows.one()

    async def pushes(self) -> list[Push]:
        async with self.database.reading() as session:
            return list(await session.exec(select(Push).order_by(Push.id)))  # type: ignore[arg-type]  # a column

    async def letters(self) -> list[DeadLetter]:
        async with self.database.reading() as session:
            return list(await session.exec(select(DeadLetter).order_by(DeadLetter.id)))  # type: ignore[arg-type]  # a column

    async def steps(self) -> list[PushStep]:
        async with self.database.reading() as session:
            return list(await session.exec(select(PushStep).order_by(PushStep.id)))  # type: ignore[arg-type]  # a column

    async def end_steps(self, state: State, error: str | None = None, *, bury: bool = False, **more: Any) -> None:
        """End all steps so, as the worker would."""
        async with self.database.writing() as session:
            for step in await session.exec(select(PushStep)):
                step.state, step.error, step.due_at, step.done_at, step.attempts = state, error, None, now(), 7
                for name, value in more.items():
                    setattr(step, name, value)
                if bury:
                    session.add(step.dead_letter(error or "given up"))

    async def change_repository(self, alias: str = "mc", **values: Any) -> None:
        async with self.database.writing() as session:
            repository = (await session.exec(select(Repository).where(Repository.alias == alias))).one()
            if "due_at" in values:
                values = {"turn": values["due_at"], **values}  # it is never later
            for name, value in values.items():
                setattr(repository, name, value)

    @contextmanager
    def commits_fail(self) -> Iterator[None]:
        """Meanwhile every commit fails, as when the database goes away at that moment."""

        def fail(_: Any) -> None:
            raise ConnectionError("the database went away")

        for engine in self.database.engines:
            event.listen(engine, "commit", fail)
        try:
            yield
        finally:
            for engine in self.database.engines:
                event.remove(engine, "commit", fail)


@asynccontextmanager
async def running(settings: Settings, *, work: bool = False) -> AsyncIterator[Api]:
    """Start the app as a server does, and stop it at the end. The worker rests unless `work`."""
    app = create_app(settings, work=work)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with AsyncExitStack() as stack:
        with mock.patch("ssl.create_default_context", return_value=NO_CERTIFICATES):
            await stack.enter_async_context(app.router.lifespan_context(app))
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://service"))
        app.state.services.hg, real = PushlogEnds(), app.state.services.hg
        yield Api(app, client, settings, app.state.services.hg)
        app.state.services.hg = real


def signature(
    raw: bytes, secret: str = SECRETS[0], at: datetime | None = None, path: str = "/events/pushes"
) -> dict[str, str]:
    """Return the headers with which a listener signs these bytes for that path."""
    moment = at or datetime.now(UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", moment, raw.decode()),
        "webhook-route-signature": Webhook(secret).sign("msg_1", moment, f"POST /api/v1{path}"),
        "content-type": "application/json",
    }


def node(name: object) -> str:
    """Return a changeset id."""
    return hashlib.sha1(str(name).encode(), usedforsecurity=False).hexdigest()


def changeset(name: object, **more: Any) -> dict[str, Any]:
    words = {"author": "A U Thor <author@example.com>", "desc": f"Bug 1 - {name}", "parents": [], "files": ["a.txt"]}
    return {"node": node(name), "branch": "default", **words, "files_count": 1, **more}


ROWS = {"mc": 1, "other": 2, "nowhere": 999}
"""Row ids of the repositories that most tests add, in this order; one of another name is alone."""


def push_event(
    push_id: int, *, since: int | None = None, alias: str = "mc", repository_id: int = 0, shift: int = 0, **push: Any
) -> dict[str, Any]:
    """Return a push as a listener sends it, listed from the push before it unless `since` is given."""
    entry = {
        "id": push_id,
        "user": "pusher@example.com",
        "date": int(now().timestamp()),
        "changesets": [changeset(push_id)],
        **push,
    }
    cursor = push_id - 1 if since is None else since
    row = repository_id or ROWS.get(alias, 1)
    head = {"repository": alias, "repository_id": row, "shift": shift, "generation": 0}
    return {**head, "since": cursor, "lastpushid": push_id, "push": entry}


def is_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """Assert that this is a problem+json of that status whose detail has all these words, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["type"] == problem_type(body["title"])
    assert body["title"] in EXPLAINED or status == 418, "docs/problems.md has no section for it"
    for word in words:
        assert word in body["detail"], body["detail"]
    return body
