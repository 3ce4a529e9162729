"""Dead letters."""

from service.store.models import DeadLetter, State
from service.web.dead_letters import MAX_PAYLOAD
from tests.service.asgi import READER, push_event
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
    assert '<button form="letters" name="do" value="replay">Replay</button>' in page
    assert len(page) < 60_000
    assert (await admin.get(f"/dead-letters/{number + 1}")).status_code == 404


async def buried(admin: Browser) -> list[str]:
    """Bury the steps of a push; return the names of the fields that choose their dead letters."""
    await admin.api.add()
    await admin.api.push(push_event(101))
    await admin.api.end_steps(State.FAILED, "Treeherder answers 503", bury=True)
    return [f"letter-{stored.id}" for stored in await admin.api.letters()]


async def test_several_are_replayed_at_once_and_each_outcome_is_told(admin: Browser) -> None:
    fields = dict.fromkeys([*await buried(admin), "letter-999"], "on")
    page = await admin.page("/dead-letters")
    assert all(f'name="{name}"' in page for name in fields if name != "letter-999")
    answer = await admin.post("/dead-letters", form_token=await admin.form_token("/"), do="replay", **fields)
    assert answer.status_code == 200
    assert text_of(answer.text).count(" done ") == 3
    assert "failed 999: there is no dead letter 999" in text_of(answer.text)
    assert await admin.api.letters() == []
    assert {step.state for step in await admin.api.steps()} == {State.PENDING}


async def test_one_is_dropped_and_only_that_one(admin: Browser) -> None:
    first, *others = await buried(admin)
    fields = {"form_token": await admin.form_token(f"/dead-letters/{first.removeprefix('letter-')}"), "do": "drop"}
    assert (await admin.post("/dead-letters", **fields, **{first: "on"})).status_code == 200
    assert [f"letter-{stored.id}" for stored in await admin.api.letters()] == others
    assert {step.state for step in await admin.api.steps()} == {State.FAILED}


async def test_who_may_not_and_nonsense_change_nothing(admin: Browser) -> None:
    fields = dict.fromkeys(await buried(admin), "on")
    token = await admin.form_token("/")
    for wrong in ({"do": "burn", **fields}, {"do": "drop"}, {"do": "drop", "letter-x": "on"}, fields):
        assert (await admin.post("/dead-letters", form_token=token, **wrong)).status_code == 422
    assert (await admin.post("/dead-letters", form_token="x", do="drop", **fields)).status_code == 403
    await admin.post("/sign-out", form_token=token)
    await admin.sign_in(READER)
    token = await admin.form_token("/")
    assert (await admin.post("/dead-letters", form_token=token, do="drop", **fields)).status_code == 403
    page = await admin.page("/dead-letters")
    assert "needs the scope tc-treeherder:repositories:write" in text_of(page)
    assert "checkbox" not in page
    assert len(await admin.api.letters()) == 3
