"""The service's API for commands: requests, pages, and errors that a person can read.

The token comes from the environment only: arguments are seen by everybody on the machine.
"""

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

import httpx
import typer

from service.commands import NOT_FOUND, UNREACHABLE, USAGE, Failed

TOKEN = "TC_TREEHERDER_TOKEN"  # noqa: S105 - the variable's name

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="TC_TREEHERDER_SERVICE_URL", help=f"Where the service answers; the token is ${TOKEN}."
    ),
]
DEFAULT_URL = "http://127.0.0.1:8080"

TIME_LIMIT = httpx.Timeout(90, connect=5)
"""Seconds. To add a repository the service asks its pushlog first, for up to `hg_timeout`."""

LEAST_WAIT, MOST_WAIT = 0.1, 60.0
"""Seconds between two attempts where the service asked for a pause (`writes_per_minute`)."""

PAGE = 100


class Refused(Failed):
    """The service answered, and said no. `problem` is its problem+json."""

    def __init__(self, message: str, status: int, problem: dict[str, Any]) -> None:
        super().__init__(message, NOT_FOUND if status == httpx.codes.NOT_FOUND else 1)
        self.status, self.problem = status, problem


class Unreachable(Failed):
    """No service answers at that URL."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNREACHABLE)


class Service:
    """A running service, asked over HTTP. Close it, or use it as a context."""

    def __init__(self, url: str) -> None:
        """Raises Failed when `url` or the token cannot be used."""
        self._at = checked(url)
        token = os.environ.get(TOKEN, "").strip()
        if not all("!" <= c <= "~" for c in token):
            # it must not reach httpx, whose errors show the header
            raise Failed(f"{TOKEN} holds a character that no token has: is it the token, and nothing else?", USAGE)
        self._headers = {"User-Agent": "tc-treeherder-cli", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._has_token = bool(token)
        self._client = httpx.Client(timeout=TIME_LIMIT, headers=self._headers, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, *path: object, **query: Any) -> Any:
        """The JSON at that path. Raises Refused and Unreachable."""
        return self.send("GET", *path, query=query)

    def send(
        self,
        method: str,
        *path: object,
        body: Any = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The answer's JSON, None without a body. `path` is parts, quoted here. Raises Refused and Unreachable."""
        url = f"{self._at}/api/v1/{'/'.join(_quoted(part) for part in path)}"
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._client.request(method, url, params=given, json=body, headers=headers)
            while (pause := _asked_to_wait(answer)) is not None:  # it did nothing: the limit comes first
                time.sleep(pause)
                answer = self._client.request(method, url, params=given, json=body, headers=headers)
        except httpx.ConnectError as error:
            raise Unreachable(f"no service answers at {self._at} ({error}): is it running, is --url right?") from None
        except httpx.TransportError as error:
            doubt = "" if method == "GET" else "; whether it was done is not known: look before you try again"
            what = str(error) or type(error).__name__
            raise Unreachable(f"the service at {self._at} did not answer ({what}){doubt}") from None
        if answer.is_success:
            return self._json(answer) if answer.content else None
        raise self._error(answer)

    def pages(self, *path: object, limit: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, page by page; at most `limit`, all without."""
        left, after = limit, None
        while left is None or left > 0:
            page = self.get(*path, limit=PAGE if left is None else min(left, PAGE), after=after, **query)
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            after = page["next"]
            if after is None:
                return

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise self._stranger(answer) from None

    def _stranger(self, answer: httpx.Response) -> Unreachable:
        kind = answer.headers.get("content-type", "no content type").split(";")[0]
        where = f" to {answer.headers.get('location', 'nowhere')}" if answer.is_redirect else ""
        return Unreachable(
            f"what answers at {self._at} is no tc-treeherder ({answer.status_code}{where}, {kind}): "
            "is --url right, is something before the service in the way?"
        )

    def _error(self, answer: httpx.Response) -> Failed:
        if answer.headers.get("content-type", "").split(";")[0] != "application/problem+json":
            return self._stranger(answer)
        problem = self._json(answer)
        message = f"{problem.get('title')}: {problem.get('detail')}"
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            message += f" ({TOKEN} is {'set, but not known there' if self._has_token else 'not set'})"
        return Refused(message, answer.status_code, problem)


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Seconds after which a call over the service's limit of writes may be made again."""
    value = answer.headers.get("retry-after", "")
    if answer.status_code != httpx.codes.TOO_MANY_REQUESTS or not (value.isascii() and value.isdigit()):
        return None
    return min(max(int(value), LEAST_WAIT), MOST_WAIT)


def checked(url: str) -> str:
    """A service's or a Treeherder's address without a slash at its end. Raises Failed when it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        bare = not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        usable, bare = False, True
    if not bare:
        raise Failed(
            f"the URL has more than scheme, host and path: leave that out; the token belongs in {TOKEN}", USAGE
        )
    if not usable or not all("!" <= c <= "~" for c in url):
        raise Failed(f"{url!r} is no http or https URL", USAGE)
    return url.rstrip("/")


def _quoted(part: object) -> str:
    text = str(part)
    if text in {"", ".", ".."}:
        raise Failed(f"{text!r} is no name", USAGE)
    return quote(text, safe="")
