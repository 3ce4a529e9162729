"""Define the database's tables. The API's schemas are in `service.api.schemas.common`."""

import uuid
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, Column, Index, Integer, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from service.clock import now
from service.contract.tracing import current_traceparent
from service.store.database import Json, Utc


def _utc(nullable: bool = True, index: bool = False) -> Any:
    return Field(default=None, sa_type=Utc, nullable=nullable, index=index)


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return an index of the rows that meet a condition, which is here to be read: migrations create the index.

    As an option of the index, the condition would load both dialects in each process, which takes 1 to 2 MB.
    """
    return Index(name, *columns, unique=unique, info={"where": where})


def _of_those_with(table: str, column: str) -> Index:
    """Return an index of a foreign key that is NULL in most rows."""
    return _partial(f"ix_{table}_{column}", column, where=f"{column} IS NOT NULL")


def _work_indexes(table: str) -> tuple[Index, ...]:
    """Return the indexes of a table of work.

    They cover unfinished work by lane, share, age and holder, and finished work by age, for retention.
    """
    due = "due_at IS NOT NULL"
    return (
        _partial(f"ix_{table}_due", "lane", "due_at", where=due),
        _partial(f"ix_{table}_turn", "lane", "share", "due_at", "id", where=due),
        _partial(f"ix_{table}_oldest", "lane", "since", where=due),
        _partial(f"ix_{table}_holder", "holder", where="holder IS NOT NULL"),
        _partial(f"ix_{table}_ended", "done_at", where="due_at IS NULL"),
    )


MONITORED = "(enabled AND deleted_at IS NULL)"
"""Condition of repositories that are polled. To use a partial index, a query must repeat its condition literally."""


class Supersede(StrEnum):
    """Whose earlier push a newer push supersedes."""

    OFF = "off"
    PUSHER = "pusher"
    ALL = "all"


class TreeActions(StrEnum):
    """Who carries out actions that both this service and the tree offer: `retrigger` and `cancel`."""

    COPIES = "copies"
    IN_TREE = "in-tree"
    AUTO = "auto"


PULSE_ACTIONS = ("retrigger", "cancel")
"""Actions that a press from Pulse may name, unless the repository lists others."""


class Repository(SQLModel, table=True):
    """A monitored repository, and the state of its poll.

    A deleted repository keeps its row, so that the generation survives re-creation. Only the aliases of repositories
    that are not deleted must be unique.
    """

    __table_args__ = (
        _partial("ix_repository_alias_live", "alias", where="deleted_at IS NULL", unique=True),
        Index("ix_repository_alias", "alias", "id"),  # includes deleted repositories
        _partial("ix_repository_turn", "host", "turn", "id", where=MONITORED),
        _partial("ix_repository_holder", "holder", "id", where="holder IS NOT NULL"),
        _partial("ix_repository_good_poll", "last_good_poll_at", "created_at", where=MONITORED),
        _partial("ix_repository_poll_failures", "poll_failures", where=MONITORED),
    )

    id: int | None = Field(default=None, primary_key=True)
    alias: str
    url: str = Field(unique=True)
    host: str
    level: str
    trust_domain: str | None = None  # with the level, makes the schedulerId of the project's tasks
    route_project: str | None = None  # `user/project`, if the routes of its tasks have that instead of the alias
    scopes: list[str] = Field(default_factory=list, sa_type=Json)
    contains: str | None = None
    graph: bool = True
    environments: list[str] | None = Field(default=None, sa_type=Json)  # None: all
    supersede: Supersede = Field(default=Supersede.OFF, sa_type=Text)
    actions: TreeActions = Field(default=TreeActions.COPIES, sa_type=Text)
    pulse_actions: list[str] = Field(default_factory=lambda: list(PULSE_ACTIONS), sa_type=Json)
    enabled: bool = True
    created_at: datetime = Field(default_factory=now, sa_type=Utc)
    deleted_at: datetime | None = _utc()

    # the cursor
    generation: int = 0
    last_push_id: int
    last_changeset: str | None = None
    record_before: datetime | None = _utc()  # pushes dated before a reset are only recorded

    # the poll
    due_at: datetime = Field(default_factory=now, sa_type=Utc)  # while it has a holder: the end of its shift
    turn: datetime = Field(default_factory=now, sa_type=Utc)  # due_at, earlier for a busy repository
    shift: int = 0  # the fencing token: incremented by each lease, and by changes that its listener must learn of
    holder: str | None = Field(default=None, sa_type=Text)  # the listener that polls it in this shift
    last_polled_at: datetime | None = _utc()
    last_good_poll_at: datetime | None = _utc()
    last_full_poll_at: datetime | None = _utc()
    last_push_at: datetime | None = _utc()
    etag: str | None = None
    etag_cursor: int | None = None  # all pushes up to here were stored when the pushlog sent the ETag
    poll_error: str | None = Field(default=None, sa_type=Text)
    poll_failures: int = 0
    reset_suspicions: int = 0
    reset_suspected_at: datetime | None = _utc()

    @property
    def shift_ends_at(self) -> datetime | None:
        """Return the end of the shift in which a listener polls it; None: no listener does."""
        return None if self.holder is None else self.due_at


class Push(SQLModel, table=True):
    """A push of one generation of a repository, as listed by the pushlog."""

    __table_args__ = (
        UniqueConstraint("repository_id", "generation", "push_id"),
        Index("ix_push_number", "repository_id", "push_id", "generation"),
        # of the API's lists: their filters and their order
        Index("ix_push_repository_id", "repository_id", "id"),
        Index("ix_push_user", "user", "id"),
        Index("ix_push_of_user", "repository_id", "user", "push_id"),
        Index("ix_push_revision", "revision", "id"),
        Index("ix_push_revision_hash", "revision_hash", "id"),
        Index("ix_push_noticed_at", "noticed_at"),
    )

    id: int | None = Field(default=None, primary_key=True)
    repository_id: int = Field(foreign_key="repository.id")
    generation: int
    push_id: int
    user: str = Field(sa_type=Text)
    date: datetime = Field(sa_type=Utc)
    revision: str | None  # the tip; None if the push has no changesets any more
    revision_hash: str
    base_revision: str | None = None  # the first parent of the first changeset
    changesets: list[dict[str, Any]] = Field(sa_type=Json)  # the last 200, in full
    nodes: list[str] = Field(sa_type=Json)  # all of them
    any_age: bool = False  # it gets a graph, however old it is: a person has asked for that
    noticed_at: datetime = Field(default_factory=now, sa_type=Utc)


class State(StrEnum):
    """A state of a piece of work. Only `pending` is not final."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    REJECTED = "rejected"  # an action that is not allowed or not possible
    NOTHING_TO_DO = "nothing-to-do"  # an action on a task that has already ended


NOBODY = "-"
"""The share of work that belongs to no person."""


def share_of(repository: str, person: str) -> str:
    """Return the share of a person who pushes to a repository, or requests actions on its tasks."""
    return f"{repository}/{person}"


class Work(SQLModel):
    """Base class of the tables of leased work. `service.engine.leases` claims and writes it.

    Job reports are claimed there as well, but are written in batches by `service.engine.batches`, and by
    `service.flow.jobs.events` as events arrive.
    """

    id: int | None = Field(default=None, primary_key=True)
    state: State = Field(default=State.PENDING, sa_type=Text)
    lane: str  # the upstream that it needs; lanes do not wait for each other
    share: str = Field(default=NOBODY, sa_type=Text)  # the person whose work it is: a lane is fair among shares
    # while leased, the end of the lease; None: finished. A default of the column would replace a stored None
    due_at: datetime | None = Field(default_factory=now, sa_type=Utc, sa_column_kwargs={"default": None})
    fencing_token: int = 0  # rises with each claim and with the holder's last write
    holder: str | None = Field(default=None, sa_type=Text)  # the process that claimed it, see service.engine.replica
    attempts: int = 0
    since: datetime = Field(default_factory=now, sa_type=Utc)  # when it first became due
    error: str | None = Field(default=None, sa_type=Text)  # the last failure, or the reason for skipping it
    done_at: datetime | None = _utc()

    lock_order: ClassVar[tuple[str, ...]] = ("id",)
    """Columns in whose order a transaction locks several rows, so that two never wait for each other in a circle."""

    letter_column: ClassVar[str | None] = None
    """The column of `dead_letter` that has the id of work of this table; None: its dead letters have a payload."""

    @property
    def work_name(self) -> str:
        """Return the name of this kind of work, in metrics and in what is registered for it."""
        return str(self.__tablename__)

    @property
    def working(self) -> bool:
        """Return True if a process holds it: then `due_at` is the end of the lease, and no attempt is due."""
        return self.holder is not None and self.due_at is not None and self.due_at > now()

    @property
    def next_attempt_at(self) -> datetime | None:
        """Return the time of the next attempt. `due_at` alone would be too early for work that a person retried."""
        return None if self.due_at is None or self.working else max(self.due_at, self.since)

    def dead_letter(self, reason: str, owner: Any = None) -> "DeadLetter":
        """Return the dead letter of this work, for when it is buried. `owner` is what it belongs to, if that is known.

        Its subject names what a person knows: the upstream, and the repository.
        """
        raise NotImplementedError

    def failure_notices(self) -> list["Notice"]:
        """Return the notices to send if this work fails or is rejected."""
        return []


class Traced(SQLModel):
    """A column of work whose span continues the trace of whatever made it."""

    # a default of the column would be made in the thread that commits
    traceparent: str | None = Field(default_factory=current_traceparent, sa_column_kwargs={"default": None})


class StepKind(StrEnum):
    """A kind of a push's steps."""

    RESULTSET = "resultset"
    GRAPH = "graph"
    ANNOUNCEMENT = "announcement"


class PushStep(Work, Traced, table=True):
    """A step of a push: its resultset in one environment, its graph, or its announcement on Pulse."""

    __tablename__ = "push_step"
    __table_args__ = (
        UniqueConstraint("push_id", "kind", "environment"),
        *_work_indexes("push_step"),
        Index("ix_push_step_state", "state", "push_id"),
        Index("ix_push_step_since", "since"),
        _partial("ix_push_step_superseded_by", "superseded_by", where="superseded_by IS NOT NULL"),
    )

    push_id: int = Field(foreign_key="push.id")
    kind: StepKind = Field(sa_type=Text)
    environment: str = ""  # a resultset's route prefix
    plan_attempt: int = 0  # incremented when a refused plan is replaced
    refused: str | None = Field(default=None, sa_type=Text)  # why the plan was refused
    error_task: str | None = None
    error_task_refused: str | None = Field(default=None, sa_type=Text)  # what was left out, or why there is no task
    superseded_by: int | None = None  # of a graph: the id of the newer push for which what waited was cancelled

    letter_column: ClassVar[str | None] = "step_id"

    @property
    def work_name(self) -> str:
        return self.kind

    def dead_letter(self, reason: str, owner: tuple[Push, Repository] | None = None) -> "DeadLetter":
        upstream = self.lane.removeprefix(f"{self.kind} ")
        if owner is None:
            alias, _, person = self.share.partition("/")
            push = f"a push of {person} to {alias}"
        else:
            push = f"push {owner[0].push_id} of {owner[1].alias}"
        subject = f"{push}, {self.kind} ({upstream})"
        return DeadLetter(kind=self.kind, subject=subject, reason=reason, step_id=self.id)


class Source(StrEnum):
    """A way in which an action's request came in."""

    PULSE = "pulse"
    API = "api"
    SERVICE = "service"  # nobody's request: a setting of the repository


def action_lane(kind: str) -> str:
    """Return the lane of a kind of action. Each has its own slots, so that a cancel never waits for a retrigger."""
    return f"action {kind}"


FOLLOWED_TASKS = "action_task_seen_at IS NOT NULL"
"""Condition of actions whose action task has not ended."""

RECEIVED = "(state = 'pending' AND planned_at IS NULL)"
PLANNED = "(state = 'pending' AND planned_at IS NOT NULL)"
"""Conditions of pending actions: those that wait for their plan, and those that have one."""


IN_TREE = "in-tree"
"""The kind of work of all actions that trees offer: their names are strangers'."""


class Action(Work, Traced, table=True):
    """An action on a task or a push that a button in Treeherder or a call of our API requested, and its result."""

    __table_args__ = (
        *_work_indexes("action"),
        Index("ix_action_project", "project", "id"),
        Index("ix_action_task_id", "task_id", "id"),
        _partial("ix_action_push_id", "push_id", "id", where="push_id IS NOT NULL"),
        CheckConstraint("(task_id IS NULL) <> (push_id IS NULL)", name="ck_action_subject"),
        _of_those_with("action", "action_task"),
        _partial("ix_action_followed", "action_task_seen_at", where=FOLLOWED_TASKS),
        Index("ix_action_requester", "requester", "id"),
        Index("ix_action_state", "state", "id"),
        _partial("ix_action_received", "id", where=RECEIVED),
        _partial("ix_action_planned", "id", where=PLANNED),
        Index("ix_action_since", "since"),
    )

    key: str = Field(default_factory=lambda: str(uuid.uuid4()))  # the ids of its copies are derived from this
    kind: str  # the name of a registered action; or an unknown name, which is rejected
    project: str = Field(sa_type=Text)
    task_id: str | None = None  # what it is about: a task, or a push
    run_id: int | None = None
    push_id: int | None = None  # in the pushlog of the project
    generation: int | None = None  # of the push, if it was stored when the action was
    requester: str = Field(sa_type=Text)
    source: Source = Field(sa_type=Text)
    received_at: datetime = Field(default_factory=now, sa_type=Utc)
    planned_at: datetime | None = _utc()
    plan_attempt: int = 0  # incremented when a plan that created no task is replaced
    refused: str | None = Field(default=None, sa_type=Text)  # why the plan was refused
    input: Any = Field(default_factory=dict, sa_type=Json, nullable=False)  # by the schema of the kind of action
    cancels: list[dict[str, str]] = Field(default_factory=list, sa_type=Json)  # task_id, name; of many tasks at once
    left_out: list[dict[str, str]] = Field(default_factory=list, sa_type=Json)  # task_id, name, reason
    notes: list[str] = Field(default_factory=list, sa_type=Json)  # further remarks for people
    failure_jobs: list[dict[str, Any]] = Field(default_factory=list, sa_type=Json)  # the jobs that show a failure

    # of an action that the tree offers
    in_tree: bool = False
    decision_task: str | None = None
    hook: str | None = None  # <hookGroupId>/<hookId>
    triggered_at: datetime | None = _utc()  # stored before the hook is triggered, which is never done twice
    action_task: str | None = None  # the task that was created
    action_task_state: str | None = None  # as it was seen last
    action_task_seen_at: datetime | None = _utc()  # while it is followed: when it was seen last

    letter_column: ClassVar[str | None] = "action_id"

    @property
    def work_name(self) -> str:
        return IN_TREE if self.in_tree else self.kind

    @property
    def task(self) -> str:
        """Return the id of the task that it is about. Raises ValueError if it is about a push."""
        if self.task_id is None:
            raise ValueError(f"action {self.id} is about push {self.push_id}, not about a task")
        return self.task_id

    @property
    def subject(self) -> str:
        """Return what it is about, for people."""
        return self.task_id if self.task_id is not None else f"push {self.push_id}"

    def dead_letter(self, reason: str, owner: Any = None) -> "DeadLetter":
        subject = f"{self.kind} of {self.subject} in {self.project} (taskcluster)"
        return DeadLetter(kind="action", subject=subject, reason=reason, action_id=self.id)

    def failure_notices(self) -> list["Notice"]:
        """Return a job that shows the reason, for each push that the task's routes name."""
        return [
            Notice(
                kind=NoticeKind.JOB,
                lane=f"failure {job['environment']}",
                share=self.share,
                action_id=self.id or 0,
                target=job["environment"],
                key=job["project"],
                body=job["entry"],
            )
            for job in self.failure_jobs
        ]


UNSETTLED = "(redelivered OR NOT acknowledged OR NOT made_action)"
"""Condition of deliveries that can still change how many presses or actions there are; see `flow.actions.receive`."""

REDELIVERED_WITHIN = timedelta(days=2)
"""Time after a message within which the broker may redeliver it."""


class Delivery(SQLModel, table=True):
    """A delivery that has a key for deduplication: the press of a button, or a call with an Idempotency-Key.

    A further delivery with the key is answered `duplicate`.
    """

    __table_args__ = (
        _partial("ix_delivery_unsettled", "digest", "at", where=UNSETTLED),
        Index("ix_delivery_action_id", "action_id", "at"),
        _partial("ix_delivery_of_none", "at", where="action_id IS NULL"),
    )

    key: str = Field(primary_key=True)
    digest: str | None = None  # of the content that equal presses share; of the body with an Idempotency-Key
    at: datetime = Field(default_factory=now, sa_type=Utc)
    action_id: int | None = Field(default=None, foreign_key="action.id")  # the action that lists it
    made_action: bool = True  # False: the action was made for another delivery, maybe of the same press
    channel: str = ""  # the AMQP channel that delivered it
    redelivered: bool = False
    stamp: float = 0  # when the listener read it, by its clock
    acknowledged: bool = False  # the broker has the acknowledgement, and will not redeliver it


class NoticeKind(StrEnum):
    """A way in which a notice is sent."""

    PULSE = "pulse"
    JOB = "job"


class Notice(Work, Traced, table=True):
    """A notice to other systems that an action or a step has ended. As work of its own, it blocks nothing."""

    __table_args__ = (
        *_work_indexes("notice"),
        CheckConstraint("(step_id IS NULL) <> (action_id IS NULL)", name="ck_notice_owner"),
    )

    kind: NoticeKind = Field(sa_type=Text)
    action_id: int | None = Field(default=None, foreign_key="action.id", index=True)
    step_id: int | None = Field(default=None, foreign_key="push_step.id", index=True)
    target: str  # one of our exchanges, or a Treeherder's route prefix
    key: str = Field(sa_type=Text)  # the routing key, or the project
    body: dict[str, Any] = Field(sa_type=Json)

    letter_column: ClassVar[str | None] = "notice_id"

    def dead_letter(self, reason: str, owner: Any = None) -> "DeadLetter":
        about = "a failed push" if self.action_id is None else f"action {self.action_id}"
        alias = self.key if self.kind == NoticeKind.JOB else self.share.partition("/")[0]
        subject = f"{about} in {alias}, told to {self.target}"
        return DeadLetter(kind="notice", subject=subject, reason=reason, notice_id=self.id)


UNCREATED, WITH_BODY = "NOT created AND label <> 'error'", "definition IS NOT NULL"
OF_STEP, OF_ACTION = " AND step_id IS NOT NULL", " AND action_id IS NOT NULL"


class PlannedTask(SQLModel, table=True):
    """A task of a plan, with its exact definition, which is stored before the first `createTask`."""

    __tablename__ = "planned_task"
    __table_args__ = (
        CheckConstraint("(step_id IS NULL) <> (action_id IS NULL)", name="ck_planned_task_owner"),
        _partial("ix_planned_task_step_id", "step_id", "plan_attempt", "position", where="step_id IS NOT NULL"),
        _partial("ix_planned_task_action_id", "action_id", "plan_attempt", "position", where="action_id IS NOT NULL"),
        _partial("ix_planned_task_copy_of", "copy_of", "action_id", where="copy_of IS NOT NULL"),
        # tasks that are not created yet, so that no query counts ten thousand that are
        _partial("ix_planned_task_step_uncreated", "step_id", "plan_attempt", where=UNCREATED + OF_STEP),
        _partial("ix_planned_task_action_uncreated", "action_id", "plan_attempt", where=UNCREATED + OF_ACTION),
        # tasks whose definitions are still stored
        _partial("ix_planned_task_step_body", "step_id", where=WITH_BODY + OF_STEP),
        _partial("ix_planned_task_action_body", "action_id", where=WITH_BODY + OF_ACTION),
    )

    task_id: str = Field(primary_key=True)
    step_id: int | None = Field(default=None, foreign_key="push_step.id")
    action_id: int | None = Field(default=None, foreign_key="action.id")
    copy_of: str | None = None  # the task that this is a copy of
    plan_attempt: int = 0
    position: int  # in dependency order
    label: str = Field(sa_type=Text)  # what the id is derived from: "task", "error" or "copy"
    name: str = Field(sa_type=Text)
    definition: dict[str, Any] | None = Field(sa_type=Json)
    created: bool = False  # it exists in Taskcluster, created by this plan or adopted
    adopted: bool = False  # it existed before this plan could create it; abandoning the plan does not cancel it


class Stage(IntEnum):
    """A stage of a run's progress. A run never goes back, so an event with a lower stage is late."""

    UNSCHEDULED = 0  # the task is defined, and its run 0 does not exist yet
    PENDING = 1
    RUNNING = 2
    RESOLVED = 3
    FOLLOWED = 4  # resolved, and another run came after it


OPEN = "(stage < 3 AND state IN ('pending', 'done'))"
"""Condition of reports of unfinished runs that are not failed or skipped."""
FAILED_REPORTS = "state IN ('failed', 'skipped')"
"""Condition of reports for which the API's list has an index: there are few of them, and they are not due."""


NEVER = datetime(2000, 1, 1, tzinfo=UTC)
"""`last_event_at` of a run that is to be asked after at once."""


def job_lane(environment: str, project: str) -> str:
    """Return the lane of a project's jobs for one Treeherder, which takes turns with the lanes of other projects."""
    return f"job {environment} {project}"


class JobReport(Work, table=True):
    """A report of a task's run to one environment: the newest known state, and the state that was delivered.

    Every event with new information increments `version`. A delivery finishes the row only if the version is still the
    one that was claimed, otherwise the row stays due.
    """

    __tablename__ = "job_report"
    __table_args__ = (
        UniqueConstraint("task_id", "run_id", "environment"),
        *_work_indexes("job_report"),
        _partial("ix_job_report_open", "last_event_at", where=OPEN),
        _partial("ix_job_report_failed", "state", "id", where=FAILED_REPORTS),
        _partial("ix_job_report_no_push", "state", "id", where="no_push_since IS NOT NULL"),
        _partial("ix_job_report_waiting", "state", "id", where="due_at IS NOT NULL"),
    )

    task_id: str
    run_id: int
    environment: str
    project: str = Field(sa_type=Text)
    revision: str | None = None  # of a v2 route
    revision_hash: str | None = None  # of a v1 route
    task_group_id: str
    stage: Stage = Field(sa_type=Integer)
    run: dict[str, Any] = Field(sa_type=Json)  # further facts about the run, see flow.jobs.events
    version: int = 0
    delivered: int | None = None  # the stage that was last delivered to Treeherder
    last_event_at: datetime = Field(default_factory=now, sa_type=Utc)  # or the time of the last look-up in the queue
    no_push_since: datetime | None = _utc()  # since then, Treeherder has answered that it has no such push

    letter_column: ClassVar[str | None] = "report_id"

    lock_order: ClassVar[tuple[str, ...]] = ("task_id", "run_id", "environment")
    """The order in which events are stored."""

    def dead_letter(self, reason: str, owner: Any = None) -> "DeadLetter":
        subject = f"run {self.run_id} of {self.task_id} in {self.project}, for {self.environment}"
        return DeadLetter(kind="job-report", subject=subject, reason=reason, report_id=self.id)


class GroupCheck(Work, table=True):
    """A task group that will be listed once, because messages about it may have been lost."""

    __tablename__ = "group_check"
    __table_args__ = (
        *_work_indexes("group_check"),
        _partial("ix_group_check_waiting", "task_group_id", where="due_at IS NOT NULL"),
    )

    task_group_id: str

    def dead_letter(self, reason: str, owner: Any = None) -> "DeadLetter":
        subject = f"task group {self.task_group_id} (taskcluster)"
        return DeadLetter(kind="group-check", subject=subject, reason=reason, payload=self.task_group_id.encode())


def work_tables() -> list[type[Work]]:
    """Return all tables of leased work."""
    return Work.__subclasses__()


class DeadLetter(SQLModel, table=True):
    """A dead letter: an invalid event, or work that ran out of retries. A person replays or drops it."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        *(_of_those_with("dead_letter", column) for column in ("step_id", "action_id", "notice_id", "report_id")),
        Index("ix_dead_letter_kind", "kind", "id"),
        Index("ix_dead_letter_since", "since"),
    )

    id: int | None = Field(default=None, primary_key=True)
    kind: str  # push-event, job-action, task-event; resultset, graph, announcement, action, notice, job-report, ...
    subject: str = Field(sa_type=Text)  # a description for people
    reason: str = Field(sa_type=Text)
    payload: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # the event's bytes, or a group's id
    step_id: int | None = Field(default=None, foreign_key="push_step.id")
    action_id: int | None = Field(default=None, foreign_key="action.id")
    notice_id: int | None = Field(default=None, foreign_key="notice.id")
    report_id: int | None = Field(default=None, foreign_key="job_report.id")
    since: datetime = Field(default_factory=now, sa_type=Utc)
    digest: str | None = Field(default=None, unique=True)  # of an event, so that it is stored once


class Origin(StrEnum):
    """A way in which a person or a program asked for a change."""

    API = "api"
    PAGE = "page"
    PULSE = "pulse"  # a button in Treeherder


class AuditEvent(StrEnum):
    """The changes that are recorded."""

    REPOSITORY_ADDED = "repository-added"
    REPOSITORY_CHANGED = "repository-changed"
    REPOSITORY_DELETED = "repository-deleted"
    REPOSITORY_RESET = "repository-reset"
    REPOSITORY_POLLED = "repository-polled"
    ACTION_ASKED = "action-asked"
    PUSH_RETRIED = "push-retried"
    DEAD_LETTER_REPLAYED = "dead-letter-replayed"
    DEAD_LETTER_DROPPED = "dead-letter-dropped"
    WAITING_TRIED = "waiting-tried"
    SIGNED_IN = "signed-in"


class AuditEntry(SQLModel, table=True):
    """An entry of the audit: who changed what. It is stored in the transaction of the change."""

    __tablename__ = "audit_entry"
    __table_args__ = (
        # of the API's list: its filters and their order
        Index("ix_audit_entry_event", "event", "id"),
        Index("ix_audit_entry_caller", "caller", "id"),
        Index("ix_audit_entry_repository", "repository", "id"),
        Index("ix_audit_entry_at", "at"),
    )

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(default_factory=now, sa_type=Utc)
    event: str = Field(sa_type=Text)
    caller: str = Field(sa_type=Text)  # name of the token, or clientId; who pressed a button, as Treeherder says
    taskcluster: bool = False  # `caller` is a clientId
    origin: Origin = Field(sa_type=Text)
    repository: str | None = Field(default=None, sa_type=Text)  # its alias then
    subject: str | None = Field(default=None, sa_type=Text)  # a description for people
    details: dict[str, Any] = Field(default_factory=dict, sa_type=Json)


class PulseQueue(SQLModel, table=True):
    """A Pulse queue that listeners read."""

    __tablename__ = "pulse_queue"

    name: str = Field(primary_key=True)
    events: str  # job-actions, tasks, pushes
    declared_at: datetime = Field(default_factory=now, sa_type=Utc)
    seen_at: datetime = Field(default_factory=now, sa_type=Utc)  # when a listener last reported that it reads it
    deleted_at: datetime | None = _utc()  # when a listener last found that it was deleted
    messages_lost_since: datetime | None = _utc()  # messages sent from then until `deleted_at` are lost
    deletions: int = 0


class Budget(SQLModel, table=True):
    """A token bucket of requests to a host, or with a credential. All replicas share it."""

    name: str = Field(primary_key=True)
    tokens: float
    at: datetime = Field(sa_type=Utc)
    blocked_until: datetime | None = _utc()


class RateGrant(SQLModel, table=True):
    """A rate of requests to a host that was granted to a listener until its shift ends."""

    __tablename__ = "rate_grant"

    listener: str = Field(primary_key=True)
    host: str = Field(primary_key=True)
    answer: int  # the number of the answer that granted it
    rate: float  # requests a second
    counted: float  # what is reserved for it: the previous rate, until the listener has the answer that lowered it
    ends_at: datetime = Field(sa_type=Utc)


class Secret(SQLModel, table=True):
    """A secret key that this deployment generated once."""

    name: str = Field(primary_key=True)
    value: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    __str__ = __repr__
    __repr_args__ = None  # type: ignore[assignment]  # pydantic's repr would print the value
