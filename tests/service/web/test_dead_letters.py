"""Dead letters."""

from service.store.models import DeadLetter, State
from service.web.dead_letters import MAX_PAYLOAD
from tests.service.asgi import push_event
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped


async def letter(admin: Browser, payload: bytes) -> int:
    async with admin.api.database.writing() as session:
        session.add(stored := DeadLetter(kind="push-event", subject=XSS, reason=XSS, payload=payload))
        await session.flush()
        return stored.id or 0


async def test_they_are_listed_by_kind_and_say_what_to_do(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    await admin.api.end_steps(State.FAILED, "Treeherder answers 503", bury=True)
    number = await letter(admin, b"{}")
    page = await admin.page("/dead-letters")
    assert is_escaped(page)
    assert "a push of pusher@example.com to mc, resultset (tc-treeherder)" in text_of(page)
    assert f'href="/dead-letters/{number}"' in page
    graphs = await admin.page("/dead-letters?kind=graph")
    assert f'href="/dead-letters/{number}"' not in graphs
    assert "There are none." in text_of(await admin.page("/dead-letters?kind=notice"))
    assert (await admin.get("/dead-letters?kind=x")).status_code == 422


async def test_one_shows_the_beginning_of_its_event(admin: Browser) -> None:
    number = await letter(admin, XSS.encode() + b"\xff\0" + b"x" * MAX_PAYLOAD)
    page = await admin.page(f"/dead-letters/{number}")
    assert is_escaped(page)
    assert "&lt;script&gt;" in page
    assert "of which this is the beginning" in text_of(page)
    assert f"tc-treeherder dead-letters replay {number}" in text_of(page)
    assert len(page) < 60_000
    assert (await admin.get(f"/dead-letters/{number + 1}")).status_code == 404
