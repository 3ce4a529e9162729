"""Ids of requests in every line of the log, and those of the batches that listeners send; mozlog's request summary."""

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import ANYBODY, Caller
from service.contract import tracing

log = structlog.get_logger()

_ID = re.compile(rb"[A-Za-z0-9_.:=+/-]{1,100}")
"""Ids that are taken from outside: none could forge a line of a log."""

MAX_HEADER = 500
"""Characters of a header that are logged."""

QUIET = ("/__", "/metrics", "/api/v1/polls/", "/api/v1/listeners/")
"""Asked for all the time by machines: these are logged at DEBUG, and are in no trace."""


class Trace:
    """Middleware that gives each request an id, and logs a summary of it, as mozlog's `request.summary` has it.

    The id is the caller's `X-Request-Id`, or a new one. It stands in everything that is logged meanwhile, as `rid`,
    like a listener's `batch`, and in the answer's `X-Request-Id`.
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
        bound = {"rid": request_id}
        if trace := tracing.trace_id():
            bound["trace"] = trace
            tracing.hide_query()
        batch = headers.get(b"webhook-id", b"")
        if _ID.fullmatch(batch):
            bound["batch"] = batch.decode()
        state = scope.setdefault("state", {})  # the route adds the caller
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
                tell = log.debug if scope["path"].startswith(QUIET) else log.info
                tell(
                    "request.summary",
                    errno=0 if status < 400 else status,
                    code=status,
                    method=scope["method"],
                    path=scope["path"],
                    t=round((time.perf_counter() - began) * 1000),  # ms
                    **_describe_caller(headers, state.get("caller")),
                )


def _describe_caller(headers: Mapping[bytes, bytes], caller: Caller | None) -> dict[str, Any]:
    """Return the fields of a summary that tell who asks; what is not known is left out, except for the agent."""
    fields = {"agent": headers.get(b"user-agent", b"").decode("latin-1")[:MAX_HEADER]}
    language = re.match(r"[A-Za-z0-9-]{1,35}", headers.get(b"accept-language", b"").decode("latin-1"))
    if language:
        fields["lang"] = language[0]  # the one that stands first is the preferred one
    if caller is not None and caller is not ANYBODY:
        fields["uid"] = caller.name
    return fields
