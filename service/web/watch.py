"""The lists of what waits, of job reports, and of Pulse queues."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.deps import After, Reader, ServicesDep, Writer
from service.api.marks import Watched
from service.api.reports import list_reports
from service.api.schemas.common import StepState
from service.api.waiting import MOST_PIECES, by_repository, list_pieces, try_now, work_table
from service.api.watch import list_pulse_queues, list_waiting
from service.auth import LOCAL
from service.services import Services
from service.settings import REPOSITORIES_WRITE
from service.web.pages import FormDep, PageRoute, Site, SiteDep, lacking_to_write, show_view
from service.web.pushes import LIST_AGAIN
from service.web.rendering import path_of
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)

SHOWN = 30
"""Pieces, and repositories, of one lane that its page shows."""

QUEUES_AGAIN = 30.0
"""Seconds after which watched Pulse queues are read again: what nobody reads changes nothing."""


@live
@dataclass(frozen=True)
class WaitingView(View):
    """What waits for which upstream."""

    name = "waiting"
    template = "waiting.html"

    may_try: bool = False

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the lanes with unfinished work."""
        async with services.database.reading() as session:
            lanes = await list_waiting(session)
        return Shown({"lanes": lanes, "missing": lacking_to_write(self.may_try)}, Watched(waiting=True), LIST_AGAIN)


@live
@dataclass(frozen=True)
class WaitingLaneView(View):
    """The pieces of one lane by repository, the oldest first."""

    name = "lane"
    template = "waiting_lane.html"

    work: str
    lane: str
    may_try: bool = False

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the pieces that have waited longest."""
        async with services.database.reading() as session:
            pieces = await list_pieces(session, work_table(self.work), self.lane)
        values = {
            "work": self.work,
            "lane": self.lane,
            "pieces": pieces[:SHOWN],
            "repositories": by_repository(pieces)[:SHOWN],
            "looked_at": len(pieces),
            "most": MOST_PIECES,
            "missing": lacking_to_write(self.may_try),
        }
        return Shown(values, Watched(waiting=True), LIST_AGAIN)


@router.get("/waiting")
async def get_waiting_page(
    request: Request,
    caller: Reader,
    work: Annotated[str, Query(max_length=100, description="table of one lane's work")] = "",
    lane: Annotated[str, Query(max_length=2_000, description="lane whose pieces are shown")] = "",
) -> Response:
    """List what waits for which upstream, or the pieces of one lane by repository, the oldest first."""
    may_try = caller.has(REPOSITORIES_WRITE)
    return await show_view(request, WaitingLaneView(work, lane, may_try) if lane else WaitingView(may_try))


@router.post("/waiting")
async def try_now_form(services: ServicesDep, caller: Writer, form: FormDep, site: SiteDep) -> Response:
    """Try at once what waits in a lane after a failure, and lead back to the lane."""
    work, _, lane = form.get("lane", "").partition("/")
    await try_now(services, caller, work_table(work), lane)
    return site.redirect(path_of("waiting", work=work, lane=lane))


@live
@dataclass(frozen=True)
class ReportsView(View):
    """A list of job reports."""

    name = "reports"
    template = "reports.html"

    state: StepState | None = None
    waiting: Literal["push"] | None = None
    after: str | None = None

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        async with services.database.reading() as session:
            page = await list_reports(session, LOCAL, state=self.state, waiting=self.waiting, after=self.after)
        filters = {"state": self.state or "any", "waiting": self.waiting or ""}
        watched = Watched(rows=frozenset(("report", report.id) for report in page.items), newest=frozenset({"report"}))
        return Shown({"page": page, "filters": filters, "states": list(StepState)}, watched, LIST_AGAIN)


@router.get("/reports")
async def get_reports_page(
    request: Request,
    _: Reader,
    state: StepState | Literal["any", ""] = StepState.PENDING,
    waiting: Literal["push", ""] = "",
    after: After = None,
) -> Response:
    """List job reports, at first those that wait, the newest first."""
    of_state = None if state in {"", "any"} else StepState(state)
    return await show_view(request, ReportsView(of_state, waiting or None, after))


@live
@dataclass(frozen=True)
class PulseQueuesView(View):
    """The Pulse queues that listeners read."""

    name = "pulse-queues"
    template = "pulse_queues.html"

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the queues."""
        async with services.database.reading() as session:
            page = await list_pulse_queues(session, LOCAL)
        return Shown({"queues": page.items}, Watched(pulse_queues=True), QUEUES_AGAIN)


@router.get("/pulse-queues")
async def get_pulse_queues_page(request: Request, _: Reader) -> Response:
    """List the Pulse queues that listeners read."""
    return await show_view(request, PulseQueuesView())
