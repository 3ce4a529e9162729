"""Client of Taskcluster's auth service, which tells who signed a request to us, and which scopes they have."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from taskcluster.aio import Auth as Client

from service.clients.hawk import explain_refusal
from service.clients.taskcluster import answer_of, session_of
from service.errors import PermanentUpstreamError, Unavailable
from service.sanitize import escape_unstorable
from service.settings import TaskclusterSettings

TIME_LIMIT = timedelta(seconds=10)
"""Time limit of one answer, because a caller waits for it. `taskcluster.timeout` applies if it is shorter."""

CONNECTIONS = 20
"""Signatures that one process checks at a time: strangers can send any number of them."""

CLIENT_ID = re.compile(r"[A-Za-z0-9!@/:.+|_-]{1,1000}")


@dataclass(frozen=True)
class SignedRequest:
    """Parts of a request that a Hawk signature covers, as the caller sent them.

    Without `authorization`, the signature is a bewit in `resource`.
    """

    method: str
    resource: str
    host: str
    port: int
    authorization: str | None


@dataclass(frozen=True)
class Login:
    """A verified caller: client id, scopes for this request, and the body's hash if that was signed too."""

    client_id: str
    scopes: tuple[str, ...]
    payload_hash: str | None


class Logins(Protocol):
    """Verification of Hawk signatures."""

    async def check(self, signed: SignedRequest) -> Login:
        """Return the caller who made this signature.

        Raises PermanentUpstreamError with status 401 if the signature is not valid, and Unavailable if it could not
        be checked.
        """


class TaskclusterLogins:
    """Logins that call `auth.authenticateHawk`. Answers are not cached: a signature is valid for one request only."""

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._client: Client | None = None

    async def check(self, signed: SignedRequest) -> Login:
        if self._client is None:
            seconds = min(self._settings.timeout, TIME_LIMIT).total_seconds()
            # the call needs no credentials of ours
            options = {"rootUrl": self._settings.root, "maxRetries": 0, "credentials": {}}
            self._client = Client(options, session=session_of(self._settings.root, seconds, CONNECTIONS))
        client = self._client
        payload: dict[str, Any] = {
            "method": signed.method.lower(),
            "resource": signed.resource,
            "host": signed.host,
            "port": signed.port,
        }
        if signed.authorization is not None:
            payload["authorization"] = signed.authorization
        try:
            return _login(await answer_of(lambda: client.authenticateHawk(payload)))
        except PermanentUpstreamError as error:
            if error.status in {400, 401}:  # 400: the signed request cannot be parsed
                raise PermanentUpstreamError("taskcluster", str(error), 401) from None
            raise Unavailable("taskcluster", f"Taskcluster answers {error.status}: {error}") from None

    async def close(self) -> None:
        if self._client:
            await self._client.session.close()


def _login(answer: dict[str, Any]) -> Login:
    status = answer.get("status")
    if status == "auth-failed":
        reason = explain_refusal(escape_unstorable(str(answer.get("message"))))
        raise PermanentUpstreamError("taskcluster", reason[:500], 401)
    if status == "no-auth":
        raise PermanentUpstreamError("taskcluster", "there is no signature", 401)
    client_id, scopes, payload_hash = answer.get("clientId"), answer.get("scopes"), answer.get("hash")
    if (
        status != "auth-success"
        or answer.get("scheme") != "hawk"
        or not isinstance(client_id, str)
        or not CLIENT_ID.fullmatch(client_id)
        or not isinstance(scopes, list)
        or not all(isinstance(scope, str) for scope in scopes)
        or not isinstance(payload_hash, str | None)
    ):
        raise Unavailable("taskcluster", "Taskcluster's answer to authenticateHawk has an unexpected form")
    return Login(client_id, tuple(scopes), payload_hash)
