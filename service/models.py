"""The tables. What goes over the API is in `schemas`; never the other way round."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, Index, LargeBinary, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from service.database import Json, Utc, now


def _utc(nullable: bool = True, index: bool = False) -> Any:
    return Field(default=None, sa_type=Utc, nullable=nullable, index=index)


class Repository(SQLModel, table=True):
    """A monitored repository, and where its poll stands.

    A deleted one keeps its row, so that the generation survives re-creation; only live ones compete for an alias.
    """

    __table_args__ = (
        Index(
            "ix_repository_alias_live",
            "alias",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_repository_turn", "host", "turn"),
    )

    id: int | None = Field(default=None, primary_key=True)
    alias: str
    url: str = Field(unique=True)
    host: str
    level: str
    scopes: list[str] = Field(default_factory=list, sa_type=Json)
    contains: str | None = None
    graph: bool = True
    environments: list[str] | None = Field(default=None, sa_type=Json)  # None: all
    enabled: bool = True
    created_at: datetime = Field(default_factory=now, sa_type=Utc)
    deleted_at: datetime | None = _utc()

    # the cursor
    generation: int = 0
    last_push_id: int
    last_changeset: str | None = None
    record_before: datetime | None = _utc()  # pushes dated before a reset are only recorded

    # the poll
    due_at: datetime = Field(default_factory=now, sa_type=Utc)
    turn: datetime = Field(default_factory=now, sa_type=Utc)  # due_at, earlier for a busy repository
    lease: int = 0
    leased_until: datetime | None = _utc()
    last_polled_at: datetime | None = _utc()
    last_good_poll_at: datetime | None = _utc()
    last_full_poll_at: datetime | None = _utc()
    last_push_at: datetime | None = _utc()
    etag: str | None = None
    poll_error: str | None = Field(default=None, sa_type=Text)
    poll_failures: int = 0
    reset_suspicions: int = 0
    reset_suspected_at: datetime | None = _utc()


class Push(SQLModel, table=True):
    """A push of one generation of a repository, as the pushlog told it."""

    __table_args__ = (UniqueConstraint("repository_id", "generation", "push_id"),)

    id: int | None = Field(default=None, primary_key=True)
    repository_id: int = Field(foreign_key="repository.id")
    generation: int
    push_id: int
    user: str = Field(sa_type=Text)
    date: datetime = Field(sa_type=Utc)
    revision: str | None = Field(index=True)  # the tip; None when no changeset is left
    revision_hash: str = Field(index=True)
    changesets: list[dict[str, Any]] = Field(sa_type=Json)  # the last 200, in full
    nodes: list[str] = Field(sa_type=Json)  # all of them
    noticed_at: datetime = Field(default_factory=now, sa_type=Utc)


class State(StrEnum):
    """What became of a piece of work. `pending` is the only one that is not final."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


class Work(SQLModel):
    """What every piece of leased work has; `service.work` is the only one that writes these."""

    id: int | None = Field(default=None, primary_key=True)
    state: State = Field(default=State.PENDING, sa_type=Text)
    lane: str  # the upstream it needs; one lane never holds up another
    due_at: datetime | None = Field(default_factory=now, sa_type=Utc)  # also the lease's end; None: nothing to do
    lease: int = 0  # the fencing number: goes up at each claim
    attempts: int = 0
    since: datetime = Field(default_factory=now, sa_type=Utc)  # when it was first due
    error: str | None = Field(default=None, sa_type=Text)  # the last failure, or why it was skipped
    done_at: datetime | None = _utc()

    def dead_letter(self, reason: str) -> "DeadLetter":
        """What is left of this work when it is buried."""
        raise NotImplementedError


class StepKind(StrEnum):
    RESULTSET = "resultset"
    GRAPH = "graph"


class PushStep(Work, table=True):
    """One step of a push: its resultset in one environment, or its graph."""

    __tablename__ = "push_step"
    __table_args__ = (
        UniqueConstraint("push_id", "kind", "environment"),
        Index(
            "ix_push_step_due",
            "lane",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )

    push_id: int = Field(foreign_key="push.id")
    kind: StepKind = Field(sa_type=Text)
    environment: str = ""  # a resultset's route prefix
    plan_attempt: int = 0  # goes up when a refused plan is given up and made anew
    refused: str | None = Field(default=None, sa_type=Text)  # why the plan was given up
    error_task: str | None = None

    def dead_letter(self, reason: str) -> "DeadLetter":
        return DeadLetter(kind=self.kind, subject=f"push {self.push_id}, {self.lane}", reason=reason, step_id=self.id)


class PlannedTask(SQLModel, table=True):
    """The exact definition of a task that is to be created, stored before the first `createTask`."""

    __tablename__ = "planned_task"

    task_id: str = Field(primary_key=True)
    step_id: int = Field(foreign_key="push_step.id", index=True)
    plan_attempt: int = 0
    position: int  # in dependency order
    label: str = Field(sa_type=Text)  # what the id was derived from: "task" or "error"
    name: str = Field(sa_type=Text)
    definition: dict[str, Any] | None = Field(sa_type=Json)
    created: bool = False


class DeadLetter(SQLModel, table=True):
    """What could not be understood, or ran out of retries. It waits for a person."""

    __tablename__ = "dead_letter"

    id: int | None = Field(default=None, primary_key=True)
    kind: str  # push-event, resultset, graph
    subject: str = Field(sa_type=Text)  # what it is about, for people
    reason: str = Field(sa_type=Text)
    payload: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # the event as it came
    step_id: int | None = Field(default=None, foreign_key="push_step.id")
    since: datetime = Field(default_factory=now, sa_type=Utc)


class Budget(SQLModel, table=True):
    """Requests left for a host or a credential, shared by all replicas: a bucket that refills by the second."""

    name: str = Field(primary_key=True)
    tokens: float
    at: datetime = Field(sa_type=Utc)
    blocked_until: datetime | None = _utc()


class Secret(SQLModel, table=True):
    """Keys made once by this deployment."""

    name: str = Field(primary_key=True)
    value: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    __str__ = __repr__
    __repr_args__ = None  # type: ignore[assignment]  # pydantic's own repr would print the value
