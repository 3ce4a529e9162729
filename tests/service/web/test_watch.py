"""What waits, and Pulse queues."""

from datetime import timedelta
from html import escape

from service.api.health import UNREAD
from service.clock import now
from service.store.models import PulseQueue
from service.web.rendering import path_of
from tests.service.api.test_reports import report
from tests.service.api.test_reports import stored as reports_stored
from tests.service.api.test_tasks import stored
from tests.service.asgi import READER, push_event
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped, statements


async def test_what_waits_names_the_upstream_the_oldest_and_the_next_try(admin: Browser) -> None:
    assert "Nothing waits." in text_of(await admin.page("/waiting"))
    await stored(admin.api)
    async with admin.api.database.writing() as session:
        for step in await admin.api.steps():
            step.error, step.attempts, step.share = XSS, 3, XSS
            step.due_at = now() + timedelta(minutes=1)
            await session.merge(step)
    page = await admin.page("/waiting")
    assert is_escaped(page)
    assert 'href="/pushes/mc/101"' in page
    assert "resultset tc-treeherder" in text_of(page)


async def test_a_queue_that_nobody_reads_is_told(admin: Browser) -> None:
    assert "No listener has read a queue" in text_of(await admin.page("/pulse-queues"))
    async with admin.api.database.writing() as session:
        session.add(PulseQueue(name="queue/x/read", events="tasks"))
    assert "grows until Pulse deletes it" not in await admin.page("/pulse-queues")
    async with admin.api.database.writing() as session:
        session.add(PulseQueue(name=XSS, events="tasks", seen_at=now() - 2 * UNREAD, deleted_at=now(), deletions=1))
    page = await admin.page("/pulse-queues")
    assert is_escaped(page)
    assert "unread" in text_of(page)
    assert "grows until Pulse deletes it" in text_of(page)


async def test_the_first_page_warns_of_what_the_heartbeat_warns_of(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    assert "warning" not in await admin.page("/")
    async with admin.api.database.writing() as session:
        session.add(PulseQueue(name=XSS, events="tasks", seen_at=now() - 2 * UNREAD))
    page = await admin.page("/")
    assert is_escaped(page)
    assert "warning pulse nobody has read" in text_of(page)
    assert "mc/101" in text_of(page)


async def waiting(admin: Browser) -> str:
    """Let a resultset wait after a failure; return its lane."""
    await stored(admin.api)
    async with admin.api.database.writing() as session:
        for step in await admin.api.steps():
            step.error, step.attempts, step.due_at = XSS, 3, now() + timedelta(minutes=5)
            await session.merge(step)
    return next(step.lane for step in await admin.api.steps() if step.kind == "resultset")


async def test_a_lane_says_for_which_repository_it_waits_and_is_tried_now(admin: Browser) -> None:
    lane = await waiting(admin)
    path = path_of("waiting", work="push_step", lane=lane)
    assert f'href="{escape(path)}"' in await admin.page("/waiting")
    with statements(admin.api) as sent:
        page = await admin.page(path)
    assert len(sent) <= 6
    assert is_escaped(page)
    assert 'href="/pushes/mc/101"' in page
    assert "By repository Repository Pieces Oldest since Oldest Attempts Next try Last error mc 1" in text_of(page)
    form = {"form_token": await admin.form_token(path), "lane": f"push_step/{lane}"}
    answer = await admin.post("/waiting", **form)
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    tried = [step for step in await admin.api.steps() if step.due_at is not None and step.due_at <= now()]
    assert [step.lane for step in tried] == [lane]
    assert (await admin.get("/waiting?work=x&lane=y")).status_code == 404
    assert (await admin.post("/waiting", **{**form, "lane": f"x/{lane}"})).status_code == 404
    assert "Nothing waits here any more." in text_of(await admin.page("/waiting?work=action&lane=%3Cb%3E"))


async def test_who_may_not_try_now_is_told_the_scope(admin: Browser) -> None:
    lane = await waiting(admin)
    await admin.post("/sign-out", form_token=await admin.form_token("/"))
    await admin.sign_in(READER)
    for path in ("/waiting", path_of("waiting", work="push_step", lane=lane)):
        page = await admin.page(path)
        assert "needs the scope tc-treeherder:repositories:write" in text_of(page)
        assert "Try now" not in page
    form = {"form_token": await admin.form_token("/"), "lane": f"push_step/{lane}"}
    assert (await admin.post("/waiting", **form)).status_code == 403


async def test_reports_that_wait_are_listed_first(admin: Browser) -> None:
    assert "No report matches." in text_of(await admin.page("/reports"))
    await reports_stored(admin.api)
    async with admin.api.database.writing() as session:
        session.add(report(7, project=XSS, environment=XSS, error=XSS, due_at=now() + timedelta(minutes=1)))
    page = await admin.page("/reports")
    assert is_escaped(page)
    for query, number in {
        "": 3,
        "?state=pending&waiting=push": 1,
        "?state=failed": 1,
        "?state=": 6,
        "?state=any": 6,
    }.items():
        assert (await admin.page(f"/reports{query}")).count('href="/tasks/') == number, query
    assert "Treeherder does not know the push Its push is not there since" in text_of(await admin.page("/reports"))
    assert (await admin.get("/reports?state=x")).status_code == 422
