"""Pulse queues, as the API shows them."""

from datetime import datetime

from pydantic import Field

from service.api.schemas.common import Page, Schema, example


class QueueRead(Schema):
    """A Pulse queue of a listener."""

    model_config = example(
        name="queue/tc-treeherder/tasks",
        events="tasks",
        read=True,
        seen_at="2026-01-15T12:30:00Z",
        declared_at="2026-01-15T09:00:00Z",
        deleted_at=None,
        messages_lost_since=None,
        deletions=0,
    )

    name: str
    events: str = Field(description="what comes by it: tasks, job-actions or pushes")
    read: bool = Field(description="a listener told lately that it reads it")
    seen_at: datetime = Field(description="when a listener told so last")
    declared_at: datetime
    deleted_at: datetime | None = Field(description="when it was last found to be deleted")
    messages_lost_since: datetime | None = Field(description="from when on messages may be missing")
    deletions: int


class QueuePage(Page[QueueRead]):
    """A page of Pulse queues."""
