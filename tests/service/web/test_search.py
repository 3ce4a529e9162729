"""The search box."""

import pytest

from tests.service.api.test_tasks import OURS, stored
from tests.service.asgi import node, push_event
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped


@pytest.mark.parametrize(
    ("query", "path"),
    [
        (node(101)[:8], "/pushes/mc/101"),
        ("mc/101", "/pushes/mc/101"),
        (OURS, f"/tasks/{OURS}"),
        ("dev@example.com", "/pushes?user=dev%40example.com"),
        ("sheriff@example.com", "/actions?requester=sheriff%40example.com"),
        ("mc", "/pushes?repository=mc"),
        (f"https://treeherder.mozilla.org/jobs?repo=mc&selectedTaskRun={OURS}.0", f"/tasks/{OURS}"),
    ],
)
async def test_one_match_leads_to_its_page(admin: Browser, query: str, path: str) -> None:
    await stored(admin.api)
    answer = await admin.get("/search", params={"q": query})
    assert (answer.status_code, answer.headers["location"]) == (303, path)


async def test_several_matches_are_listed(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101, user="mc"))
    page = await admin.page("/search?q=mc")
    assert 'href="/pushes?user=mc"' in page
    assert 'href="/pushes?repository=mc"' in page
    assert "2 matches" in text_of(page)


async def test_no_match_shows_what_was_understood(admin: Browser) -> None:
    text = text_of(await admin.page("/search?q=0123abcd"))
    assert "a push whose tip begins with 0123abcd, or a user 0123abcd, or a repository 0123abcd" in text
    assert "no address of Treeherder" in text_of(await admin.page("/search?q=https://["))
    assert "Nothing" not in text_of(await admin.page("/search"))


async def test_what_was_searched_is_escaped(admin: Browser) -> None:
    page = await admin.page("/search", params={"q": XSS})
    assert is_escaped(page)
    assert "&lt;script&gt;" in page
    assert (await admin.get("/search", params={"q": "x" * 2_001})).status_code == 422
    assert (await admin.get("/search?q=%ff%00")).status_code == 200
