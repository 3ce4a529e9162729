"""A task event becomes job reports: what is known of each run, for each Treeherder that the task's routes name.

Every message of the queue carries the status of the whole task, so each run of it is noted, whichever message comes
first or last, or never. A run only ever goes forward (`Stage`), so a later stage replaces an earlier one that waits,
and what comes late is dropped. Nobody is called here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Json
from pydantic_core import to_json
from sqlalchemy import JSON, Integer, Table, Text, bindparam, case, cast, column, func, literal, null, select, true

from service.clock import now
from service.contract.events import PulseMessage, Verdict
from service.flow.tasks.definition import SlugId
from service.flow.tasks.routes import parse_route
from service.settings import Settings
from service.store.database import INSERT, Session, Utc
from service.store.models import NOBODY, JobReport, Stage, State, job_lane

log = structlog.get_logger()

_ROUTE = "route."
_WORD = r"^[!-~]*$"  # no NUL and nothing else that a database refuses; the queue's own words are narrower

Word = Annotated[str, Field(max_length=200, pattern=_WORD)]


class Row(NamedTuple):
    """What is to be noted of a run; the first three are the key."""

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
    refused: str | None  # why it is skipped


class _Queue(BaseModel):
    # ignore: the queue adds fields now and then, and may add reasons
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Run(_Queue):
    """A run as `task-status.json` has it."""

    runId: int = Field(ge=0, le=1000)  # noqa: N815 - the queue's names
    state: Literal["pending", "running", "completed", "failed", "exception"]
    reasonCreated: Word  # noqa: N815 - likewise
    reasonResolved: Word | None = None  # noqa: N815 - likewise
    scheduled: AwareDatetime | None = None
    started: AwareDatetime | None = None
    resolved: AwareDatetime | None = None
    workerId: Word | None = None  # noqa: N815 - likewise


class TaskStatus(_Queue):
    """A task's status, of which we need only so much."""

    taskId: SlugId  # noqa: N815 - likewise
    taskGroupId: SlugId  # noqa: N815 - likewise
    deadline: AwareDatetime
    state: Literal["unscheduled", "pending", "running", "completed", "failed", "exception"]
    runs: list[Run] = Field(max_length=1001)


class TaskMessage(_Queue):
    """What all messages of `task-*` exchanges have; the run that a message is about is one of the status's."""

    status: TaskStatus


class TaskEvent(PulseMessage):
    """A message of a `task-*` exchange as a listener forwards it, together with what its body says."""

    body: Json[TaskMessage]  # type: ignore[assignment]  # of the text, what it says
    encoding: Literal["utf-8"] = "utf-8"  # other bytes are no JSON of the queue's


@dataclass(frozen=True)
class Target:
    """Where the routes of one prefix send a task's jobs. `refused` says why they cannot go there."""

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
        """A push stands for its pusher."""
        return self.revision or self.revision_hash or NOBODY


def targets(settings: Settings, routes: Iterable[str]) -> list[Target]:
    """Return where the task with these routes is to be shown; a Treeherder that takes no jobs from us is left out."""
    routes = list(routes)
    found = []
    for prefix, environment in settings.environments.items():
        if environment.jobs != "off":
            start = f"{prefix}."
            if ours := tuple([route for route in routes if route.startswith(start)]):
                found.append(_target(prefix, ours))
    return found


@lru_cache(maxsize=1_000)  # all tasks of a push have the same
def _target(prefix: str, ours: tuple[str, ...]) -> Target:
    """Return where the routes of this prefix lead."""
    said = {found for route in ours if (found := parse_route(prefix, route))}
    if not said:
        wanted = f"{prefix}.<project>.<revision_hash> or {prefix}.v2.<project>.<revision>"
        return Target(prefix, refused=f"the route {ours[0]} is not of the form {wanted}")
    projects = {route.project for route in said}
    revisions = {route.revision for route in said if route.revision}
    hashes = {route.revision_hash for route in said if route.revision_hash}
    if max(len(projects), len(revisions), len(hashes)) > 1:
        return Target(prefix, min(projects), refused=f"its routes disagree: {', '.join(sorted(ours))}")
    return Target(prefix, projects.pop(), next(iter(revisions), None), next(iter(hashes), None))


def rows_of(status: TaskStatus, wanted: Iterable[Target]) -> list[Row]:
    """Return a row for each run of the task and each target."""
    runs = _runs(status)
    return [
        Row(
            status.taskId, run_id, target.environment, int(stage), target.project, target.revision,
            target.revision_hash, status.taskGroupId, run, target.lane, target.share, target.refused,
        )
        for target in wanted
        for run_id, stage, run in runs
    ]  # fmt: skip


def _runs(status: TaskStatus) -> list[tuple[int, Stage, dict[str, Any]]]:
    if not status.runs:
        if status.state == "exception":  # its deadline passed before it ever ran
            ended = {"state": "exception", "reason": "deadline-exceeded", "resolved": _epoch(status.deadline)}
            return [(0, Stage.RESOLVED, ended)]
        return [(0, Stage.UNSCHEDULED, {})]
    last = max(run.runId for run in status.runs)
    return [(run.runId, _stage(run, last), _known(run, status)) for run in status.runs]


def _stage(run: Run, last: int) -> Stage:
    if run.runId < last:
        return Stage.FOLLOWED
    return _STAGES.get(run.state, Stage.RESOLVED)


_STAGES = {"pending": Stage.PENDING, "running": Stage.RUNNING}


def _known(run: Run, status: TaskStatus) -> dict[str, Any]:
    """What the row keeps of a run; times in seconds since 1970."""
    known: dict[str, Any] = {"state": run.state}
    if run.reasonResolved:
        known["reason"] = run.reasonResolved
    if run.workerId:
        known["worker"] = run.workerId
    if run.scheduled:
        known["scheduled"] = _epoch(run.scheduled)
    if run.started:
        known["started"] = _epoch(run.started)
    if run.resolved:
        known["resolved"] = _epoch(run.resolved)
    elif run.state not in _STAGES:
        known["resolved"] = _epoch(status.deadline)
    return known


def _epoch(time: datetime) -> int:
    return int(time.timestamp())


async def upsert(session: Session, rows: Iterable[Row], at: datetime) -> None:
    """Note what was heard at a time: one statement with the rows in it as JSON, for a parameter for each value costs
    several times as much. They are sorted, each key once, so that batches at the same time cannot deadlock."""
    newest: dict[tuple[str, int, str], Row] = {}
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
    await connection.execute(_UPSERT[connection.dialect.name], values)


def _upsert(insert: Any, given: Any) -> Any:
    """Return the statement; `given` are the rows, with the fields of `Row` as columns."""
    table: Table = JobReport.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
    at, skipped = bindparam("at", type_=Utc), given.refused.is_not(None)
    values = {
        **{name: given[name] for name in Row._fields if name != "refused"},
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
    statement = insert(table).from_select(list(values), read, include_defaults=False)
    new, old = statement.excluded, table.c
    idle = old.due_at.is_(None)
    return statement.on_conflict_do_update(
        index_elements=["task_id", "run_id", "environment"],
        set_={
            "stage": new.stage,
            "run": new.run,
            "last_event_at": new.last_event_at,
            "version": old.version + 1,
            # due or leased: whoever holds it finds the new version, and a pause after a failure goes on
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
    """Return the rows of a list of lists."""
    row = func.json_each(bindparam("rows")).table_valued("value").c.value
    fields = [func.json_extract(row, f"$[{number}]").label(name) for number, name in enumerate(Row._fields)]
    return select(*fields).subquery("given").c


def _of_postgresql() -> Any:
    """Return the rows of a list of objects."""
    types = {"run_id": Integer, "stage": Integer, "run": JSON}
    columns: list[Any] = [column(name, types.get(name, Text)) for name in Row._fields]
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
    return rows.table_valued(*columns, name="given").render_derived(with_types=True).c


_UPSERT: Mapping[str, Any] = {
    "sqlite": _upsert(INSERT["sqlite"], _of_sqlite()),
    "postgresql": _upsert(INSERT["postgresql"], _of_postgresql()),
}


_ACCEPTED = Verdict(verdict="accepted")


def judge(settings: Settings, event: TaskEvent) -> tuple[Verdict, list[Row]]:
    """Return the verdict on a message, and what is to be noted."""
    wanted = targets(settings, (key[len(_ROUTE) :] for key in event.cc if key.startswith(_ROUTE)))
    if not wanted:
        return Verdict(verdict="rejected", reason="no route of a Treeherder that takes jobs from us"), []
    return _ACCEPTED, rows_of(event.body.status, wanted)


async def note(session: Session, statuses: Iterable[tuple[TaskStatus, Iterable[Target]]]) -> None:
    """Note statuses that were asked for, as if messages had told of them."""
    await upsert(session, [row for status, wanted in statuses for row in rows_of(status, wanted)], now())
