"""The listeners' way in: raw bytes first, then the signature, then JSON, then each event by itself."""

from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from events import MAX_EVENTS
from service import auth
from service.door import NonsenseError, parse
from service.errors import Problem
from service.settings import Settings


async def signed_json(request: Request, settings: Settings) -> tuple[bytes, Any]:
    """The verified body of a request, and what it says. Raises a 401 or 400; `limit` a 413."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body did: send it again") from None
    auth.verify_signature(settings, request, raw)
    try:
        return raw, parse(raw)
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
