"""Fixtures: a browser that nobody has signed in with, and one of the token `admin`, on SQLite."""

from collections.abc import AsyncIterator

import pytest

from tests.service.asgi import ADMIN, settings_for
from tests.service.web.browser import Browser, opened


@pytest.fixture
async def stranger(sqlite_url: str) -> AsyncIterator[Browser]:
    async with opened(settings_for(sqlite_url)) as browser:
        yield browser


@pytest.fixture
async def admin(stranger: Browser) -> Browser:
    assert (await stranger.sign_in(ADMIN)).status_code == 303
    return stranger
