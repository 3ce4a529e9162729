"""A browser for the page over ASGI: it keeps cookies, follows no redirect, and sends forms as a browser does."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx

from service.errors import Unavailable
from service.settings import Settings
from tests.service.asgi import Api, running

ORIGIN = "http://service"


@dataclass
class Browser:
    """A person's browser, and the running service behind it."""

    api: Api
    http: httpx.AsyncClient

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, **more)

    async def page(self, path: str, **more: Any) -> str:
        """Return the text of a page that must be there."""
        answer = await self.get(path, **more)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        return answer.text

    async def post(self, path: str, headers: dict[str, str] | None = None, /, **fields: str) -> httpx.Response:
        """Send a form with exactly these fields, from our own origin unless `headers` say otherwise."""
        return await self.http.post(path, data=fields, headers={"Origin": ORIGIN, **(headers or {})})

    async def form_token(self, path: str = "/sign-in") -> str:
        """Return the form token that this page has for us."""
        match = re.search(r'name="form_token" value="([0-9a-f]+)"', await self.page(path))
        assert match is not None
        return match[1]

    async def sign_in(self, token: str, wanted: str = "/") -> httpx.Response:
        return await self.post("/sign-in", form_token=await self.form_token(), token=token, next=wanted)


def text_of(page: str) -> str:
    """Return what a person reads of a page's main part."""
    _, _, main = page.partition("<main")
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", main.partition("</main>")[0])).split())


class NoTaskcluster:
    """A queue that does not answer: no page depends on it."""

    def __getattr__(self, name: str) -> Any:
        async def call(*_: Any) -> Any:
            raise Unavailable("taskcluster", "Taskcluster answers 503")

        return call


@asynccontextmanager
async def opened(settings: Settings, *, origin: str = ORIGIN) -> AsyncIterator[Browser]:
    """Start the service, and open a browser that has never been there."""
    async with running(settings) as api:
        queue: Any = NoTaskcluster()
        api.services.queue = queue
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=origin) as http:
            yield Browser(api, http)
