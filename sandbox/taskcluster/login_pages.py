"""The pages and endpoints of signing in: who one is, what one grants, and the two calls of the client.

GET  /login/oauth/authorize             asks who one is, then what to grant; or leads back at once
POST /login/oauth/authorize             the answer to either
POST /login/oauth/token                 a code for an access token
GET  /login/oauth/credentials           an access token for Taskcluster credentials
"""

import html
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.login import Login, LoginError, Wanted

COOKIE = "sandbox-taskcluster"
"""Who has signed in to this Taskcluster with this browser."""

Handler = Callable[[Request], Awaitable[Response]]

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


def login_routes(login: Login) -> list[Route]:
    """Return the routes of signing in."""
    signed_in: dict[str, str] = {}  # the value of the cookie, and who that is
    transactions: dict[str, tuple[Wanted, str]] = {}

    def identity_of(request: Request) -> str | None:
        return signed_in.get(request.cookies.get(COOKIE, ""))

    def ask(wanted: Wanted, identity: str) -> Response:
        transaction = secrets.token_urlsafe(16)
        transactions[transaction] = (wanted, identity)
        return _page("Grant access", _consent(wanted, identity, transaction))

    async def authorize(request: Request) -> Response:
        identity = identity_of(request)
        if identity is None:
            return _page("Sign in", _choice(login.people, str(request.url.query)))
        wanted = login.wanted(request.query_params, identity)
        if wanted.client.whitelisted and sorted(wanted.scopes) == sorted(wanted.client.scopes):
            return _back(login, wanted, identity, wanted.scopes)
        return ask(wanted, identity)

    async def decide(request: Request) -> Response:
        form = await _form(request)
        if form.get("identity") in login.people:
            cookie = secrets.token_urlsafe(16)
            signed_in[cookie] = form["identity"]
            response = RedirectResponse(f"{request.url.path}?{form.get('query', '')}", 303, _HEADERS)
            response.set_cookie(COOKIE, cookie, httponly=True, samesite="lax")
            return response
        wanted, identity = transactions.pop(form.get("transaction", ""), (None, None))
        if wanted is None or identity is None or identity != identity_of(request):
            raise LoginError("invalid_request", 400, "There is no such request to grant")
        if form.get("decision") != "grant":
            return _redirect(wanted, error="access_denied", error_description="The person declined")
        return _back(login, wanted, identity, form.get("scope", "").split())

    async def token(request: Request) -> Response:
        access_token = login.redeem(await _form(request))
        return JSONResponse({"access_token": access_token, "token_type": "Bearer"}, headers=_HEADERS)

    async def credentials(request: Request) -> Response:
        try:
            return JSONResponse(login.credentials(request.headers.get("authorization")), headers=_HEADERS)
        except ApiError as error:
            return JSONResponse({"code": error.code, "message": error.message}, error.status, _HEADERS)

    def refusing(handle: Handler) -> Handler:
        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except LoginError as error:
                body = {"error": error.code, "error_description": str(error)}
                return JSONResponse(body, error.status, _HEADERS)

        return handler

    return [
        Route("/login/oauth/authorize", refusing(authorize), methods=["GET"]),
        Route("/login/oauth/authorize", refusing(decide), methods=["POST"]),
        Route("/login/oauth/token", refusing(token), methods=["POST"]),
        Route("/login/oauth/credentials", credentials, methods=["GET"]),
    ]


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace")))


def _back(login: Login, wanted: Wanted, identity: str, scopes: Iterable[str]) -> Response:
    """Lead back to the client with a code, or with the error."""
    try:
        code = login.grant(wanted, identity, scopes)
    except LoginError as error:
        return _redirect(wanted, error=error.code, error_description=str(error))
    return _redirect(wanted, code=code)


def _redirect(wanted: Wanted, **query: str) -> Response:
    if wanted.state is not None:
        query["state"] = wanted.state
    separator = "&" if "?" in wanted.redirect_uri else "?"
    return RedirectResponse(f"{wanted.redirect_uri}{separator}{urlencode(query)}", 302, _HEADERS)


def _choice(people: Mapping[str, object], query: str) -> str:
    buttons = "".join(
        f'<p><button name="identity" value="{html.escape(identity)}">{html.escape(identity)}</button></p>'
        for identity in people
    )
    query = html.escape(query)
    return f'<p>Who are you?</p><form method="post"><input type="hidden" name="query" value="{query}">{buttons}</form>'


def _consent(wanted: Wanted, identity: str, transaction: str) -> str:
    scopes = html.escape(" ".join(wanted.scopes))
    return (
        f"<p>{html.escape(wanted.client.client_id)} asks for these scopes of {html.escape(identity)}; take away what "
        f'you do not grant.</p><form method="post"><input type="hidden" name="transaction" value="{transaction}">'
        f'<p><label>Scopes <input name="scope" value="{scopes}" size="60"></label></p>'
        '<p><button name="decision" value="grant">Grant</button> '
        '<button name="decision" value="decline">Decline</button></p></form>'
    )


def _page(title: str, body: str) -> Response:
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} - Taskcluster (sandbox)</title>'
    head += '<link rel="icon" href="data:,">'
    style = "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:2em auto;padding:0 1em}</style>"
    content = f"{head}{style}</head><body><h1>Taskcluster (sandbox): {title}</h1>{body}</body></html>"
    return HTMLResponse(content, headers=_HEADERS)
