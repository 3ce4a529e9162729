"""The page of a task."""

from sqlmodel import select

from sandbox import taskcluster
from service.store.models import JobReport, PlannedTask
from tests.service.api.test_tasks import COPY, OTHER, OURS, PLANNED, stored
from tests.service.asgi import changeset, node, push_event
from tests.service.flow.graph_factory import Direct, build, slug
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped, statements


async def test_a_task_leads_to_its_push_copies_and_actions(admin: Browser) -> None:
    ids = await stored(admin.api)
    page = await admin.page(f"/tasks/{OURS}")
    assert 'href="/pushes/mc/101"' in page
    assert f'href="/tasks/{COPY}"' in page
    assert f'href="/actions/{ids["first"]}"' in page
    assert "State running" in text_of(page)
    assert "by sheriff@example.com" in text_of(page)
    copy = await admin.page(f"/tasks/{COPY}")
    assert f'href="/tasks/{OURS}"' in copy
    assert "somebody else" in text_of(await admin.page(f"/tasks/{OTHER}"))


async def test_an_id_is_unknown_until_its_task_is_created(admin: Browser) -> None:
    await stored(admin.api)
    assert (await admin.get(f"/tasks/{PLANNED}")).status_code == 404
    missing = await admin.get("/tasks/%3Cscript%3E%ff%00")
    assert missing.status_code == 404
    assert is_escaped(missing.text)


async def test_what_strangers_wrote_is_escaped(admin: Browser) -> None:
    await stored(admin.api)
    async with admin.api.database.writing() as session:
        for task in await session.exec(select(PlannedTask)):
            task.name = XSS
        for report in await session.exec(select(JobReport)):
            report.error = report.project = report.task_group_id = XSS
    page = await admin.page(f"/tasks/{OURS}")
    assert is_escaped(page)
    assert "&lt;script&gt;" in page


async def test_it_costs_a_few_statements(admin: Browser) -> None:
    await stored(admin.api)
    with statements(admin.api) as sent:
        await admin.page(f"/tasks/{OURS}")
    assert len(sent) <= 10


async def test_a_task_that_only_the_queue_knows_has_a_page_with_its_push_and_buttons(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101, changesets=[changeset("tip")]))
    queue = Direct(taskcluster.Taskcluster([], claim_wait=0).queue)
    admin.api.services.queue = queue  # type: ignore[assignment]  # it has the calls that are made
    build(queue._queue, {XSS: ()}, routes=[f"tc-treeherder.v2.mc.{node('tip')}.101"])
    page = await admin.page(f"/tasks/{slug(XSS)}")
    assert is_escaped(page)
    assert "State pending Push push 101 of mc" in text_of(page)
    assert "Preview retrigger" in page
    assert (await admin.get(f"/tasks/{slug('missing')}")).status_code == 404
