"""A service with which people sign in with Taskcluster: the stand-in is asked over HTTP, by service and people."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from sandbox.credentials import PEOPLE, ROLES, SERVICE, SIGN_IN, SIGN_IN_PATH
from sandbox.taskcluster import RegisteredClient, Taskcluster
from tests.sandbox.taskcluster.support import served
from tests.service.asgi import settings_for
from tests.service.web.browser import ORIGIN, Browser, opened

SHERIFF, DEVELOPER, STRANGER = PEOPLE


@dataclass
class SigningIn:
    """The browser at our page, the same browser at Taskcluster, and Taskcluster itself."""

    browser: Browser
    person: httpx.AsyncClient
    tc: Taskcluster

    async def begin(self, wanted: str = "/") -> str:
        """Begin to sign in; return the address at Taskcluster that we are led to."""
        answer = await self.browser.get("/sign-in/taskcluster", params={"next": wanted})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def decide(self, address: str, identity: str = SHERIFF, decision: str = "grant", scope: str = "") -> str:
        """Say at Taskcluster who we are, and whether we grant; return the address that leads back."""
        query = urlsplit(address).query
        chosen = await self.person.post("/login/oauth/authorize", data={"identity": identity, "query": query})
        assert chosen.status_code == 303
        page = (await self.person.get(address)).text
        match = re.search(r'name="transaction" value="([^"]+)"', page)
        assert match is not None, page
        scope = scope or parse_qs(query)["scope"][0]
        form = {"transaction": match[1], "decision": decision, "scope": scope}
        answer = await self.person.post("/login/oauth/authorize", data=form)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"].removeprefix(ORIGIN)

    async def come_back(self, path: str) -> httpx.Response:
        """Follow the address that leads back, as a browser that comes from Taskcluster."""
        return await self.browser.get(path, headers={"Sec-Fetch-Site": "cross-site"})

    async def sign_in(self, identity: str = SHERIFF, wanted: str = "/") -> httpx.Response:
        return await self.come_back(await self.decide(await self.begin(wanted), identity))

    def client_id(self) -> str:
        """Return the client that was made for the sign-in."""
        (client_id,) = [name for name in self.tc.auth.clients if f"/{SIGN_IN}-" in name]
        return client_id


def registered(**more: Any) -> RegisteredClient:
    values = {"client_id": SIGN_IN, "redirect_uris": (ORIGIN + SIGN_IN_PATH,), "scopes": ("tc-treeherder:*",)}
    return RegisteredClient(**{**values, "require_pkce": True, **more})


@asynccontextmanager
async def signing_in(
    database_url: str, client: RegisteredClient | None = None, **more: Any
) -> AsyncIterator[SigningIn]:
    """Start Taskcluster and the service."""
    tc = Taskcluster([SERVICE], ROLES, people=PEOPLE, registered=[client or registered()])
    async with served(tc) as root:
        ours = {"root_url": root, "client_id": SERVICE.client_id, "access_token": SERVICE.access_token}
        values = {"public_url": ORIGIN, "web_sign_in": {"client_id": SIGN_IN}, "taskcluster": ours, **more}
        async with opened(settings_for(database_url, **values)) as browser, httpx.AsyncClient(base_url=root) as person:
            yield SigningIn(browser, person, tc)
