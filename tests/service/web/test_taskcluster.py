"""Signing in with Taskcluster, over HTTP to the stand-in."""

import base64
import json
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog

from sandbox.credentials import SERVICE, SIGN_IN_PATH
from service.web import attempts, clients
from service.web.failed import MOST_FAILED
from service.web.sessions import COOKIE, FORM_COOKIE
from tests.service.api.test_audit import entries
from tests.service.asgi import ADMIN
from tests.service.web.browser import Browser, text_of
from tests.service.web.signing_in import DEVELOPER, SHERIFF, STRANGER, SigningIn, registered, signing_in
from tests.service.web.support import XSS, is_escaped
from tests.service.web.test_pages import LEADING_ELSEWHERE


@pytest.fixture
async def world(sqlite_url: str) -> AsyncIterator[SigningIn]:
    async with signing_in(sqlite_url) as started:
        yield started


async def test_who_is_known_to_taskcluster_gets_a_session_of_their_client(world: SigningIn) -> None:
    assert 'href="/sign-in/taskcluster?next=%2F"' in await world.browser.page("/sign-in")
    answer = await world.sign_in(wanted="/actions?state=done")
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/actions?state=done">' in answer.text
    set_cookies = answer.headers.get_list("set-cookie")
    (session,) = [cookie for cookie in set_cookies if cookie.startswith(f"{COOKIE}=")]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert attribute in session
    body = world.browser.http.cookies[COOKIE].partition(".")[0]
    name, _, _, client_id = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert (name, client_id) == (None, world.client_id())
    assert client_id.startswith(f"{SHERIFF}/tc-treeherder-")
    assert f"<span>{client_id}</span>" in await world.browser.page("/")
    (entry,) = await entries(world.browser.api)
    assert (entry.event, entry.caller, entry.taskcluster, entry.origin) == ("signed-in", client_id, True, "page")


async def test_credentials_and_code_are_kept_and_logged_nowhere(world: SigningIn) -> None:
    with structlog.testing.capture_logs() as logs:
        path = await world.decide(await world.begin())
        answer = await world.come_back(path)
    (code,) = parse_qs(urlsplit(path).query)["code"]
    access_token = world.tc.auth.clients[world.client_id()].access_token
    (entry,) = await entries(world.browser.api)
    seen = f"{logs} {answer.text} {answer.headers} {dict(world.browser.http.cookies)} {entry!r}"
    assert world.client_id() in seen
    for secret in (code, access_token, SERVICE.access_token):
        assert secret not in seen


async def test_scopes_are_those_that_the_person_has_and_grants(world: SigningIn) -> None:
    await world.browser.api.add("try")
    await world.sign_in(DEVELOPER)
    answer = await world.browser.get("/audit")
    assert answer.status_code == 403
    assert "a role in Taskcluster can give it" in text_of(answer.text)
    form = {"form_token": await world.browser.form_token("/"), "project": "try", "action": "cancel", "key": "k"}
    form["task_id"] = "fN1SbArXTPSVFNUvaOlinQ"
    assert (await world.browser.post("/actions", **form)).status_code == 303
    assert (await world.browser.post("/actions", **{**form, "project": "mc"})).status_code == 403
    # what they do not grant, they do not have
    await world.browser.post("/sign-out", form_token=form["form_token"])
    scope = "tc-treeherder:action:cancel:mc"
    await world.come_back(await world.decide(await world.begin(), SHERIFF, scope=scope))
    form["form_token"] = await world.browser.form_token("/")
    assert (await world.browser.post("/actions", **{**form, "project": "mc"})).status_code == 303
    assert (await world.browser.post("/actions", **form)).status_code == 403


async def test_who_is_disabled_loses_access_within_minutes(world: SigningIn, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.sign_in()
    world.tc.auth.disable(world.client_id())
    assert (await world.browser.get("/")).status_code == 200  # the last answer is a moment old
    world.tc.auth.clients.pop(world.client_id())
    monkeypatch.setattr(clients, "LOOK_AGAIN", 0.0)
    await world.sign_in()
    token = await world.browser.form_token("/")
    world.tc.auth.disable(world.client_id())
    assert (await world.browser.get("/")).headers["location"] == "/sign-in?next=%2F"
    assert (await world.browser.post("/dead-letters", form_token=token, do="drop")).status_code == 401
    world.tc.auth.disable(world.client_id(), disabled=False)
    assert (await world.browser.get("/")).status_code == 200
    world.tc.auth.set_roles({})
    world.tc.auth.add_client(world.client_id(), "x" * 40, ["queue:*"])
    assert (await world.browser.get("/")).status_code == 403


async def test_an_answer_for_another_browser_is_refused(world: SigningIn) -> None:
    """Otherwise somebody could have others work in a session of theirs."""
    path = await world.decide(await world.begin())
    own = world.browser.http.cookies[attempts.COOKIE]
    world.browser.http.cookies.clear()
    answer = await world.come_back(path)
    assert answer.status_code == 403
    assert "not for a sign-in that began in this browser" in text_of(answer.text)
    await world.begin()
    assert world.browser.http.cookies[attempts.COOKIE] != own
    answer = await world.come_back(path)
    assert answer.status_code == 403
    assert "not for a sign-in that began in this browser" in text_of(answer.text)  # the code is not even tried
    assert COOKIE not in world.browser.http.cookies


async def test_an_answer_is_good_once(world: SigningIn) -> None:
    path = await world.decide(await world.begin())
    own = world.browser.http.cookies[attempts.COOKIE]
    assert (await world.come_back(path)).status_code == 200
    assert attempts.COOKIE not in world.browser.http.cookies
    first = world.browser.http.cookies[COOKIE]
    assert (await world.come_back(path)).status_code == 403
    world.browser.http.cookies.set(attempts.COOKIE, own)  # even with the cookie that belongs to it
    answer = await world.come_back(path)
    assert answer.status_code == 403
    assert "it was used before, or is too old" in text_of(answer.text)
    assert world.browser.http.cookies[COOKIE] == first


async def test_signing_in_begins_another_session(world: SigningIn) -> None:
    token = await world.browser.form_token()
    planted = world.browser.http.cookies[FORM_COOKIE]
    await world.sign_in()
    assert (await world.browser.post("/sign-out", form_token=token)).status_code == 403
    signed_in = world.browser.http.cookies[COOKIE]
    for name, cookie in ((COOKIE, planted), (FORM_COOKIE, signed_in), (attempts.COOKIE, signed_in)):
        world.browser.http.cookies.clear()
        world.browser.http.cookies.set(name, cookie)
        assert (await world.browser.get("/")).status_code == 303


@pytest.mark.parametrize("wanted", [*LEADING_ELSEWHERE[:4], "/" + "x" * 3_000])
async def test_signing_in_leads_nowhere_else(world: SigningIn, wanted: str) -> None:
    assert '<meta http-equiv="refresh" content="0; url=/">' in (await world.sign_in(wanted=wanted)).text


async def test_a_link_of_another_site_begins_nothing(world: SigningIn) -> None:
    answer = await world.browser.get("/sign-in/taskcluster", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert attempts.COOKIE not in world.browser.http.cookies


async def test_who_declines_or_has_no_scope_is_told(world: SigningIn) -> None:
    declined = await world.come_back(await world.decide(await world.begin(), decision="decline"))
    assert declined.status_code == 403
    assert "Taskcluster was told not to let you in" in text_of(declined.text)
    stranger = await world.sign_in(STRANGER)
    assert stranger.status_code == 403
    assert "has no scope that begins with tc-treeherder:" in text_of(stranger.text)
    assert COOKIE not in world.browser.http.cookies
    assert await entries(world.browser.api) == []


async def test_what_others_put_into_the_address_is_escaped(world: SigningIn) -> None:
    state = parse_qs(urlsplit(await world.begin(XSS)).query)["state"][0]
    answer = await world.browser.get(SIGN_IN_PATH, params={"error": XSS, "error_description": XSS, "state": state})
    assert answer.status_code == 403
    assert is_escaped(answer.text)
    assert "&lt;script&gt;" in answer.text


async def test_who_fails_too_often_waits(world: SigningIn) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(MOST_FAILED):
            await world.begin()
            assert (await world.browser.get(SIGN_IN_PATH, params={"code": "x", "state": "y"})).status_code == 403
    failed = [line for line in logs if line["event"] == "sign-in-failed"]
    assert [line["failures"] for line in failed] == list(range(1, MOST_FAILED + 1))
    assert {line["address"] for line in failed} == {"127.0.0.1"}
    for path in ("/sign-in/taskcluster", SIGN_IN_PATH):
        assert (await world.browser.get(path)).status_code == 429
    assert (await world.browser.sign_in(ADMIN)).status_code == 429


async def test_pages_of_others_cannot_use_up_our_attempts(world: SigningIn) -> None:
    for _ in range(MOST_FAILED + 1):
        answer = await world.browser.get(SIGN_IN_PATH, params={"code": "x", "state": "y"})
        assert answer.status_code == 403
    assert (await world.sign_in()).status_code == 200


async def test_a_taskcluster_that_is_away_is_told_and_counts_for_nobody(
    world: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tc.faults.add(method="client", kind="before", status=500)
    for _ in range(MOST_FAILED + 1):
        assert (await world.sign_in()).status_code == 502
    world.tc.faults.remove()
    for name in ("LOOK_AGAIN", "PAUSE"):
        monkeypatch.setattr(clients, name, 0.0)
    assert (await world.sign_in()).status_code == 200
    world.tc.faults.add(method="client", kind="before", status=500)
    await world.browser.page("/")  # the last answer holds for a while
    monkeypatch.setattr(clients, "MOST_STALE", 0.0)
    answer = await world.browser.get("/")
    assert answer.status_code == 503
    assert "it is not known what" in text_of(answer.text)
    assert (await world.browser.get("/sign-in")).status_code == 200


async def test_a_registration_that_does_not_fit_is_told(sqlite_url: str) -> None:
    other = registered(scopes=("tc-treeherder:read",))
    async with signing_in(sqlite_url, other) as world:
        answer = await world.come_back(await world.decide(await world.begin(), scope="tc-treeherder:read"))
        assert answer.status_code == 403
        assert "'invalid_scope': see web_sign_in" in text_of(answer.text)


async def test_a_client_of_ours_that_may_not_look_up_is_told(world: SigningIn) -> None:
    world.tc.auth.add_client(SERVICE.client_id, SERVICE.access_token, ["queue:*"])
    answer = await world.sign_in()
    assert answer.status_code == 502
    assert "give it the scope auth:get-client:*" in text_of(answer.text)


async def test_the_session_is_good_for_the_page_alone_and_ends_with_sign_out(world: SigningIn) -> None:
    await world.sign_in()
    assert (await world.browser.get("/api/v1/pushes")).status_code == 401
    token = await world.browser.form_token("/")
    assert (await world.browser.post("/sign-out", form_token=token)).status_code == 303
    assert COOKIE not in world.browser.http.cookies
    assert (await world.browser.get("/")).status_code == 303


async def test_without_the_setting_there_is_no_such_sign_in(stranger: Browser) -> None:
    assert "Taskcluster" not in text_of(await stranger.page("/sign-in"))
    for path in ("/sign-in/taskcluster", SIGN_IN_PATH):
        assert (await stranger.get(path)).status_code == 404
