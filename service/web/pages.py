"""Routes of the page: they know who asks by a cookie, answer errors as pages, and take forms of our own pages only."""

import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse

from service import auth
from service.api.file_excerpt import FileExcerpts
from service.api.queue_look import QueueLooks
from service.api.route import Route, flatten
from service.auth import Caller
from service.engine.sized_cache import SizedCache
from service.errors import Problem
from service.services import Services, load_secret
from service.settings import AUDIT_READ, REPOSITORIES_WRITE, Settings
from service.web.attempts import Attempts
from service.web.clients import Clients
from service.web.failed import FailedSignIns
from service.web.live import Hub
from service.web.rendering import HEADERS, path_of, render
from service.web.sessions import COOKIE, FORM_COOKIE, Sessions, WebSession
from service.web.views import Items, View

FORM = "application/x-www-form-urlencoded"

MAX_FIELDS = 1_000

NAVIGATION = (
    ("Pushes", "pushes"),
    ("Actions", "actions"),
    ("What waits", "waiting"),
    ("Job reports", "reports"),
    ("Dead letters", "dead-letters"),
    ("Repositories", "repositories"),
    ("Pulse queues", "pulse-queues"),
    ("Audit", "audit"),
)
"""The name and path of each list."""

_OF_SCOPE = {"audit": AUDIT_READ}
"""Lists that only those are led to who have a scope."""

LOCAL = replace(auth.LOCAL, on_page=True)


class Site:
    """Everything that all pages of this process share."""

    def __init__(self, services: Services, key: bytes) -> None:
        self.settings = settings = services.settings
        # apart from those of the API: a program that asks for many pushes makes nobody wait who looks at a page
        self.looks = QueueLooks(lambda: services.queue)
        # apart from those of pushes: whoever asks for many tasks that nobody knows makes no push wait
        self.task_looks = QueueLooks(lambda: services.queue)
        self.excerpts = FileExcerpts()
        self.badges = SizedCache(1024 * 1024)
        self.hub = Hub(services, self)
        self.sessions = Sessions(settings, key)
        self.clients = None if services.sign_ins is None else Clients(services.sign_ins)
        self.attempts = Attempts(key)
        self.failed = FailedSignIns()
        self.base = "" if settings.public_url is None else (settings.public_url.path or "").rstrip("/")

    async def close(self) -> None:
        """End what goes on in the background."""
        await self.hub.close()
        await self.looks.close()
        await self.task_looks.close()

    def render_items(self, view: View, values: Mapping[str, Any]) -> Items:
        """Return the items of a view that has these values."""
        items = Items()
        render(view.template, self.base, items=items, **_NOBODY, **view.personal, **values)
        return items

    def redirect(self, path: str) -> Response:
        """Return a redirect to a path of the page."""
        return RedirectResponse(self.base + path, 303, HEADERS)


@asynccontextmanager
async def open_site(services: Services) -> AsyncIterator[Site | None]:
    """Open what all pages share, with the key that all replicas share; None: there is no page."""
    if not services.settings.web:
        yield None
        return
    key = await load_secret(services.database, "web-sessions")
    site = Site(services, key)
    try:
        yield site
    finally:
        await site.close()


class Visit:
    """A request for a page: who asks, and in which session."""

    def __init__(self, site: Site, request: Request) -> None:
        self._site, self._request = site, request
        self.session = self._read(COOKIE, signed_in=True) or self._read(FORM_COOKIE, signed_in=False)
        self.changed = False  # the answer sets the cookie
        self._scopes: tuple[str, ...] | None = None  # of the client that signed in with Taskcluster

    async def look_up(self) -> None:
        """Look up what whoever signed in with Taskcluster may do. Raises a 503 if that is not known."""
        if self.session is not None and self.session.client_id is not None and self._site.clients is not None:
            self._scopes = await self._site.clients.scopes(self.session.client_id)

    def _read(self, cookie: str, *, signed_in: bool) -> WebSession | None:
        session = self._site.sessions.read(self._request.cookies.get(cookie, ""))
        return session if session is not None and session.signed_in is signed_in else None

    @property
    def caller(self) -> Caller:
        if not self._site.settings.has_credentials:
            return LOCAL
        session = self.session
        if session is not None and session.token is not None:
            return Caller(session.token.name, tuple(session.token.scopes), on_page=True)
        if session is not None and session.client_id is not None and self._scopes is not None:
            return Caller(session.client_id, self._scopes, taskcluster=True, on_page=True)
        return auth.ANYBODY

    def form_token(self) -> str:
        """Return the token for a form on this page; whoever has no session gets one."""
        if self.session is None:
            self.begin(self._site.sessions.new(None))
        assert self.session is not None
        return self._site.sessions.form_token(self.session)

    def begin(self, session: WebSession | None) -> None:
        """Begin another session; None: there is none any more."""
        self.session, self.changed = session, True

    def set_cookie(self, response: Response) -> None:
        """Tell the browser of a changed session."""
        if not self.changed:
            return
        self.changed = False
        settings, path = self._site.settings, self._site.base or "/"
        https = settings.public_url is not None and settings.public_url.scheme == "https"
        attributes: dict[str, Any] = {
            "path": path,
            "secure": https or self._request.url.scheme == "https",
            "httponly": True,
            "samesite": "strict",
        }
        if self.session is None:
            response.delete_cookie(COOKIE, **attributes)
        else:
            life = int(settings.web_session.total_seconds())
            name = COOKIE if self.session.signed_in else FORM_COOKIE
            response.set_cookie(name, self._site.sessions.cookie(self.session), max_age=life, **attributes)


async def get_site(request: Request) -> Site:
    """Return what all pages share."""
    site: Site = request.app.state.site
    return site


async def get_visit(request: Request) -> Visit:
    """Return the visit of this request."""
    visit: Visit = request.state.visit
    return visit


SiteDep = Annotated[Site, Depends(get_site)]
VisitDep = Annotated[Visit, Depends(get_visit)]


async def read_form(request: Request, visit: VisitDep, site: SiteDep) -> dict[str, str]:
    """Return the fields of a form of our own page. Raises a 403 for any other, and for one of another session."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Problem(415, "Unsupported Media Type", f"a form is sent as {FORM}: use the one on the page")
    try:
        body = await request.body()
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body: send the form again") from None
    except ValueError:
        raise Problem(422, "Invalid request", f"a form is UTF-8, with at most {MAX_FIELDS:,} fields") from None
    if visit.session is None or not site.sessions.is_form_token(visit.session, fields.get("form_token", "")):
        detail = "this form is not of your present session: go back, load the page again, and send it again"
        raise Problem(403, "Form expired", detail)
    return fields


FormDep = Annotated[Mapping[str, str], Depends(read_form)]


def check_origin(settings: Settings, request: Request) -> None:
    """Raise a 403 unless a page of ours has sent this form."""
    origin = request.headers.get("origin")
    same_site = request.headers.get("sec-fetch-site") in {None, "same-origin"}
    ours = {request.headers.get("host", "").lower()}
    if settings.public_url is not None:
        ours.add(urlsplit(str(settings.public_url)).netloc.lower())
    if origin is None or origin.lower().partition("://")[2] not in ours or not same_site:
        detail = f"a page of {origin or 'elsewhere'} sent this, and not this service: send the form on its own page"
        raise Problem(403, "Cross-site request", f"{detail}. Behind a proxy, set TC_TREEHERDER_PUBLIC_URL")


def local_path(text: str) -> str:
    """Return a path of ours that a request names, or `/` for anything that could lead elsewhere."""
    return text if re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", text) else "/"


def address_of(settings: Settings, request: Request) -> str:
    """Return the address of whoever asks; of IPv6 the network, because everybody has many addresses there."""
    address = request.client.host if request.client is not None else ""
    hops = [hop.strip() for hop in ",".join(request.headers.getlist("x-forwarded-for")).split(",")]
    if settings.web_proxies and len(hops) >= settings.web_proxies:
        address = hops[-settings.web_proxies]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


class PageRoute(Route):
    """A route of a page. Its caller is whoever the cookie names; a form is taken only from our own pages."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "include_in_schema": False})  # the document is of the API

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if "POST" in (self.methods or ()) and not any(part.call is read_form for part in flatten(self.dependant)):
            raise TypeError(f"{self.path} takes a form without `FormDep`, which refuses forms of other pages")

        async def page(request: Request) -> Response:
            site: Site = request.app.state.site
            request.state.visit = visit = Visit(site, request)
            try:
                if request.method not in {"GET", "HEAD"}:
                    check_origin(site.settings, request)
                response = await handle(request)
            except Problem as refused:
                if refused.status != 401 or request.method not in {"GET", "HEAD"}:
                    raise
                raw = request.scope.get("raw_path", b"/").decode("latin-1")
                query = request.scope["query_string"].decode("latin-1")
                wanted = local_path(f"{raw}?{query}" if query else raw)
                if request.headers.get("sec-fetch-site") == "cross-site":
                    # behind a link of another site the browser keeps a SameSite=Strict cookie to itself
                    response = render("again.html", site.base, path=site.base + wanted)
                else:
                    response = site.redirect(path_of("sign-in", next=wanted))
            visit.set_cookie(response)
            return response

        return page

    async def _identify(self, request: Request) -> Caller:
        visit: Visit = request.state.visit
        await visit.look_up()
        return visit.caller


def show(request: Request, template: str, status: int = 200, *, view: View | None = None, **values: Any) -> Response:
    """Return a page within the layout. A browser goes on to watch it if it has a view."""
    site: Site = request.app.state.site
    visit: Visit = request.state.visit if hasattr(request.state, "visit") else Visit(site, request)
    caller = visit.caller
    common = {
        "caller": None if visit.session is None else visit.session.name,
        "signed_in": visit.session is not None and visit.session.signed_in,
        "can_sign_in": site.settings.has_credentials,
        "form_token": visit.form_token,
        "here": request.scope["path"],
        "navigation": [entry for entry in NAVIGATION if entry[1] not in _OF_SCOPE or caller.has(_OF_SCOPE[entry[1]])],
        "view": view,
        "reloads": request.method == "GET",
    }
    response = render(template, site.base, status, **common, **values)
    visit.set_cookie(response)
    return response


def lacking_to_write(may_write: bool) -> str | None:
    """Return the scope that is lacking to change repositories, and to replay, drop or try what waits."""
    return None if may_write else REPOSITORIES_WRITE


async def show_view(request: Request, view: View, **personal: Any) -> Response:
    """Read a view, and return its page; `personal` are values for whoever looks. Raises Problem."""
    shown = await view.read(request.app.state.services, request.app.state.site)
    return show(request, view.template, view=view, **personal, **shown.values)


_NOBODY: dict[str, Any] = {
    "caller": None,
    "signed_in": False,
    "can_sign_in": False,
    "form_token": str,
    "here": "",
    "navigation": (),
    "view": None,
    "reloads": False,
}
"""What the layout shows while only the items of a page are of interest."""
