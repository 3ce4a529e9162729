"""A push becomes a Treeherder resultset."""

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlmodel import col, select

from service.clients.pulse import ANNOUNCEMENTS, HGPUSHES
from service.clients.treeherder import hgpushes_message
from service.contract.events import MAX_CHANGESETS_IN_FULL
from service.engine.leases import Hold
from service.errors import Refusal
from service.flow.jobs.outcomes import push_arrived
from service.flow.pushes.push import push_of
from service.services import Parts
from service.store.database import Session
from service.store.models import Push, PushStep, Repository, State
from service.store.wakeups import Topic

MAX_AUTHOR = 150


async def pushes_of(session: Session, steps: Iterable[PushStep]) -> dict[int, tuple[Push, Repository]]:
    """Return the pushes that steps belong to, and their repositories, by the ids of the pushes."""
    ids = {step.push_id for step in steps}
    found = await session.exec(
        select(Push, Repository).where(col(Push.id).in_(ids), col(Repository.id) == Push.repository_id)
    )
    return {push.id or 0: (push, repository) for push, repository in found}


def resultset_of(push: Push, repository: Repository) -> dict[str, Any]:
    """The resultset in the form of Treeherder's REST submission."""
    return {
        "revision": push.revision,
        "revision_hash": push.revision_hash,
        "push_timestamp": int(push.date.timestamp()),
        "author": push.user[:MAX_AUTHOR] or "unknown",
        "type": "push",
        "active_status": "active",
        "revisions": [
            {
                "revision": changeset["node"],
                "author": changeset.get("author") or push.user or "unknown",
                "comment": changeset.get("desc") or "",
                "files": changeset.get("files") or [],
                "branch": changeset["branch"],
                "repository": repository.alias,
            }
            for changeset in push.changesets[-MAX_CHANGESETS_IN_FULL:]
        ],
    }


async def run(parts: Parts, hold: Hold[PushStep]) -> None:
    """Post or announce the push in the step's environment."""
    push, repository = await push_of(parts, hold)
    structlog.contextvars.bind_contextvars(repository=repository.alias, push=push.push_id)
    prefix = hold.item.environment
    environment = parts.settings.environments.get(prefix)
    if environment is None or environment.pushes == "off":
        await hold.finish(State.SKIPPED, f"environment {prefix} takes no pushes by the present settings")
        return
    if push.revision is None:
        await hold.finish(State.SKIPPED, "no changesets are left of this push")
        return
    try:
        if environment.pushes == "rest":
            await parts.treeherders[prefix].post_resultset(repository.alias, resultset_of(push, repository))
        else:
            assert parts.publisher is not None, "the settings require pulse.url"
            path = urlsplit(repository.url).path.strip("/")
            message = hgpushes_message(repository.url, path, push.push_id, push.user, push.date, push.revision)
            # a Treeherder has to hear it: without a queue of one the push would show nowhere
            exchange = environment.pushes_exchange or HGPUSHES
            await parts.publisher.publish(exchange, path, message, mandatory=True)
    except Refusal as refusal:
        await hold.finish(State.FAILED, str(refusal))
        return
    (waited,) = await hold.finish(State.DONE, also=[push_arrived(prefix, repository.alias)])
    if waited:
        parts.database.wakeups.wake(Topic.REPORTS)


_MAX_CHANGESETS = 1_000_000
"""Bytes of JSON of the changesets in one message; of more their files are left out."""


async def announce(parts: Parts, hold: Hold[PushStep]) -> None:
    """Tell everybody of the push, on Pulse: at least once. Nobody has to listen."""
    if parts.publisher is None:
        await hold.finish(State.SKIPPED, "publishing is off by the present settings (pulse.url)")
        return
    push, repository = await push_of(parts, hold)
    changesets = push.changesets
    if len(json.dumps(changesets)) > _MAX_CHANGESETS:
        changesets = [{name: value for name, value in each.items() if name != "files"} for each in changesets]
    message = {
        "id": push.push_id,
        "url": repository.url,
        "alias": repository.alias,
        "date": int(push.date.timestamp()),
        "user": push.user,
        "changesets": changesets,
    }
    await parts.publisher.publish(ANNOUNCEMENTS, repository.alias, message)
    await hold.finish(State.DONE)
