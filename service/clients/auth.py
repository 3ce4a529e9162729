"""Taskcluster's auth service: who signed a request to us, and what they may do."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from taskcluster.aio import Auth as Client

from service.clients.taskcluster import answer_of, session_of
from service.errors import PermanentUpstreamError, Unavailable
from service.sanitize import escape_unstorable
from service.settings import TaskclusterSettings

TIME_LIMIT = timedelta(seconds=10)
"""For one answer, and never more than `taskcluster.timeout`: a caller waits for it."""

CONNECTIONS = 20
"""Signatures that are checked at a time, in one process: strangers can send us any number of them."""

_CLIENT_ID = re.compile(r"[A-Za-z0-9!@/:.+|_-]{1,1000}")


@dataclass(frozen=True)
class Signed:
    """What a Hawk signature covers, as the caller sent it; without `authorization` a bewit is in the resource."""

    method: str
    resource: str
    host: str
    port: int
    authorization: str | None


@dataclass(frozen=True)
class Login:
    """Who signed, the scopes that they have for this request, and the hash of the body, if that was signed too."""

    client_id: str
    scopes: tuple[str, ...]
    payload_hash: str | None


class Logins(Protocol):
    async def check(self, signed: Signed) -> Login:
        """Whose signature this is. Raises Refusal (401) when it is no good, Unavailable when nobody can tell."""


class TaskclusterLogins:
    """The real one: `auth.authenticateHawk`. No answer is kept: a signature is of one request at one moment."""

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._client: Client | None = None

    async def check(self, signed: Signed) -> Login:
        if self._client is None:
            seconds = min(self._settings.timeout, TIME_LIMIT).total_seconds()
            # with no credentials of ours: the call needs none
            options = {"rootUrl": self._settings.root, "maxRetries": 0, "credentials": {}}
            self._client = Client(options, session=session_of(self._settings.root, seconds, CONNECTIONS))
        client = self._client
        asked: dict[str, Any] = {
            "method": signed.method.lower(),
            "resource": signed.resource,
            "host": signed.host,
            "port": signed.port,
        }
        if signed.authorization is not None:
            asked["authorization"] = signed.authorization
        try:
            return _login(await answer_of(lambda: client.authenticateHawk(asked)))
        except PermanentUpstreamError as refusal:
            if refusal.status in {400, 401}:  # 400: of a request that it does not even understand
                raise PermanentUpstreamError("taskcluster", str(refusal), 401) from None
            raise Unavailable("taskcluster", f"Taskcluster answers {refusal.status}: {refusal}") from None

    async def close(self) -> None:
        if self._client:
            await self._client.session.close()


def _login(answer: dict[str, Any]) -> Login:
    status = answer.get("status")
    if status == "auth-failed":
        raise PermanentUpstreamError("taskcluster", escape_unstorable(str(answer.get("message")))[:500], 401)
    if status == "no-auth":
        raise PermanentUpstreamError("taskcluster", "there is no signature", 401)
    client_id, scopes, payload_hash = answer.get("clientId"), answer.get("scopes"), answer.get("hash")
    if (
        status != "auth-success"
        or answer.get("scheme") != "hawk"
        or not isinstance(client_id, str)
        or not _CLIENT_ID.fullmatch(client_id)
        or not isinstance(scopes, list)
        or not all(isinstance(scope, str) for scope in scopes)
        or not isinstance(payload_hash, str | None)
    ):
        raise Unavailable("taskcluster", "Taskcluster's answer to authenticateHawk is not understood")
    return Login(client_id, tuple(scopes), payload_hash)
