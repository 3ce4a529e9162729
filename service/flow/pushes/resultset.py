"""Post a push to Treeherder as a resultset, or announce it on Pulse."""

import json
from typing import Any
from urllib.parse import urlsplit

import structlog

from service.clients.pulse import ANNOUNCEMENTS, HGPUSHES
from service.clients.treeherder import hgpushes_message
from service.contract.events import MAX_CHANGESETS_IN_FULL
from service.engine import leases
from service.engine.leases import Lease
from service.engine.registry import WORK
from service.errors import PermanentUpstreamError
from service.flow.pushes.push import load_push
from service.services import Services
from service.store.models import JobReport, Push, PushStep, Repository, State, StepKind, job_lane
from service.store.wakeups import Topic

MAX_AUTHOR = 150
"""Characters of the author that Treeherder stores."""


def resultset_of(push: Push, repository: Repository) -> dict[str, Any]:
    """Return the resultset in the form of Treeherder's REST submission."""
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


async def run(services: Services, lease: Lease[PushStep]) -> None:
    """Post the push to the step's environment, or publish it on the exchange that this Treeherder reads."""
    push, repository = await load_push(services, lease)
    structlog.contextvars.bind_contextvars(repository=repository.alias, push=push.push_id)
    prefix = lease.item.environment
    environment = services.settings.environments.get(prefix)
    if environment is None or environment.pushes == "off":
        await lease.finish(State.SKIPPED, f"environment {prefix} takes no pushes by the present settings")
        return
    if push.revision is None:
        await lease.finish(State.SKIPPED, "no changesets are left of this push")
        return
    try:
        if environment.pushes == "rest":
            await services.treeherders[prefix].post_resultset(repository.alias, resultset_of(push, repository))
        else:
            assert services.publisher is not None, "the settings require pulse.url"
            path = urlsplit(repository.url).path.strip("/")
            message = hgpushes_message(repository.url, path, push.push_id, push.user, push.date, push.revision)
            # mandatory: without a queue of a Treeherder, the push would be shown nowhere
            exchange = environment.pushes_exchange or HGPUSHES
            await services.publisher.publish(exchange, path, message, mandatory=True)
    except PermanentUpstreamError as refusal:
        await lease.finish(State.FAILED, str(refusal))
        return
    (reports,) = await lease.finish(State.DONE, also=[leases.due_now(JobReport, job_lane(prefix, repository.alias))])
    if reports:
        services.database.wakeups.wake(Topic.REPORTS)


_MAX_CHANGESETS = 1_000_000
"""Characters of JSON of the changesets in one message; if they are more, files are left out."""


async def announce(services: Services, lease: Lease[PushStep]) -> None:
    """Announce the push on Pulse, at least once; the message need not reach a queue."""
    if services.publisher is None:
        await lease.finish(State.SKIPPED, "publishing is off by the present settings (pulse.url)")
        return
    push, repository = await load_push(services, lease)
    changesets = push.changesets
    if len(json.dumps(changesets)) > _MAX_CHANGESETS:
        changesets = [{name: value for name, value in changeset.items() if name != "files"} for changeset in changesets]
    message = {
        "id": push.push_id,
        "url": repository.url,
        "alias": repository.alias,
        "date": int(push.date.timestamp()),
        "user": push.user,
        "changesets": changesets,
    }
    await services.publisher.publish(ANNOUNCEMENTS, repository.alias, message)
    await lease.finish(State.DONE)


WORK.add_kind(PushStep, StepKind.RESULTSET, run)
WORK.add_kind(PushStep, StepKind.ANNOUNCEMENT, announce)
