"""`/polls`: the shifts of the listeners that poll repositories, and pushes that were announced."""

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service import metrics
from service.api.deps import ServicesDep
from service.api.openapi import Announced, Renewal, signed
from service.api.route import API, SignedRoute
from service.api.signed import signed_model
from service.contract.events import AnnouncedLeases, AnnouncedPushes, PollNews, Shift, ShiftRequest
from service.contract.validation import reason_of
from service.flow.pushes import shift

router = APIRouter(prefix=f"{API}/polls", tags=["internal"], route_class=SignedRoute)


@router.post("/lease", operation_id="leasePolls", response_model=Shift, openapi_extra=signed(Renewal))
async def lease_polls(request: Request, services: ServicesDep) -> Response:
    """Renew a listener's shift: record its news, and lease it repositories that are due.

    The answer goes out after the commit.
    """
    body = await signed_model(request, services.settings, ShiftRequest)
    news, problems = [], []
    for event in body.news:
        try:
            news.append(PollNews.model_validate(event))
        except ValidationError as error:
            problems.append(reason_of(error))
    settings = services.settings
    renewed = await services.database.run(
        lambda connection: shift.renew(connection, settings.poll, settings.allowed_hosts, body, news)
    )
    metrics.polled(body.polls, body.requests, body.slowest, sum(entry.outcome == "failed" for entry in news))
    renewed.problems = problems
    # FastAPI would validate the leases again, which takes as long as to make them
    return Response(renewed.model_dump_json(), media_type="application/json")


@router.post("/announced", operation_id="announcePushes", openapi_extra=signed(Announced))
async def announce_pushes(request: Request, services: ServicesDep) -> AnnouncedLeases:
    """Return which of the repositories with an announced push may be polled now, beside their shifts."""
    body = await signed_model(request, services.settings, AnnouncedPushes)
    async with services.database.writing() as session:
        return await shift.lease_announced(session, services.settings.poll, services.settings.allowed_hosts, body.urls)
