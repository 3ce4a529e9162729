"""Who may watch which page."""

from tests.service.asgi import READER
from tests.service.web.browser import Browser
from tests.service.web.test_live import site_of


async def test_only_readers_watch(stranger: Browser) -> None:
    answer = await stranger.get("/live", params={"page": "home", "args": "{}"})
    assert answer.status_code == 303


async def test_what_no_page_is_cannot_be_watched(admin: Browser) -> None:
    answer = await admin.get("/live", params={"page": "home", "args": "[]"})
    assert answer.status_code == 422
    assert site_of(admin).hub.watchers == 0


async def test_who_may_not_read_the_audit_does_not_watch_it(stranger: Browser) -> None:
    await stranger.sign_in(READER)
    answer = await stranger.get("/live", params={"page": "audit", "args": "{}"})
    assert answer.status_code == 403
    assert "tc-treeherder:audit:read" in answer.text
    assert site_of(stranger).hub.watchers == 0
