"""The list of repositories with the state of each poll, the page of one, and the forms that change them."""

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from service.api.deps import After, Reader, Reading, RepositoryAlias, ServicesDep, Writer
from service.api.gauges import OLD_POLL
from service.api.marks import Watched
from service.api.repositories import (
    add_repository,
    change_repository,
    delete_repository,
    find,
    get_repository,
    list_repositories,
    poll_repository,
    reset_once,
)
from service.api.schemas.repositories import RepositoryPatch, RepositoryRead
from service.auth import LOCAL
from service.clock import now
from service.errors import Problem
from service.services import Services
from service.settings import REPOSITORIES_WRITE
from service.store.database import Session
from service.store.models import PULSE_ACTIONS, Supersede, TreeActions
from service.web.pages import FormDep, PageRoute, Site, SiteDep, lacking_to_write, show, show_view
from service.web.rendering import path_of
from service.web.repository_forms import seen_generation, seen_of, wanted_change, wanted_repository, wanted_reset
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)


def poll_state(repository: RepositoryRead) -> str:
    """Return in a word how the poll of a repository is."""
    if not repository.enabled:
        return "paused"
    if repository.poll_failures:
        return "failing"
    last = repository.last_good_poll_at or repository.created_at
    return "waiting" if now() - last > OLD_POLL else "polled"


async def _locked(session: Session, alias: str) -> RepositoryRead:
    """Return a repository that nobody else changes until this transaction ends, to compare it with what a form saw."""
    return RepositoryRead.model_validate(await find(session, alias, lock=True))


_CHOICES = {"supersede": list(Supersede), "actions": list(TreeActions), "yes_or_no": ["yes", "no"]}

_DEFAULTS = {"supersede": Supersede.OFF, "actions": TreeActions.COPIES, "pulse_actions": PULSE_ACTIONS}


POLLS_AGAIN = 15.0
"""Seconds after which watched repositories are read again: the time of the last good poll changes all the time."""


@live
@dataclass(frozen=True)
class RepositoriesView(View):
    """A list of the monitored repositories."""

    name = "repositories"
    template = "repositories.html"
    personal = {"missing": REPOSITORIES_WRITE, "choices": _CHOICES, "known": (), "defaults": _DEFAULTS}  # noqa: RUF012 - nobody changes it

    after: str | None = None

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        async with services.database.reading() as session:
            page = await list_repositories(session, LOCAL, limit=50, after=self.after)
        rows = [(repository, poll_state(repository)) for repository in page.items]
        rows_watched = frozenset(("repository", repository.alias) for repository in page.items)
        watched = Watched(rows=rows_watched, newest=frozenset({"repository"}))
        return Shown({"page": page, "rows": rows, "filters": {}}, watched, POLLS_AGAIN)


@router.get("/repositories")
async def get_repositories_page(request: Request, caller: Reader, site: SiteDep, after: After = None) -> Response:
    """List the monitored repositories, with the form that adds one."""
    personal = {
        **RepositoriesView.personal,
        "missing": lacking_to_write(caller.has(REPOSITORIES_WRITE)),
        "known": list(site.settings.environments),
    }
    return await show_view(request, RepositoriesView(after), **personal)


@router.post("/repositories")
async def add_repository_form(services: ServicesDep, caller: Writer, form: FormDep, site: SiteDep) -> Response:
    """Add a repository, and lead to its page."""
    repository = await add_repository(wanted_repository(form), Response(), services, caller)
    return site.redirect(path_of("repositories", repository.alias))


@router.get("/repositories/{alias}")
async def get_repository_page(
    request: Request, alias: RepositoryAlias, session: Reading, caller: Reader, site: SiteDep
) -> Response:
    """Show a repository, how its poll is, and the forms that change it."""
    repository = await get_repository(alias, session, caller)
    return show(
        request,
        "repository.html",
        repository=repository,
        word=poll_state(repository),
        seen=seen_of(repository),
        missing=lacking_to_write(caller.has(REPOSITORIES_WRITE)),
        choices=_CHOICES,
        known=list(site.settings.environments),
    )


@router.get("/repositories/{alias}/remove")
async def get_removal_page(request: Request, alias: RepositoryAlias, session: Reading, caller: Writer) -> Response:
    """Show what is lost if a repository is removed, with the button that does it."""
    repository = await get_repository(alias, session, caller)
    return show(request, "repository_remove.html", repository=repository, seen=seen_of(repository), unfinished=None)


@router.post("/repositories/{alias}/remove")
async def remove_repository_form(
    request: Request, alias: RepositoryAlias, services: ServicesDep, caller: Writer, form: FormDep, site: SiteDep
) -> Response:
    """Remove a repository, and lead to the list. If its work is unfinished, ask whether to bury it."""
    try:
        async with services.database.writing() as session:
            repository = await _locked(session, alias)
            if form.get("seen") != seen_of(repository):
                detail = f"{alias} was changed since this page was loaded: go back, load the page again, and look at it"
                raise Problem(409, "Changed meanwhile", detail)
            await delete_repository(alias, caller, session, force=form.get("force") == "yes")
    except Problem as refused:
        if "unfinished" not in refused.more:
            raise
        name, why = "repository_remove.html", refused.detail
        return show(request, name, 409, repository=repository, seen=seen_of(repository), unfinished=why)
    return site.redirect(path_of("repositories"))


@router.post("/repositories/{alias}")
async def change_repository_form(
    alias: RepositoryAlias, services: ServicesDep, caller: Writer, form: FormDep, site: SiteDep
) -> Response:
    """Pause, resume, poll, change or reset a repository, and lead back to its page."""
    do = form.get("do", "")
    if do == "reset":
        # of the generation that the form shows, so that to press twice is to reset once
        await reset_once(alias, wanted_reset(form), services, caller, seen_generation(form))
    else:
        async with services.database.writing() as session:
            if do in {"pause", "resume"}:
                patch = RepositoryPatch(enabled=do == "resume")
                await change_repository(alias, patch, caller, session, services)
            elif do == "poll":
                await poll_repository(alias, caller, session)
            elif do == "change":
                patch = wanted_change(form, await _locked(session, alias))
                await change_repository(alias, patch, caller, session, services)
            else:
                raise Problem(422, "Invalid request", "do: a button of the page says what to do")
    return site.redirect(path_of("repositories", alias))
