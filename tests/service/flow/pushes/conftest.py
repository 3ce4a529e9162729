"""Settings that tests of graphs share."""

import pytest

from service.settings import Settings, load


@pytest.fixture
def settings() -> Settings:
    return load()
