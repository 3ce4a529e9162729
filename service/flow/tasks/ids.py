"""Derive task ids, so that a repeated `createTask` is the same request and nobody outside can guess an id.

Each id is an HMAC with the deployment's secret over everything that distinguishes one task from another. It includes
the deployment's name, so that a staging service with a copy of the database makes tasks of its own.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Literal

from service.slugids import slugid_of
from service.store.models import Action, Push, Repository

DeriveId = Callable[[str], str]
"""Derives a task id from a label."""


def derive(secret: bytes, *parts: object) -> bytes:
    """Return 32 bytes that only this deployment can derive from `parts`."""
    # JSON, so that the boundary between two parts is never ambiguous
    return hmac.digest(secret, json.dumps(parts).encode(), hashlib.sha256)


def slugid(secret: bytes, *parts: object) -> str:
    """Return the task id that `parts` have in this deployment."""
    return slugid_of(derive(secret, *parts)[:16])


def graph_ids(
    secret: bytes, deployment: str, repository: Repository, push: Push, attempt: int, kind: Literal["graph", "error"]
) -> DeriveId:
    """Return the function that derives the ids of one attempt at a push's graph or error task from labels."""
    subject = (kind, deployment, repository.url, push.generation, push.push_id, push.revision, attempt)
    return lambda label: slugid(secret, *subject, label)


def copy_ids(secret: bytes, action: Action, attempt: int) -> DeriveId:
    """Return the function that derives the ids of copies, for one attempt at an action, from the originals' ids."""
    return lambda original: slugid(secret, "copy", action.key, attempt, original)
