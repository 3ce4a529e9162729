"""Everything that a step of the flow works with: one `Services` for each process, opened in the app's lifespan."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlmodel import select

from service import metrics
from service.clients.artifacts import Artifacts, TaskclusterArtifacts
from service.clients.auth import Logins, TaskclusterLogins
from service.clients.hg import Hg, HttpHg
from service.clients.hooks import Hooks, TaskclusterHooks
from service.clients.http import Http
from service.clients.pulse import Publisher, exchanges
from service.clients.sign_in import SignIns, TaskclusterSignIns
from service.clients.taskcluster import Queue, TaskclusterQueue
from service.clients.treeherder import RestTreeherder, Treeherder
from service.engine.fair import AdaptiveSlots, FairSlots
from service.engine.render import Renderer
from service.engine.replica import Replica
from service.engine.sized_cache import SizedCache
from service.settings import Settings
from service.store.database import Database, Session, check_clock, insert_new
from service.store.models import Secret

T = TypeVar("T")


@dataclass
class Services:
    """The database, the clients, and the slots that the work of this process shares."""

    settings: Settings
    database: Database
    hg: Hg
    queue: Queue
    treeherders: Mapping[str, Treeherder]  # by route prefix
    publisher: Publisher | None
    renderer: Renderer
    secret: bytes  # the key behind derived task ids
    hooks: Hooks
    artifacts: Artifacts
    logins: Logins | None = None  # None: Taskcluster credentials are not taken
    sign_ins: SignIns | None = None  # None: people do not sign in with Taskcluster
    replica: Replica = field(default_factory=Replica)
    connections: AdaptiveSlots = field(default_factory=lambda: AdaptiveSlots(10))  # for createTask and the like
    large_plans: FairSlots = field(default_factory=lambda: FairSlots(1))  # one is in memory at a time
    computing: FairSlots = field(default_factory=lambda: FairSlots(2))  # threads that take plans apart
    previews: FairSlots = field(default_factory=lambda: FairSlots(2))  # likewise: one of each caller
    offers: SizedCache = field(default_factory=lambda: SizedCache(64 * 1024 * 1024))  # what decision tasks offer

    async def compute(self, share: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that takes long in a thread, when it is the share's turn; return its result.

        The event loop waits up to `SWITCH` seconds for each computing thread whenever it wants to continue.
        """
        async with self.computing.use(share):
            return await asyncio.to_thread(function, *arguments)


SWITCH = 0.001
"""Seconds after which a computing thread makes room for others; Python's own 5 ms add up for an event loop."""


@asynccontextmanager
async def open_services(settings: Settings, database: Database, *, alone: bool = False) -> AsyncIterator[Services]:
    """Open the services, and close them in reverse order. `alone`: no other process works on this SQLite database."""
    async with AsyncExitStack() as stack:
        sys.setswitchinterval(SWITCH)
        async with database.reading() as session:
            await check_clock(session)
        hg = HttpHg(settings)
        stack.push_async_callback(hg.close)
        queue = TaskclusterQueue(settings.taskcluster)
        stack.push_async_callback(queue.close)
        hooks = TaskclusterHooks(settings.taskcluster)
        stack.push_async_callback(hooks.close)
        artifacts = TaskclusterArtifacts(settings.taskcluster)
        stack.push_async_callback(artifacts.close)
        logins = None
        if settings.taskcluster_logins:
            logins = TaskclusterLogins(settings.taskcluster)
            stack.push_async_callback(logins.close)
        sign_ins = None
        if settings.web_sign_in.client_id is not None:
            sign_ins = TaskclusterSignIns(settings)
            stack.push_async_callback(sign_ins.close)
        http = await stack.enter_async_context(Http("treeherder"))
        publisher = None
        if settings.pulse.url is not None:
            from service.clients.publisher import PulsePublisher  # noqa: PLC0415 - pika takes 2 MB

            publisher = PulsePublisher(settings.pulse, exchanges(settings))
            stack.push_async_callback(publisher.close)
        renderer = Renderer(settings.render)
        stack.push_async_callback(renderer.close)
        secret = await load_secret(database, "task-ids")
        replica = Replica(database, settings.replica, alone=alone)
        stack.push_async_callback(replica.stop)
        connections = AdaptiveSlots(settings.taskcluster.connections, metrics.taskcluster_connections)
        yield Services(
            settings,
            database,
            hg,
            queue,
            treeherders_of(settings, http),
            publisher,
            renderer,
            secret,
            hooks,
            artifacts,
            logins,
            sign_ins,
            replica,
            connections,
        )


def treeherders_of(settings: Settings, http: Http) -> dict[str, Treeherder]:
    """Return a client of each Treeherder, by route prefix. One that reads Pulse needs no credentials to be asked."""
    return {prefix: RestTreeherder(environment, http) for prefix, environment in settings.environments.items()}


async def load_secret(database: Database, name: str) -> bytes:
    """Return the secret of this name of this deployment, which the first replica makes."""
    async with database.reading() as session:
        secret = await session.get(Secret, name)
    if secret is None:
        async with database.writing() as session:
            await make_secret(session, name)
        async with database.reading() as session:
            secret = (await session.exec(select(Secret).where(Secret.name == name))).one()
    return secret.value


async def make_secret(session: Session, name: str) -> None:
    """Store a new random secret of this name, unless there is one."""
    await insert_new(session, Secret, name=name, value=secrets.token_bytes(32))
