"""Mercurial over HTTP: raw-file and json-pushes of a repository on an allowed host."""

import json
from http import HTTPStatus
from typing import Protocol

from service.clients.http import AnswerTooLargeError, Http
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import Settings

MAX_FILE = 2 * 1024 * 1024
"""Bytes of a `.taskcluster.yml`; a larger one is refused."""

_MAX_LISTING = 64 * 1024


class Hg(Protocol):
    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        """The file's bytes at that changeset, None when it is not there.

        Raises Unavailable when the changeset is not there either: a mirror may lag, the repository may be in a reset.
        """

    async def last_push_id(self, url: str) -> int:
        """Where the pushlog of the repository ends now."""


class HttpHg:
    """The real one. It follows no redirect, so that no request leaves the hosts that were allowed."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.hg_timeout.total_seconds()
        self._http = Http("hg")

    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        asked = f"{url}/raw-file/{node}/{path}"
        status, body = await self._get(asked, MAX_FILE)
        if status != HTTPStatus.NOT_FOUND:
            return body
        if b"not found in manifest" in body:  # hgweb's words; the page around them is the server's
            return None
        raise Unavailable("hg", f"{asked} answers 404, and not for want of the file: the changeset is not there (yet)")

    async def last_push_id(self, url: str) -> int:
        # startID beyond any end: an answer of 35 bytes, however many pushes there are
        asked = f"{url}/json-pushes?version=2&startID={2**31 - 1}"
        status, body = await self._get(asked, _MAX_LISTING)
        if status == HTTPStatus.NOT_FOUND:
            raise PermanentUpstreamError("hg", f"{url} is no repository with a pushlog: {asked} answers 404", status)
        try:
            last = json.loads(body)["lastpushid"]
            if not isinstance(last, int) or not 0 <= last < 2**31:
                raise ValueError(last)
        except (ValueError, KeyError, TypeError):
            raise Unavailable("hg", f"{asked} answers no pushlog of version 2: {body[:80]!r}") from None
        return last

    async def close(self) -> None:
        await self._http.close()

    async def _get(self, url: str, limit: int) -> tuple[int, bytes]:
        """Status and body of a 200 or 404; at most `limit` bytes are read."""
        try:
            answer = await self._http.send(
                "GET", url, seconds=self._timeout, limit=limit, cut=frozenset({HTTPStatus.NOT_FOUND})
            )
        except AnswerTooLargeError as error:
            if error.status != HTTPStatus.OK:
                raise Unavailable("hg", f"{url} answers {error.status}") from None
            raise PermanentUpstreamError("hg", f"{url} is larger than {limit:,} bytes", error.status) from None
        if answer.is_redirect:
            where = answer.headers["location"]
            raise PermanentUpstreamError(
                "hg", f"{url} redirects to {where}, and redirects are not followed", answer.status
            )
        if answer.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise Unavailable("hg", f"{url} answers {answer.status}")
        return answer.status, answer.body
