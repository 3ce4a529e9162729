"""Harness of the flow: the services in this process, with the sandbox's stand-ins behind real sockets."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import uvicorn
from sqlalchemy import event
from sqlmodel import col, select
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from sandbox import taskcluster, treeherder
from sandbox.hg import MemoryPushlog
from sandbox.hg.app import create_app as create_hg
from sandbox.hg.faults import Faults
from sandbox.treeherder.store import Repository as Project
from sandbox.treeherder.store import Store
from service.clock import now
from service.contract.events import PushEvent, Verdict
from service.engine.leases import Lease, claim
from service.flow.pushes.push import store
from service.services import Services, open_services
from service.settings import Settings
from service.store.database import Database
from service.store.models import DeadLetter, PlannedTask, Push, PushStep, Repository, StepKind

ROOT = taskcluster.Client("tc-treeherder", "service-secret", ("*",))
TREEHERDER_ID, TREEHERDER_SECRET = "tc-treeherder", "hawk-secret"
ENVIRONMENT = "tc-treeherder"
SCOPES = [
    "queue:create-task:project:*",
    "queue:scheduler-id:*",
    "queue:create-task:highest:*",
    "queue:route:tc-treeherder.*",
]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """`app` on a free port of 127.0.0.1, on this event loop; its URL.

    Without uvicorn's main loop, which takes a fifth of a second to end.
    """
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, date_header=False)
    config.load()
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        # each of uvicorn's protocol classes takes these
        connection: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]  # typed as a plain Protocol
            config=config, server_state=state, app_state={}
        )
        return connection

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        for task in state.tasks:
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await server.wait_closed()


@dataclass
class FlowHarness:
    """Real `Services`, and the stand-ins behind them.

    `tc`, `hg` and `th` are the stand-ins themselves, for a test to look into and to break.
    """

    services: Services
    tc: taskcluster.Taskcluster
    hg: MemoryPushlog
    hg_faults: Faults
    th: treeherder.State
    hg_url: str

    @property
    def settings(self) -> Settings:
        return self.services.settings

    @property
    def database(self) -> Database:
        return self.services.database

    async def add_repository(self, alias: str = "mc", **fields: Any) -> Repository:
        """Monitor the stand-in's repository of that name; its pushlog begins after push 0."""
        if alias not in self.hg.repositories():
            self.hg.create(alias)
        return await add_repository(self.database, alias, f"{self.hg_url}/{alias}", **fields)

    async def store(self, *events: PushEvent) -> list[Verdict]:
        async with self.database.writing() as session:
            verdicts, _ = await store(session, self.settings, list(events))
            return verdicts

    async def lease(self, kind: StepKind) -> Lease[PushStep]:
        """Claim the first due step of that kind, as a worker does."""
        async with self.database.writing() as session:
            lanes = await session.exec(
                select(PushStep.lane).where(PushStep.kind == kind, col(PushStep.due_at) <= now()).limit(1)
            )
            (item,) = await claim(session, PushStep, lanes.one(), 1, self.settings.work.lease)
        return Lease(self.database, self.settings.work, item)

    async def step(self, kind: StepKind) -> PushStep:
        async with self.database.reading() as session:
            return (await session.exec(select(PushStep).where(PushStep.kind == kind))).one()

    async def planned(self) -> list[PlannedTask]:
        async with self.database.reading() as session:
            return list(await session.exec(select(PlannedTask).order_by(col(PlannedTask.position))))

    async def letters(self) -> list[DeadLetter]:
        async with self.database.reading() as session:
            return list(await session.exec(select(DeadLetter).order_by(col(DeadLetter.id))))

    async def pushes(self) -> list[Push]:
        async with self.database.reading() as session:
            return list(await session.exec(select(Push).order_by(col(Push.id))))


@asynccontextmanager
async def open_harness(database_url: str, **settings: Any) -> AsyncIterator[FlowHarness]:
    """Open a harness; `settings` override those that are set here."""
    tc = taskcluster.Taskcluster([ROOT], claim_wait=0)
    hg = MemoryPushlog()
    hg_app = create_hg(hg)
    th = treeherder.State(Store([Project("mc")]), {TREEHERDER_ID: TREEHERDER_SECRET})
    async with (
        serving(taskcluster.create_app(tc)) as tc_url,
        serving(hg_app) as hg_url,
        serving(treeherder.create_app(th)) as th_url,
    ):
        values: dict[str, Any] = {
            "database_url": database_url,
            "allowed_hosts": [hg_url.removeprefix("http://")],
            "taskcluster": {
                "root_url": tc_url,
                "client_id": ROOT.client_id,
                "access_token": ROOT.access_token,
                "timeout": 5,
            },
            "environments": {ENVIRONMENT: {"url": th_url, "client_id": TREEHERDER_ID, "secret": TREEHERDER_SECRET}},
            **settings,
        }
        chosen = Settings(**values)
        database = Database(database_url)
        try:
            async with open_services(chosen, database) as services:
                yield FlowHarness(services, tc, hg, hg_app.state.faults, th, hg_url)
        finally:
            await database.close()


async def add_repository(database: Database, alias: str, url: str | None = None, **fields: Any) -> Repository:
    """Add a repository as the API does, and return its row."""
    url = url or f"https://hg.mozilla.org/{alias}"
    values: dict[str, Any] = {"level": "1", "scopes": SCOPES, "last_push_id": 0, "host": url.split("/")[2], **fields}
    repository = Repository(alias=alias, url=url, **values)
    async with database.writing() as session:
        session.add(repository)
    return repository


def node(name: object) -> str:
    """Return a changeset id."""
    return hashlib.sha1(str(name).encode(), usedforsecurity=False).hexdigest()


def push_event(
    push_id: int, *, alias: str = "mc", repository_id: int = 1, shift: int = 0, generation: int = 0, since: int = 0,
    **push: Any,
) -> PushEvent:  # fmt: skip
    """Return a push of one changeset as a listener sends it; `push` are other fields of the entry."""
    date = push.pop("date", now())
    entry = {
        "id": push_id,
        "user": "dev@example.com",
        "date": date.timestamp() if isinstance(date, datetime) else date,
        "changesets": [
            {
                "node": node(f"{alias} {push_id}"),
                "branch": "default",
                "author": "Dev <dev@example.com>",
                "desc": f"Bug {push_id} - a change",
                "parents": [node(f"{alias} {push_id - 1}")],
                "files": ["a.txt"],
            }
        ],
        **push,
    }
    return PushEvent.model_validate(
        {
            "repository": alias,
            "repository_id": repository_id,
            "shift": shift,
            "generation": generation,
            "since": since,
            "lastpushid": push_id,
            "push": entry,
        }
    )


@contextmanager
def sent_statements(database: Database) -> Iterator[list[str]]:
    """Note every statement that is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        for engine in database.engines:
            event.remove(engine, "before_cursor_execute", note)
