"""Store task events as job reports: the newest state of each run, for each Treeherder that the task's routes name.

Every message of the queue has the status of the whole task, so all of its runs are recorded, whichever message comes
first, last or never. A run only goes forward (`Stage`): a later stage replaces an earlier one that waits, and an
earlier one that comes late is dropped. No upstream is called here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property, lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Json
from pydantic.alias_generators import to_camel
from pydantic_core import to_json
from sqlalchemy import JSON, Integer, Table, Text, bindparam, case, cast, column, func, literal, null, select, true

from service.clock import now
from service.contract.events import PulseMessage, Verdict
from service.contract.validation import named_pattern
from service.flow.tasks.definition import SlugId
from service.flow.tasks.routes import parse_route
from service.settings import Settings
from service.store.database import Session, Utc, insert_of
from service.store.models import NOBODY, JobReport, Stage, State, job_lane

log = structlog.get_logger()

_ROUTE = "route."
# no NUL or anything else that a database refuses; the queue uses fewer characters
_WORD = named_pattern(r"^[!-~]*$", "word (printable ASCII characters, no space)")

Word = Annotated[str, Field(max_length=200, pattern=_WORD)]


class ReportRow(NamedTuple):
    """The values to record of a run for one Treeherder; the first three fields are the key."""

    task_id: str
    run_id: int
    environment: str
    stage: int
    project: str
    revision: str | None
    revision_hash: str | None
    task_group_id: str
    run: dict[str, Any]
    lane: str
    share: str
    refused: str | None  # the reason why it is skipped


class _Queue(BaseModel):
    # ignore, because the queue adds fields now and then
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, alias_generator=to_camel)


class TaskRun(_Queue):
    """A run as `task-status.json` has it."""

    run_id: int = Field(ge=0, le=1000)
    state: Literal["pending", "running", "completed", "failed", "exception"]
    reason_created: Word
    reason_resolved: Word | None = None
    scheduled: AwareDatetime | None = None
    started: AwareDatetime | None = None
    resolved: AwareDatetime | None = None
    worker_id: Word | None = None


class TaskStatus(_Queue):
    """The part of a task's status that is used here."""

    task_id: SlugId
    task_group_id: SlugId
    deadline: AwareDatetime
    state: Literal["unscheduled", "pending", "running", "completed", "failed", "exception"]
    runs: list[TaskRun] = Field(max_length=1001)


class TaskMessage(_Queue):
    """The part that the messages of all `task-*` exchanges share. The status has the run that the message is about."""

    status: TaskStatus


class TaskEvent(PulseMessage):
    """A message of a `task-*` exchange as a listener forwards it, with its parsed body."""

    body: Json[TaskMessage]  # type: ignore[assignment]  # the text, parsed
    encoding: Literal["utf-8"] = "utf-8"  # other bytes are not JSON of the queue


@dataclass(frozen=True)
class Target:
    """The push to which the routes of one prefix send a task's jobs; `refused` says why they cannot go there."""

    environment: str
    project: str = ""
    revision: str | None = None
    revision_hash: str | None = None
    refused: str | None = None

    @cached_property
    def lane(self) -> str:
        return job_lane(self.environment, self.project)

    @property
    def share(self) -> str:
        """Return the share of the jobs: a push stands for its pusher."""
        return self.revision or self.revision_hash or NOBODY


def find_targets(settings: Settings, routes: Iterable[str]) -> list[Target]:
    """Return the targets of a task with these routes; a Treeherder that takes no jobs from this service is left out."""
    routes = list(routes)
    targets = []
    for prefix, environment in settings.environments.items():
        if environment.jobs != "off":
            start = f"{prefix}."
            if matching := tuple([route for route in routes if route.startswith(start)]):
                targets.append(_target(prefix, matching))
    return targets


@lru_cache(maxsize=1_000)  # all tasks of a push have the same routes
def _target(prefix: str, texts: tuple[str, ...]) -> Target:
    """Return the target of all routes of this prefix."""
    routes = {route for text in texts if (route := parse_route(prefix, text))}
    if not routes:
        form = f"{prefix}.<project>.<revision_hash> or {prefix}.v2.<project>.<revision>"
        return Target(prefix, refused=f"the route {texts[0]} is not of the form {form}")
    projects = {route.project for route in routes}
    revisions = {route.revision for route in routes if route.revision}
    hashes = {route.revision_hash for route in routes if route.revision_hash}
    if max(len(projects), len(revisions), len(hashes)) > 1:
        return Target(prefix, min(projects), refused=f"its routes disagree: {', '.join(sorted(texts))}")
    return Target(prefix, projects.pop(), next(iter(revisions), None), next(iter(hashes), None))


def build_rows(status: TaskStatus, targets: Iterable[Target]) -> list[ReportRow]:
    """Return a row for each run of the task and each target."""
    runs = _runs(status)
    return [
        ReportRow(
            status.task_id, run_id, target.environment, int(stage), target.project, target.revision,
            target.revision_hash, status.task_group_id, run, target.lane, target.share, target.refused,
        )
        for target in targets
        for run_id, stage, run in runs
    ]  # fmt: skip


def _runs(status: TaskStatus) -> list[tuple[int, Stage, dict[str, Any]]]:
    if not status.runs:
        if status.state == "exception":  # its deadline passed before it ever ran
            ended = {"state": "exception", "reason": "deadline-exceeded", "resolved": _epoch(status.deadline)}
            return [(0, Stage.RESOLVED, ended)]
        return [(0, Stage.UNSCHEDULED, {})]
    last = max(run.run_id for run in status.runs)
    return [(run.run_id, _stage(run, last), _run_values(run, status)) for run in status.runs]


def _stage(run: TaskRun, last: int) -> Stage:
    if run.run_id < last:
        return Stage.FOLLOWED
    return _STAGES.get(run.state, Stage.RESOLVED)


_STAGES = {"pending": Stage.PENDING, "running": Stage.RUNNING}


def _run_values(run: TaskRun, status: TaskStatus) -> dict[str, Any]:
    """Return the values of a run that its row keeps; times in seconds since 1970."""
    values: dict[str, Any] = {"state": run.state}
    if run.reason_resolved:
        values["reason"] = run.reason_resolved
    if run.worker_id:
        values["worker"] = run.worker_id
    if run.scheduled:
        values["scheduled"] = _epoch(run.scheduled)
    if run.started:
        values["started"] = _epoch(run.started)
    if run.resolved:
        values["resolved"] = _epoch(run.resolved)
    elif run.state not in _STAGES:
        values["resolved"] = _epoch(status.deadline)
    return values


def _epoch(time: datetime) -> int:
    return int(time.timestamp())


async def upsert(session: Session, rows: Iterable[ReportRow], at: datetime) -> None:
    """Record rows that were seen at this time, in one statement that takes them as JSON.

    A parameter for each value would cost several times as much. The rows are sorted and have each key once, so that
    concurrent batches cannot deadlock.
    """
    newest: dict[tuple[str, int, str], ReportRow] = {}
    for row in rows:
        key = row[:3]
        if key not in newest or newest[key].stage < row.stage:
            newest[key] = row
    if not newest:
        return
    connection = await session.connection()
    by_name = connection.dialect.name == "postgresql"
    in_order: list[Any] = [newest[key]._asdict() if by_name else newest[key] for key in sorted(newest)]
    values = {"rows": to_json(in_order).decode(), "at": at}
    await connection.execute(_upsert(connection.dialect.name), values)


@cache
def _upsert(dialect: str) -> Any:
    """Return the statement of a dialect that records rows of JSON."""
    given = _of_postgresql() if dialect == "postgresql" else _of_sqlite()
    table: Table = JobReport.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
    at, skipped = bindparam("at", type_=Utc), given.refused.is_not(None)
    values = {
        **{name: given[name] for name in ReportRow._fields if name != "refused"},
        "version": literal(1),
        "last_event_at": at,
        "state": case((skipped, State.SKIPPED), else_=State.PENDING),
        "error": given.refused,
        "due_at": case((skipped, null()), else_=at),
        "done_at": case((skipped, at), else_=null()),
        "since": at,
        "fencing_token": literal(0),
        "attempts": literal(0),
    }
    # SQLite needs a condition, or takes ON CONFLICT for one of a join
    read = select(*(value.label(name) for name, value in values.items())).where(true())
    statement = insert_of(dialect)(table).from_select(list(values), read, include_defaults=False)
    new, old = statement.excluded, table.c
    idle = old.due_at.is_(None)
    return statement.on_conflict_do_update(
        index_elements=["task_id", "run_id", "environment"],
        set_={
            "stage": new.stage,
            "run": new.run,
            "last_event_at": new.last_event_at,
            "version": old.version + 1,
            # if it is due or leased, its holder sees the new version, and a backoff continues
            "due_at": case((idle, new.due_at), else_=old.due_at),
            "since": case((idle, new.since), else_=old.since),
            "attempts": case((idle, 0), else_=old.attempts),
            "error": case((idle, None), else_=old.error),
            "state": State.PENDING,
            "done_at": None,
        },
        where=(new.stage > old.stage)
        & (old.state != State.SKIPPED)
        # Treeherder never changes a completed job
        & (old.delivered.is_(None) | (old.delivered < Stage.RESOLVED)),
    )


def _of_sqlite() -> Any:
    """Return the columns of rows that are given as a list of lists."""
    row = func.json_each(bindparam("rows")).table_valued("value").c.value
    fields = [func.json_extract(row, f"$[{number}]").label(name) for number, name in enumerate(ReportRow._fields)]
    return select(*fields).subquery("given").c


def _of_postgresql() -> Any:
    """Return the columns of rows that are given as a list of objects."""
    types = {"run_id": Integer, "stage": Integer, "run": JSON}
    columns: list[Any] = [column(name, types.get(name, Text)) for name in ReportRow._fields]
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
    return rows.table_valued(*columns, name="given").render_derived(with_types=True).c


_ACCEPTED = Verdict(verdict="accepted")


def judge_event(settings: Settings, event: TaskEvent) -> tuple[Verdict, list[ReportRow]]:
    """Return the verdict on a message, and the rows to record."""
    targets = find_targets(settings, (key[len(_ROUTE) :] for key in event.cc if key.startswith(_ROUTE)))
    if not targets:
        return Verdict(verdict="rejected", reason="no route names a Treeherder that takes jobs from this service"), []
    return _ACCEPTED, build_rows(event.body.status, targets)


async def record_seen(session: Session, statuses: Iterable[tuple[TaskStatus, Iterable[Target]]]) -> None:
    """Record statuses that were looked up, as if they had come in events."""
    await upsert(session, [row for status, targets in statuses for row in build_rows(status, targets)], now())
