"""Sessions of people who signed in to the page: a signed cookie, and the tokens that its forms carry against CSRF.

A cookie holds the name of a token of the settings, and never the token. The token is part of what is signed, so the
session ends when the token is removed or replaced. Of whoever signed in with Taskcluster, it holds the clientId.
Nothing is stored: a session ends by itself after `web_session`, and with the client of Taskcluster.
"""

import base64
import hmac
import json
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.clock import now
from service.flow.tasks.ids import derive
from service.settings import Settings, Token

COOKIE, FORM_COOKIE = "tc-treeherder", "tc-treeherder-form"
"""Names of the cookies: of whoever signed in, and of somebody unknown.

They are two, because a browser that comes from another site shows neither: then a form for somebody unknown must not
replace the session of whoever signed in.
"""

MAX_COOKIE = 2_000
"""Characters of the longest cookie that is looked at."""


@dataclass(frozen=True)
class WebSession:
    """A session: of whoever signed in with a token or a client, or of somebody unknown, whose forms it protects."""

    token: Token | None
    id: str
    ends: int  # seconds since 1970
    client_id: str | None = None  # of Taskcluster

    @property
    def signed_in(self) -> bool:
        return self.name is not None

    @property
    def name(self) -> str | None:
        """Return the name of the token, or the clientId."""
        return self.client_id if self.token is None else self.token.name


class Sessions:
    """Make and check sessions with the key that all replicas share."""

    def __init__(self, settings: Settings, key: bytes) -> None:
        self._tokens = {token.name: token for token in settings.tokens}
        self._life: timedelta = settings.web_session
        self._with_taskcluster = settings.web_sign_in.client_id is not None
        self._key = key

    def new(self, token: Token | None) -> WebSession:
        """Return a new session. Its id is always drawn anew, so nobody signs in to a session that another one chose."""
        return WebSession(token, secrets.token_urlsafe(16), int((now() + self._life).timestamp()))

    def new_of_client(self, client_id: str, expires: datetime) -> WebSession:
        """Return a new session of a client of Taskcluster, which ends with it."""
        session = self.new(None)
        return replace(session, client_id=client_id, ends=min(session.ends, int(expires.timestamp())))

    def cookie(self, session: WebSession) -> str:
        """Return the value of the session's cookie."""
        name = None if session.token is None else session.token.name
        parts = [name, session.id, session.ends, session.client_id]
        body = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")
        return f"{body}.{self._signature(body, session.token)}"

    def read(self, cookie: str) -> WebSession | None:
        """Return the session of a cookie; None if it is not ours, has ended, or its token is gone or was replaced."""
        body, _, signature = cookie.partition(".")
        if len(cookie) > MAX_COOKIE:
            return None
        try:
            name, session_id, ends, client_id = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            token = None if name is None else self._tokens[name]
            expected = self._signature(body, token)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            return None
        if client_id is not None and not self._with_taskcluster:
            return None
        return WebSession(token, session_id, ends, client_id) if ends > now().timestamp() else None

    def form_token(self, session: WebSession) -> str:
        """Return the token that forms of this session carry."""
        return derive(self._key, "form", session.id).hex()

    def is_form_token(self, session: WebSession, text: str) -> bool:
        """Return True if a form with this token was made for this session."""
        return hmac.compare_digest(self.form_token(session).encode(), text.encode(errors="replace"))

    def _signature(self, body: str, token: Token | None) -> str:
        value = None if token is None else token.value.get_secret_value()
        return derive(self._key, "session", body, value).hex()
