"""The page of an action."""

from typing import Any

from sqlmodel import select

from service.store.models import Action, PlannedTask
from tests.service.api.test_tasks import COPY, OURS, PLANNED, stored
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped, statements


async def test_an_action_says_who_asked_for_what_and_what_came_of_it(admin: Browser) -> None:
    ids = await stored(admin.api)
    async with admin.api.database.writing() as session:
        (await session.get_one(PlannedTask, PLANNED)).position = 1
    page = await admin.page(f"/actions/{ids['first']}")
    text = text_of(page)
    assert f"retrigger {ids['first']} State done" in text
    assert "Asked by sheriff@example.com (api)" in text
    assert "1 of 2 are created" in text
    assert f'href="/tasks/{OURS}"' in page
    assert f'href="/tasks/{COPY}"' in page
    assert PLANNED not in page


async def test_what_strangers_wrote_is_escaped(admin: Browser) -> None:
    ids = await stored(admin.api)
    strange: list[dict[str, Any]] = [{"task_id": XSS, "name": XSS, "reason": XSS}]
    async with admin.api.database.writing() as session:
        for task in await session.exec(select(PlannedTask)):
            task.name = XSS
        action = await session.get_one(Action, ids["first"])
        action.kind = action.project = action.requester = action.error = XSS
        action.input, action.notes, action.left_out = {"a": XSS}, [XSS], strange
        action.cancels = [{"task_id": XSS, "name": XSS}]
    page = await admin.page(f"/actions/{ids['first']}")
    assert is_escaped(page)
    assert page.count("&lt;script&gt;") > 8


async def test_an_input_that_is_no_object_is_shown(admin: Browser) -> None:
    ids = await stored(admin.api)
    assert "Input" not in text_of(await admin.page(f"/actions/{ids['first']}"))
    for told, shown in ((False, "false"), (["a"], '[ "a" ]'), (0, "0")):
        async with admin.api.database.writing() as session:
            (await session.get_one(Action, ids["first"])).input = told
        assert f"Input {shown}" in text_of(await admin.page(f"/actions/{ids['first']}"))


async def test_an_action_that_is_not_there_is_told(admin: Browser) -> None:
    for path in ("/actions/0", "/actions/99", f"/actions/{2**70}", "/actions/-1"):
        answer = await admin.get(path)
        assert answer.status_code == 404
        assert "there is no action" in text_of(answer.text)


async def test_it_costs_a_few_statements(admin: Browser) -> None:
    ids = await stored(admin.api)
    with statements(admin.api) as sent:
        await admin.page(f"/actions/{ids['first']}")
    assert len(sent) <= 6


async def test_the_list_has_filters_in_its_address(admin: Browser) -> None:
    ids = await stored(admin.api)
    every = text_of(await admin.page("/actions"))
    assert f"retrigger {ids['first']}" in every
    assert f"retrigger {ids['second']}" in every
    query = f"project=mc&requester=sheriff%40example.com&state=done&task_id={OURS}"
    some = await admin.page(f"/actions?{query}")
    assert f"retrigger {ids['first']}" in text_of(some)
    assert f"retrigger {ids['second']}" not in text_of(some)
    assert "<option selected>done</option>" in some
    assert "No action matches" in text_of(await admin.page("/actions?state=failed"))
