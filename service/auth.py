"""Who may call: listeners sign, people and programs bring a bearer token of the settings."""

import hmac
from dataclasses import dataclass

import structlog
from fastapi import Request
from standardwebhooks import Webhook, WebhookVerificationError

from service.errors import Problem
from service.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """Somebody who is known by name, and what they may do."""

    name: str
    scopes: tuple[str, ...]

    def has(self, scope: str) -> bool:
        """Taskcluster's rule: a scope that ends in `*` satisfies all that begin so."""
        return any(scope == held or (held.endswith("*") and scope.startswith(held[:-1])) for held in self.scopes)


ANYBODY = Caller("anybody", ())
LOCAL = Caller("local", ("*",))
"""Without any credentials configured the service listens on loopback only, and whoever is there may do all."""


def caller_of(settings: Settings, request: Request) -> Caller:
    """Who sent this request. Raises a 401 for credentials that are no good."""
    if not settings.has_credentials:
        return LOCAL
    header = request.headers.get("authorization")
    if header is None:
        return ANYBODY
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        sent = value.strip().encode("latin-1")  # the header's bytes, as they came
        # every token is compared, so that the time tells nothing
        matches = [
            token
            for token in settings.tokens
            if hmac.compare_digest(token.value.get_secret_value().encode(), sent)
        ]
        if matches:
            return Caller(matches[0].name, tuple(matches[0].scopes))
    raise Problem(
        401,
        "Unknown credentials",
        "the Authorization header holds no token that this service knows: send `Authorization: Bearer <token>`",
        {"WWW-Authenticate": "Bearer"},
    )


def require(caller: Caller, scope: str) -> None:
    """Raise a 401 or 403 that names the scope, unless `caller` has it."""
    if caller.has(scope):
        return
    if caller is ANYBODY:
        detail = f"this needs credentials with the scope {scope}: send `Authorization: Bearer <token>`"
        raise Problem(401, "Credentials needed", detail, {"WWW-Authenticate": "Bearer"}, missing_scope=scope)
    raise Problem(403, "Scope missing", f"{caller.name} needs the scope {scope} for this", missing_scope=scope)


def may_read(settings: Settings, caller: Caller) -> None:
    """Raise a 401 unless reads are public or the caller is known."""
    if caller is ANYBODY and not settings.public_reads:
        raise Problem(
            401,
            "Credentials needed",
            "reads need a token too (public_reads is off): send `Authorization: Bearer <token>`",
            {"WWW-Authenticate": "Bearer"},
        )


def verify_signature(settings: Settings, request: Request, body: bytes) -> None:
    """Raise a 401 unless one of the webhook secrets signed exactly these bytes."""
    headers = dict(request.headers)
    for secret in settings.webhook_secrets:
        try:
            Webhook(secret.get_secret_value()).verify(body, headers, json_parse=False)
        except (WebhookVerificationError, ValueError, TypeError, IndexError) as error:
            # the library lets what malformed headers and bodies raise through
            log.debug("signature-refused", error=type(error).__name__)
        else:
            return
    detail = "the Standard Webhooks signature is missing, too old, or made with another secret than webhook_secrets"
    if not settings.webhook_secrets:
        detail = "no webhook_secrets are configured, so nothing that a listener signs can be believed"
    raise Problem(401, "Not signed", detail)
