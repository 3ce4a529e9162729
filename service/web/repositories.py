"""The list of repositories, with the state of each poll."""

from fastapi import APIRouter, Request, Response

from service.api.deps import After, Reader, Reading
from service.api.gauges import OLD_POLL
from service.api.repositories import list_repositories
from service.api.schemas.repositories import RepositoryRead
from service.clock import now
from service.web.pages import PageRoute, show

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def poll_state(repository: RepositoryRead) -> str:
    """Return in a word how the poll of a repository is."""
    if not repository.enabled:
        return "paused"
    if repository.poll_failures:
        return "failing"
    last = repository.last_good_poll_at or repository.created_at
    return "waiting" if now() - last > OLD_POLL else "polled"


@router.get("/repositories")
async def get_repositories_page(request: Request, session: Reading, caller: Reader, after: After = None) -> Response:
    """List the monitored repositories."""
    page = await list_repositories(session, caller, limit=50, after=after)
    rows = [(repository, poll_state(repository)) for repository in page.items]
    return show(request, "repositories.html", page=page, rows=rows, filters={})
