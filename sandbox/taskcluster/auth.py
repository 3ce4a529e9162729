"""Authenticate callers and determine their scopes, as Taskcluster's auth service does.

Follows https://docs.taskcluster.net/docs/manual/design/apis/hawk: Hawk headers and bewits, `ext` with a certificate of
temporary credentials and `authorizedScopes`. The Hawk MAC is computed here and not by mohawk, because mohawk's receiver
formats every body for a debug log even if nobody reads it; the tests compare the two.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.taskcluster.clock import DAY, HOUR, MINUTE, Clock, iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.scopes import Expression, Roles, ScopeSet, expand, is_valid
from sandbox.taskcluster.tasks import new_slugid

MAX_HEADER = 4096
"""Longest Authorization header that Hawk reads (`maxMatchLength` of its reference implementation)."""

MAX_SKEW = 60
"""Seconds that the timestamp of a Hawk header may be off."""

_ATTRIBUTE = re.compile(r'(\w+)="([^"\\]*)"\s*(?:,\s*|$)')
_KNOWN = {"id", "ts", "nonce", "hash", "ext", "mac", "app", "dlg"}


class AuthFailed(Exception):
    """An error of invalid credentials; the text is the service's answer."""


@dataclass(frozen=True)
class Client:
    """Credentials that the auth service accepts, and their scopes (roles not yet expanded)."""

    client_id: str
    access_token: str
    scopes: tuple[str, ...] = ()
    created: int = 0
    expires: int | None = None  # None: in a thousand years
    disabled: bool = False


@dataclass(frozen=True)
class Caller:
    """A caller of a method; `client_id` is None if the request had no credentials."""

    client_id: str | None
    scopes: ScopeSet
    expires: int
    hash: str | None = None


@dataclass(frozen=True)
class Request:
    """Parts of a request that a Hawk signature covers. `resource` is the path and query as received."""

    method: str
    resource: str
    host: str
    port: int
    authorization: str | None = None


@dataclass
class _Identity:
    """A client, or temporary credentials of one, before the signature is checked."""

    client_id: str
    key: str
    scopes: ScopeSet
    expires: int


@dataclass
class Auth:
    """All clients and roles.

    The role `anonymous` is assumed for every request, with credentials or without.
    """

    clock: Clock
    clients: dict[str, Client] = field(default_factory=dict)
    roles: Roles = field(default_factory=dict)
    wall_clock: Callable[[], float] = time.time  # signatures have the caller's time, which `clock` does not affect
    _expanded: dict[tuple[str, ...], ScopeSet] = field(default_factory=dict)
    _extensions: dict[tuple[str, str], _Identity] = field(default_factory=dict)

    def add_client(
        self, client_id: str, access_token: str, scopes: Iterable[str] = (), *, expires: int | None = None
    ) -> None:
        """Add a client, or replace it."""
        self.clients[client_id] = Client(client_id, access_token, tuple(scopes), self.clock.now(), expires)
        self._extensions.clear()

    def disable(self, client_id: str, *, disabled: bool = True) -> None:
        """Disable a client, or enable it again, as `auth.disableClient` does."""
        self.clients[client_id] = replace(self.clients[client_id], disabled=disabled)
        self._extensions.clear()

    def describe(self, client_id: str, caller: "Caller") -> dict[str, Any]:
        """Answer `auth.client`."""
        require(caller, f"auth:get-client:{client_id}")
        client = self.clients.get(client_id)
        if client is None or (client.expires is not None and client.expires < self.clock.now()):
            raise ApiError("ResourceNotFound", "Client not found")  # what has expired is deleted
        created = iso(client.created)
        return {
            "clientId": client_id,
            "expires": iso(self.clock.now() + 365_000 * DAY if client.expires is None else client.expires),
            "description": "A client of the sandbox.",
            "created": created,
            "lastModified": created,
            "lastDateUsed": created,
            "lastRotated": created,
            "deleteOnExpiration": client.expires is not None,
            "scopes": list(client.scopes),
            "expandedScopes": self.expand(client.scopes).scopes,
            "disabled": client.disabled,
        }

    def set_roles(self, roles: Roles) -> None:
        """Replace all roles."""
        self.roles = roles
        self._expanded.clear()
        self._extensions.clear()

    def expand(self, scopes: Iterable[str]) -> ScopeSet:
        """Return the scopes together with those of their roles."""
        key = tuple(scopes)
        if key not in self._expanded:
            if len(self._expanded) > 10_000:
                self._expanded.clear()
            self._expanded[key] = expand(key, self.roles)
        return self._expanded[key]

    def authenticate(self, request: Request) -> Caller:
        """Return the caller of this request. Raises `AuthFailed` if its credentials are invalid."""
        if request.authorization:
            return self._by_header(request)
        if (bewit := re.search(r"[?&]bewit=([^&]+)", request.resource)) and request.method.upper() in ("GET", "HEAD"):
            stripped = request.resource[: bewit.start()] + request.resource[bewit.end() :]
            if bewit[0].startswith("?") and "?" not in stripped:
                stripped = stripped.replace("&", "?", 1)
            return self._by_bewit(request, bewit[1], stripped)
        return Caller(None, self.expand(["assume:anonymous"]), self.clock.now() + HOUR)

    def _by_header(self, request: Request) -> Caller:
        header = _parse(request.authorization or "")
        identity = self._identify(header["id"], header.get("ext", ""))
        expected = mac("header", request, header, identity.key)
        if not _same(expected, header["mac"]):
            raise AuthFailed("Bad mac")
        if abs(float(header["ts"]) - self.wall_clock()) > MAX_SKEW:
            raise AuthFailed("Stale timestamp")
        return Caller(identity.client_id, identity.scopes, identity.expires, header.get("hash"))

    def _by_bewit(self, request: Request, bewit: str, stripped: str) -> Caller:
        try:
            client_id, expires, signature, ext = _unbase64(bewit).decode().split("\\")
            lasts = int(expires)
        except ValueError:
            raise AuthFailed("Invalid bewit structure") from None
        if lasts < self.wall_clock():
            raise AuthFailed("Access expired")
        identity = self._identify(client_id, ext)
        plain = Request("GET", stripped, request.host, request.port)
        if not _same(mac("bewit", plain, {"ts": expires, "ext": ext}, identity.key), signature):
            raise AuthFailed("Bad mac")
        return Caller(identity.client_id, identity.scopes, identity.expires)

    def _identify(self, client_id: str, ext: str) -> _Identity:
        """Return the client as `ext` changes it: temporary credentials, and fewer scopes."""
        cached = self._extensions.get((client_id, ext))
        if cached is not None and cached.expires > self.clock.now():
            return cached
        extension = _extension(ext)
        certificate = extension.get("certificate")
        identity = self._client(client_id) if certificate is None else self._temporary(client_id, certificate)
        if "authorizedScopes" in extension:
            authorized_scopes = extension["authorizedScopes"]
            if not isinstance(authorized_scopes, list) or not all(is_valid(scope) for scope in authorized_scopes):
                raise AuthFailed("ext.authorizedScopes must be an array of valid scopes")
            if not all(identity.scopes.satisfies(scope) for scope in authorized_scopes):
                raise AuthFailed(
                    f"Supplied credentials, client ID {client_id}, do not satisfy ext.authorizedScopes; "
                    f"credentials have scopes [{', '.join(identity.scopes.scopes)}]; "
                    f"authorizedScopes are [{', '.join(authorized_scopes)}]"
                )
            identity.scopes = self.expand([*authorized_scopes, "assume:anonymous"])
        if certificate is None:  # certificates are checked each time, because they have a start and an end
            if len(self._extensions) > 10_000:
                self._extensions.clear()
            self._extensions[client_id, ext] = identity
        return identity

    def _client(self, client_id: str) -> _Identity:
        client = self.clients.get(client_id)
        if client is None:
            raise AuthFailed(f"no such client: {client_id}")
        if client.expires is not None and client.expires < self.clock.now():
            raise AuthFailed(f"Client with clientId: '{client_id}' has expired")
        if client.disabled:
            raise AuthFailed(f"Client with clientId: '{client_id}' is disabled")
        scopes = self.expand([*client.scopes, "assume:anonymous"])
        return _Identity(client_id, client.access_token, scopes, self.clock.now() + HOUR)

    def _temporary(self, client_id: str, certificate: Any) -> _Identity:
        """Check the certificate of temporary credentials and derive the key from it."""
        if isinstance(certificate, str):
            try:
                certificate = json.loads(certificate)
            except ValueError:
                raise AuthFailed("Failed to parse ext.certificate") from None
        _check_certificate(certificate, self.clock.now())
        named = "issuer" in certificate
        issuer_id = certificate["issuer"] if named else client_id
        if named and issuer_id == client_id:
            raise AuthFailed("ext.certificate.issuer must differ from the supplied clientId")
        issuer = self._client(issuer_id)
        if named and not issuer.scopes.satisfies(f"auth:create-client:{client_id}"):
            raise AuthFailed(f"ext.certificate issuer `{issuer_id}` doesn't have `auth:create-client:{client_id}`")
        if not all(issuer.scopes.satisfies(scope) for scope in certificate["scopes"]):
            raise AuthFailed(f"ext.certificate issuer `{issuer_id}` doesn't satisfy the certificate's scopes")
        signed = _signed_text(certificate, client_id if named else None)
        if not _same(_sign(issuer.key, signed), certificate["signature"]):
            raise AuthFailed("ext.certificate.signature is not valid, or wrong clientId provided")
        key = _temporary_token(issuer.key, certificate["seed"])
        return _Identity(
            client_id, key, self.expand([*certificate["scopes"], "assume:anonymous"]), certificate["expiry"]
        )

    def temporary_credentials(
        self, issuer_id: str, name: str, scopes: Iterable[str], start: int, expiry: int
    ) -> dict[str, str]:
        """Return named temporary credentials `{clientId, accessToken, certificate}`, issued by a client."""
        token = self.clients[issuer_id].access_token
        seed = new_slugid() + new_slugid()
        certificate: dict[str, Any] = {
            "version": 1,
            "scopes": list(scopes),
            "start": start,
            "expiry": expiry,
            "seed": seed,
            "issuer": issuer_id,
        }
        certificate["signature"] = _sign(token, _signed_text(certificate, name))
        return {
            "clientId": name,
            "accessToken": _temporary_token(token, seed),
            "certificate": json.dumps(certificate),
        }

    def authenticate_hawk(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `auth.authenticateHawk`: authenticate a request that another service received."""
        request = Request(body["method"], body["resource"], body["host"], body["port"], body.get("authorization"))
        try:
            caller = self.authenticate(request)
        except AuthFailed as failure:
            return {"status": "auth-failed", "message": str(failure)}
        answer: dict[str, Any] = {"scopes": caller.scopes.minimal(), "expires": iso(caller.expires)}
        if caller.client_id is None:
            return {"status": "no-auth", "scheme": "none", **answer}
        if caller.hash:
            answer["hash"] = caller.hash
        return {"status": "auth-success", "scheme": "hawk", "clientId": caller.client_id, **answer}


def require(caller: Caller, expression: Expression) -> None:
    """Raise the 403 that names the missing scopes unless the caller's scopes satisfy the expression."""
    missing = caller.scopes.missing(expression)
    if missing is None:
        return
    who = f"Client ID {caller.client_id}" if caller.client_id else "Anonymous client"
    raise ApiError(
        "InsufficientScopes",
        f"{who} does not have sufficient scopes and is missing the following scopes:\n\n"
        f"```\n{_pretty(missing)}\n```\n\n"
        f"This request requires {who} to satisfy the following scope expression:\n\n"
        f"```\n{_pretty(expression)}\n```",
    )


def require_scopes(caller: Caller | None, expression: Expression) -> None:
    """Do as `require` does, but allow everything to the program itself (None)."""
    if caller is not None:
        require(caller, expression)


def _pretty(expression: Expression) -> str:
    return expression if isinstance(expression, str) else json.dumps(expression, indent=2)


def mac(kind: str, request: Request, attributes: Mapping[str, str], key: str) -> str:
    """Return Hawk's MAC (sha256, base64) of a request with the header's attributes; `kind` is `header` or `bewit`."""
    lines = [
        f"hawk.1.{kind}",
        attributes["ts"],
        attributes.get("nonce", ""),
        request.method.upper(),
        request.resource,
        request.host.lower(),
        str(request.port),
        attributes.get("hash", ""),
        attributes.get("ext", ""),
    ]
    if attributes.get("app"):
        lines += [attributes["app"], attributes.get("dlg", "")]
    return _sign(key, "\n".join(lines) + "\n")


def payload_hash(body: bytes, content_type: str) -> str:
    """Return Hawk's hash of a payload (sha256, base64)."""
    kind = content_type.split(";", maxsplit=1)[0].strip().lower()
    digest = hashlib.sha256(b"hawk.1.payload\n" + kind.encode() + b"\n" + body + b"\n").digest()
    return base64.b64encode(digest).decode()


def _parse(authorization: str) -> dict[str, str]:
    if len(authorization) > MAX_HEADER:
        raise AuthFailed("Header length too long")
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() != "hawk":
        raise AuthFailed("Unauthorized: the Authorization header is not a Hawk header")
    attributes = dict(_ATTRIBUTE.findall(rest))
    if _ATTRIBUTE.sub("", rest).strip() or not set(attributes) <= _KNOWN:
        raise AuthFailed("Bad header format")
    for name in ("id", "ts", "nonce", "mac"):
        if not attributes.get(name):
            raise AuthFailed("Missing attributes")
    if not attributes["ts"].isdigit():
        raise AuthFailed("Invalid timestamp")
    return attributes


def _extension(ext: str) -> dict[str, Any]:
    if not ext:
        return {}
    try:
        parsed = json.loads(_unbase64(ext))
    except ValueError:
        raise AuthFailed("Failed to parse ext") from None
    if not isinstance(parsed, dict):
        raise AuthFailed("ext must be a JSON object")
    return parsed


def _check_certificate(certificate: Any, now: int) -> None:
    if not isinstance(certificate, dict):
        raise AuthFailed("ext.certificate must be a JSON object")
    if certificate.get("version") != 1:
        raise AuthFailed("ext.certificate.version must be 1")
    if not isinstance(certificate.get("seed"), str) or len(certificate["seed"]) != 44:
        raise AuthFailed("ext.certificate.seed must be 44 characters")
    for name in ("start", "expiry"):
        if not isinstance(certificate.get(name), int):
            raise AuthFailed(f"ext.certificate.{name} must be a number")
    scopes = certificate.get("scopes")
    if not isinstance(scopes, list) or not all(is_valid(scope) for scope in scopes):
        raise AuthFailed("ext.certificate.scopes must be an array of valid scopes")
    for name in ("signature", "issuer"):
        if not isinstance(certificate.get(name, "" if name == "issuer" else None), str):
            raise AuthFailed(f"ext.certificate.{name} must be a string")
    if certificate["start"] > now + 5 * MINUTE:
        raise AuthFailed("ext.certificate.start > now")
    if certificate["expiry"] < now - 5 * MINUTE:
        raise AuthFailed("ext.certificate.expiry < now")
    if certificate["expiry"] - certificate["start"] > 31 * DAY:
        raise AuthFailed("ext.certificate cannot last longer than 31 days!")


def _signed_text(certificate: Mapping[str, Any], named: str | None) -> str:
    lines = [f"version:{certificate['version']}"]
    if named is not None:
        lines += [f"clientId:{named}", f"issuer:{certificate['issuer']}"]
    lines += [
        f"seed:{certificate['seed']}",
        f"start:{certificate['start']}",
        f"expiry:{certificate['expiry']}",
        "scopes:",
    ]
    return "\n".join([*lines, *certificate["scopes"]])


def _sign(key: str, text: str) -> str:
    return base64.b64encode(hmac.digest(key.encode(), text.encode(), "sha256")).decode()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _temporary_token(key: str, seed: str) -> str:
    return _sign(key, seed).replace("+", "-").replace("/", "_").rstrip("=")


def random_token() -> str:
    """Return a new access token."""
    return secrets.token_urlsafe(33)


def _unbase64(text: str) -> bytes:
    """Decode base64 of either alphabet, padded or not. Raises ValueError."""
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
