"""HTTP to Mercurial and Treeherder: one request, its whole answer within a size and a time, and what went wrong.

aiohttp, which the Taskcluster client brings: a request takes a third of the CPU that it takes with httpx.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import aiohttp
from yarl import URL

from service import metrics
from service.contract.configuration import proxy_for
from service.errors import Unavailable


class AnswerTooLargeError(Exception):
    """An answer has more bytes than are read; `status` is its status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """The status, headers and decoded body of an answer. No redirect is followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400 and "location" in self.headers


class Http:
    """A client of one system, with its connections. `system` names it in metrics and errors."""

    def __init__(self, system: str, connections: int = 100) -> None:
        self._system = system
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None  # made in the event loop that it belongs to

    async def send(
        self,
        method: str,
        url: str,
        *,
        seconds: float,
        limit: int,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        cut: frozenset[int] = frozenset(),
    ) -> Answer:
        """Send a request and read the answer, up to `limit` bytes, within `seconds`.

        Of an answer whose status is in `cut`, the rest is left unread. Raises AnswerTooLargeError for any other, and
        Unavailable when there is no whole answer.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "tc-treeherder"},
                trace_configs=[metrics.metered_aiohttp(self._system)],
            )
        try:
            # aiohttp's own limit ends with the head of an answer that is read piece by piece
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method,
                    URL(url, encoded=True),  # as it was signed
                    params=params,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    proxy=proxy_for(url),
                ) as response,
            ):
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        if response.status in cut:
                            break
                        raise AnswerTooLargeError(response.status)
                return Answer(response.status, response.headers, bytes(body))
        except TimeoutError:
            raise Unavailable(self._system, f"{url}: no whole answer within {seconds:g} s") from None
        except aiohttp.ClientHttpProxyError as error:  # its own words name the proxy's url, which can hold a password
            raise Unavailable(self._system, f"{url}: the proxy answers {error.status} {error.message}") from None
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: a url that aiohttp does not take
            raise Unavailable(self._system, f"{url}: {type(error).__name__} {error}".strip()) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
