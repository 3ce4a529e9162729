"""Job reports: what each Treeherder has been told of each run, and what waits."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from sqlalchemy import and_, text, true
from sqlmodel import col, select

from service.api.deps import After, Limit, Reader, Reading
from service.api.openapi import problems
from service.api.paging import page
from service.api.push_tasks import run_state
from service.api.route import API, Route
from service.api.schemas.common import StepState
from service.api.schemas.tasks import ReportPage, ReportRead, RunStage
from service.store.models import FAILED_REPORTS, JobReport, Stage, State

router = APIRouter(prefix=f"{API}/reports", tags=["reports"], route_class=Route)

ReportState = Annotated[StepState | None, Query(description="of the report")]
Waiting = Annotated[
    Literal["push"] | None, Query(description="push: Treeherder does not know the push of the run, and is asked again")
]


@router.get("", operation_id="listReports", responses=problems())
async def list_reports(
    session: Reading,
    _: Reader,
    state: ReportState = None,
    waiting: Waiting = None,
    limit: Limit = 50,
    after: After = None,
) -> ReportPage:
    """List job reports, the newest first.

    With two filters a page can be shorter than `limit`, even empty, while `next` says that there are more.
    """
    conditions: list[Any] = []
    if waiting is not None:
        conditions.append(and_(col(JobReport.state) == State.PENDING, col(JobReport.no_push_since).is_not(None)))
    if state is not None:
        conditions.append(and_(col(JobReport.state) == State(state), _AS_INDEXED[state]))

    def matching(among: Callable[[Any], Any]) -> Any:
        return select(JobReport.id, JobReport).where(among(JobReport.id), *conditions)

    # most reports are done, so these are looked for among all
    first = conditions[:1] if waiting is not None or state != "done" else []
    candidates = [select(JobReport.id).where(*first)]
    rows, following = await page(session, candidates, JobReport.id, matching, limit, after)
    items = [_read(report) for _, report in rows]
    return ReportPage(items=items, next=following)


_AS_INDEXED: dict[str, Any] = {
    "failed": text(FAILED_REPORTS),
    "skipped": text(FAILED_REPORTS),
    "pending": col(JobReport.due_at).is_not(None),
    "done": true(),
}
"""Conditions of the partial indexes that hold reports in these states, so that both databases use them."""


def _read(report: JobReport) -> ReportRead:
    return ReportRead(
        **run_of(report),
        id=report.id or 0,
        task_id=report.task_id,
        revision=report.revision,
        revision_hash=report.revision_hash,
        attempts=report.attempts,
        waiting_since=report.since if report.due_at is not None else None,
        no_push_since=report.no_push_since,
    )


def run_of(report: JobReport) -> dict[str, Any]:
    """Return the fields of a RunRead."""
    return {
        "run_id": report.run_id,
        "environment": report.environment,
        "project": report.project,
        "stage": RunStage.of(report.stage),
        "result": run_state(report.stage, report.run) if report.stage >= Stage.RESOLVED else None,
        "told": None if report.delivered is None else RunStage.of(report.delivered),
        "state": StepState(report.state),
        "working": report.working,
        "error": report.error,
        "last_event_at": report.last_event_at,
        "next_attempt_at": report.next_attempt_at,
    }
