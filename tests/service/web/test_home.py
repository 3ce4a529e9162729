"""The first page, its headers, and the static files."""

import re

from service.store.models import DeadLetter
from tests.service.asgi import settings_for
from tests.service.web.browser import Browser, opened, text_of
from tests.service.web.support import XSS, is_escaped


async def test_every_page_refuses_frames_inline_code_and_other_hosts(admin: Browser) -> None:
    for path in ("/", "/nowhere", "/sign-in"):
        answer = await admin.get(path, headers={"Accept": "text/html"})
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "form-action")} == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "://" not in answer.text


async def test_a_page_has_landmarks_a_language_and_one_heading(admin: Browser) -> None:
    page = await admin.page("/")
    assert '<html lang="en">' in page
    for landmark in ("<header>", "<nav aria-label=", '<main id="main"', "<footer>"):
        assert page.count(landmark) == 1
    assert page.count("<h1") == 1
    assert page.index('class="skip" href="#main"') < page.index("<header>")
    assert 'name="viewport"' in page


async def test_static_files_are_kept_for_a_year_under_their_digest(admin: Browser) -> None:
    page = await admin.page("/")
    addresses = re.findall(r'(?:href|src)="(/static/[^"]*)"', page)
    assert len(addresses) == 3
    for address in addresses:
        answer = await admin.get(address)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        other = await admin.get(re.sub(r"/[0-9a-f]{16}/", "/0123456789abcdef/", address))
        assert (other.content, other.headers["cache-control"]) == (answer.content, "public, max-age=60")
    for path in ("/static/x/home.py", "/static/x/..%2f__init__.py", "/static/x/", "/static/"):
        assert (await admin.get(path)).status_code == 404


async def test_it_is_below_the_path_of_the_public_url(sqlite_url: str) -> None:
    async with opened(settings_for(sqlite_url, public_url="https://ci.example.com/tc", public_reads=True)) as browser:
        page = await browser.page("/")
        for address in re.findall(r'(?:href|src|action)="([^"#]+)"', page):
            assert address == "/tc/" or address.startswith("/tc/")
        answer = await browser.get("/sign-in")
        assert "Path=/tc" in answer.headers["set-cookie"]
        assert "Secure" in answer.headers["set-cookie"]


async def test_it_leads_to_dead_letters_that_wait(admin: Browser) -> None:
    assert "Dead letters wait for a person" not in text_of(await admin.page("/"))
    async with admin.api.database.writing() as session:
        session.add(DeadLetter(kind="push-event", subject="x", reason=f"not understood {XSS}", payload=b"{}"))
    page = await admin.page("/")
    assert is_escaped(page)
    assert "Dead letters wait for a person" in text_of(page)
    assert "not understood" in page
