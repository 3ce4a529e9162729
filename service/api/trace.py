"""Ids of requests in every line of the log, and those of the batches that listeners send."""

import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

_ID = re.compile(rb"[A-Za-z0-9_.:=+/-]{1,100}")
"""Ids that are taken from outside: none could forge a line of a log."""

_QUIET = ("/__", "/metrics", "/api/v1/polls/", "/api/v1/listeners/")
"""Asked for all the time by machines: these are logged at DEBUG."""


class Trace:
    """Middleware that gives each request an id, and logs a summary of it.

    The id is the caller's `X-Request-Id`, or a new one. It stands in everything that is logged meanwhile, as a
    listener's `batch` does, and in the answer's `X-Request-Id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        bound = {"request_id": request_id}
        batch = headers.get(b"webhook-id", b"")
        if _ID.fullmatch(batch):
            bound["batch"] = batch.decode()
        status = 500
        began = time.perf_counter()

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(**bound):
            try:
                await self._app(scope, receive, answering)
            finally:
                tell = log.debug if scope["path"].startswith(_QUIET) else log.info
                tell(
                    "request.summary",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round((time.perf_counter() - began) * 1000, 1),
                )
