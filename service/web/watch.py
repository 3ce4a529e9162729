"""The lists of what waits, and of Pulse queues."""

from fastapi import APIRouter, Request, Response

from service.api.deps import Reader, Reading
from service.api.watch import list_pulse_queues, list_waiting
from service.web.pages import PageRoute, show

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/waiting")
async def get_waiting_page(request: Request, session: Reading, _: Reader) -> Response:
    """List what waits for which upstream, the oldest first."""
    return show(request, "waiting.html", lanes=await list_waiting(session))


@router.get("/pulse-queues")
async def get_pulse_queues_page(request: Request, session: Reading, _: Reader) -> Response:
    """List the Pulse queues that listeners read."""
    return show(request, "pulse_queues.html", queues=await list_pulse_queues(session))
