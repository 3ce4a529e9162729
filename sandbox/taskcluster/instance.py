"""Put the parts of the stand-in together, and run what runs beside the HTTP app."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping

from sandbox.taskcluster.artifacts import Artifacts
from sandbox.taskcluster.auth import Auth, Client, random_token
from sandbox.taskcluster.claims import QUEUE_CLIENT
from sandbox.taskcluster.clock import Clock
from sandbox.taskcluster.faults import Faults, Journal
from sandbox.taskcluster.hooks import Hooks
from sandbox.taskcluster.login import Login, RegisteredClient
from sandbox.taskcluster.pulse import Publisher
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.scopes import Roles
from sandbox.taskcluster.worker import Worker


class Taskcluster:
    """One Taskcluster: its state, its faults, and the tasks that run beside the HTTP app.

    In seconds: `claim_wait` is the time that claimWork waits for work, `tick` the interval at which deadlines are
    checked, `latency` the least time of each call. With a `worker`, tasks run to their end; with an `amqp_url`,
    messages are published to Pulse. `people` are the identities that may sign in, with their scopes, and `registered`
    the services for which they may. The role `anonymous` has the scopes that need no credentials.
    """

    def __init__(
        self,
        clients: Iterable[Client] = (),
        roles: Roles | None = None,
        *,
        latency: float = 0.0,
        claim_wait: float = 20.0,
        tick: float = 0.5,
        amqp_url: str | None = None,
        exchange_prefix: str = "",
        worker: bool = False,
        worker_capacity: int = 32,
        worker_seconds: float = 0.2,
        people: Mapping[str, Iterable[str]] | None = None,
        registered: Iterable[RegisteredClient] = (),
    ) -> None:
        self.clock = Clock()
        self.auth = Auth(self.clock, roles=roles or {})
        self.auth.add_client(QUEUE_CLIENT, random_token(), ["*"])
        for client in clients:
            self.auth.add_client(client.client_id, client.access_token, client.scopes)
        self.login = Login(self.auth, people, registered)
        self.queue = Queue(self.clock, self.auth)
        self.artifacts = Artifacts(self.queue)
        self.hooks = Hooks(self.queue)
        self.faults = Faults()
        self.journal = Journal()
        self.latency = latency
        self.claim_wait = claim_wait
        self.worker = (
            Worker(self.queue, self.artifacts, self.hooks, capacity=worker_capacity, seconds=worker_seconds)
            if worker
            else None
        )
        self.publisher = Publisher(amqp_url, exchange_prefix) if amqp_url else None
        if self.publisher is not None:
            self.queue.listeners.append(self.publisher.publish)
        self._tick = tick

    def clear(self) -> None:
        """Forget tasks, fires of hooks, calls and faults; the clock goes back to the real time."""
        self.queue.clear()
        self.hooks.clear()
        if self.worker is not None:
            self.worker.clear()
        self.faults.remove()
        self.journal.clear()
        self.clock.reset()

    def advance(self, seconds: float) -> None:
        """Move the clock, and do everything that is due by then."""
        self.clock.advance(seconds)
        self.queue.tick()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Apply deadlines, run the worker and publish messages while inside. The app's lifespan does this, too."""
        background = [asyncio.create_task(self._keep_time())]
        if self.publisher is not None:
            await asyncio.to_thread(self.publisher.start)
        if self.worker is not None:
            background.append(asyncio.create_task(self.worker.run()))
        try:
            yield
        finally:
            self.faults.remove()
            for task in background:
                task.cancel()
            outcomes = await asyncio.gather(*background, return_exceptions=True)
            if self.publisher is not None:
                await asyncio.to_thread(self.publisher.stop)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(self._tick)
            self.queue.tick()
