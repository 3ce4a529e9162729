"""Signing in with a token, and out."""

import pytest
import structlog

from service.web.failed import MOST_FAILED
from service.web.sessions import COOKIE, FORM_COOKIE
from tests.service.asgi import ADMIN, NEVER_SHOWN, READER, settings_for
from tests.service.web.browser import Browser, opened, text_of
from tests.service.web.test_pages import LEADING_ELSEWHERE


async def test_a_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(stranger: Browser) -> None:
    answer = await stranger.sign_in(READER, "/?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?x=1")
    cookie = answer.headers["set-cookie"]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert attribute in cookie
    assert not any(secret in cookie for secret in NEVER_SHOWN)
    page = await stranger.page("/")
    assert "<span>reader</span>" in page
    assert not any(secret in page for secret in NEVER_SHOWN)


async def test_a_wrong_token_is_told_logged_and_shown_nowhere(stranger: Browser) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await stranger.sign_in("wrong-0123456789")
    assert answer.status_code == 403
    assert "This service has no such token" in text_of(answer.text)
    assert 'aria-describedby="failure"' in answer.text
    assert "wrong-0123456789" not in answer.text
    (failed,) = [line for line in logs if line["event"] == "sign-in-failed"]
    assert (failed["log_level"], failed["address"], failed["failures"]) == ("warning", "127.0.0.1", 1)
    assert "wrong-0123456789" not in str(logs)
    assert (await stranger.get("/")).status_code == 303


async def test_who_fails_too_often_waits_even_with_the_right_token(stranger: Browser) -> None:
    for _ in range(MOST_FAILED):
        assert (await stranger.sign_in("wrong")).status_code == 403
    refused = await stranger.sign_in(ADMIN)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert "10 sign-ins from 127.0.0.1 failed" in text_of(refused.text)


async def test_signing_in_begins_another_session(stranger: Browser) -> None:
    """Whoever planted the cookie of a session in a browser has nothing once its owner has signed in."""
    token = await stranger.form_token()
    planted = stranger.http.cookies[FORM_COOKIE]
    await stranger.sign_in(ADMIN)
    assert stranger.http.cookies[COOKIE] != planted
    assert (await stranger.post("/sign-out", form_token=token)).status_code == 403
    signed_in = stranger.http.cookies[COOKIE]
    for name, cookie in ((COOKIE, planted), (FORM_COOKIE, planted), (FORM_COOKIE, signed_in)):
        stranger.http.cookies.clear()
        stranger.http.cookies.set(name, cookie)
        assert (await stranger.get("/")).status_code == 303


async def test_a_link_of_another_site_does_not_end_the_session(admin: Browser) -> None:
    """The browser does not send the cookie behind such a link, but does when the page itself leads on."""
    session = admin.http.cookies[COOKIE]
    admin.http.cookies.clear()
    answer = await admin.get("/?a=%22%3E%3Cscript%3E", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/?a=%22%3E%3Cscript%3E">' in answer.text
    form = await admin.get("/sign-in", headers={"Sec-Fetch-Site": "cross-site"})
    assert f"{COOKIE}=" not in form.headers["set-cookie"]
    admin.http.cookies.set(COOKIE, session)
    assert (await admin.get("/", headers={"Sec-Fetch-Site": "same-origin"})).status_code == 200


async def test_signing_out_ends_it(admin: Browser) -> None:
    token = await admin.form_token("/")
    assert (await admin.post("/sign-out", form_token="x")).status_code == 403
    answer = await admin.post("/sign-out", form_token=token)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert COOKIE not in admin.http.cookies
    assert (await admin.get("/")).status_code == 303


@pytest.mark.parametrize("wanted", LEADING_ELSEWHERE)
async def test_signing_in_leads_nowhere_else(stranger: Browser, wanted: str) -> None:
    assert (await stranger.sign_in(ADMIN, wanted)).headers["location"] == "/"
    moved = await stranger.get("/sign-in", params={"next": wanted})
    assert (moved.status_code, moved.headers["location"]) == (303, "/")


async def test_a_service_whose_callers_come_from_taskcluster_says_so(sqlite_url: str) -> None:
    settings = settings_for(sqlite_url, tokens=[], taskcluster_logins=True, public_url="http://service")
    async with opened(settings) as browser:
        assert "has no tokens in its settings" in text_of(await browser.page("/sign-in"))
