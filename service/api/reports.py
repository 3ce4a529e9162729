"""Job reports: what each Treeherder has been told of each run, and what waits."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import text
from sqlmodel import col, select

from service.api.deps import After, Limit, Reader, Reading, cursor, opaque
from service.api.openapi import problems
from service.api.route import Route
from service.models import FAILED_REPORTS, JobReport, State
from service.schemas import ReportPage, ReportRead, RunStage

router = APIRouter(prefix="/reports", tags=["reports"], route_class=Route)

ReportState = Annotated[Literal["pending", "done", "skipped", "failed"] | None, Query(description="of the report")]
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
    """Job reports, the newest first."""
    query = select(JobReport).order_by(col(JobReport.id).desc())
    if state is not None:
        query = query.where(JobReport.state == State(state))
    # as the partial indexes have it, so that both databases use them
    if state in {"skipped", "failed"}:
        query = query.where(text(FAILED_REPORTS))
    elif state == "pending":
        query = query.where(col(JobReport.due_at).is_not(None))
    if waiting is not None:
        query = query.where(col(JobReport.no_push_since).is_not(None))
    if (before := cursor(after)) is not None:
        query = query.where(col(JobReport.id) < before)
    found = (await session.exec(query.limit(limit + 1))).all()
    items = [_read(report) for report in found[:limit]]
    return ReportPage(items=items, next=opaque(items[-1].id) if len(found) > limit else None)


def _read(report: JobReport) -> ReportRead:
    return ReportRead(
        id=report.id or 0,
        task_id=report.task_id,
        run_id=report.run_id,
        environment=report.environment,
        project=report.project,
        revision=report.revision,
        revision_hash=report.revision_hash,
        stage=RunStage.of(report.stage),
        told=None if report.delivered is None else RunStage.of(report.delivered),
        state=report.state,
        error=report.error,
        attempts=report.attempts,
        heard_at=report.heard_at,
        waiting_since=report.since if report.due_at is not None else None,
        no_push_since=report.no_push_since,
        next_attempt_at=report.due_at,
    )
