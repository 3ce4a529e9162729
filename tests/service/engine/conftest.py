"""A renderer that tests of templates share."""

from collections.abc import AsyncIterator

import pytest

from service.engine.render import Renderer
from tests.service.engine.rendering import renderer_of


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    async with renderer_of(seconds=5) as opened:
        yield opened
