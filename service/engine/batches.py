"""Job reports, which are done by the hundred: find those that are due, and record their outcomes.

They are claimed, renewed and given back as all leased work is. A report is finished only in the version that was
claimed: an event that came meanwhile keeps it due. Each write carries the fencing token and raises it, so that nothing
of an earlier holder comes after it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, Protocol

import structlog
from sqlalchemy import Table, bindparam, case, func, literal, null, update
from sqlmodel import select

from service import metrics
from service.clock import now
from service.engine.leases import in_lock_order
from service.sanitize import escape_unstorable
from service.store.database import Session, Utc
from service.store.distinct import distinct_of
from service.store.models import NEVER, JobReport, Stage, State

log = structlog.get_logger()


class End(Enum):
    """The ways in which the delivery of a report ends."""

    DONE = auto()
    SKIPPED = auto()
    LATER = auto()
    BURIED = auto()


@dataclass
class Outcome:
    """Outcome of one report, and the values to record with it."""

    report: JobReport
    end: End
    reason: str | None = None
    wait: timedelta = timedelta()
    no_push_since: datetime | None = None


@dataclass
class Delivered:
    """Outcomes of a batch of reports, with `requests` to Treeherder, which is to be left alone for `pause`."""

    outcomes: list[Outcome]
    requests: int = 0
    pause: timedelta | None = None
    began: float = field(default_factory=time.monotonic)


class Deliverer(Protocol):
    """Delivers the reports of one environment."""

    @property
    def sending(self) -> int:
        """Return how many batches are ready, and being sent or about to be."""

    async def deliver(self, reports: list[JobReport]) -> Delivered:
        """Deliver reports of one lane. Raises what a bug or a lost database raises, and nothing else."""

    def later(self, report: JobReport, reason: str, wait: timedelta | None = None) -> Outcome:
        """Return that the report is tried again, or that it was tried for long enough."""


_REPORT: Table = JobReport.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
_R = _REPORT.c


_AT, _AGAIN_AT = bindparam("at", type_=Utc), bindparam("again_at", type_=Utc)

_LANES = distinct_of(_R.lane, "lanes", _R.due_at.is_not(None))
_OF_LANE = _R.lane == _LANES.c.lane
_DUE = select(
    _LANES.c.lane,
    select(func.count())
    .select_from(
        select(literal(1)).where(_OF_LANE, _R.due_at <= _AT).limit(bindparam("most")).correlate(_LANES).subquery()
    )
    .scalar_subquery(),
    select(func.min(_R.due_at)).where(_OF_LANE, _R.due_at.is_not(None)).scalar_subquery(),
    select(func.max(_R.due_at)).where(_OF_LANE, _R.due_at.is_not(None)).scalar_subquery(),
).where(_LANES.c.lane.is_not(None))


async def due(session: Session, environment: str, most: int) -> dict[str, tuple[int, datetime, datetime]]:
    """Return how many reports of each lane of this Treeherder are due, counted up to `most`, and two times.

    These are when the first and the last unfinished report of the lane is due.
    """
    lanes = await (await session.connection()).execute(_DUE, {"at": now(), "most": most})
    return {lane: tuple(rest) for lane, *rest in lanes if lane.startswith(f"job {environment} ")}


def _held(**values: Any) -> Any:
    return (
        update(_REPORT)
        .where(_R.id == bindparam("held_id"), _R.fencing_token == bindparam("held_token"))
        .values(**values)
    )


_SAME = _R.version == bindparam("held_version")

_DONE = _held(
    fencing_token=_R.fencing_token + 1,
    holder=None,
    delivered=bindparam("new_delivered"),
    attempts=0,
    error=None,
    no_push_since=None,
    due_at=case((_SAME, null()), else_=_AT),
    since=case((_SAME, _R.since), else_=_AT),
    state=case((_SAME, State.DONE), else_=State.PENDING),
    done_at=case((_SAME, _AT), else_=null()),
)
# Treeherder never changes a completed job: whatever event came meanwhile, there is nothing more to report
_LAST = _held(
    fencing_token=_R.fencing_token + 1,
    holder=None,
    delivered=bindparam("new_delivered"),
    attempts=0,
    error=None,
    no_push_since=None,
    due_at=None,
    state=State.DONE,
    done_at=_AT,
)


def _ended(state: State) -> Any:
    """Return the statement that ends a report, unless an event came meanwhile: then it is tried as if it were new."""
    return _held(
        fencing_token=_R.fencing_token + 1,
        holder=None,
        attempts=case((_SAME, _R.attempts), else_=0),
        error=case((_SAME, bindparam("why")), else_=null()),
        due_at=case((_SAME, null()), else_=_AT),
        since=case((_SAME, _R.since), else_=_AT),
        state=case((_SAME, state), else_=State.PENDING),
        done_at=case((_SAME, _AT), else_=null()),
        no_push_since=None,
    )


_SKIPPED, _BURIED = _ended(State.SKIPPED), _ended(State.FAILED).returning(_R.state)
_LATER = _held(
    fencing_token=_R.fencing_token + 1,
    holder=None,
    error=bindparam("why"),
    due_at=_AGAIN_AT,
    no_push_since=bindparam("new_no_push_since", type_=Utc),
)


async def record_outcomes(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Record the outcomes of reports, and count them. A report that another process holds by now is left to it."""
    at = now()
    await lock_reports(session, [outcome.report for outcome in outcomes])
    writes: dict[Any, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        statement, values = _write(outcome, at)
        if outcome.end is End.BURIED:
            await _bury(session, outcome, values)
            continue
        writes.setdefault(statement, []).append(values)
    connection = await session.connection()
    for statement, rows in writes.items():
        await connection.execute(statement, rows)
    for outcome in outcomes:
        metrics.work_ended(outcome.report.work_name, outcome.end.name.lower())
        if outcome.end is End.DONE and outcome.report.last_event_at > NEVER:
            metrics.job_reported(outcome.report.last_event_at)


async def lock_reports(session: Session, reports: Sequence[JobReport]) -> None:
    """Lock rows in the order in which new events lock them, or the two would deadlock. SQLite has one writer anyway."""
    if session.get_bind().dialect.name != "postgresql":
        return
    ids = [report.id for report in reports]
    locked = select(_R.id).where(_R.id.in_(ids)).order_by(*in_lock_order(session, JobReport)).with_for_update()
    await (await session.connection()).execute(locked)


def _write(outcome: Outcome, at: datetime) -> tuple[Any, dict[str, Any]]:
    report, why = outcome.report, escape_unstorable(outcome.reason or "")
    values: dict[str, Any] = {"held_id": report.id, "held_token": report.fencing_token}
    ended = report.stage >= Stage.RESOLVED
    if outcome.end is End.LATER:
        again_at, since = at + outcome.wait, outcome.no_push_since
        return _LATER, {**values, "why": why, "again_at": again_at, "new_no_push_since": since}
    if outcome.end is End.SKIPPED:
        log.info("job-skipped", task_id=report.task_id, run_id=report.run_id, environment=report.environment, why=why)
        return _SKIPPED, {**values, "held_version": report.version, "why": why, "at": at}
    if outcome.end is End.BURIED:
        return _BURIED, {**values, "held_version": report.version, "why": why, "at": at}
    values["new_delivered"] = int(report.stage)
    values["at"] = at
    return (_LAST, values) if ended else (_DONE, {**values, "held_version": report.version})


async def _bury(session: Session, outcome: Outcome, values: dict[str, Any]) -> None:
    report = outcome.report
    became = (await (await session.connection()).execute(_BURIED, values)).scalar()
    if became != State.FAILED:  # another worker holds it, or it has gone on meanwhile
        return
    why = escape_unstorable(outcome.reason or "")
    session.add(report.dead_letter(why))
    log.error("job-buried", task_id=report.task_id, run_id=report.run_id, environment=report.environment, reason=why)
