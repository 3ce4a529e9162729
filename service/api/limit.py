"""What one caller can cost us: how large a body, how long it may take to come, and how often one may write."""

import asyncio
import math
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from events import MAX_BYTES
from service.errors import Problem, problem

MAX_BODY = 1024 * 1024
"""Bytes of a request, but for what a listener signs: that may have `events.MAX_BYTES`."""

_SIGNED = tuple(f"/api/v1/{noun}/" for noun in ("events", "polls", "listeners"))

_CLOSE = {"Connection": "close"}
"""After an answer to half a request: what is still to come is not read."""


class BodyLimit:
    """Middleware: refuses a body that says that it is too large before reading it, and one that turns out to be (413).

    A body that takes longer than `seconds` to come is a 408. FastAPI's own limit answers in plain text.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = MAX_BYTES if scope["path"].startswith(_SIGNED) else MAX_BODY
        too_large = f"a request here may have {limit:,} bytes: send less at a time"
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > limit):
                await problem(413, "Content Too Large", too_large, _CLOSE)(scope, receive, send)
                return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        size = 0
        ended = False

        async def limited() -> Message:
            nonlocal size, ended
            if ended:  # what comes now is only that the caller has gone
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not come within {self._seconds:g} s (request_timeout): send it faster, or less"
                raise HTTPException(408, detail, _CLOSE) from None
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, too_large, _CLOSE)
            ended = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)


class Writes:
    """How many writes each caller has left: a bucket that holds and refills `per_minute` (0: any number)."""

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
