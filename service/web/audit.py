"""The list of who changed what."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.audit import list_audit
from service.api.deps import After, Auditor, Reading
from service.api.schemas.audit import AuditEvent, AuditRead
from service.web.pages import PageRoute, show

router = APIRouter(route_class=PageRoute)


@router.get("/audit")
async def get_audit_page(
    request: Request,
    session: Reading,
    auditor: Auditor,
    event: AuditEvent | Literal[""] = "",
    caller: Annotated[str, Query(max_length=1_000)] = "",
    repository: Annotated[str, Query(max_length=50)] = "",
    after: After = None,
) -> Response:
    """List who changed what, the newest first."""
    filters = {"caller": caller.strip(), "repository": repository.strip(), "event": event}
    given = {name: value or None for name, value in filters.items()}
    page = await list_audit(session, auditor, **given, after=after)  # type: ignore[arg-type]  # each is of its type
    rows = [(entry, _path_of_subject(entry), _told(entry)) for entry in page.items]
    return show(request, "audit.html", page=page, rows=rows, filters=filters, events=list(AuditEvent))


def _path_of_subject(entry: AuditRead) -> tuple[str, ...] | None:
    """Return the parts of the path to what the entry is about."""
    if entry.event == AuditEvent.ACTION_ASKED:
        return "actions", str(entry.details.get("action"))
    if entry.event == AuditEvent.PUSH_RETRIED and entry.repository is not None:
        return "pushes", entry.repository, str(entry.details.get("push"))
    return None


MOST_TOLD = 400
"""Characters of what else an entry tells that the page shows; the API has all of it."""


def _told(entry: AuditRead) -> list[str]:
    """Return what else the entry tells, in words."""
    told = []
    for name, value in entry.details.items():
        if name == "changes":
            told += [f"{field}: {before!r} → {after!r}" for field, (before, after) in value.items()]
        elif name == "values":
            told += [f"{field}: {of_field!r}" for field, of_field in value.items()]
        elif name not in {"action", "push"}:
            told.append(f"{name.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
    shown = "\n".join(told)
    return (shown if len(shown) <= MOST_TOLD else f"{shown[:MOST_TOLD]} …").split("\n")
