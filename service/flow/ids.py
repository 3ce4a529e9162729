"""Task ids are derived, not drawn: a repeated `createTask` is the same request, and nobody outside can guess the id
and take it first."""

import hashlib
import hmac
import secrets
from datetime import UTC

from service.database import Session, insert_new
from service.models import Action, Push, Repository, Secret
from service.render_child import slugid

__all__ = ["action_key", "make_secret", "push_key", "slugid"]


def push_key(secret: bytes, repository: Repository, push: Push, attempt: int) -> bytes:
    """The key for the labels of one push's plan. The process that renders it gets this, never the secret."""
    what = "\0".join(("push", repository.url, str(push.generation), str(push.push_id), str(attempt)))
    return hmac.digest(secret, what.encode(), hashlib.sha256)


def action_key(secret: bytes, action: Action, attempt: int) -> bytes:
    """The key for the copies that one action makes; the label of a copy is the id of its original."""
    # with the time, because the number of an action may come again, in a database that was restored
    what = "\0".join(("action", str(action.id), action.received_at.astimezone(UTC).isoformat(), str(attempt)))
    return hmac.digest(secret, what.encode(), hashlib.sha256)


async def make_secret(session: Session, name: str) -> None:
    """Make the key `name` unless it is there."""
    await insert_new(session, Secret, name=name, value=secrets.token_bytes(32))
