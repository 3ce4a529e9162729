"""Who asks for a page, and from where a form comes."""

from typing import Any

import pytest
from starlette.requests import Request

from service.settings import Settings
from service.web.pages import address_of, local_path
from service.web.sessions import COOKIE
from tests.service.asgi import ADMIN, READER, settings_for
from tests.service.web.browser import Browser, opened, text_of

LEADING_ELSEWHERE = [
    "//evil.example.com",
    "/\\evil.example.com",
    "/\t/evil.example.com",
    "/\n/evil.example.com",
    "https://evil.example.com/",
    "javascript:alert(1)",
    "evil",
    "",
    "/é",
    "/a\\b",
    "/x\r\nSet-Cookie: a=b",
]


@pytest.mark.parametrize("text", LEADING_ELSEWHERE)
def test_no_path_leads_elsewhere(text: str) -> None:
    assert local_path(text) == "/"


def test_a_path_of_ours_is_kept() -> None:
    for text in ("/", "/pushes?user=a%40b&state=failed", "/tasks/fN1SbArXTPSVFNUvaOlinQ"):
        assert local_path(text) == text


def request_from(address: str, **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs, "client": (address, 1)})


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "6.6.6.6", "9.9.9.9"),
        (1, "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (2, "6.6.6.6, 1.2.3.4, 10.0.0.1", "1.2.3.4"),
        (2, "6.6.6.6", "9.9.9.9"),
        (1, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (1, "<b>", "<b>"),
    ],
)
def test_the_address_is_what_the_outermost_proxy_saw(proxies: int, forwarded: str, address: str) -> None:
    asked = request_from("9.9.9.9", x_forwarded_for=forwarded)
    assert address_of(Settings(web_proxies=proxies), asked) == address


async def test_a_stranger_is_sent_to_sign_in_and_back(stranger: Browser) -> None:
    moved = await stranger.get("/?a=1%20&b=%22")
    assert (moved.status_code, moved.headers["location"]) == (303, "/sign-in?next=%2F%3Fa%3D1%2520%26b%3D%2522")
    form = await stranger.page(moved.headers["location"])
    assert 'name="next" value="/?a=1%20&amp;b=%22"' in form


async def test_where_reads_are_public_nobody_needs_to_sign_in(sqlite_url: str) -> None:
    async with opened(settings_for(sqlite_url, public_reads=True)) as browser:
        assert "Sign in" in await browser.page("/")
        assert COOKIE not in browser.http.cookies


async def test_a_form_of_elsewhere_is_refused(stranger: Browser) -> None:
    fields = {"form_token": await stranger.form_token(), "token": READER}
    for headers in (
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Origin": "http://service.evil.example.com"},
        {"Origin": "http://service", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://service", "Sec-Fetch-Site": "same-site"},
    ):
        refused = await stranger.post("/sign-in", headers, **fields)
        assert refused.status_code == 403
        assert "send the form on its own page" in text_of(refused.text)
    assert (await stranger.http.post("/sign-in", data=fields)).status_code == 403  # without Origin
    assert (await stranger.post("/sign-in", {"Sec-Fetch-Site": "same-origin"}, **fields)).status_code == 303


async def test_a_form_without_the_sessions_token_is_refused(stranger: Browser) -> None:
    token = await stranger.form_token()
    for wrong in ("", "x", token[:-1], token + "0"):
        refused = await stranger.post("/sign-in", form_token=wrong, token=ADMIN)
        assert refused.status_code == 403
        assert "not of your present session" in text_of(refused.text)
    stranger.http.cookies.clear()
    assert (await stranger.post("/sign-in", form_token=token, token=ADMIN)).status_code == 403


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"token=%ff%fe", "application/x-www-form-urlencoded", 403),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 422),
        (b"&".join([b"a=1"] * 1_001), "application/x-www-form-urlencoded", 422),
        (b"{}", "application/json", 415),
        (b"token=x", "text/plain", 415),
        (b"", "", 415),
    ],
)
async def test_nonsense_in_place_of_a_form_is_a_page(stranger: Browser, body: bytes, kind: str, status: int) -> None:
    await stranger.form_token()
    headers = {"Origin": "http://service", "Content-Type": kind}
    answer = await stranger.http.post("/sign-in", content=body, headers=headers)
    assert answer.status_code == status
    assert "text/html" in answer.headers["content-type"]


@pytest.mark.parametrize("change", [{"tokens": []}, {"tokens": [{"name": "admin", "value": "another-0123456789"}]}])
async def test_a_session_ends_when_its_token_leaves_the_settings(sqlite_url: str, change: dict[str, Any]) -> None:
    async with opened(settings_for(sqlite_url)) as browser:
        await browser.sign_in(ADMIN)
        cookie = browser.http.cookies[COOKIE]
        assert (await browser.get("/")).status_code == 200
    more = {"taskcluster_logins": True, "public_url": "http://service", **change}
    async with opened(settings_for(sqlite_url, **more)) as browser:
        browser.http.cookies.set(COOKIE, cookie)
        assert (await browser.get("/")).status_code == 303
