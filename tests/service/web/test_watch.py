"""What waits, and Pulse queues."""

from datetime import timedelta

from service.api.health import UNREAD
from service.clock import now
from service.store.models import PulseQueue
from tests.service.api.test_tasks import stored
from tests.service.asgi import push_event
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped


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
