"""Client of Taskcluster for people who sign in to the page: OAuth 2 with PKCE, and `auth.client`.

The credentials that Taskcluster gives out are dropped at once: only the clientId is kept. What it may do is asked with
the service's own credentials, then and later.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp
from taskcluster.aio import Auth as AuthClient

from service.clients.auth import CLIENT_ID, TIME_LIMIT
from service.clients.http import AnswerTooLargeError, Http
from service.clients.taskcluster import ScopesRefusal, answer_of, options_of, session_of
from service.errors import PermanentUpstreamError, Unavailable
from service.sanitize import InvalidJSONError, parse
from service.settings import Settings

MAX_ANSWER = 64 * 1024
"""Bytes of an answer of the web-server."""

MAX_SCOPES = 1_000
"""Scopes of a client that are looked at; only those of ours are kept."""

CONNECTIONS = 5

_OURS = "tc-treeherder:"


@dataclass(frozen=True)
class Client:
    """A client of Taskcluster: the scopes that matter here, and when it ends."""

    scopes: tuple[str, ...]
    expires: datetime


class SignIns(Protocol):
    """The calls of Taskcluster for signing in."""

    def authorize_url(self, state: str, verifier: str) -> str:
        """Return the address that asks a person to let us know who they are."""

    async def redeem(self, code: str, verifier: str) -> str:
        """Return the clientId that a code is for.

        Raises PermanentUpstreamError if the code is no good, and Unavailable.
        """

    async def client(self, client_id: str) -> Client | None:
        """Return a client; None if it is disabled, has expired or is gone. Raises Unavailable."""


class TaskclusterSignIns:
    """Sign-ins with the deployment of the setting `taskcluster.root_url`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.taskcluster.root
        self._http = Http("taskcluster", CONNECTIONS)
        self._session: aiohttp.ClientSession | None = None
        self._seconds = min(settings.taskcluster.timeout, TIME_LIMIT).total_seconds()

    def authorize_url(self, state: str, verifier: str) -> str:
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "client_id": self._settings.web_sign_in.client_id,
            "redirect_uri": self._settings.sign_in_redirect,
            "response_type": "code",
            "scope": " ".join(self._settings.web_sign_in.scopes),
            "state": state,
            "expires": f"{int(self._settings.web_session.total_seconds())} seconds",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        return f"{self._root}/login/oauth/authorize?{urlencode(query)}"

    async def redeem(self, code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._settings.sign_in_redirect,
            "client_id": self._settings.web_sign_in.client_id,
            "code_verifier": verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        token = (await self._ask("POST", "token", urlencode(form).encode(), headers)).get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,2000}", token):
            raise Unavailable("taskcluster", "Taskcluster's answer has no access token")
        answer = await self._ask("GET", "credentials", None, {"Authorization": f"Bearer {token}"})
        credentials = answer.get("credentials")
        client_id = credentials.get("clientId") if isinstance(credentials, dict) else None
        if not isinstance(client_id, str) or not CLIENT_ID.fullmatch(client_id):
            raise Unavailable("taskcluster", "Taskcluster's answer has no credentials")
        return client_id

    async def _ask(self, method: str, name: str, data: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        url = f"{self._root}/login/oauth/{name}"
        try:
            answer = await self._http.send(
                method, url, seconds=self._seconds, limit=MAX_ANSWER, data=data, headers=headers
            )
            parsed = parse(answer.body) if answer.status == 200 else None
        except AnswerTooLargeError:
            raise Unavailable("taskcluster", f"{url} answers more than {MAX_ANSWER:,} bytes") from None
        except InvalidJSONError:
            raise Unavailable("taskcluster", f"{url} answers no JSON") from None
        if answer.status in {400, 401, 403}:  # a code that has expired or was used; what it answers is not shown
            raise PermanentUpstreamError("taskcluster", f"{url} answers {answer.status}", answer.status)
        if not isinstance(parsed, dict):
            raise Unavailable("taskcluster", f"{url} answers {answer.status}")
        return parsed

    async def client(self, client_id: str) -> Client | None:
        if self._session is None:
            self._session = session_of(self._root, self._seconds, CONNECTIONS)
        auth = AuthClient(options_of(self._settings.taskcluster), session=self._session)
        try:
            answer = await answer_of(lambda: auth.client(client_id))
        except ScopesRefusal:
            ours = self._settings.taskcluster.client_id or "of the service"
            reason = f"the client {ours} may not read {client_id}: give it the scope auth:get-client:*"
            raise Unavailable("taskcluster", reason) from None
        except PermanentUpstreamError as error:
            if error.status == 404:
                return None
            raise Unavailable("taskcluster", f"auth.client answers {error.status}") from None
        return _client(answer)

    async def close(self) -> None:
        await self._http.close()
        if self._session is not None:
            await self._session.close()


def _client(answer: dict[str, Any]) -> Client | None:
    scopes, disabled = answer.get("expandedScopes"), answer.get("disabled")
    try:
        expires = datetime.fromisoformat(str(answer.get("expires")))
    except ValueError:
        expires = None
    if not isinstance(scopes, list) or not isinstance(disabled, bool) or expires is None or expires.tzinfo is None:
        raise Unavailable("taskcluster", "Taskcluster's answer to auth.client has an unexpected form")
    texts = [scope for scope in scopes if isinstance(scope, str) and _is_ours(scope)]
    return None if disabled else Client(tuple(texts[:MAX_SCOPES]), expires)


def _is_ours(scope: str) -> bool:
    """Return True for a scope of this service, or one that satisfies such scopes."""
    return scope.startswith(_OURS) or (scope.endswith("*") and _OURS.startswith(scope[:-1]))
