"""HTTP client for Mercurial and Treeherder: one request, with limits for the answer's size and time.

It uses aiohttp, which Taskcluster's client depends on anyway: a request takes a third of the CPU time of httpx.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from service import metrics
from service.contract import tracing
from service.contract.configuration import proxy_for
from service.errors import Unavailable


class AnswerTooLargeError(Exception):
    """An answer is larger than the limit. `status` is its HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """Status, headers and decoded body of an answer. Redirects are not followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400 and "location" in self.headers


class Http:
    """A client of one upstream system, with its connections. `system` is its name in metrics and errors."""

    def __init__(self, system: str, connections: int = 100) -> None:
        self._system = system
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None  # created in the event loop that uses it
        # by origin: to read the environment for each request takes a twentieth of the service's CPU
        self._proxies: dict[str, str | None] = {}

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

        A larger answer is cut off if its status is in `cut`, otherwise it raises AnswerTooLargeError. Raises
        Unavailable if no complete answer arrives.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "tc-treeherder"},
                trace_configs=[metrics.metered_aiohttp(self._system), *tracing.aiohttp_configs()],
            )
        try:
            # aiohttp's own time limit does not cover a body that is read in chunks
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method,
                    URL(url, encoded=True),  # unchanged: the signature covers it
                    params=params,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._proxy_for(url),
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
            raise Unavailable(self._system, f"{url}: no complete answer within {seconds:g} s") from None
        except aiohttp.ClientHttpProxyError as error:  # its text has the proxy's URL, which can contain a password
            raise Unavailable(self._system, f"{url}: the proxy answers {error.status} {error.message}") from None
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: aiohttp does not accept the URL
            raise Unavailable(self._system, f"{url}: {type(error).__name__} {error}".strip()) from error

    def _proxy_for(self, url: str) -> str | None:
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        return self._proxies[origin]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
