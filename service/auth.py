"""Who may call: listeners sign, people and programs bring a bearer token of the settings or Taskcluster credentials."""

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
from service.settings import READ, Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """Somebody who is known by name, and what they may do."""

    name: str
    scopes: tuple[str, ...]
    taskcluster: bool = False  # `name` is a clientId

    @property
    def key(self) -> str:
        """What tells a token and a Taskcluster client of the same name apart."""
        return f"taskcluster {self.name}" if self.taskcluster else self.name

    def has(self, scope: str) -> bool:
        """Taskcluster's rule: a scope that ends in `*` satisfies all that begin so."""
        return satisfies(self.scopes, scope)


ANYBODY = Caller("anybody", ())
LOCAL = Caller("local", ("*",))
"""Without any credentials configured the service listens on loopback only, and whoever is there may do all."""


BEWIT = "bewit"
"""The query parameter that holds a signed URL's credentials."""

MAX_SIGNATURE = 4096
"""Characters of a Hawk header that are looked at (`maxMatchLength` of Hawk's reference implementation)."""


def has_bewit(request: Request, logins: Logins | None) -> bool:
    """Return True if the query's bewit is what tells who calls: otherwise it is a parameter like any unknown one."""
    reads = request.method in {"GET", "HEAD"}
    return logins is not None and reads and "authorization" not in request.headers and BEWIT in request.query_params


async def identify(settings: Settings, request: Request, logins: Logins | None) -> Caller:
    """Who sent this request. Raises a 401 for credentials that are no good, a 503 when Taskcluster cannot tell."""
    header = request.headers.get("authorization")
    signed = has_bewit(request, logins) if header is None else header[:5].lower() == "hawk "
    if logins is None or not signed:
        return caller_of(settings, request)
    if header is not None and len(header) > MAX_SIGNATURE:
        raise _refused(settings, f"a Hawk header of {len(header):,} characters: {MAX_SIGNATURE:,} are looked at")
    try:
        login = await logins.check(_signed(settings, request, header))
    except PermanentUpstreamError as refusal:
        raise _refused(settings, f"Taskcluster says of these credentials: {refusal}") from None
    except Unavailable as error:
        detail = f"whose credentials these are cannot be checked: {error}. Try again, or use a token of this service."
        raise Problem(503, "Taskcluster unavailable", detail, {"Retry-After": "5"}) from None
    if login.payload_hash is not None and not hmac.compare_digest(
        login.payload_hash.encode(), await _payload_hash(request)
    ):
        raise _refused(settings, "the body or its Content-Type is not the one that was signed")
    return Caller(login.client_id, login.scopes, taskcluster=True)


def _signed(settings: Settings, request: Request, header: str | None) -> SignedRequest:
    """The request as the caller must have signed it: for our public address, whatever a header says.

    A Host header that was believed would let whoever is sent a signature for another address use it here.
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
    """Hawk's hash of the body that came."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Problem(400, "Incomplete", "the connection ended before the body did: send it again") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    digest = hashlib.sha256(b"hawk.1.payload\n" + kind.encode("latin-1") + b"\n" + body + b"\n")
    return base64.b64encode(digest.digest())


def caller_of(settings: Settings, request: Request) -> Caller:
    """Who sent this request, by its token. Raises a 401 for one that is not known."""
    header = request.headers.get("authorization")
    if not settings.has_credentials:
        return LOCAL
    if header is None:
        return ANYBODY
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        sent = value.strip().encode("latin-1")  # the header's bytes, as they came
        # every token is compared, so that the time tells nothing
        matches = [
            token for token in settings.tokens if hmac.compare_digest(token.value.get_secret_value().encode(), sent)
        ]
        if matches:
            return Caller(matches[0].name, tuple(matches[0].scopes))
    raise _refused(settings, "the Authorization header holds no token that this service knows")


def check_local(method: str, headers: Mapping[str, str]) -> None:
    """Raise a 403 for what a web page of somebody else makes a browser on this machine send.

    Only where no credentials are configured, so that whoever reaches the service may do everything. A foreign Host is
    what a page sends after it has let its own name resolve to loopback (DNS rebinding).
    """
    host = headers.get("host", "localhost")
    if not loopback(host):  # or a proxy that forwards to us
        detail = f"without credentials in its settings this service answers on loopback only, and not as {host!r}"
        raise Problem(403, "Not local", f"{detail}: set TC_TREEHERDER_TOKENS")
    if method in {"GET", "HEAD", "OPTIONS"}:
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or site not in {None, "same-origin", "none"}:
        detail = (
            f"a web page of {origin or site} sent this: without credentials in its settings this service refuses it"
        )
        raise Problem(403, "Cross-site request", f"{detail}; set TC_TREEHERDER_TOKENS, and send one of them")


def loopback(host: str) -> bool:
    """Whether a Host header names this machine for itself."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_loopback(name: str) -> bool:
    """Whether a name or address, without port and brackets, is this machine's own."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refused(settings: Settings, why: str) -> Problem:
    return Problem(401, "Unknown credentials", f"{why}: {_what_to_send(settings)}", _challenge(settings))


def _what_to_send(settings: Settings) -> str:
    more = " or sign with Taskcluster credentials (Hawk)" if settings.taskcluster_logins else ""
    return f"send `Authorization: Bearer <token>`{more}"


def _challenge(settings: Settings) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer, Hawk" if settings.taskcluster_logins else "Bearer"}


def require_credentials(settings: Settings, caller: Caller) -> None:
    """Raise a 401 unless it is known who calls: the scope that is needed may depend on the body."""
    if caller is ANYBODY:
        detail = f"this needs credentials: {_what_to_send(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings))


def require(settings: Settings, caller: Caller, scope: str) -> None:
    """Raise a 401 or 403 that names the scope, unless `caller` has it."""
    if caller.has(scope):
        return
    if caller is ANYBODY:
        detail = f"this needs credentials with the scope {scope}: {_what_to_send(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings), missing_scope=scope)
    raise Problem(403, "Scope missing", f"{caller.name} needs the scope {scope} for this", missing_scope=scope)


def may_read(settings: Settings, caller: Caller) -> None:
    """Raise a 401 or 403 unless reads are public, or the caller has a token or any scope of ours in Taskcluster."""
    if settings.public_reads:
        return
    if caller is ANYBODY:
        detail = f"reads need credentials too (public_reads is off): {_what_to_send(settings)}"
        raise Problem(401, "Credentials needed", detail, _challenge(settings), missing_scope=READ)
    # a token is given by the operator; to Taskcluster's clients anybody may belong
    if caller.taskcluster and not any(scope.startswith("tc-treeherder:") for scope in caller.scopes):
        require(settings, caller, READ)


ROUTE_SIGNATURE = "webhook-route-signature"
"""The header that signs method and path, as `webhook-signature` signs the body: of the same id and timestamp."""

SIGNATURE_AGE = 300
"""Seconds that a signature's time may be away from ours: Standard Webhooks' own."""


def verify_route_signature(settings: Settings, request: Request) -> None:
    """Raise a 401 unless one of the webhook secrets signed this request's method and path. Reads no body."""
    route = f"{request.method} {request.scope['path']}".encode(errors="replace")
    headers = {**request.headers, "webhook-signature": request.headers.get(ROUTE_SIGNATURE, "")}
    _verify(settings, headers, route, f"the {ROUTE_SIGNATURE} of method and path")


def verify_signature(settings: Settings, request: Request, body: bytes) -> None:
    """Raise a 401 unless one of the webhook secrets signed exactly these bytes."""
    _verify(settings, dict(request.headers), body, "the Standard Webhooks signature of the body")


def _verify(settings: Settings, headers: dict[str, str], signed: bytes, what: str) -> None:
    for secret in settings.webhook_secrets:
        try:
            _verify_one(secret.get_secret_value(), headers, signed)
        except (WebhookVerificationError, ValueError, TypeError, IndexError, OverflowError, OSError) as error:
            # what malformed headers and bodies raise
            log.debug("signature-refused", error=type(error).__name__)
        else:
            return
    detail = f"{what} is missing, too old, or made with another secret than webhook_secrets"
    if not settings.webhook_secrets:
        detail = "no webhook_secrets are configured, so nothing that a listener signs can be believed"
    raise Problem(401, "Not signed", detail)


def _verify_one(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """Verify as Standard Webhooks' library does, which knows no clock but the process's own.

    Raises WebhookVerificationError, and whatever malformed headers lead to.
    """
    message, at = headers.get("webhook-id"), float(headers.get("webhook-timestamp", "nan"))
    if not message or not abs(now().timestamp() - at) <= SIGNATURE_AGE:
        raise WebhookVerificationError("no id, or no time of these minutes")
    expected = Webhook(secret).sign(message, datetime.fromtimestamp(at, UTC), body.decode()).encode()
    signatures = headers.get("webhook-signature", "").encode("latin-1").split(b" ")
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise WebhookVerificationError("no signature matches")
