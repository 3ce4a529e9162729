"""Tasks and job reports, as the API shows them."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from service.api.schemas.actions import ActionState, MadeTask
from service.api.schemas.common import (
    EXAMPLE_COPY,
    EXAMPLE_NODE,
    EXAMPLE_TASK,
    Page,
    Schema,
    StepState,
    Working,
    example,
)
from service.store.models import Stage


class TaskPush(Schema):
    """The push that a task belongs to."""

    repository: str
    push_id: int
    generation: int
    revision: str | None


class TaskAction(Schema):
    """An action on a task."""

    id: int
    action: str
    project: str
    requester: str
    state: ActionState
    reason: str | None
    received_at: datetime


class RunStage(StrEnum):
    """The stages of a run."""

    UNSCHEDULED = "unscheduled"
    PENDING = "pending"
    RUNNING = "running"
    RESOLVED = "resolved"

    @classmethod
    def of(cls, stage: int) -> "RunStage":
        """Return what this stage of a job report is called; a run that another one followed is resolved."""
        return list(cls)[min(stage, Stage.RESOLVED)]


class RunRead(Schema):
    """A run in one environment, and how far its report is."""

    run_id: int
    environment: str
    project: str
    stage: RunStage = Field(description="the newest that was heard of")
    result: str | None = Field(
        description="how it ended: completed, failed, or why it is an exception, such as canceled; null: it has not"
    )
    told: RunStage | None = Field(description="what Treeherder was told last")
    state: StepState = Field(description="of the report")
    working: Working
    error: str | None
    last_event_at: datetime
    next_attempt_at: datetime | None


class ReportRead(RunRead):
    """Report of one run to one Treeherder."""

    model_config = example(
        id=5,
        task_id=EXAMPLE_TASK,
        run_id=0,
        environment="tc-treeherder",
        project="mozilla-central",
        revision=EXAMPLE_NODE,
        revision_hash=None,
        stage="running",
        result=None,
        told=None,
        state="pending",
        working=False,
        error=f"Treeherder does not know the push {EXAMPLE_NODE} of mozilla-central (yet)",
        attempts=3,
        last_event_at="2026-01-15T12:31:00Z",
        waiting_since="2026-01-15T12:31:00Z",
        no_push_since="2026-01-15T12:31:01Z",
        next_attempt_at="2026-01-15T12:31:30Z",
    )

    id: int
    task_id: str
    revision: str | None = Field(description="of the push, as a v2 route names it")
    revision_hash: str | None = Field(description="of the push, as a v1 route names it")
    attempts: int
    waiting_since: datetime | None = Field(description="null: there is nothing more to tell")
    no_push_since: datetime | None = Field(description="since then Treeherder has not known the push")


class ReportPage(Page[ReportRead]):
    """A page of job reports."""


class TaskOwner(Schema):
    """A task with the push and the actions that it belongs to."""

    model_config = example(
        task_id=EXAMPLE_COPY,
        name="test-linux64/opt-xpcshell-1",
        push=None,
        made_by=17,
        copy_of=EXAMPLE_TASK,
        actions=[],
        copies=[],
        runs=[
            {
                "run_id": 0,
                "environment": "tc-treeherder",
                "project": "mozilla-central",
                "stage": "running",
                "result": None,
                "told": "pending",
                "state": "pending",
                "working": False,
                "error": None,
                "last_event_at": "2026-01-15T12:31:00Z",
                "next_attempt_at": "2026-01-15T12:31:01Z",
            }
        ],
    )

    task_id: str
    name: str | None = Field(None, description="null: this service did not create it")
    push: TaskPush | None = Field(None, description="of whose graph it is")
    made_by: int | None = Field(None, description="the action that made it, a copy")
    copy_of: str | None = Field(None, description="of which task it is a copy")
    actions: list[TaskAction] = Field(description="on this task; the newest 100")
    copies: list[MadeTask] = Field(description="that these made; the newest 100")
    runs: list[RunRead] = Field(description="that were reported; the newest 100")
