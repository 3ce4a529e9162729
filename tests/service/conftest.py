"""Fixtures of the service's insides.

database   an open `Database`, SQLite and PostgreSQL in turn
sqlite     the same on SQLite alone, where the database is not the point
world      real `Services` on SQLite with the sandbox's stand-ins behind them (tests/service/harness.py)
api        the API on both databases in turn, without its worker (tests/service/asgi.py)
sqlite_api the same on SQLite alone
"""

from collections.abc import AsyncIterator

import pytest
import structlog

from service.store.database import Database
from tests.service.asgi import Api, running, settings_for
from tests.service.harness import FlowHarness, open_harness


@pytest.fixture(autouse=True, scope="session")
def _plain_tracebacks() -> None:
    """Leave local variables out of tracebacks: structlog shows all of every frame, which takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure([structlog.processors.add_log_level, renderer])


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[Database]:
    opened = Database(sqlite_url)
    yield opened
    await opened.close()


@pytest.fixture
async def harness(sqlite_url: str) -> AsyncIterator[FlowHarness]:
    async with open_harness(sqlite_url) as opened:
        yield opened


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with running(settings_for(database_url)) as started:
        yield started


@pytest.fixture
async def sqlite_api(sqlite_url: str) -> AsyncIterator[Api]:
    async with running(settings_for(sqlite_url)) as started:
        yield started
