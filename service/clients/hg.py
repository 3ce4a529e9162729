"""Client of Mercurial over HTTP: raw-file and json-pushes of a repository on an allowed host."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Protocol

from service.clients.http import AnswerTooLargeError, Http
from service.contract.validation import beginning_of
from service.errors import PermanentUpstreamError, Unavailable
from service.sanitize import parse
from service.settings import Settings

MAX_FILE = 2 * 1024 * 1024
"""Largest accepted size of a `.taskcluster.yml`, in bytes."""

_MAX_LISTING = 64 * 1024

MAX_PUSH = 64 * 1024 * 1024
"""Largest accepted listing of one push, in bytes: a merge of 2,000 changesets has 1.25 MB."""


class Hg(Protocol):
    """Requests that we send to a Mercurial server."""

    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        """Return the file's content at that changeset, or None if the changeset has no such file.

        Raises Unavailable if the changeset does not exist: a mirror may lag, or the repository is being reset.
        """

    async def last_push_id(self, url: str) -> int:
        """Return the id of the newest push in the repository's pushlog."""

    async def push(self, url: str, push_id: int) -> Any | None:
        """Return the entry of a push in the repository's pushlog as it stands there, or None if there is none."""


class HttpHg:
    """An HTTP client for Mercurial. It follows no redirect, so that no request leaves the allowed hosts."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.hg_timeout.total_seconds()
        self._http = Http("hg")

    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        file_url = f"{url}/raw-file/{node}/{path}"
        status, body = await self._get(file_url, MAX_FILE)
        if status != HTTPStatus.NOT_FOUND:
            return body
        if b"not found in manifest" in body:  # hgweb's own words; the page around them depends on the server
            return None
        raise Unavailable("hg", f"{file_url} answers 404: the server does not have the changeset (yet)")

    async def last_push_id(self, url: str) -> int:
        # a startID beyond the last push: the answer has 35 bytes, however many pushes exist
        listing_url = f"{url}/json-pushes?version=2&startID={2**31 - 1}"
        status, body = await self._get(listing_url, _MAX_LISTING)
        if status == HTTPStatus.NOT_FOUND:
            raise PermanentUpstreamError("hg", f"{url} has no pushlog: {listing_url} answers 404", status)
        try:
            last = json.loads(body)["lastpushid"]
            if not isinstance(last, int) or not 0 <= last < 2**31:
                raise ValueError(last)
        except (ValueError, KeyError, TypeError):
            reason = f"{listing_url} does not answer a pushlog of version 2: {beginning_of(body)}"
            raise Unavailable("hg", reason) from None
        return last

    async def push(self, url: str, push_id: int) -> Any | None:
        # startID is exclusive, endID inclusive
        listing_url = f"{url}/json-pushes?version=2&full=1&startID={push_id - 1}&endID={push_id}"
        status, body = await self._get(listing_url, MAX_PUSH)
        if status == HTTPStatus.NOT_FOUND:
            raise PermanentUpstreamError("hg", f"{url} has no pushlog: {listing_url} answers 404", status)
        try:
            # in a thread, because it may take a second
            document = await asyncio.to_thread(parse, body)
            pushes = document["pushes"]
            entry = pushes.get(str(push_id))
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = f"{listing_url} does not answer a pushlog of version 2: {beginning_of(body)}"
            raise Unavailable("hg", reason) from None
        return entry

    async def close(self) -> None:
        await self._http.close()

    async def _get(self, url: str, limit: int) -> tuple[int, bytes]:
        """Return status and body of a 200 or 404, of which at most `limit` bytes are read."""
        try:
            answer = await self._http.send(
                "GET", url, seconds=self._timeout, limit=limit, cut=frozenset({HTTPStatus.NOT_FOUND})
            )
        except AnswerTooLargeError as error:
            if error.status != HTTPStatus.OK:
                raise Unavailable("hg", f"{url} answers {error.status}") from None
            raise PermanentUpstreamError("hg", f"{url} is larger than {limit:,} bytes", error.status) from None
        if answer.is_redirect:
            target = answer.headers["location"]
            raise PermanentUpstreamError(
                "hg", f"{url} redirects to {target}, and redirects are not followed", answer.status
            )
        if answer.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise Unavailable("hg", f"{url} answers {answer.status}")
        return answer.status, answer.body
