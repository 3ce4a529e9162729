"""Attempts to sign in with Taskcluster: a cookie that ties `state` and the PKCE verifier to one browser.

The cookie is `SameSite=Lax`, because Taskcluster leads back from another site. `state` and the verifier are derived
from it with our key: who sees the address of Taskcluster knows `state`, and can make neither cookie nor verifier.
"""

import base64
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import timedelta

from service.clock import now
from service.flow.tasks.ids import derive

COOKIE = "tc-treeherder-sign-in"

LIFE = timedelta(minutes=10)
"""Time that a person may take at Taskcluster, whose codes work as long."""

MAX_COOKIE = 4_000
"""Characters of the longest cookie that is looked at."""

MAX_WANTED = 2_000
"""Characters of the longest path that is remembered: browsers keep cookies of up to 4,096."""


@dataclass(frozen=True)
class Attempt:
    """An attempt: its cookie, and the page that was wanted."""

    cookie: str
    wanted: str


class Attempts:
    """Begin attempts, and recognize them when the browser comes back."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, wanted: str) -> Attempt:
        """Return a new attempt."""
        ends = int((now() + LIFE).timestamp())
        wanted = wanted if len(json.dumps(wanted)) - 2 <= MAX_WANTED else "/"  # where a quotation mark takes two
        parts = [secrets.token_urlsafe(16), ends, wanted]
        body = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")
        return Attempt(f"{body}.{self._derive('cookie', body)}", wanted)

    def read(self, cookie: str) -> Attempt | None:
        """Return the attempt of a cookie; None if it is not ours or too old."""
        body, _, signature = cookie.partition(".")
        expected = self._derive("cookie", body)
        if len(cookie) > MAX_COOKIE or not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            return None
        _, ends, wanted = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return Attempt(cookie, wanted) if ends > now().timestamp() else None

    def state(self, attempt: Attempt) -> str:
        """Return the `state` of the attempt."""
        return self._derive("state", attempt.cookie)

    def is_state(self, attempt: Attempt, text: str) -> bool:
        """Return True if this is the `state` of the attempt."""
        return hmac.compare_digest(self.state(attempt).encode(), text.encode(errors="replace"))

    def verifier(self, attempt: Attempt) -> str:
        """Return the PKCE verifier of the attempt."""
        return self._derive("verifier", attempt.cookie)

    def _derive(self, purpose: str, text: str) -> str:
        return derive(self._key, "sign-in", purpose, text).hex()
