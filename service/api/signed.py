"""The listeners' way in: raw bytes first, then the signature, then JSON, then each event by itself."""

import asyncio
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from events import MAX_EVENTS
from service import auth
from service.door import NonsenseError, parse
from service.errors import Problem
from service.settings import Settings

LARGE = 512 * 1024
"""Bytes of a body that is verified and parsed in a thread."""


async def signed_json(request: Request, settings: Settings) -> tuple[bytes, Any]:
    """The verified body of a request, and what it says. Raises a 401 or 400; `limit` a 413."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body did: send it again") from None
    if len(raw) > LARGE:  # the event loop has others to serve meanwhile
        return raw, await asyncio.to_thread(_verify_and_parse, request, settings, raw)
    return raw, _verify_and_parse(request, settings, raw)


def _verify_and_parse(request: Request, settings: Settings, raw: bytes) -> Any:
    auth.verify_signature(settings, request, raw)
    try:
        return parse(raw)
    except NonsenseError as error:
        raise Problem(400, "Not JSON", f"the signed body is {error}") from None


def events_of(body: Any) -> list[Any]:
    """The `events` of a request. Raises a 422 or 413."""
    if not isinstance(body, dict) or not isinstance(body.get("events"), list):
        raise Problem(422, "Invalid request", 'the body must be {"events": [...]}')
    events: list[Any] = body["events"]
    if len(events) > MAX_EVENTS:
        raise Problem(413, "Too many events", f"{len(events)} events: send at most {MAX_EVENTS} at a time")
    return events
