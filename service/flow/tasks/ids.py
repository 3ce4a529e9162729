"""Task ids are derived, not drawn: a repeated `createTask` is the same request, and nobody outside can guess an id.

Each id is an HMAC with the deployment's secret over everything that tells one task from another. The deployment's name
is part of it, so that a staging service with a copy of the database makes tasks of its own.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Literal

from service.slugids import slugid_of
from service.store.models import Action, Push, Repository

DeriveId = Callable[[str], str]
"""Returns the task id of a label."""


def derive(secret: bytes, *what: object) -> bytes:
    """Return 32 bytes that only this deployment can derive from `what`."""
    # JSON, so that where one part ends and the next begins is never a guess
    return hmac.digest(secret, json.dumps(what).encode(), hashlib.sha256)


def slugid(secret: bytes, *what: object) -> str:
    """Return the task id that `what` has in this deployment."""
    return slugid_of(derive(secret, *what)[:16])


def graph_ids(
    secret: bytes, deployment: str, repository: Repository, push: Push, attempt: int, kind: Literal["graph", "error"]
) -> DeriveId:
    """Return what derives the ids of one attempt at a push's graph, or of its error task, from their labels."""
    subject = (kind, deployment, repository.url, push.generation, push.push_id, push.revision, attempt)
    return lambda label: slugid(secret, *subject, label)


def copy_ids(secret: bytes, action: Action, attempt: int) -> DeriveId:
    """Return what derives the ids of the copies of one attempt at an action from the ids of their originals."""
    return lambda original: slugid(secret, "copy", action.key, attempt, original)
