"""The events that a browser gets of the page that it shows."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from service import auth
from service.api.deps import Reader
from service.web.live import EventStream
from service.web.pages import PageRoute, SiteDep, address_of
from service.web.views import MAX_ARGUMENTS, parse_view

router = APIRouter(route_class=PageRoute)


@router.get("/live")
async def get_live(
    request: Request,
    caller: Reader,
    site: SiteDep,
    page: Annotated[str, Query(max_length=50, description="the view that the page shows")],
    args: Annotated[str, Query(max_length=MAX_ARGUMENTS, description="its arguments")],
    digest: Annotated[str, Query(max_length=50, description="of the items that the page has")] = "",
    last_event_id: Annotated[str | None, Header(max_length=50)] = None,
) -> Response:
    """Tell what changes on a page from now on."""
    view = parse_view(page, args)
    if view.scope is not None:
        auth.require(site.settings, caller, view.scope)
    watcher = await site.hub.enter(view, last_event_id or digest, address_of(site.settings, request))
    return EventStream(site.hub, view, watcher)
