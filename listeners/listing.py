"""Read a pushlog's `json-pushes` (version 2) within limits."""

import json
import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from service.contract.validation import beginning_of

MAX_PUSH_ID = 2**31 - 1
"""The highest push id that is understood."""

_HEADERS = {"User-Agent": "tc-treeherder", "Accept-Encoding": "gzip, deflate"}
_MAX_ERROR_BYTES = 64 * 1024
_NODE = re.compile(r"[0-9a-f]{40}")

_KEEPALIVE_EXPIRY = 4.0
"""Seconds; servers close connections that were idle for 5, and a request sent just then would be lost."""

MIN_ETAG_AGE = timedelta(seconds=3)
"""An ETag is the change time in whole seconds; a younger one can hide a second push in the same second for ever."""

MAX_ETAG_DIGITS = 15
"""Digits of a time in seconds, and some to spare; a longer number is no time, and may not even fit a float."""

MAX_ETAG_LENGTH = 500


class PushlogUnchanged(Exception):
    """The pushlog has not changed since the given ETag."""


class ListingError(Exception):
    """A pushlog gave no listing; the message says why, for people."""


class ListingTooLargeError(ListingError):
    """The answer has more bytes than are read."""


@dataclass(slots=True)
class Listing:
    """An answer of a pushlog. `pushes` has its unchanged entries by push id, in the order of the ids."""

    lastpushid: int
    pushes: dict[int, Any]
    etag: str | None
    date: datetime | None

    def between(self, start: int, end: int) -> list[tuple[int, Any]]:
        """Return the pushes with start < id <= end, which is the range of the request."""
        return [(push_id, entry) for push_id, entry in self.pushes.items() if start < push_id <= end]


def reliable_etag(etag: str | None, date: datetime | None) -> str | None:
    """Return the ETag if it hides no later push: hgweb's is `W/"<change time, epoch seconds>"`."""
    digits = (etag or "").removeprefix("W/").strip('"')
    if etag is None or len(etag) > MAX_ETAG_LENGTH or date is None:
        return None
    if not digits.isascii() or not digits.isdigit() or len(digits) > MAX_ETAG_DIGITS:
        return None
    return etag if date.timestamp() - int(digits) >= MIN_ETAG_AGE.total_seconds() else None


class PushlogClient:
    """A client of the pushlogs of any repositories over keep-alive connections, for any number of threads."""

    def __init__(self, timeout: float, max_listing: int, connections: int, tls: Any = True) -> None:
        """Keep up to `connections` open. `timeout` is in seconds, for one answer; `max_listing` in bytes."""
        self._timeout = timeout
        self._max_listing = max_listing
        self._tls = tls
        # no redirects are followed, so no request leaves the hosts that the service allows
        self._client = httpx.Client(
            verify=tls,
            headers=_HEADERS,
            limits=httpx.Limits(max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE_EXPIRY),
        )

    def close(self) -> None:
        """Close the connections to the pushlogs."""
        self._client.close()

    def list_pushes(
        self, url: str, start: int, end: int, *,
        etag: str | None = None, full: bool = True, new_connection: bool = False, send_within: float = math.inf,
    ) -> Listing:  # fmt: skip
        """Return the pushes with start < id <= end of the repository at `url`.

        Without `full`, an entry has only the push's tip. The request is sent within `send_within` seconds, or not at
        all. Raises PushlogUnchanged if nothing changed since `etag`, ListingError, ListingTooLargeError.
        """
        # json-pushes: startID is exclusive, endID inclusive
        form = "full=1" if full else "tipsonly=1"
        request_url = f"{url}/json-pushes?version=2&{form}&startID={start}&endID={end}"
        headers = {"If-None-Match": etag} if etag else {}
        connect = min(self._timeout, max(send_within, 0.001))
        timeout = httpx.Timeout(self._timeout, connect=connect, pool=connect)
        until = time.monotonic() + self._timeout
        try:
            if new_connection:
                with httpx.Client(verify=self._tls, headers=_HEADERS) as client:
                    return self._request(client, url, request_url, headers, timeout, until, etag)
            return self._request(self._client, url, request_url, headers, timeout, until, etag)
        except httpx.TimeoutException:
            raise ListingError(f"no answer within {self._timeout:g} s from {request_url}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ListingError(f"no answer from {request_url}: {type(error).__name__} {error}".rstrip()) from error

    def _request(
        self, client: httpx.Client, url: str, request_url: str, headers: dict[str, str], timeout: httpx.Timeout,
        until: float, etag: str | None,
    ) -> Listing:  # fmt: skip
        with client.stream("GET", request_url, headers=headers, timeout=timeout) as response:
            if response.status_code == httpx.codes.OK:
                return parse_listing(self._read_body(response, self._max_listing, until), response.headers)
            if response.status_code == httpx.codes.NOT_MODIFIED and etag:
                response.read()
                raise PushlogUnchanged
            raise ListingError(self._describe_refusal(url, request_url, response, until))

    def _read_body(self, response: httpx.Response, max_bytes: int, until: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise ListingTooLargeError(f"{response.url} has more than {max_bytes:,} bytes, the limit max_listing")
            if time.monotonic() > until:
                raise ListingError(f"no complete answer within {self._timeout:g} s from {response.url}")
        return bytes(body)

    def _describe_refusal(self, url: str, request_url: str, response: httpx.Response, until: float) -> str:
        status = response.status_code
        try:
            # the whole body is read, because only then can the connection be used again
            body = self._read_body(response, _MAX_ERROR_BYTES, until)
        except ListingTooLargeError:
            body = b"a long body"
        if response.has_redirect_location:
            location = response.headers["location"]
            return f"{request_url} redirects to {location}, and redirects are not followed: set the repository's url"
        if status == httpx.codes.NOT_FOUND:
            return f"404: no repository exists at {url}, or it is being reset just now"
        return f"{request_url} answers {status}: {beginning_of(body)}"


def parse_listing(body: bytes, headers: httpx.Headers) -> Listing:
    """Return the listing of an answer. Raises ListingError, which names the invalid value."""
    try:
        # hgweb escapes; if a server does not, its raw bytes become what hgweb makes of them: lone surrogates
        document = json.loads(body.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ListingError(f"the answer is not JSON (nested too deeply); it begins with {beginning_of(body)}") from None
    except ValueError as error:
        raise ListingError(f"the answer is not JSON ({error}); it begins with {beginning_of(body)}") from None
    if not isinstance(document, dict):
        raise ListingError(f"the answer is {_abbreviate(document)}: expected an object with lastpushid and pushes")
    last_push_id, pushes = document.get("lastpushid"), document.get("pushes")
    if not isinstance(last_push_id, int) or isinstance(last_push_id, bool) or not 0 <= last_push_id <= MAX_PUSH_ID:
        raise ListingError(f"lastpushid is {_abbreviate(last_push_id)}: expected an integer from 0 to {MAX_PUSH_ID}")
    if not isinstance(pushes, dict):
        raise ListingError(f"pushes is {_abbreviate(pushes)}: expected an object of push ids")
    for key in pushes:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_PUSH_ID):
            raise ListingError(f"a key of pushes is {_abbreviate(key)}: expected a push id from 0 to {MAX_PUSH_ID}")
    # the keys come in string order, "100" before "91"
    entries = {int(key): pushes[key] for key in sorted(pushes, key=int)}
    return Listing(last_push_id, entries, headers.get("etag"), _parse_date(headers.get("date")))


def _abbreviate(value: Any) -> str:
    return ascii(value)[:100]


def _parse_date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def nodes_of(changesets: Any) -> list[Any]:
    """Return the nodes of a list of changesets, which are objects if the listing is `full`, otherwise nodes."""
    if not isinstance(changesets, list):
        return []
    return [changeset.get("node") if isinstance(changeset, dict) else changeset for changeset in changesets]


def tip_of(entry: Any) -> str | None:
    """Return the tip of a listed push, None if it has no changeset left."""
    nodes = nodes_of(entry.get("changesets")) if isinstance(entry, dict) else []
    return nodes[-1] if nodes and isinstance(nodes[-1], str) else None


def tip_and_nodes(push_id: int, entry: Any) -> tuple[str | None, set[str]]:
    """Return the tip of a listed push, None if it has no changeset left, and all its nodes with the obsolete ones.

    Raises ListingError.
    """
    if not isinstance(entry, dict):
        raise ListingError(f"push {push_id} is {_abbreviate(entry)}: expected an object")
    nodes = nodes_of(entry.get("changesets"))
    for tip in nodes[-1:]:
        if not isinstance(tip, str) or not _NODE.fullmatch(tip):
            raise ListingError(f"the tip of push {push_id} is {_abbreviate(tip)}: expected 40 hex digits")
    all_nodes = {node for node in (*nodes, *nodes_of(entry.get("obsoletechangesets"))) if isinstance(node, str)}
    return (nodes[-1] if nodes else None), all_nodes
