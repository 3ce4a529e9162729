"""The list of who changed what, with those who signed in."""

from typing import Any

from service.store.models import AuditEntry, Origin
from tests.service.api.test_audit import do_everything, entries
from tests.service.asgi import READER
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped


async def test_what_was_done_is_listed_with_who_did_it(admin: Browser) -> None:
    await do_everything(admin.api)
    page = text_of(await admin.page("/audit"))
    assert "admin page signed-in" in page
    assert "writer api repository-changed mc graph: true → false" in page
    assert 'href="/actions/1"' in await admin.page("/audit?event=action-asked")
    assert 'href="/pushes/mc/101"' in await admin.page("/audit?event=push-retried")
    assert "writer" not in text_of(await admin.page("/audit?caller=admin"))
    assert "No entry matches." in text_of(await admin.page("/audit?repository=x"))
    assert (await admin.get("/audit?event=x")).status_code == 422


async def test_what_strangers_wrote_is_escaped(admin: Browser) -> None:
    details: dict[str, Any] = {"changes": {XSS: [XSS, XSS]}, "values": {XSS: XSS}, XSS: [XSS], "kind": XSS}
    entry: dict[str, Any] = {"event": XSS, "caller": XSS, "repository": XSS, "subject": XSS, "details": details}
    async with admin.api.database.writing() as session:
        session.add(AuditEntry(**{**entry, "event": "action-asked"}, origin=Origin.PAGE, taskcluster=True))
        session.add(AuditEntry(**entry, origin=Origin.API))
    page = await admin.page("/audit")
    assert is_escaped(page)
    assert page.count("&lt;script&gt;") > 10


async def test_a_sign_in_is_recorded_with_the_session_or_not_at_all(stranger: Browser) -> None:
    token = await stranger.form_token()
    with stranger.api.commits_fail():
        answer = await stranger.post("/sign-in", form_token=token, token=READER, next="/")
        assert answer.status_code == 500
        assert "set-cookie" not in answer.headers
    assert (await stranger.sign_in("wrong-0123456789")).status_code == 403
    assert await entries(stranger.api) == []
    await stranger.sign_in(READER)
    (entry,) = await entries(stranger.api)
    assert (entry.event, entry.caller, entry.origin) == ("signed-in", "reader", "page")
    assert entry.details == {"address": "127.0.0.1"}


async def test_who_may_not_read_it_is_told_the_scope_and_has_no_link(stranger: Browser) -> None:
    await stranger.sign_in(READER)
    assert 'href="/audit"' not in await stranger.page("/")
    answer = await stranger.get("/audit")
    assert answer.status_code == 403
    assert "tc-treeherder:audit:read" in text_of(answer.text)
