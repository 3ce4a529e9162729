"""What people may do who signed in with Taskcluster: asked again every few minutes, so that who is disabled is out."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from service.clients.sign_in import Client, SignIns
from service.clock import now
from service.errors import Problem, Unavailable

log = structlog.get_logger()

LOOK_AGAIN = 180.0
"""Seconds after which a client is looked up again."""

MOST_STALE = 600.0
"""Seconds for which an answer holds while Taskcluster gives no other."""

PAUSE = 15.0
"""Seconds between two look-ups of one client while Taskcluster does not answer."""

MOST_CLIENTS = 10_000


@dataclass
class _Known:
    client: Client | None
    at: float
    again_at: float


class Clients:
    """The clients of Taskcluster that people have signed in with."""

    def __init__(self, sign_ins: SignIns, clock: Callable[[], float] = time.monotonic) -> None:
        self._sign_ins, self._clock = sign_ins, clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[Client | None]] = {}

    async def scopes(self, client_id: str) -> tuple[str, ...] | None:
        """Return the scopes of a client; None: it is disabled, has expired or is gone. Raises a 503."""
        known = self._known.get(client_id)
        if known is None or self._clock() >= known.again_at:
            try:
                client = await self.look_up(client_id)
            except Unavailable as error:
                if known is None or self._clock() >= known.at + MOST_STALE:
                    detail = f"it is not known what {client_id} may do: {error}. Try again, or sign in with a token."
                    raise Problem(503, "Taskcluster unavailable", detail, {"Retry-After": "5"}) from None
                log.warning("client-not-looked-up", client=client_id, error=str(error))
                known.again_at, client = self._clock() + PAUSE, known.client
        else:
            client = known.client
        return None if client is None or client.expires <= now() else client.scopes

    async def look_up(self, client_id: str) -> Client | None:
        """Ask Taskcluster for a client, once for all who ask meanwhile. Raises Unavailable."""
        task = self._asking.get(client_id)
        if task is None:
            task = self._asking[client_id] = asyncio.create_task(self._ask(client_id))
            task.add_done_callback(lambda _: self._asking.pop(client_id, None))
        return await asyncio.shield(task)

    async def _ask(self, client_id: str) -> Client | None:
        client = await self._sign_ins.client(client_id)
        while len(self._known) >= MOST_CLIENTS and client_id not in self._known:
            del self._known[next(iter(self._known))]
        at = self._clock()
        self._known[client_id] = _Known(client, at, at + LOOK_AGAIN)
        return client
