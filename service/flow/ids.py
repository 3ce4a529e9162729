"""Task ids are derived, not drawn: a repeated `createTask` is the same request, and nobody outside can guess the id
and take it first."""

import hashlib
import hmac
import secrets

from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from service.database import Session
from service.models import Push, Repository, Secret
from service.render_child import slugid

__all__ = ["make_secret", "push_key", "slugid"]


def push_key(secret: bytes, repository: Repository, push: Push, attempt: int) -> bytes:
    """The key for the labels of one push's plan. The process that renders it gets this, never the secret."""
    what = "\0".join(("push", repository.url, str(push.generation), str(push.push_id), str(attempt)))
    return hmac.digest(secret, what.encode(), hashlib.sha256)


async def make_secret(session: Session, name: str) -> None:
    """Make the key `name` unless it is there."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    values = {"name": name, "value": secrets.token_bytes(32)}
    await session.exec(insert(Secret).values(values).on_conflict_do_nothing())
