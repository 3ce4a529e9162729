"""The listeners' way in: raw bytes first, then the signature, then JSON, then each event by itself."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service import auth
from service.contract.events import MAX_EVENTS
from service.contract.validation import reason_of
from service.errors import Problem
from service.sanitize import InvalidJSONError, parse
from service.settings import Settings

LARGE = 128 * 1024
"""Bytes of a body that is verified and read in a thread."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


async def signed_json(request: Request, settings: Settings) -> tuple[bytes, Any]:
    """Return the verified body of a request, and what it says. Raises a 401 or 400; `limit` a 413."""
    return await signed_body(request, settings, lambda raw: (raw, parsed(raw)))


async def signed_body(request: Request, settings: Settings, read: Callable[[bytes], T]) -> T:
    """Return what `read` makes of the verified body of a request. Raises a 401 or 400; `limit` a 413."""

    def verified(raw: bytes) -> T:
        auth.verify_signature(settings, request, raw)
        return read(raw)

    try:
        raw = await request.body()
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body did: send it again") from None
    if len(raw) > LARGE:  # the event loop has others to serve meanwhile
        return await asyncio.to_thread(verified, raw)
    return verified(raw)


async def signed_model(request: Request, settings: Settings, model: type[M]) -> M:
    """Return what the verified body of a request says, as `model`. Raises a 401, 400 or 422."""
    _, body = await signed_json(request, settings)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Problem(422, "Invalid request", reason_of(error)) from None


def parsed(raw: bytes) -> Any:
    """Return the JSON of a signed body. Raises a 400."""
    try:
        return parse(raw)
    except InvalidJSONError as error:
        raise Problem(400, "Not JSON", f"the signed body is {error}") from None


def events_of(body: Any) -> list[Any]:
    """Return the `events` of a request. Raises a 422 or 413."""
    if not isinstance(body, dict) or not isinstance(body.get("events"), list):
        raise Problem(422, "Invalid request", 'the body must be {"events": [...]}')
    events: list[Any] = body["events"]
    if len(events) > MAX_EVENTS:
        raise Problem(413, "Too many events", f"{len(events)} events: send at most {MAX_EVENTS} at a time")
    return events
