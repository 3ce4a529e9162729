"""The list of who changed what."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.audit import list_audit
from service.api.deps import After, Auditor
from service.api.marks import Watched
from service.api.schemas.audit import AuditRead
from service.auth import LOCAL
from service.services import Services
from service.settings import AUDIT_READ
from service.store.models import AuditEvent
from service.web.pages import PageRoute, Site, show_view
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)


@live
@dataclass(frozen=True)
class AuditView(View):
    """A list of entries of the audit. An entry never changes."""

    name = "audit"
    template = "audit.html"
    scope = AUDIT_READ

    caller: str = ""
    repository: str = ""
    event: AuditEvent | None = None
    after: str | None = None

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        given: dict[str, Any] = {name: value or None for name, value in asdict(self).items()}
        async with services.database.reading() as session:
            page = await list_audit(session, LOCAL, **given)
        rows = [(entry, _path_of_subject(entry), _told(entry)) for entry in page.items]
        filters = {"caller": self.caller, "repository": self.repository, "event": self.event or ""}
        values = {"page": page, "rows": rows, "filters": filters, "events": list(AuditEvent)}
        return Shown(values, Watched(newest=frozenset({"audit"})))


@router.get("/audit")
async def get_audit_page(
    request: Request,
    _: Auditor,
    event: AuditEvent | Literal[""] = "",
    caller: Annotated[str, Query(max_length=1_000)] = "",
    repository: Annotated[str, Query(max_length=50)] = "",
    after: After = None,
) -> Response:
    """List who changed what, the newest first."""
    return await show_view(request, AuditView(caller.strip(), repository.strip(), event or None, after))


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
            told += [f"{field}: {_in_words(before)} → {_in_words(after)}" for field, (before, after) in value.items()]
        elif name == "values":
            told += [f"{field}: {_in_words(of_field)}" for field, of_field in value.items()]
        elif name not in {"action", "push"}:
            told.append(f"{name.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
    shown = "\n".join(told)
    return (shown if len(shown) <= MOST_TOLD else f"{shown[:MOST_TOLD]} …").split("\n")


def _in_words(value: Any) -> str:
    """Return a value of a setting as people write it."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
