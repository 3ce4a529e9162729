"""Sign in with a token of the settings, and sign out. `service.web.taskcluster` signs in with Taskcluster."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response

from service import auth
from service.api.audit import record
from service.api.deps import ServicesDep
from service.store.models import AuditEvent
from service.web.pages import FormDep, PageRoute, SiteDep, VisitDep, address_of, local_path, show

log = structlog.get_logger()
router = APIRouter(route_class=PageRoute)

NOT_FOUND = "This service has no such token. Check that all of it was pasted, or ask whoever runs the service for one."

Next = Annotated[str, Query(max_length=4_000, description="the page to go on to")]


@router.get("/sign-in")
async def get_sign_in(request: Request, site: SiteDep, visit: VisitDep, next: Next = "/") -> Response:
    """Show the form; whoever may do everything already is sent on."""
    if visit.caller is not auth.ANYBODY:
        return site.redirect(local_path(next))
    return sign_in_page(request, local_path(next))


@router.post("/sign-in")
async def sign_in(request: Request, services: ServicesDep, site: SiteDep, visit: VisitDep, form: FormDep) -> Response:
    """Begin a session of the token's caller, and go on to the page that was wanted."""
    address, wanted = address_of(site.settings, request), local_path(form.get("next", "/"))
    site.failed.check(address)
    token = auth.find_token(site.settings, form.get("token", "").strip().encode(errors="replace"))
    if token is None:
        log.warning("sign-in-failed", address=address, failures=site.failed.count(address))
        return sign_in_page(request, wanted, failure=NOT_FOUND, status=403)
    caller = auth.Caller(token.name, tuple(token.scopes), on_page=True)
    request.app.state.writes.spend(caller.key)
    async with services.database.writing() as session:
        record(session, AuditEvent.SIGNED_IN, caller, address=address)
    visit.begin(site.sessions.new(token))
    log.info("signed-in", by=token.name, address=address)
    return site.redirect(wanted)


@router.post("/sign-out")
async def sign_out(site: SiteDep, visit: VisitDep, _: FormDep) -> Response:
    """End the session in this browser."""
    if visit.session is not None and visit.session.signed_in:
        log.info("signed-out", by=visit.session.name)
    visit.begin(None)
    return site.redirect("/sign-in")


def sign_in_page(request: Request, wanted: str, *, failure: str | None = None, status: int = 200) -> Response:
    """Return the page with the ways to sign in, and why the last one failed."""
    settings = request.app.state.site.settings
    return show(
        request,
        "sign_in.html",
        status,
        next=wanted,
        failure=failure,
        has_tokens=bool(settings.tokens),
        with_taskcluster=settings.web_sign_in.client_id is not None,
    )
