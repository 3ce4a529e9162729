"""A task event becomes job reports: what is known of each run, for each Treeherder that the task's routes name.

Every message of the queue carries the status of the whole task, so each run of it is noted, whichever message comes
first or last, or never. A run only ever goes forward (`Stage`), so a later stage replaces an earlier one that waits,
and what comes late is dropped. Nobody is called here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Table, case
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from events import PulseMessage, Verdict
from service.database import Session, now
from service.flow.definition import SlugId
from service.flow.routes import parse
from service.models import NOBODY, JobReport, Stage, State
from service.settings import Settings

log = structlog.get_logger()

NEVER = datetime(2000, 1, 1, tzinfo=UTC)
"""When a run was heard of that is to be asked after at once."""

_ROUTE = "route."
_WORD = r"^[!-~]*$"  # no NUL and nothing else that a database refuses; the queue's own words are narrower

Word = Annotated[str, Field(max_length=200, pattern=_WORD)]
Row = dict[str, Any]


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


@dataclass(frozen=True)
class Target:
    """Where the routes of one prefix send a task's jobs. `refused` says why they cannot go there."""

    environment: str
    project: str = ""
    revision: str | None = None
    revision_hash: str | None = None
    refused: str | None = None

    @property
    def lane(self) -> str:
        return lane(self.environment, self.project)


def lane(environment: str, project: str) -> str:
    """Jobs of one project for one Treeherder take turns with those of others."""
    return f"job {environment} {project}"


def understood(event: PulseMessage) -> TaskStatus:
    """The status in a message. Raises ValueError: not understood."""
    if event.encoding != "utf-8":
        raise ValueError("the body is not UTF-8, so it is no JSON of the queue's")
    return TaskMessage.model_validate_json(event.body).status


def targets(settings: Settings, routes: Iterable[str]) -> list[Target]:
    """Where the task with these routes is to be shown; a Treeherder that takes no jobs from us is left out."""
    routes = list(routes)
    prefixes = (prefix for prefix, environment in settings.environments.items() if environment.jobs != "off")
    return [found for prefix in prefixes if (found := _target(prefix, routes))]


def _target(prefix: str, routes: list[str]) -> Target | None:
    ours = [route for route in routes if route.startswith(f"{prefix}.")]
    if not ours:
        return None
    said = {found for route in ours if (found := parse(prefix, route))}
    if not said:
        wanted = f"{prefix}.<project>.<revision_hash> or {prefix}.v2.<project>.<revision>"
        return Target(prefix, refused=f"the route {ours[0]} is not of the form {wanted}")
    projects = {route.project for route in said}
    revisions = {route.revision for route in said if route.revision}
    hashes = {route.revision_hash for route in said if route.revision_hash}
    if max(len(projects), len(revisions), len(hashes)) > 1:
        return Target(prefix, min(projects), refused=f"its routes disagree: {', '.join(sorted(ours))}")
    return Target(prefix, projects.pop(), next(iter(revisions), None), next(iter(hashes), None))


def rows_of(status: TaskStatus, wanted: Iterable[Target], at: datetime) -> list[Row]:
    """A row for each run of the task and each target."""
    runs = _runs(status)
    return [_row(status, run_id, stage, run, target, at) for target in wanted for run_id, stage, run in runs]


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
    return {"pending": Stage.PENDING, "running": Stage.RUNNING}.get(run.state, Stage.RESOLVED)


def _known(run: Run, status: TaskStatus) -> dict[str, Any]:
    """What the row keeps of a run; times in seconds since 1970."""
    known: dict[str, Any] = {"state": run.state}
    if run.reasonResolved:
        known["reason"] = run.reasonResolved
    if run.workerId:
        known["worker"] = run.workerId
    for name in ("scheduled", "started", "resolved"):
        if time := getattr(run, name):
            known[name] = _epoch(time)
    if run.state not in {"pending", "running"}:
        known.setdefault("resolved", _epoch(status.deadline))
    return known


def _epoch(time: datetime) -> int:
    return int(time.timestamp())


def _row(status: TaskStatus, run_id: int, stage: Stage, run: dict[str, Any], target: Target, at: datetime) -> Row:
    skipped = target.refused is not None
    return {
        "task_id": status.taskId,
        "run_id": run_id,
        "environment": target.environment,
        "project": target.project,
        "revision": target.revision,
        "revision_hash": target.revision_hash,
        "task_group_id": status.taskGroupId,
        "stage": int(stage),
        "run": run,
        "version": 1,
        "heard_at": at,
        "lane": target.lane,
        "share": target.revision or target.revision_hash or NOBODY,  # a push stands for its pusher
        "state": State.SKIPPED if skipped else State.PENDING,
        "error": target.refused,
        "due_at": None if skipped else at,
        "done_at": at if skipped else None,
        "since": at,
        "lease": 0,
        "attempts": 0,
    }


def _key(row: Row) -> tuple[str, int, str]:
    return row["task_id"], row["run_id"], row["environment"]


async def upsert(session: Session, rows: Iterable[Row]) -> None:
    """Note what is new: one statement, sorted, each key once, so that batches at the same time cannot deadlock."""
    newest: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        key = _key(row)
        if key not in newest or newest[key]["stage"] < row["stage"]:
            newest[key] = row
    if not newest:
        return
    connection = await session.connection()
    await connection.execute(_UPSERT[connection.dialect.name], [newest[key] for key in sorted(newest)])


def _upsert(insert: Any) -> Any:
    table: Table = JobReport.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
    statement = insert(table)
    new, old = statement.excluded, table.c
    idle = old.due_at.is_(None)
    return statement.on_conflict_do_update(
        index_elements=["task_id", "run_id", "environment"],
        set_={
            "stage": new.stage,
            "run": new.run,
            "heard_at": new.heard_at,
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


_UPSERT: Mapping[str, Any] = {"sqlite": _upsert(sqlite_insert), "postgresql": _upsert(postgresql_insert)}


def judge(settings: Settings, event: PulseMessage, at: datetime) -> tuple[Verdict, list[Row]]:
    """The verdict on a message, and what is to be noted. Raises ValueError: not understood."""
    status = understood(event)
    wanted = targets(settings, (key[len(_ROUTE) :] for key in event.cc if key.startswith(_ROUTE)))
    if not wanted:
        return Verdict(verdict="rejected", reason="no route of a Treeherder that takes jobs from us"), []
    return Verdict(verdict="accepted"), rows_of(status, wanted, at)


async def note(session: Session, statuses: Iterable[tuple[TaskStatus, Iterable[Target]]]) -> None:
    """Note statuses that were asked for, as if messages had told of them."""
    at = now()
    await upsert(session, [row for status, wanted in statuses for row in rows_of(status, wanted, at)])
