"""One system and one browser for all stories."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import Server, own_vhost
from tests.web_browser.site import Site, open_site


@pytest.fixture(scope="module")
def site(browser_program: Path, amqp_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with own_vhost(amqp_server) as amqp_url, open_site(folder, browser_program, amqp_url) as opened:
        yield opened
