"""The lists of what waits, of job reports, and of Pulse queues."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.deps import After, Reader, Reading, ServicesDep, Writer
from service.api.reports import list_reports
from service.api.schemas.common import StepState
from service.api.waiting import MOST_PIECES, by_repository, list_pieces, try_now, work_table
from service.api.watch import list_pulse_queues, list_waiting
from service.auth import Caller
from service.settings import REPOSITORIES_WRITE
from service.web.pages import FormDep, PageRoute, SiteDep, show
from service.web.rendering import path_of

router = APIRouter(route_class=PageRoute)

SHOWN = 30
"""Pieces, and repositories, of one lane that its page shows."""


@router.get("/waiting")
async def get_waiting_page(
    request: Request,
    session: Reading,
    caller: Reader,
    work: Annotated[str, Query(max_length=100, description="table of one lane's work")] = "",
    lane: Annotated[str, Query(max_length=2_000, description="lane whose pieces are shown")] = "",
) -> Response:
    """List what waits for which upstream, or the pieces of one lane by repository, the oldest first."""
    if not lane:
        return show(request, "waiting.html", lanes=await list_waiting(session), missing=_missing(caller))
    pieces = await list_pieces(session, work_table(work), lane)
    return show(
        request,
        "waiting_lane.html",
        work=work,
        lane=lane,
        pieces=pieces[:SHOWN],
        repositories=by_repository(pieces)[:SHOWN],
        looked_at=len(pieces),
        most=MOST_PIECES,
        missing=_missing(caller),
    )


@router.post("/waiting")
async def try_now_form(services: ServicesDep, caller: Writer, form: FormDep, site: SiteDep) -> Response:
    """Try at once what waits in a lane after a failure, and lead back to the lane."""
    work, lane = form.get("work", ""), form.get("lane", "")
    await try_now(services, caller, work_table(work), lane)
    return site.redirect(path_of("waiting", work=work, lane=lane))


def _missing(caller: Caller) -> str | None:
    """Return the scope that the caller lacks to have work tried now."""
    return None if caller.has(REPOSITORIES_WRITE) else REPOSITORIES_WRITE


@router.get("/reports")
async def get_reports_page(
    request: Request,
    session: Reading,
    caller: Reader,
    state: StepState | Literal["any", ""] = StepState.PENDING,
    waiting: Literal["push", ""] = "",
    after: After = None,
) -> Response:
    """List job reports, at first those that wait, the newest first."""
    of_state = None if state in {"", "any"} else StepState(state)
    page = await list_reports(session, caller, state=of_state, waiting=waiting or None, after=after)
    filters = {"state": state or "any", "waiting": waiting}
    return show(request, "reports.html", page=page, filters=filters, states=list(StepState))


@router.get("/pulse-queues")
async def get_pulse_queues_page(request: Request, session: Reading, _: Reader) -> Response:
    """List the Pulse queues that listeners read."""
    return show(request, "pulse_queues.html", queues=await list_pulse_queues(session))
