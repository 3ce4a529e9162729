"""Repositories with the states of their polls."""

from datetime import timedelta
from typing import Any

import pytest

from service.clock import now
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"last_good_poll_at": now()}, "polled"),
        ({}, "polled"),
        ({"created_at": now() - timedelta(hours=1)}, "waiting"),
        ({"last_good_poll_at": now() - timedelta(hours=1)}, "waiting"),
        ({"poll_failures": 3, "poll_error": "hg answers 500", "last_good_poll_at": now()}, "failing"),
        ({"enabled": False, "poll_failures": 3}, "paused"),
    ],
)
async def test_a_word_says_how_the_poll_is(admin: Browser, values: dict[str, Any], word: str) -> None:
    await admin.api.add()
    await admin.api.change_repository(**values)
    page = await admin.page("/repositories")
    assert f">{word}</span>" in page
    assert values.get("poll_error", "") in text_of(page)


async def test_what_strangers_wrote_is_escaped(admin: Browser) -> None:
    assert "None is monitored" in text_of(await admin.page("/repositories"))
    await admin.api.add()
    await admin.api.change_repository(poll_error=XSS, reset_suspected_at=now())
    page = await admin.page("/repositories")
    assert is_escaped(page)
    assert "&lt;script&gt;" in page
