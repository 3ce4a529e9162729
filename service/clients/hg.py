"""Mercurial over HTTP: raw-file and json-pushes of a repository on an allowed host."""

import asyncio
import json
from typing import Protocol

import httpx

from service import metrics
from service.errors import Refusal, Unavailable
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
        self._client = metrics.MeteredClient(
            "hg",
            timeout=self._timeout,
            headers={"User-Agent": "tc-treeherder"},
            follow_redirects=False,
        )

    async def raw_file(self, url: str, node: str, path: str) -> bytes | None:
        asked = f"{url}/raw-file/{node}/{path}"
        status, body = await self._get(asked, MAX_FILE)
        if status != httpx.codes.NOT_FOUND:
            return body
        if b"not found in manifest" in body:  # hgweb's words; the page around them is the server's
            return None
        raise Unavailable("hg", f"{asked} answers 404, and not for want of the file: the changeset is not there (yet)")

    async def last_push_id(self, url: str) -> int:
        # startID beyond any end: an answer of 35 bytes, however many pushes there are
        asked = f"{url}/json-pushes?version=2&startID={2**31 - 1}"
        status, body = await self._get(asked, _MAX_LISTING)
        if status == httpx.codes.NOT_FOUND:
            raise Refusal("hg", f"{url} is no repository with a pushlog: {asked} answers 404", status)
        try:
            last = json.loads(body)["lastpushid"]
            if not isinstance(last, int) or not 0 <= last < 2**31:
                raise ValueError(last)
        except (ValueError, KeyError, TypeError):
            raise Unavailable("hg", f"{asked} answers no pushlog of version 2: {body[:80]!r}") from None
        return last

    async def close(self) -> None:
        await self._client.aclose()

    async def _get(self, url: str, limit: int) -> tuple[int, bytes]:
        """Status and body of a 200 or 404; at most `limit` bytes are read."""
        try:
            # httpx's own time limits are for each step: a server that sends a byte now and then exceeds none
            async with asyncio.timeout(self._timeout), self._client.stream("GET", url) as response:
                if response.is_redirect:
                    where = response.headers.get("location", "nowhere")
                    raise Refusal(
                        "hg", f"{url} redirects to {where}, and redirects are not followed", response.status_code
                    )
                if response.status_code not in {httpx.codes.OK, httpx.codes.NOT_FOUND}:
                    raise Unavailable("hg", f"{url} answers {response.status_code}")
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > limit:
                        if response.status_code == httpx.codes.NOT_FOUND:
                            break
                        raise Refusal("hg", f"{url} is larger than {limit:,} bytes", response.status_code)
                return response.status_code, bytes(body)
        except TimeoutError:
            raise Unavailable("hg", f"{url}: no whole answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise Unavailable("hg", f"{url}: {type(error).__name__} {error}".strip()) from error
