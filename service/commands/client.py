"""Call the service's API for commands, with paging, and with errors that people can read.

The token comes from the environment only, because everybody on the machine can see arguments.
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
from service.commands.text import without_errno

TOKEN = "TC_TREEHERDER_TOKEN"  # noqa: S105 - the variable's name

Url = Annotated[
    str,
    typer.Option("--url", envvar="TC_TREEHERDER_SERVICE_URL", help=f"URL of the service. Its token is ${TOKEN}."),
]
DEFAULT_URL = "http://127.0.0.1:8080"

TIME_LIMIT = httpx.Timeout(90, connect=5)
"""Time limits of a request, in seconds. Adding a repository waits for its pushlog, for up to `hg_timeout`."""

LEAST_WAIT, MOST_WAIT = 0.1, 60.0
"""Seconds between two attempts if the service asked for a pause (`writes_per_minute`)."""

PAGE = 100
"""Largest number of items in one page of a list."""


class Refused(Failed):
    """A refusal by the service. `problem` is its problem+json."""

    def __init__(self, message: str, status: int, problem: dict[str, Any]) -> None:
        super().__init__(message, NOT_FOUND if status == httpx.codes.NOT_FOUND else 1)
        self.status, self.problem = status, problem


class Unreachable(Failed):
    """No service answers at the URL."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNREACHABLE)


class Service:
    """A client of a running service's API. Use it as a context manager.

    Raises Failed if the URL or the token cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = checked(url)
        token = os.environ.get(TOKEN, "").strip()
        if not all("!" <= c <= "~" for c in token):
            # checked here, because the errors of httpx show the header
            raise Failed(f"{TOKEN} has a character that no token has: set it to the token, and nothing else", USAGE)
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
        """Return the JSON at that path. Raises Refused and Unreachable."""
        return self.send("GET", *path, query=query)

    def send(
        self,
        method: str,
        *path: object,
        body: Any = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Send a request, and return the answer's JSON, or None without a body. The parts of `path` are quoted here.

        Raises Refused and Unreachable.
        """
        url = f"{self._url}/api/v1/{'/'.join(_quoted(part) for part in path)}"
        params = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._client.request(method, url, params=params, json=body, headers=headers)
            while (wait := _wait_asked_for(answer)) is not None:  # a request over the limit had no effect
                time.sleep(wait)
                answer = self._client.request(method, url, params=params, json=body, headers=headers)
        except httpx.ConnectError as error:
            raise Unreachable(
                f"no service answers at {self._url} ({without_errno(error)}): check that it is running, and --url"
            ) from None
        except httpx.TransportError as error:
            doubt = "" if method == "GET" else ": check whether the request had an effect before you repeat it"
            reason = without_errno(error) or type(error).__name__
            raise Unreachable(f"the service at {self._url} did not answer ({reason}){doubt}") from None
        if answer.is_success:
            return self._json(answer) if answer.content else None
        raise self._error(answer)

    def pages(self, *path: object, limit: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of a list, fetched page by page: at most `limit`, or all if it is None."""
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
            raise self._wrong_server(answer) from None

    def _wrong_server(self, answer: httpx.Response) -> Unreachable:
        content_type = answer.headers.get("content-type", "no content type").split(";")[0]
        target = f" to {answer.headers.get('location', 'nowhere')}" if answer.is_redirect else ""
        return Unreachable(
            f"the server at {self._url} is not tc-treeherder ({answer.status_code}{target}, {content_type}): "
            "check --url, and any proxy before the service"
        )

    def _error(self, answer: httpx.Response) -> Failed:
        if answer.headers.get("content-type", "").split(";")[0] != "application/problem+json":
            return self._wrong_server(answer)
        problem = self._json(answer)
        message = f"{problem.get('title')}: {problem.get('detail')}"
        if answer.status_code == httpx.codes.UNAUTHORIZED:  # its detail is for who writes a header
            tokens = "one of the service's tokens (its setting `tokens`)"
            unknown = f"the service does not know the token in {TOKEN}: set it to {tokens}"
            message = f"{problem.get('title')}: {unknown if self._has_token else f'set {TOKEN} to {tokens}'}"
        return Refused(message, answer.status_code, problem)


def _wait_asked_for(answer: httpx.Response) -> float | None:
    """Return the seconds after which a write over the service's limit may be repeated; None: it is no such answer."""
    value = answer.headers.get("retry-after", "")
    if answer.status_code != httpx.codes.TOO_MANY_REQUESTS or not (value.isascii() and value.isdigit()):
        return None
    return min(max(int(value), LEAST_WAIT), MOST_WAIT)


def checked(url: str) -> str:
    """Return the URL of a service or Treeherder without a slash at its end. Raises Failed if it is not valid."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        bare = not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        usable, bare = False, True
    if not bare:
        raise Failed(
            f"the URL has more than scheme, host and path: remove the rest; the token belongs in {TOKEN}", USAGE
        )
    if not usable or not all("!" <= c <= "~" for c in url):
        raise Failed(f"{url!r} is not an http or https URL", USAGE)
    return url.rstrip("/")


def _quoted(part: object) -> str:
    text = str(part)
    if text in {"", ".", ".."}:
        raise Failed(f"{text!r} is not a name", USAGE)
    return quote(text, safe="")
