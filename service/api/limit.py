"""Limits of each caller: the size of a body, the time it may take to arrive, and the rate of writes."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import auth
from service.contract.events import MAX_BYTES
from service.errors import Problem, problem


@dataclass(frozen=True)
class Limit:
    """The limits of a request's body."""

    size: int  # bytes
    members: int  # of all its objects and lists, counted by { [ and , wherever they stand: a text may have them, too
    drain: bool = False  # read a body with too many members to its end: the caller is known, and must see the 413


MAX_BODY = 256 * 1024
"""Bytes of a request by people and programs."""

_PLAIN = Limit(MAX_BODY, 1_000)
_ACTION = Limit(MAX_BODY, 10_000)
"""An action, whose input can name thousands of tasks."""

_RENDER = Limit(4 * 1024 * 1024, 400_000)
"""A whole `.taskcluster.yml`, as one text, in which what is counted as members may stand too."""

_SIGNED = {
    # a push can have 200 changesets of 1,000 files, and a message's body is a text with some 200 commas
    "/api/v1/events/": Limit(MAX_BYTES, 400_000, drain=True),
    "/api/v1/polls/": Limit(4 * 1024 * 1024, 50_000, drain=True),
    "/api/v1/listeners/": Limit(64 * 1024, 1_000, drain=True),
}

_STRUCTURE = b"{[,"

_CLOSE = {"Connection": "close"}
"""After an answer to half a request: what is still to come is not read."""


def limit_for(path: str) -> Limit:
    """Return what a request to this path may have."""
    if path.startswith("/api/v1/repositories/") and path.endswith("/render"):
        return _RENDER
    if path in {"/api/v1/actions", "/api/v1/actions/plan"}:
        return _ACTION
    return next((limit for prefix, limit in _SIGNED.items() if path.startswith(prefix)), _PLAIN)


class BodyLimit:
    """Middleware that refuses a body that is too large (413), before reading it if its length is announced.

    So it does with one that has too many members, before it is parsed: to parse ten million `{}` takes seconds. A body
    that takes longer than `seconds` to come is a 408. FastAPI's own limit answers in plain text.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = limit_for(scope["path"])
        too_large = f"a request here may have {limit.size:,} bytes: send less at a time"
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > limit.size):
                await problem(413, "Content Too Large", too_large, _CLOSE)(scope, receive, send)
                return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        size = members = 0
        ended = False

        async def next_piece() -> Message:
            nonlocal size, members, ended
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not come within {self._seconds:g} s (request_timeout): send it faster, or less"
                raise HTTPException(408, detail, _CLOSE) from None
            body = message.get("body", b"")
            size += len(body)
            members += len(body) - len(body.translate(None, _STRUCTURE))
            if size > limit.size:
                raise HTTPException(413, too_large, _CLOSE)
            ended = not message.get("more_body", False)
            return message

        async def limited() -> Message:
            if ended:  # what comes now is only that the caller has gone
                return await receive()
            message = await next_piece()
            if members > limit.members:
                while limit.drain and not ended:
                    await next_piece()
                detail = f"a request here may have {limit.members:,} members of objects and lists: send less at a time"
                raise HTTPException(413, detail, None if ended else _CLOSE)
            return message

        await self._app(scope, limited, send)


class Local:
    """Middleware for a service without credentials: refuse what a foreign web page makes a browser send (403)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                auth.check_local(scope["method"], Headers(scope=scope))
            except Problem as refused:
                await problem(refused.status, refused.title, refused.detail, _CLOSE)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Writes:
    """The writes that each caller has left: a bucket that holds and refills `per_minute` (0: unlimited)."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._full, self._clock = float(per_minute), clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was

    def spend(self, caller: str) -> None:
        """Take one. Raises a 429 that says when there will be one again."""
        if not self._full:
            return
        at = self._clock()
        left, since = self._buckets.get(caller, (self._full, at))
        left = min(self._full, left + (at - since) * self._full / 60)
        if left < 1 - 1e-6:  # who waited as long as it was told must not fail by a rounding
            wait = math.ceil((1 - left) * 60 / self._full)
            detail = f"more than {self._full:g} writes a minute (writes_per_minute): wait {wait} s"
            raise Problem(429, "Too many writes", detail, {"Retry-After": str(wait)})
        if len(self._buckets) > 10_000:  # whose bucket is full again is as good as new
            self._buckets = {name: b for name, b in self._buckets.items() if at - b[1] < 60}
        self._buckets[caller] = (left - 1, at)
