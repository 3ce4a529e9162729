"""What a pushlog says: `json-pushes` (version 2), read within limits, and made small enough to send."""

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from service.contract.events import MAX_CHANGESETS_IN_FULL, MAX_FILES

LAST_ID = 2**31 - 1
"""The highest push id that is understood."""

_HEADERS = {"User-Agent": "tc-treeherder", "Accept-Encoding": "gzip, deflate"}
_ERROR_BYTES = 64 * 1024
_NODE = re.compile(r"[0-9a-f]{40}")
_SENT = ("node", "branch", "author", "desc", "parents")

_KEEP_ALIVE = 4.0
"""Seconds; servers close connections that were idle for 5, and a request sent just then would be lost."""

TAG_AGE = timedelta(seconds=3)
"""An ETag is the change time in whole seconds; a younger one can hide a second push in that same second for ever."""

MAX_TAG = 15
"""Digits of a time in seconds, and some to spare: a longer number is none, and may not even fit a float."""

MAX_ETAG = 500


class Unchanged(Exception):
    """The pushlog has not changed since the ETag was given."""


class ListingError(Exception):
    """A pushlog gave no listing; the message says why in plain words."""


class ListingTooLargeError(ListingError):
    """The answer has more bytes than are read."""


@dataclass(slots=True)
class Listing:
    """An answer. `pushes` are its entries as they came, in order of their ids."""

    lastpushid: int
    pushes: dict[int, Any]
    etag: str | None
    date: datetime | None

    def between(self, start: int, end: int) -> list[tuple[int, Any]]:
        """The pushes with start < id <= end, which is what was asked for."""
        return [(push_id, entry) for push_id, entry in self.pushes.items() if start < push_id <= end]


def reliable_etag(etag: str | None, date: datetime | None) -> str | None:
    """Return the ETag if it can be relied on: hgweb's is `W/"<change time, epoch seconds>"`."""
    digits = (etag or "").removeprefix("W/").strip('"')
    if etag is None or len(etag) > MAX_ETAG or date is None:
        return None
    if not digits.isascii() or not digits.isdigit() or len(digits) > MAX_TAG:
        return None
    return etag if date.timestamp() - int(digits) >= TAG_AGE.total_seconds() else None


class Pushlogs:
    """Asks the pushlogs of any repositories over keep-alive connections; any thread may use it."""

    def __init__(self, timeout: float, max_listing: int, connections: int, tls: Any = True) -> None:
        """`timeout` in seconds, for one answer; `max_listing` in bytes; `connections` that are kept open."""
        self._timeout = timeout
        self._max_listing = max_listing
        self._tls = tls
        # no redirects are followed, so no request leaves the hosts that the service allows
        self._client = httpx.Client(
            verify=tls,
            headers=_HEADERS,
            limits=httpx.Limits(max_keepalive_connections=connections, keepalive_expiry=_KEEP_ALIVE),
        )

    def close(self) -> None:
        self._client.close()

    def list(
        self, url: str, start: int, end: int, *,
        etag: str | None = None, full: bool = True, anew: bool = False, send_within: float = math.inf,
    ) -> Listing:  # fmt: skip
        """Return the pushes with start < id <= end of the repository at `url`.

        Without `full` there is only each push's tip. `anew`: over a new connection. The request goes out within
        `send_within` seconds, or not at all. Raises Unchanged when nothing changed since `etag`, ListingError,
        ListingTooLargeError.
        """
        # json-pushes: startID is exclusive, endID inclusive
        kind = "full=1" if full else "tipsonly=1"
        asked = f"{url}/json-pushes?version=2&{kind}&startID={start}&endID={end}"
        headers = {"If-None-Match": etag} if etag else {}
        connect = min(self._timeout, max(send_within, 0.001))
        timeout = httpx.Timeout(self._timeout, connect=connect, pool=connect)
        until = time.monotonic() + self._timeout
        try:
            if anew:
                with httpx.Client(verify=self._tls, headers=_HEADERS) as client:
                    return self._ask(client, url, asked, headers, timeout, until, etag)
            return self._ask(self._client, url, asked, headers, timeout, until, etag)
        except httpx.TimeoutException:
            raise ListingError(f"no answer within {self._timeout:g} s from {asked}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ListingError(f"no answer from {asked}: {type(error).__name__} {error}".rstrip()) from error

    def _ask(
        self, client: httpx.Client, url: str, asked: str, headers: dict[str, str], timeout: httpx.Timeout, until: float,
        etag: str | None,
    ) -> Listing:  # fmt: skip
        with client.stream("GET", asked, headers=headers, timeout=timeout) as response:
            if response.status_code == httpx.codes.OK:
                return parse(self._read(response, self._max_listing, until), response.headers)
            if response.status_code == httpx.codes.NOT_MODIFIED and etag:
                response.read()
                raise Unchanged
            raise ListingError(self._refusal(url, asked, response, until))

    def _read(self, response: httpx.Response, limit: int, until: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > limit:
                raise ListingTooLargeError(f"{response.url} has more than {limit:,} bytes, the limit max_listing")
            if time.monotonic() > until:
                raise ListingError(f"no whole answer within {self._timeout:g} s from {response.url}")
        return bytes(body)

    def _refusal(self, url: str, asked: str, response: httpx.Response, until: float) -> str:
        status = response.status_code
        try:
            # to its end: what is read whole leaves the connection usable
            said = self._read(response, _ERROR_BYTES, until)
        except ListingTooLargeError:
            said = b"a long body"
        if response.has_redirect_location:
            where = response.headers["location"]
            return f"{asked} redirects to {where}, and redirects are not followed: give the repository its own url"
        if status == httpx.codes.NOT_FOUND:
            return f"404: there is no repository at {url}, or it is being reset just now"
        return f"{asked} answers {status}: {said[:200]!r}"


def parse(body: bytes, headers: httpx.Headers) -> Listing:
    """Read an answer. Raises ListingError that names the value that is wrong."""
    try:
        # hgweb escapes; should a server not, its raw bytes become what hgweb makes of them: lone surrogates
        told = json.loads(body.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ListingError(f"the answer is not JSON ({error}); it begins {body[:100]!r}") from None
    if not isinstance(told, dict):
        raise ListingError(f"the answer is {_short(told)}: an object with lastpushid and pushes was expected")
    last, pushes = told.get("lastpushid"), told.get("pushes")
    if not isinstance(last, int) or isinstance(last, bool) or not 0 <= last <= LAST_ID:
        raise ListingError(f"lastpushid is {_short(last)}: an integer from 0 to {LAST_ID} was expected")
    if not isinstance(pushes, dict):
        raise ListingError(f"pushes is {_short(pushes)}: an object of push ids was expected")
    for key in pushes:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= LAST_ID):
            raise ListingError(f"a key of pushes is {_short(key)}: a push id, 0 to {LAST_ID}, was expected")
    # the keys come in string order, "100" before "91"
    entries = {int(key): pushes[key] for key in sorted(pushes, key=int)}
    return Listing(last, entries, headers.get("etag"), _date(headers.get("date")))


def _short(value: Any) -> str:
    return ascii(value)[:100]


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def nodes_of(changesets: Any) -> list[Any]:
    """The nodes of a list of changesets, which are objects with `full`, else nodes."""
    if not isinstance(changesets, list):
        return []
    return [changeset.get("node") if isinstance(changeset, dict) else changeset for changeset in changesets]


def tip_of(entry: Any) -> str | None:
    """Return the tip of a listed push; None when no changeset is left of it."""
    nodes = nodes_of(entry.get("changesets")) if isinstance(entry, dict) else []
    return nodes[-1] if nodes and isinstance(nodes[-1], str) else None


def tip_and_nodes(push_id: int, entry: Any) -> tuple[str | None, set[str]]:
    """The tip of a listed push, None when no changeset is left of it, and all its nodes, obsolete ones too."""
    if not isinstance(entry, dict):
        raise ListingError(f"push {push_id} is {_short(entry)}: an object was expected")
    nodes = nodes_of(entry.get("changesets"))
    for node in nodes[-1:]:
        if not isinstance(node, str) or not _NODE.fullmatch(node):
            raise ListingError(f"the tip of push {push_id} is {_short(node)}: 40 hex digits were expected")
    known = {node for node in (*nodes, *nodes_of(entry.get("obsoletechangesets"))) if isinstance(node, str)}
    return (nodes[-1] if nodes else None), known


def trim(push_id: int, entry: Any) -> Any:
    """An entry as it is sent: its id, and no more of its changesets than anybody uses.

    The last 200 changesets are in full, with at most 1,000 file names; of the others node and branch are left, which
    the revision_hash is made of, and of the very first its parents, which the push is based on. What does not look
    like an entry stays as it came, for a dead letter.
    """
    if not isinstance(entry, dict):
        return entry
    changesets = entry.get("changesets")
    if not isinstance(changesets, list) or not all(isinstance(changeset, dict) for changeset in changesets):
        return {**entry, "id": push_id}
    full = len(changesets) - MAX_CHANGESETS_IN_FULL
    sent = [
        _in_full(changeset)
        if number >= full
        else _picked(changeset, ("node", "branch") if number else ("node", "branch", "parents"))
        for number, changeset in enumerate(changesets)
    ]
    return {**_picked(entry, ("user", "date")), "id": push_id, "changesets": sent}


def _in_full(changeset: dict[str, Any]) -> dict[str, Any]:
    sent = _picked(changeset, _SENT)
    files = changeset.get("files")
    if isinstance(files, list):
        sent["files"], sent["files_count"] = files[:MAX_FILES], len(files)
    elif files is not None:
        sent["files"] = files
    return sent


def _picked(value: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value}
