"""The audit: record who changed what in the transaction of the change, and list the entries."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlmodel import select

from service.api.deps import After, Auditor, Limit, Reading
from service.api.openapi import problems
from service.api.paging import page
from service.api.route import API, Route
from service.api.schemas.audit import AuditPage, AuditRead
from service.auth import Caller
from service.sanitize import escape_unstorable
from service.settings import AUDIT_READ
from service.store.database import Session
from service.store.models import AuditEntry, AuditEvent, Origin

router = APIRouter(prefix=f"{API}/audit", tags=["audit"], route_class=Route)


def record(
    session: Session,
    event: AuditEvent,
    caller: Caller,
    *,
    repository: str | None = None,
    subject: str | None = None,
    **details: Any,
) -> None:
    """Add an entry to the transaction of the change that it is about. `details` are JSON."""
    entry = AuditEntry(
        event=event.value,
        caller=escape_unstorable(caller.name),
        taskcluster=caller.taskcluster,
        origin=Origin.PAGE if caller.on_page else Origin.API,
        repository=None if repository is None else escape_unstorable(repository),
        subject=None if subject is None else escape_unstorable(subject),
        details=details,
    )
    session.add(entry)


@router.get("", operation_id="listAudit", responses=problems(scope=AUDIT_READ))
async def list_audit(
    session: Reading,
    _: Auditor,
    event: Annotated[AuditEvent | None, Query(description="of this kind alone")] = None,
    caller: Annotated[
        str | None,
        Query(max_length=1_000, description="name of the token, clientId, or whom Treeherder names, exactly"),
    ] = None,
    repository: Annotated[str | None, Query(max_length=50, description="alias that the repository had then")] = None,
    limit: Limit = 50,
    after: After = None,
) -> AuditPage:
    """List who changed what, the newest first.

    With several filters a page can be shorter than `limit`, even empty, while `next` says that there are more.
    """
    filters = [  # those that leave fewest come first
        (caller, AuditEntry.caller == escape_unstorable(caller or "")),
        (repository, AuditEntry.repository == escape_unstorable(repository or "")),
        (event, AuditEntry.event == event),
    ]
    conditions: list[Any] = [condition for value, condition in filters if value is not None]

    def matching(among: Callable[[Any], Any]) -> Any:
        return select(AuditEntry.id, AuditEntry).where(among(AuditEntry.id), *conditions)

    candidates = [select(AuditEntry.id).where(*conditions[:1])]
    rows, following = await page(session, candidates, AuditEntry.id, matching, limit, after)
    return AuditPage(items=[AuditRead.model_validate(entry) for _, entry in rows], next=following)
