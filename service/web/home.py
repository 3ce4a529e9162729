"""The first page, and the static files."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.dead_letters import list_dead_letters
from service.api.deps import Reader
from service.api.health import HealthDep
from service.api.marks import Watched
from service.api.pushes import summarize_pushes
from service.auth import LOCAL
from service.errors import Problem
from service.services import Services
from service.web.pages import PageRoute, Site, show_view
from service.web.pushes import LIST_AGAIN, NEW_PUSHES
from service.web.rendering import HEADERS, static_file
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)

_STATIC = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

NEWEST = 15
"""Pushes on the first page."""

_YEAR = 365 * 24 * 3600


@live
@dataclass(frozen=True)
class HomeView(View):
    """The newest pushes, and whether dead letters wait."""

    name = "home"
    template = "home.html"
    personal = {"checks": ()}  # noqa: RUF012 - nobody changes it

    async def read(self, services: Services, site: Site) -> Shown:
        """Read the newest pushes, and the newest dead letter."""
        async with services.database.reading() as session:
            page = await summarize_pushes(session, limit=NEWEST)
            letters = await list_dead_letters(session, LOCAL, limit=1)
        return Shown({"page": page, "letters": letters.items}, Watched(newest=NEW_PUSHES), LIST_AGAIN)


@router.get("/")
async def get_home(request: Request, _: Reader, health: HealthDep) -> Response:
    """Show the search, what the heartbeat warns of, and the newest pushes."""
    checks = [check for check in await health.checks.get() if check.status != "ok"]
    return await show_view(request, HomeView(), checks=checks)


@router.get("/static/{digest}/{name}")
async def get_static(digest: str, name: str) -> Response:
    """Return a static file, to be kept for a year under the digest of its content.

    Under another digest it is kept for a minute: while a release is rolled out, pages of both are read.
    """
    if name not in _STATIC:
        raise Problem(404, "Not Found", f"there is no file {name}: the pages name those that there are")
    content, present = static_file(name)
    life = f"public, max-age={_YEAR}, immutable" if digest == present else "public, max-age=60"
    return Response(content, 200, {**HEADERS, "Cache-Control": life}, _STATIC[name])
