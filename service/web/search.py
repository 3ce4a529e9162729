"""The search: one match leads to its page, several are listed, and none shows what was understood."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.deps import Reader, Reading
from service.api.search import Match, search, understand
from service.web.pages import PageRoute, SiteDep, show
from service.web.rendering import path_of

router = APIRouter(route_class=PageRoute)


def path_of_match(match: Match) -> str:
    """Return the path of the page of what was found."""
    if match.kind == "task":
        return path_of("tasks", match.name)
    if match.kind == "push":
        return path_of("pushes", match.name, match.push_id, generation=match.generation or None)
    if match.kind == "requester":
        return path_of("actions", requester=match.name)
    return path_of("pushes", **{"user" if match.kind == "user" else "repository": match.name})


@router.get("/search")
async def get_search(
    request: Request, session: Reading, _: Reader, site: SiteDep, q: Annotated[str, Query(max_length=2_000)] = ""
) -> Response:
    """Find what a text names."""
    wanted = understand(q)
    matches = await search(session, wanted)
    if len(matches) == 1:
        return site.redirect(path_of_match(matches[0]))
    rows = [(match, site.base + path_of_match(match)) for match in matches]
    return show(request, "search.html", query=q, rows=rows, understood=wanted.understood)
