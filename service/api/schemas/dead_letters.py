"""Dead letters, as the API shows them."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from service.api.schemas.common import Page, Schema, example


class LetterKind(StrEnum):
    """The kinds of dead letters: events that were not understood, and work that was buried."""

    PUSH_EVENT = "push-event"
    JOB_ACTION = "job-action"
    TASK_EVENT = "task-event"
    RESULTSET = "resultset"
    GRAPH = "graph"
    ANNOUNCEMENT = "announcement"
    ACTION = "action"
    NOTICE = "notice"
    JOB_REPORT = "job-report"
    GROUP_CHECK = "group-check"


class DeadLetterSummary(Schema):
    """A dead letter, as a list shows it."""

    id: int
    kind: str
    subject: str
    reason: str
    since: datetime
    payload_bytes: int | None = Field(description="size of the event as it came; null: it is work that was buried")


class DeadLetterRead(DeadLetterSummary):
    """A dead letter with its payload."""

    model_config = example(
        id=3,
        kind="push-event",
        subject="push 43211 of mozilla-central",
        reason="not understood: push.changesets is missing",
        since="2026-01-15T12:00:00Z",
        payload_bytes=56,
        payload='{"repository": "mozilla-central", "push": {"id": 43211}}',
    )

    payload: str | None = Field(description="the event as it came, or its first MiB; what is no UTF-8 is escaped")


class DeadLetterPage(Page[DeadLetterSummary]):
    """A page of dead letters, without their payloads."""
