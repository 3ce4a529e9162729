"""Sign people in for other services: Taskcluster's web-server as an OAuth 2 authorization server.

It has the code flow (RFC 6749, with PKCE of RFC 7636) for clients that are registered with it, and is as strict as the
real one: `redirect_uri` is compared as text, the scopes must be exactly the registered ones, a code works once and for
ten minutes, the person gets no scopes that they do not have, and the credentials are those of a new client, named
`<identity>/<client>-<6 characters>`. There is no client secret. The pages are in `login_pages.py`.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sandbox.taskcluster.auth import Auth, random_token
from sandbox.taskcluster.clock import DAY, HOUR, MINUTE, SECOND, iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scopes import ScopeSet
from sandbox.taskcluster.tasks import Json

CODE_LIFE = 10 * MINUTE
"""Milliseconds for which a code works, and an access token."""

EARLIER = 30 * SECOND
"""Milliseconds by which the told end of the credentials is before their real one."""

_UNITS = {"second": SECOND, "minute": MINUTE, "hour": HOUR, "day": DAY}
_DURATION = re.compile(r"(\d+)\s*(second|minute|hour|day)s?")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class LoginError(Exception):
    """A request that is refused: the OAuth error code, the status where it is shown, and a description."""

    def __init__(self, code: str, status: int, description: str) -> None:
        super().__init__(description)
        self.code, self.status = code, status


@dataclass(frozen=True)
class RegisteredClient:
    """An entry of the web-server's `registeredClients`; `max_expires` is a duration such as `1 day`."""

    client_id: str
    redirect_uris: tuple[str, ...]
    scopes: tuple[str, ...]
    max_expires: str = "1 day"
    whitelisted: bool = False
    require_pkce: bool = False


@dataclass(frozen=True)
class Wanted:
    """A valid request for authorization."""

    client: RegisteredClient
    redirect_uri: str
    scopes: tuple[str, ...]
    state: str | None
    expires: int  # milliseconds from now on
    challenge: str | None
    credentials_of: str  # the clientId that the credentials will have


@dataclass(frozen=True)
class _Granted:
    wanted: Wanted
    identity: str
    scopes: tuple[str, ...]
    until: int


class Login:
    """The people who may sign in, the registered clients, and what was granted to them."""

    def __init__(
        self, auth: Auth, people: Mapping[str, Iterable[str]] | None = None, clients: Iterable[RegisteredClient] = ()
    ) -> None:
        self._auth = auth
        self.people = {identity: tuple(scopes) for identity, scopes in (people or {}).items()}
        self.clients = {client.client_id: client for client in clients}
        self._codes: dict[str, _Granted] = {}
        self._tokens: dict[str, _Granted] = {}

    def wanted(self, query: Mapping[str, str], identity: str) -> Wanted:
        """Return what a request for authorization wants. Raises LoginError, which leads nobody anywhere."""
        if query.get("response_type") != "code":
            raise LoginError("unsupported_response_type", 501, "Unsupported response type")
        client = self.clients.get(query.get("client_id", ""))
        redirect_uri = query.get("redirect_uri", "")
        if client is None or redirect_uri not in client.redirect_uris:
            raise LoginError("unauthorized_client", 403, "Unauthorized client: client_id or redirect_uri is unknown")
        challenge = query.get("code_challenge")
        if challenge is not None and query.get("code_challenge_method") != "S256":
            raise LoginError("invalid_request", 400, "code_challenge_method must be S256")
        if challenge is None and client.require_pkce:
            raise LoginError("invalid_request", 400, "code_challenge is required")
        most = _duration(client.max_expires) or 0
        return Wanted(
            client,
            redirect_uri,
            tuple(query.get("scope", "").split()),
            query.get("state"),
            min(_duration(query.get("expires", "")) or most, most),
            challenge,
            f"{identity}/{client.client_id}-{secrets.token_urlsafe(9).replace('_', 'a').replace('-', 'b')[:6]}",
        )

    def grant(self, wanted: Wanted, identity: str, scopes: Iterable[str]) -> str:
        """Return a code for the scopes that the person grants. Raises LoginError, which goes to the client."""
        granted = tuple(scopes)
        registered = ScopeSet(wanted.client.scopes)
        if sorted(wanted.scopes) != sorted(wanted.client.scopes):
            raise LoginError("invalid_scope", 400, "scope must be exactly what the client is registered with")
        if not all(registered.satisfies(scope) for scope in granted):
            raise LoginError("invalid_scope", 400, "more was granted than the client is registered with")
        held = self._auth.expand(self.people[identity])
        code = secrets.token_urlsafe(16)
        self._codes[code] = _Granted(wanted, identity, _intersection(granted, held), self._until())
        return code

    def redeem(self, form: Mapping[str, str]) -> str:
        """Return the access token for a code. Raises LoginError."""
        if form.get("grant_type") != "authorization_code":
            raise LoginError("unsupported_grant_type", 501, f"Unsupported grant type: {form.get('grant_type')}")
        if not form.get("code"):
            raise LoginError("invalid_request", 400, "Missing required parameter: code")
        granted = self._codes.pop(form["code"], None)
        invalid = LoginError("invalid_grant", 403, "Invalid authorization code")
        if granted is None or granted.until < self._auth.clock.now():
            raise invalid
        wanted = granted.wanted
        if (form.get("client_id"), form.get("redirect_uri")) != (wanted.client.client_id, wanted.redirect_uri):
            raise invalid
        verifier = form.get("code_verifier", "")
        if wanted.challenge is not None and not (
            _VERIFIER.fullmatch(verifier) and hmac.compare_digest(challenge_of(verifier), wanted.challenge)
        ):
            raise invalid
        token = base64.b64encode(secrets.token_bytes(16)).decode()
        self._tokens[token] = _Granted(wanted, granted.identity, granted.scopes, self._until())
        return token

    def credentials(self, authorization: str | None) -> Json:
        """Create the client that the access token is for; return its credentials. Raises ApiError."""
        kind, _, token = (authorization or "").partition(" ")
        granted = self._tokens.pop(token, None) if kind.lower() == "bearer" else None
        now = self._auth.clock.now()
        if granted is None or granted.until < now or granted.identity not in self.people:
            raise ApiError("InputError", "Could not generate credentials for this access token")
        wanted, key, expires = granted.wanted, random_token(), now + granted.wanted.expires
        self._auth.add_client(wanted.credentials_of, key, granted.scopes, expires=expires)
        return {
            "expires": iso(expires - EARLIER),
            "credentials": {"clientId": wanted.credentials_of, "accessToken": key},
        }

    def _until(self) -> int:
        return self._auth.clock.now() + CODE_LIFE


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a PKCE verifier."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _intersection(granted: Iterable[str], held: ScopeSet) -> tuple[str, ...]:
    """Return the scopes that both sets satisfy."""
    both = ScopeSet(granted)
    found = [scope for scope in both.scopes if held.satisfies(scope)]
    found += [scope for scope in held.scopes if both.satisfies(scope)]
    return tuple(sorted(set(found)))


def _duration(text: str) -> int | None:
    """Return the milliseconds of a duration such as `15 minutes` or `1 day 2 hours`; None for anything else."""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        return None
    return sum(int(number) * _UNITS[unit] for number, unit in parts)
