"""Sign in with Taskcluster: lead to it, and take people back who come from there."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request, Response

from service import auth
from service.api.audit import record
from service.api.deps import ServicesDep
from service.clients.sign_in import Client, SignIns
from service.errors import PermanentUpstreamError, Problem, Unavailable
from service.services import Services
from service.settings import SIGN_IN_PATH
from service.store.models import AuditEvent
from service.web.attempts import COOKIE, LIFE, Attempt
from service.web.pages import PageRoute, Site, SiteDep, VisitDep, address_of, local_path
from service.web.rendering import HEADERS, render
from service.web.sign_in import Next, sign_in_page

log = structlog.get_logger()
router = APIRouter(route_class=PageRoute)

Text = Annotated[str, Query(max_length=2_000)]


class SignInRefusedError(Exception):
    """A sign-in is refused, with the reason for people and the status of the answer."""

    def __init__(self, reason: str, status: int = 403) -> None:
        super().__init__(reason)
        self.status = status


def _sign_ins(services: Services) -> SignIns:
    if services.sign_ins is None:
        detail = "nobody signs in to this service with Taskcluster: whoever runs it can set TC_TREEHERDER_WEB_SIGN_IN"
        raise Problem(404, "Not Found", detail)
    return services.sign_ins


def _cookie_attributes(site: Site, request: Request) -> dict[str, Any]:
    https = request.url.scheme == "https" or site.settings.sign_in_redirect.startswith("https:")
    return {"path": site.base or "/", "secure": https, "httponly": True, "samesite": "lax"}


@router.get("/sign-in/taskcluster")
async def begin(request: Request, services: ServicesDep, site: SiteDep, next: Next = "/") -> Response:
    """Lead to Taskcluster, which asks who one is."""
    sign_ins, wanted = _sign_ins(services), local_path(next)
    site.failed.check(address_of(site.settings, request))
    if request.headers.get("sec-fetch-site") not in {None, "same-origin", "none"}:
        return site.redirect("/sign-in")  # nobody is signed in by a link of another site
    attempt = site.attempts.new(wanted)
    address = sign_ins.authorize_url(site.attempts.state(attempt), site.attempts.verifier(attempt))
    response = Response(status_code=303, headers={**HEADERS, "Location": address})
    attributes = _cookie_attributes(site, request)
    response.set_cookie(COOKIE, attempt.cookie, max_age=int(LIFE.total_seconds()), **attributes)
    return response


@router.get(SIGN_IN_PATH)
async def take_back(
    request: Request,
    services: ServicesDep,
    site: SiteDep,
    visit: VisitDep,
    code: Text = "",
    state: Text = "",
    error: Text = "",
    error_description: Text = "",
    error_uri: Text = "",
) -> Response:
    """Begin a session of whoever comes back from Taskcluster with a code."""
    sign_ins, address = _sign_ins(services), address_of(site.settings, request)
    site.failed.check(address)
    attempt = site.attempts.read(request.cookies.get(COOKIE, ""))
    try:
        client_id, client = await _identify(sign_ins, site, attempt, code, state, error)
    except SignInRefusedError as refused:
        # without an attempt nothing was tried: other sites can send browsers here
        failures = 0 if attempt is None or refused.status == 502 else site.failed.count(address)
        log.warning("sign-in-failed", address=address, failures=failures, reason=str(refused))
        response = sign_in_page(request, "/", failure=str(refused), status=refused.status)
    else:
        assert attempt is not None
        caller = auth.Caller(client_id, client.scopes, taskcluster=True, on_page=True)
        request.app.state.writes.spend(caller.key)
        async with services.database.writing() as session:
            record(session, AuditEvent.SIGNED_IN, caller, address=address)
        visit.begin(site.sessions.new_of_client(client_id, client.expires))
        log.info("signed-in", by=client_id, address=address)
        # a redirect would still be one of the other site, behind which the browser keeps the new cookie to itself
        response = render("again.html", site.base, path=site.base + local_path(attempt.wanted))
    response.delete_cookie(COOKIE, **_cookie_attributes(site, request))
    return response


async def _identify(
    sign_ins: SignIns, site: Site, attempt: Attempt | None, code: str, state: str, error: str
) -> tuple[str, Client]:
    """Return who has come back. Raises SignInRefusedError."""
    if attempt is None or not site.attempts.is_state(attempt, state):
        detail = "this answer of Taskcluster is not for a sign-in that began in this browser within ten minutes"
        raise SignInRefusedError(f"{detail}: begin again")
    if error or not code:
        declined = error == "access_denied"
        detail = "Taskcluster was told not to let you in" if declined else f"Taskcluster answers {error[:100]!r}"
        remedy = "begin again" if declined else "see web_sign_in: client, redirect and scopes must be as registered"
        raise SignInRefusedError(f"{detail}: {remedy}")
    assert site.clients is not None
    try:
        client_id = await sign_ins.redeem(code, site.attempts.verifier(attempt))
        client = await site.clients.look_up(client_id)
    except PermanentUpstreamError:
        detail = "Taskcluster does not take its own answer: it was used before, or is too old: begin again"
        raise SignInRefusedError(detail) from None
    except Unavailable as unavailable:
        raise SignInRefusedError(f"{unavailable}: try again later", 502) from None
    if client is None or not (client.scopes or site.settings.public_reads):
        detail = f"{client_id} has no scope that begins with tc-treeherder: a role in Taskcluster can give it one"
        raise SignInRefusedError(detail)
    return client_id, client
