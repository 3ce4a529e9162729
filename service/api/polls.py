"""Who polls which repository: the listeners' shifts, and pushes that were announced."""

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service import metrics
from service.api.deps import ServicesDep
from service.api.openapi import Announced, Renewal, signed
from service.api.route import SignedRoute
from service.api.signed import signed_model
from service.contract.events import AnnouncedLeases, AnnouncedPushes, PollNews, Shift, ShiftRequest
from service.flow.pushes import shift
from service.sanitize import reason_of

router = APIRouter(prefix="/polls", tags=["internal"], route_class=SignedRoute)


@router.post("/lease", operation_id="leasePolls", response_model=Shift, openapi_extra=signed(Renewal))
async def lease_polls(request: Request, services: ServicesDep) -> Response:
    """Renew a listener's shift: it tells what it has polled, and is leased repositories that are due.

    The answer goes out after the commit.
    """
    asked = await signed_model(request, services.settings, ShiftRequest)
    news, problems = [], []
    for each in asked.news:
        try:
            news.append(PollNews.model_validate(each))
        except ValidationError as error:
            problems.append(reason_of(error))
    settings = services.settings
    renewed = await services.database.run(
        lambda connection: shift.renew(connection, settings.poll, settings.allowed_hosts, asked, news)
    )
    metrics.polled(asked.polls, asked.requests, asked.slowest, sum(each.outcome == "failed" for each in news))
    renewed.problems = problems
    # FastAPI would validate the leases again, which takes as long as to make them
    return Response(renewed.model_dump_json(), media_type="application/json")


@router.post("/announced", operation_id="announcePushes", openapi_extra=signed(Announced))
async def announce_pushes(request: Request, services: ServicesDep) -> AnnouncedLeases:
    """Say which of the repositories in which a push was announced may be polled now, beside their shifts."""
    asked = await signed_model(request, services.settings, AnnouncedPushes)
    async with services.database.writing() as session:
        return await shift.announced(session, services.settings.poll, services.settings.allowed_hosts, asked.urls)
