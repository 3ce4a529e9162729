"""Entries of the audit, as the API shows them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from service.api.schemas.common import Page, Schema, example
from service.store.models import Origin


class AuditRead(Schema):
    """An entry of the audit: who changed what, and when."""

    model_config = example(
        id=12,
        at="2026-01-15T12:30:00Z",
        event="repository-changed",
        caller="releng",
        taskcluster=False,
        origin="api",
        repository="mozilla-central",
        subject=None,
        details={"changes": {"enabled": [True, False]}},
    )

    id: int
    at: datetime
    event: str
    caller: str = Field(description="name of the token, or clientId; of a button in Treeherder, whom Treeherder names")
    taskcluster: bool = Field(description="the caller is a client of Taskcluster, and no token")
    origin: Origin
    repository: str | None = Field(
        description="alias that the repository had then; of a button, the project that Treeherder names"
    )
    subject: str | None = Field(description="what it was done to, for people")
    details: dict[str, Any] = Field(description="of a changed repository, what each field was and is; ids of others")


class AuditPage(Page[AuditRead]):
    """A page of the audit."""
