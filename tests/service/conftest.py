"""Fixtures of the service's insides.

database   an open `Database`, SQLite and PostgreSQL in turn
sqlite     the same on SQLite alone, where the database is not the point
world      real `Parts` on SQLite with the sandbox's stand-ins behind them (tests/service/world.py)
"""

from collections.abc import AsyncIterator

import pytest

from service.database import Database
from tests.service.world import World, world_of


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
async def world(sqlite_url: str) -> AsyncIterator[World]:
    async with world_of(sqlite_url) as made:
        yield made
