"""Store pushlog entries as pushes, each with the steps that are to be done for it."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, update
from sqlmodel import SQLModel, col, select

from service.clock import now
from service.contract.events import (
    MAX_CHANGESETS_IN_FULL,
    Changeset,
    ListedPush,
    OversizedPush,
    PushEvent,
    PushlogEntry,
    Verdict,
)
from service.contract.tracing import current_traceparent
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.services import Services
from service.settings import Settings
from service.store.database import Session, insert_rows
from service.store.models import DeadLetter, Push, PushStep, Repository, State, StepKind, share_of
from service.store.rows import new_row, set_values

log = structlog.get_logger()


def revision_hash(changesets: Iterable[Changeset]) -> str:
    """Return the SHA-1 over node and branch of every changeset in order: Treeherder's key of a resultset."""
    digest = hashlib.sha1(usedforsecurity=False)
    for changeset in changesets:
        digest.update(changeset.node.encode())
        digest.update(changeset.branch.encode())
    return digest.hexdigest()


def base_revision(changesets: Sequence[Changeset]) -> str | None:
    """Return the first parent of a push's first changeset, if the pushlog names one."""
    return next(iter(changesets[0].parents or []), None) if changesets else None


def push_of(repository: Repository, entry: PushlogEntry) -> Push:
    """Return the push of the repository's present generation that an entry of its pushlog describes."""
    return new_row(
        Push,
        repository_id=repository.id or 0,
        generation=repository.generation,
        push_id=entry.id,
        user=entry.user,
        date=datetime.fromtimestamp(entry.date, UTC),
        revision=entry.changesets[-1].node if entry.changesets else None,
        revision_hash=revision_hash(entry.changesets),
        base_revision=base_revision(entry.changesets),
        changesets=[c.model_dump(exclude_none=True) for c in entry.changesets[-MAX_CHANGESETS_IN_FULL:]],
        nodes=[c.node for c in entry.changesets],
    )


class _StoredPush(NamedTuple):
    revision: str | None
    nodes: list[str]


_CHANGEABLE = ("last_push_id", "last_changeset", "last_push_at", "reset_suspicions", "reset_suspected_at")
"""Columns of a repository that events change: `_store_event`, `_advance_cursor` and `suspect_reset` set them."""


@dataclass
class _RepositoryBatch:
    """The pushes of one repository in a batch: those that are stored already, by id, and those to be stored."""

    repository: Repository  # which no session knows: `_update_repositories` writes what has changed
    stored: dict[int, _StoredPush] = field(default_factory=dict)
    new: list[Push] = field(default_factory=list)
    unchanged: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.unchanged = self.changeable()

    def changeable(self) -> dict[str, Any]:
        """Return the present values of the columns that events change."""
        return {name: vars(self.repository)[name] for name in _CHANGEABLE}


Stored = tuple[list[Verdict], list[PushStep]]
"""A verdict for each event, and the steps that are to be done."""


async def store(
    session: Session, settings: Settings, events: list[PushEvent | OversizedPush], *, replayed: bool = False
) -> Stored:
    """Store the new pushes of `events`; see `store_new`."""

    def write(synchronous: Any) -> Stored:
        return store_new(synchronous.connection(), settings, events, replayed=replayed)

    return await session.run_sync(write)


Claim = Callable[[Sequence[PushStep], Sequence[tuple[Push, Repository]]], Callable[[], object]]
"""Is called with the steps to be done and what each belongs to, before they are stored, and begins to lease them.

What it returns waits until that is done."""


def store_new(
    connection: Connection,
    settings: Settings,
    events: list[PushEvent | OversizedPush],
    claim: Claim | None = None,
    *,
    replayed: bool = False,
) -> Stored:
    """Store the new pushes of `events`, in the caller's transaction.

    An event must be of the present generation, and of the present shift unless it is `replayed`. The cursor moves only
    for events that were listed from it or from before it (`since`), so that a push which came by another way skips
    nothing.
    """
    batches = _lock_repositories(connection, events)
    verdicts = [
        _store_event(connection, batches.get(event.repository_id), event, replayed=replayed) for event in events
    ]
    new = [(batch.repository, push) for batch in batches.values() for push in batch.new]
    steps = _insert_pushes(connection, settings, new, claim)
    _update_repositories(connection, batches.values())
    for event, verdict in zip(events, verdicts, strict=True):
        if batch := batches.get(event.repository_id):
            repository = batch.repository
            verdict.repository, verdict.cursor = repository.alias, repository.last_push_id
            verdict.shift = repository.shift
    return verdicts, steps


def _lock_repositories(connection: Connection, events: list[PushEvent | OversizedPush]) -> dict[int, _RepositoryBatch]:
    """Lock the repositories of a batch and read their stored pushes.

    They are locked in the order of their ids, so that two batches cannot deadlock.
    """
    rows = connection.execute(_LOCKED, {"ids": list({event.repository_id for event in events})})
    batches = {row.id: _RepositoryBatch(new_row(Repository, **row._mapping)) for row in rows}
    push_ids = {event.push.id for event in events if isinstance(event, PushEvent)}
    # a statement of its own: with the first, PostgreSQL would not see what was stored while that waited for a lock
    stored = connection.execute(_STORED, {"ids": list(batches), "push_ids": list(push_ids)})
    for repository_id, generation, push_id, revision, nodes in stored:
        batch = batches[repository_id]
        if generation == batch.repository.generation:
            batch.stored[push_id] = _StoredPush(revision, nodes)
    return batches


def _update_repositories(connection: Connection, batches: Iterable[_RepositoryBatch]) -> None:
    """Write the columns of repositories that events have changed; a session's flush takes three times as long."""
    rows = [
        {"its_id": batch.repository.id, **values}
        for batch in batches
        if (values := batch.changeable()) != batch.unchanged
    ]
    if rows:
        connection.execute(_UPDATE, rows)


# made once: to build these statements for each batch took more time than to execute them
_REPOSITORIES = SQLModel.metadata.tables["repository"]

_LOCKED = (
    _REPOSITORIES.select()
    .where(_REPOSITORIES.c.id.in_(bindparam("ids", expanding=True)), _REPOSITORIES.c.deleted_at.is_(None))
    .order_by(_REPOSITORIES.c.id)
    .with_for_update()
)

_UPDATE = (
    update(_REPOSITORIES)
    .where(_REPOSITORIES.c.id == bindparam("its_id"))
    .values({name: bindparam(name) for name in _CHANGEABLE})
)

_PUSHES = SQLModel.metadata.tables["push"].c

_STORED = select(*(_PUSHES[n] for n in ("repository_id", "generation", "push_id", "revision", "nodes"))).where(
    _PUSHES.repository_id.in_(bindparam("ids", expanding=True)),
    _PUSHES.push_id.in_(bindparam("push_ids", expanding=True)),
)


def _store_event(
    connection: Connection, batch: _RepositoryBatch | None, event: PushEvent | OversizedPush, *, replayed: bool
) -> Verdict:
    if batch is None:
        return Verdict(verdict="rejected", reason=f"no repository {event.repository} is monitored: add it first")
    repository = batch.repository
    if reason := _out_of_date(repository, event, replayed=replayed):
        return Verdict(verdict="rejected", reason=reason)
    if isinstance(event, OversizedPush):
        return _store_oversized(connection, repository, event)

    entry = event.push
    revision = entry.changesets[-1].node if entry.changesets else None
    if stored := batch.stored.get(entry.id):
        nodes = {changeset.node for changeset in entry.changesets}
        if nodes and stored.nodes and not nodes & set(stored.nodes):
            suspect_reset(repository, f"push {entry.id} was {stored.revision}, is now {revision}")
            reason = f"push {entry.id} is known with revision {stored.revision}: the repository may have been reset"
            return Verdict(verdict="rejected", reason=reason)
        _advance_cursor(repository, event.since, entry.id, stored.revision)
        return Verdict(verdict="duplicate")

    push = push_of(repository, entry)
    batch.stored[entry.id] = _StoredPush(push.revision, push.nodes)
    batch.new.append(push)
    set_values(repository, last_push_at=now())
    _advance_cursor(repository, event.since, entry.id, revision)
    return Verdict(verdict="accepted")


def _out_of_date(repository: Repository, event: ListedPush, *, replayed: bool) -> str | None:
    if event.generation != repository.generation:
        return (
            f"listed from generation {event.generation}, {repository.alias} is at {repository.generation}: list again"
        )
    if event.shift != repository.shift and not replayed:
        return f"listed in shift {event.shift} of {repository.alias}, which has ended: list again"
    return None


def _store_oversized(connection: Connection, repository: Repository, event: OversizedPush) -> Verdict:
    if event.push_id <= repository.last_push_id:
        return Verdict(verdict="duplicate")
    subject = f"push {event.push_id} of {repository.alias}"
    payload = event.model_dump_json().encode()
    insert_rows(connection, [DeadLetter(kind="push-event", subject=subject, reason=event.reason, payload=payload)])
    _advance_cursor(repository, event.since, event.push_id, None)
    return Verdict(verdict="accepted", reason="kept as a dead letter: too large")


def _advance_cursor(repository: Repository, since: int, push_id: int, revision: str | None) -> None:
    if since <= repository.last_push_id < push_id:
        set_values(repository, last_push_id=push_id, last_changeset=revision)


def suspect_reset(repository: Repository, why: str) -> None:
    """Count a sign that the repository was reset; `poll` decides when there are enough of them."""
    repository.reset_suspicions += 1
    repository.reset_suspected_at = repository.reset_suspected_at or now()
    log.warning("reset-suspected", repository=repository.alias, why=why, times=repository.reset_suspicions)


def _insert_pushes(
    connection: Connection, settings: Settings, new: list[tuple[Repository, Push]], claim: Claim | None
) -> list[PushStep]:
    """Insert pushes and their steps; return the steps that are to be done."""
    steps = [(step, push, repository) for repository, push in new for step in _steps(settings, repository, push)]
    to_do = [of_step for of_step in steps if of_step[0].due_at is not None]
    owners = [(push, repository) for _, push, repository in to_do]
    claimed = claim([step for step, _, _ in to_do], owners) if claim and to_do else None
    insert_rows(connection, [push for _, push in new])
    if claimed is not None:
        claimed()
    for step, push, _ in steps:
        set_values(step, push_id=push.id)
    insert_rows(connection, [step for step, _, _ in steps])
    for repository, push in new:
        log.info("push-stored", repository=repository.alias, push=push.push_id, revision=push.revision)
    return [step for step, _, _ in to_do]


def _steps(settings: Settings, repository: Repository, push: Push) -> list[PushStep]:
    """Return the steps of a push, which get its id once it is stored."""
    at = now()
    common: dict[str, Any] = {
        "push_id": 0,
        "share": share_of(repository.alias, push.user),
        "due_at": at,
        "since": at,
        "traceparent": current_traceparent(),
    }
    # the graph first: it takes longest
    steps = [new_row(PushStep, kind=StepKind.GRAPH, lane=f"graph {repository.host}", **common)]
    steps += [
        new_row(PushStep, kind=StepKind.RESULTSET, environment=prefix, lane=f"resultset {prefix}", **common)
        for prefix, environment in settings.environments.items()
        if environment.pushes != "off" and (repository.environments is None or prefix in repository.environments)
    ]
    if settings.pulse.url is not None:
        steps.append(new_row(PushStep, kind=StepKind.ANNOUNCEMENT, lane="pulse", **common))
    if repository.record_before is not None and push.date <= repository.record_before:
        for step in steps:
            step.state, step.due_at, step.done_at = State.SKIPPED, None, now()
            step.error = "pushed before the repository was reset: recorded only"
    return steps


async def load_push(services: Services, lease: Lease[PushStep]) -> tuple[Push, Repository]:
    """Return the push that a step belongs to, and its repository."""
    if lease.loaded is None:
        async with services.database.reading() as session:
            lease.loaded = (await load_pushes(session, [lease.item]))[lease.item.push_id]
    push, repository = lease.loaded
    return push, repository


async def load_pushes(session: Session, steps: Iterable[PushStep]) -> dict[int, tuple[Push, Repository]]:
    """Return the pushes that steps belong to, and their repositories, by the ids of the pushes."""
    ids = {step.push_id for step in steps}
    rows = await session.exec(
        select(Push, Repository).where(col(Push.id).in_(ids), col(Repository.id) == Push.repository_id)
    )
    return {push.id or 0: (push, repository) for push, repository in rows}


async def _load(session: Session, steps: Sequence[PushStep]) -> dict[int, tuple[Push, Repository]]:
    """Return the pushes of steps that are claimed together, and their repositories, by the ids of the steps."""
    pushes = await load_pushes(session, steps)
    return {step.id or 0: pushes[step.push_id] for step in steps}


WORK.add_table(WorkTable(PushStep, "`tc-treeherder pushes list --state pending` says why", load=_load))
