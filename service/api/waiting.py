"""The unfinished work of one lane: what waits, for which repository, and trying it now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.orm import load_only
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import col, select

from service.api.audit import record
from service.auth import Caller
from service.engine import leases
from service.engine.registry import WORK
from service.errors import Problem
from service.sanitize import escape_unstorable
from service.services import Services
from service.store.database import Session
from service.store.models import Action, AuditEvent, GroupCheck, JobReport, Notice, Push, PushStep, Repository, Work
from service.store.wakeups import Topic

log = structlog.get_logger()

MOST_PIECES = 500
"""Pieces of a lane that are looked at, those that have waited longest."""

_COMMON = ("id", "state", "share", "due_at", "holder", "attempts", "since", "error")
_OWN: dict[type[Work], tuple[str, ...]] = {
    PushStep: ("push_id", "kind", "environment"),
    Action: ("kind", "project", "task_id", "push_id"),
    JobReport: ("task_id", "run_id", "project", "environment"),
    Notice: ("kind", "target", "key"),
    GroupCheck: ("task_group_id",),
}
"""Columns of each table that are read: the others can be large."""


@dataclass(frozen=True)
class WaitingPiece:
    """A piece of work that waits, what it is, and the path of the page about it."""

    item: Work
    repository: str
    subject: str
    path: tuple[str, ...] | None


@dataclass
class WaitingRepository:
    """What waits in a lane for one repository, among the pieces that were looked at."""

    repository: str
    count: int
    oldest: WaitingPiece


def work_table(name: str) -> type[Work]:
    """Return the table of work of this name. Raises a 404."""
    for model in WORK.tables:
        if model.__tablename__ == name:
            return model
    names = ", ".join(sorted(str(model.__tablename__) for model in WORK.tables))
    raise Problem(404, "Not Found", f"there is no work {name[:100]!r}: {names} are known")


def small_columns(model: type[Work]) -> ExecutableOption:
    """Return the option of a query that reads the columns that a `WaitingPiece` needs, and no large one."""
    return load_only(*(getattr(model, name) for name in (*_COMMON, *_OWN[model])), raiseload=True)


async def list_pieces(session: Session, model: type[Work], lane: str) -> list[WaitingPiece]:
    """Return the unfinished pieces of a lane, those that have waited longest first."""
    query = (
        select(model)
        .options(small_columns(model))
        .where(model.lane == escape_unstorable(lane), col(model.due_at).is_not(None))
        .order_by(col(model.since))
        .limit(MOST_PIECES)
    )
    return await pieces_of(session, (await session.exec(query)).all())


async def pieces_of(session: Session, items: Sequence[Work]) -> list[WaitingPiece]:
    """Return what these pieces of work are, in their order."""
    pushes = await _pushes(session, items)
    return [_piece(item, pushes) for item in items]


async def _pushes(session: Session, items: Sequence[Work]) -> dict[int, tuple[str, int]]:
    """Return alias and number of the pushes that these pieces are steps of, by their ids."""
    ids = {item.push_id for item in items if isinstance(item, PushStep)}
    if not ids:
        return {}
    query = select(Push.id, Repository.alias, Push.push_id).join(Repository, col(Repository.id) == Push.repository_id)
    rows = await session.exec(query.where(col(Push.id).in_(ids)))
    return {push_id or 0: (alias, number) for push_id, alias, number in rows}


def _piece(item: Any, pushes: dict[int, tuple[str, int]]) -> WaitingPiece:
    alias = item.share.partition("/")[0]
    if isinstance(item, PushStep):
        alias, number = pushes.get(item.push_id, (alias, 0))
        name = f"{item.kind} {item.environment}".strip()
        return WaitingPiece(item, alias, f"{name} of push {number}", ("pushes", alias, str(number)))
    if isinstance(item, Action):
        subject = f"{item.kind} of {item.subject}"
        return WaitingPiece(item, item.project, subject, ("actions", str(item.id)))
    if isinstance(item, JobReport):
        return WaitingPiece(item, item.project, f"run {item.run_id} of {item.task_id}", ("tasks", item.task_id))
    if isinstance(item, Notice):
        return WaitingPiece(item, alias, f"notice to {item.target}", None)
    return WaitingPiece(item, "-", f"task group {item.task_group_id}", None)


def by_repository(pieces: Sequence[WaitingPiece]) -> list[WaitingRepository]:
    """Return what waits for each repository; the one that has waited longest comes first."""
    found: dict[str, WaitingRepository] = {}
    for piece in pieces:
        if (known := found.get(piece.repository)) is None:
            found[piece.repository] = WaitingRepository(piece.repository, 1, piece)
        else:
            known.count += 1
    return list(found.values())


async def try_now(services: Services, caller: Caller, model: type[Work], lane: str) -> int:
    """Make due at once what waits in a lane after a failure; return how many pieces that are."""
    statement, (values,) = leases.due_now(model, escape_unstorable(lane))
    async with services.database.writing() as session:
        tried: int = (await (await session.connection()).execute(statement, values)).rowcount
        if tried:
            record(session, AuditEvent.WAITING_TRIED, caller, subject=lane, work=str(model.__tablename__), pieces=tried)
    log.info("waiting-tried", work=model.__tablename__, lane=lane, pieces=tried, by=caller.name)
    for topic in Topic:
        services.database.wakeups.wake(topic)
    return tried
