"""Authenticate and authorize callers of the API.

Listeners sign their requests. People and programs send a bearer token of the settings, or Taskcluster credentials.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import structlog
from fastapi import Request
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.requests import ClientDisconnect

from service.clients.auth import Logins, SignedRequest
from service.clients.taskcluster import satisfies
from service.clock import now
from service.errors import PermanentUpstreamError, Problem, Unavailable
from service.settings import READ, Settings, Token

log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """An authenticated caller: a name, and the scopes that they have."""

    name: str
    scopes: tuple[str, ...]
    taskcluster: bool = False  # `name` is a clientId
    on_page: bool = False  # they ask by the page, and not by the API

    @property
    def key(self) -> str:
        """Return a key that is unique, even if a token and a Taskcluster client have the same name."""
        return f"taskcluster {self.name}" if self.taskcluster else self.name

    def has(self, scope: str) -> bool:
        """Return True if the caller has the scope. As in Taskcluster, `a*` satisfies all scopes that begin with `a`."""
        return satisfies(self.scopes, scope)


ANYBODY = Caller("anybody", ())
LOCAL = Caller("local", ("*",))
"""The caller of a service without configured credentials. It listens on loopback only, and allows everything."""


BEWIT = "bewit"
"""The query parameter with a signed URL's credentials."""

MAX_SIGNATURE = 4096
"""Largest accepted Hawk header, in characters (`maxMatchLength` of Hawk's reference implementation)."""


def has_bewit(request: Request, logins: Logins | None) -> bool:
    """Return True if the query's bewit authenticates the caller. Otherwise it is ignored like any unknown parameter."""
    reads = request.method in {"GET", "HEAD"}
    return logins is not None and reads and "authorization" not in request.headers and BEWIT in request.query_params


async def identify(settings: Settings, request: Request, logins: Logins | None) -> Caller:
    """Return the caller who sent this request.

    Raises a 401 if the credentials are not valid, and a 503 if Taskcluster cannot check them.
    """
    header = request.headers.get("authorization")
    signed = has_bewit(request, logins) if header is None else header[:5].lower() == "hawk "
    if logins is None or not signed:
        return caller_of(settings, request)
    if header is not None and len(header) > MAX_SIGNATURE:
        raise _unauthorized(
            settings, f"the Hawk header has {len(header):,} characters, and the limit is {MAX_SIGNATURE:,}"
        )
    try:
        login = await logins.check(_signed(settings, request, header))
    except PermanentUpstreamError as error:
        raise _unauthorized(settings, f"Taskcluster refuses these credentials: {error}") from None
    except Unavailable as error:
        detail = f"these credentials cannot be checked: {error}. Try again, or use a token of this service."
        raise Problem(503, "Taskcluster unavailable", detail, {"Retry-After": "5"}) from None
    if login.payload_hash is not None and not hmac.compare_digest(
        login.payload_hash.encode(), await _payload_hash(request)
    ):
        raise _unauthorized(settings, "the body or its Content-Type is not the one that was signed")
    return Caller(login.client_id, login.scopes, taskcluster=True)


def _signed(settings: Settings, request: Request, header: str | None) -> SignedRequest:
    """Return the request as the caller must have signed it: for our public address, whatever the Host header says.

    If the Host header were used, a signature that somebody received for another address would be valid here.
    """
    assert settings.public_url is not None
    assert settings.public_url.host is not None
    assert settings.public_url.port is not None
    raw_path = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    prefix = (settings.public_url.path or "").rstrip("/")
    query = request.scope["query_string"].decode("latin-1")
    resource = prefix + raw_path.decode("latin-1") + (f"?{query}" if query else "")
    return SignedRequest(request.method, resource, settings.public_url.host, settings.public_url.port, header)


async def _payload_hash(request: Request) -> bytes:
    """Return Hawk's hash of the request's body."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body: send the request again") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    digest = hashlib.sha256(b"hawk.1.payload\n" + kind.encode("latin-1") + b"\n" + body + b"\n")
    return base64.b64encode(digest.digest())


def caller_of(settings: Settings, request: Request) -> Caller:
    """Return the caller whose token this request has. Raises a 401 if the token is unknown."""
    header = request.headers.get("authorization")
    if not settings.has_credentials:
        return LOCAL
    if header is None:
        return ANYBODY
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        token = find_token(settings, value.strip().encode("latin-1"))  # the header's original bytes
        if token is not None:
            return Caller(token.name, tuple(token.scopes))
    raise _unauthorized(settings, "the Authorization header has no token that this service knows")


def find_token(settings: Settings, sent: bytes) -> Token | None:
    """Return the token of the settings that has this value. Which one matches does not change the time it takes."""
    matches = [token for token in settings.tokens if hmac.compare_digest(token.value.get_secret_value().encode(), sent)]
    return matches[0] if matches else None


def check_local(method: str, headers: Mapping[str, str]) -> None:
    """Raise a 403 for a request that a foreign web page makes a browser on this machine send.

    It is for a service without configured credentials, which allows everything to everybody who reaches it. A foreign
    Host header comes from a page whose own name resolves to loopback (DNS rebinding), or from a proxy.
    """
    host = headers.get("host", "localhost")
    if not loopback(host):
        detail = f"a service without credentials in its settings answers on loopback only, and not as {host!r}"
        raise Problem(403, "Not local", f"{detail}: set TC_TREEHERDER_TOKENS")
    if method in {"GET", "HEAD", "OPTIONS"}:
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or site not in {None, "same-origin", "none"}:
        detail = (
            f"a web page of {origin or site} sent this, which a service without credentials in its settings refuses"
        )
        raise Problem(403, "Cross-site request", f"{detail}: set TC_TREEHERDER_TOKENS, and send one of them")


def loopback(host: str) -> bool:
    """Return True if a Host header names this machine's loopback."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_loopback(name: str) -> bool:
    """Return True if a name or address, without port and brackets, is loopback."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _unauthorized(settings: Settings, reason: str) -> Problem:
    return Problem(401, "Unknown credentials", f"{reason}: {_remedy(settings)}", _challenge(settings))


def _remedy(settings: Settings) -> str:
    hawk = " or sign with Taskcluster credentials (Hawk)" if settings.taskcluster_logins else ""
    return f"send `Authorization: Bearer <token>`{hawk}"


def _challenge(settings: Settings) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer, Hawk" if settings.taskcluster_logins else "Bearer"}


def require_credentials(settings: Settings, caller: Caller) -> None:
    """Raise a 401 for an anonymous caller. It is for calls whose scope depends on the body."""
    if caller is ANYBODY:
        detail = f"this call needs credentials: {_remedy(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings))


def require(settings: Settings, caller: Caller, scope: str) -> None:
    """Raise a 401 or 403 that names the scope, unless the caller has it."""
    if caller.has(scope):
        return
    if caller is ANYBODY:
        detail = f"this call needs credentials with the scope {scope}: {_remedy(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings), missing_scope=scope)
    giver = "a role in Taskcluster" if caller.taskcluster else "whoever runs the service, in the setting `tokens`,"
    detail = f"{caller.name} needs the scope {scope} for this: {giver} can give it"
    raise Problem(403, "Scope missing", detail, missing_scope=scope)


def may_read(settings: Settings, caller: Caller) -> None:
    """Raise a 401 or 403 unless reads are public, or the caller has a token, or any of our scopes in Taskcluster."""
    if settings.public_reads:
        return
    if caller is ANYBODY:
        detail = f"this call needs credentials, because public_reads is off: {_remedy(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings), missing_scope=READ)
    # the operator gives out tokens, but anybody may have a Taskcluster client
    if caller.taskcluster and not any(scope.startswith("tc-treeherder:") for scope in caller.scopes):
        require(settings, caller, READ)


ROUTE_SIGNATURE = "webhook-route-signature"
"""The header that signs method and path, with the id and timestamp of `webhook-signature`, which signs the body."""

SIGNATURE_AGE = 300
"""Seconds by which a signature's time may differ from ours, as in Standard Webhooks."""


def verify_route_signature(settings: Settings, request: Request) -> None:
    """Raise a 401 unless a webhook secret signed this request's method and path. It does not read the body."""
    route = f"{request.method} {request.scope['path']}".encode(errors="replace")
    headers = {**request.headers, "webhook-signature": request.headers.get(ROUTE_SIGNATURE, "")}
    _verify(settings, headers, route, f"the {ROUTE_SIGNATURE} of method and path")


def verify_signature(settings: Settings, request: Request, body: bytes) -> None:
    """Raise a 401 unless a webhook secret signed exactly these bytes."""
    _verify(settings, dict(request.headers), body, "the Standard Webhooks signature of the body")


def _verify(settings: Settings, headers: dict[str, str], signed: bytes, what: str) -> None:
    for secret in settings.webhook_secrets:
        try:
            _verify_one(secret.get_secret_value(), headers, signed)
        except (WebhookVerificationError, ValueError, TypeError, IndexError, OverflowError, OSError) as error:
            # the others are raised for malformed headers and bodies
            log.debug("signature-refused", error=type(error).__name__)
        else:
            return
    detail = f"{what} is missing, too old, or made with a secret that is not in webhook_secrets"
    if not settings.webhook_secrets:
        detail = (
            "webhook_secrets is empty, so no listener's signature can be verified: set TC_TREEHERDER_WEBHOOK_SECRETS"
        )
    raise Problem(401, "Not signed", detail)


def _verify_one(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """Verify a signature as Standard Webhooks' library does, but with the database's time.

    Raises WebhookVerificationError, or other errors for malformed headers.
    """
    message_id, at = headers.get("webhook-id"), float(headers.get("webhook-timestamp", "nan"))
    if not message_id or not abs(now().timestamp() - at) <= SIGNATURE_AGE:
        raise WebhookVerificationError("no id, or a time that is too far from ours")
    expected = Webhook(secret).sign(message_id, datetime.fromtimestamp(at, UTC), body.decode()).encode()
    signatures = headers.get("webhook-signature", "").encode("latin-1").split(b" ")
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise WebhookVerificationError("no signature matches")
