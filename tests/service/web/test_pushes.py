"""The page of a push."""

from typing import Any

from sqlmodel import select

from sandbox import taskcluster
from service.store.models import Action, PlannedTask, Source, Stage, State
from service.web.pushes import TASKS
from tests.service.api.test_pushes import plan
from tests.service.api.test_tasks import COPY, OURS, PLANNED, report, stored
from tests.service.asgi import ADMIN, READER, changeset, node, push_event
from tests.service.flow.graph_factory import Direct, build, end, slug
from tests.service.web.browser import Browser, text_of
from tests.service.web.support import XSS, is_escaped, statements, without_picture


async def test_a_push_shows_its_steps_tasks_states_copies_and_links(admin: Browser) -> None:
    ids = await stored(admin.api)
    page = await admin.page("/pushes/mc/101")
    text = text_of(page)
    assert "Push 101 of mc" in text
    for step in ("Noticed done", "Resultset in Treeherder (tc-treeherder) pending", "Task graph pending"):
        assert step in text
    assert "1 of 1 tasks of the graph are created. Of all, 1 running ." in text
    assert "Taskcluster does not tell the newest: Taskcluster answers 503." in text
    assert f"{COPY} by sheriff@example.com ( retrigger {ids['first']} )" in text
    assert PLANNED not in page
    assert "Bug 1 - 101" in text
    for address in (
        f"https://hg.mozilla.org/mc/rev/{node(101)}",
        f"http://127.0.0.1:9/jobs?repo=mc&amp;revision={node(101)}",
        f"https://firefox-ci-tc.services.mozilla.com/tasks/groups/{OURS}",
    ):
        assert f'href="{address}" rel="noreferrer"' in page
    assert f'href="/tasks/{OURS}"' in page


async def test_failed_tasks_come_first_and_a_large_graph_has_several_small_pages(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    names = [f"a task with quite a long name, as tests have, number {number:04d}" for number in range(TASKS + 20)]
    await plan(admin.api, *names)
    async with admin.api.database.writing() as session:
        failed = report(f"{names[-1]}-0", 0, stage=Stage.RESOLVED, state=State.DONE)
        failed.run = {"state": "failed"}
        session.add(failed)
    page = without_picture(await admin.page("/pushes/mc/101"))
    assert page.index(names[-1]) < page.index(names[0])
    assert names[-2] not in page
    assert "1 failed" in text_of(page)
    assert len(page) < 60_000
    assert 'href="/pushes/mc/101?first=100"' in page
    rest = without_picture(await admin.page("/pushes/mc/101?first=100"))
    assert names[-2] in rest
    assert names[0] not in rest


async def test_a_failure_is_explained_with_its_remedy(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    reason = (
        "Taskcluster refuses task build with 403: the project's scopes lack queue:route:a (for its route), "
        f"assume:{XSS} (for the task's own scopes). Add them to its role in Taskcluster or to the repository"
    )
    await admin.api.end_steps(State.FAILED, reason, error_task="E" * 22)
    page = await admin.page("/pushes/mc/101")
    assert is_escaped(page)
    text = text_of(page)
    assert "No task graph The project may not create one of its tasks" in text
    assert "queue:route:a for its route" in text
    assert "The project has: assume:repo:hg.mozilla.org/mc:branch:default" in text
    assert "tc-treeherder pushes retry mc 101" in text
    assert f'href="/tasks/{"E" * 22}"' in page
    assert "No resultset in Treeherder (tc-treeherder-stage)" in text


async def test_tasks_that_a_decision_task_created_are_shown_with_their_states_and_copies(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    queue = Direct(taskcluster.Taskcluster([], claim_wait=0).queue)
    admin.api.services.queue = queue  # type: ignore[assignment]  # it has the calls that are made
    decision = slug("decision")
    build(queue._queue, {"decision": ()}, taskGroupId=decision)
    build(queue._queue, {"build": ["decision"], XSS: ["decision"], "again": ()}, taskGroupId=decision)
    end(queue._queue, "decision", "completed")
    end(queue._queue, "build")
    await plan(admin.api, "decision")
    async with admin.api.database.writing() as session:
        (task,) = await session.exec(select(PlannedTask))
        task.task_id = decision
        action = Action(
            kind="retrigger", task_id=slug("build"), project="mc", lane="x", requester="a", source=Source.API
        )
        session.add(action)
        await session.flush()
        copied: dict[str, Any] = {"position": 0, "label": "copy", "name": "n", "definition": {}, "created": True}
        session.add(PlannedTask(task_id=slug("again"), action_id=action.id, copy_of=slug("build"), **copied))
        session.add(PlannedTask(task_id=slug("twice"), action_id=action.id, copy_of=slug("again"), **copied))
    page = await admin.page("/pushes/mc/101")
    assert is_escaped(page)
    text = text_of(without_picture(page))
    assert "its tasks have created 2 more. Of all, 1 failed , 1 completed , 1 pending ." in text
    assert text.index("build failed") < text.index("decision completed")
    assert f"pending {slug('again')} by a ( retrigger 1 ) not reported {slug('twice')} by a" in text
    assert page.count('<path class="line"') == 2
    assert f'href="https://firefox-ci-tc.services.mozilla.com/tasks/groups/{decision}"' in page


async def test_the_line_of_the_file_is_quoted_where_one_is_the_cause(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    await admin.api.end_steps(State.FAILED, ".taskcluster.yml is no YAML: in line 2, column 5: mapping values")
    asked: list[Any] = []

    async def raw_file(*arguments: str) -> bytes:
        asked.append(arguments)
        return f"version: 1\ntasks: {XSS}\nmore".encode()

    admin.api.services.hg.raw_file = raw_file  # type: ignore[method-assign, assignment]
    for _ in range(2):
        page = await admin.page("/pushes/mc/101")
    assert asked == [("https://hg.mozilla.org/mc", node(101), ".taskcluster.yml")]
    assert is_escaped(page)
    assert "In line 2, column 5 of the file: 1 version: 1 2 ▶ tasks:" in text_of(page)
    notice = page.partition('<section class="notice bad"')[2].partition("</section>")[0]
    assert '<button form="retry">Retry the failed steps</button>' in notice


async def test_everything_that_strangers_wrote_is_escaped(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101, user=XSS, changesets=[changeset("a", desc=XSS, author=XSS)]))
    await plan(admin.api, XSS)
    async with admin.api.database.writing() as session:
        task = (await session.exec(select(PlannedTask))).one()
        fields: dict[str, Any] = {"project": "mc", "lane": "x", "source": Source.API, "requester": XSS, "error": XSS}
        action = Action(kind=XSS, task_id=task.task_id, **fields)
        session.add_all([action, Action(kind="cancel-push", push_id=101, generation=0, **fields)])
        await session.flush()
        copied: dict[str, Any] = {"position": 0, "label": "copy", "name": XSS, "definition": {}, "created": True}
        session.add(PlannedTask(task_id=f"<b>{'C' * 19}", action_id=action.id, copy_of=task.task_id, **copied))
        strange = report(task.task_id, 0, stage=Stage.RESOLVED, state=State.DONE)
        strange.run, strange.task_group_id = {"state": "exception", "reason": XSS}, XSS
        session.add(strange)
    for state in (State.SKIPPED, State.FAILED):
        await admin.api.end_steps(state, XSS)
        page = await admin.page("/pushes/mc/101")
        assert is_escaped(page)
        assert page.count("&lt;script&gt;") > 8


async def test_a_page_costs_the_same_however_many_tasks_there_are(admin: Browser) -> None:
    await stored(admin.api)
    with statements(admin.api) as few:
        await admin.page("/pushes/mc/101")
    await plan(admin.api, *(f"t{number}" for number in range(1, 60)))
    with statements(admin.api) as many:
        await admin.page("/pushes/mc/101")
    assert len(many) == len(few) <= 20


async def test_what_is_not_there_is_told_with_the_commands_that_list_it(admin: Browser) -> None:
    await admin.api.add()
    for path in ("/pushes/mc/1", "/pushes/nowhere/1", "/pushes/%3Cscript%3E/1", "/pushes/mc/-1", "/pushes/%ff%00/1"):
        answer = await admin.get(path)
        assert answer.status_code == 404
        assert is_escaped(answer.text)
        assert "tc-treeherder" in text_of(answer.text)
    assert (await admin.get("/pushes/mc/x")).status_code == 422


async def test_pushes_of_a_deleted_repository_can_still_be_seen(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    await admin.api.end_steps(State.DONE)
    await admin.api.delete("/repositories/mc")
    assert "Push 101 of mc" in text_of(await admin.page("/pushes/mc/101"))


async def test_a_push_without_changesets_is_shown(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101, changesets=[]))
    assert "no changesets any more" in text_of(await admin.page("/pushes/mc/101"))


async def test_the_list_has_filters_in_its_address_and_leads_on(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101, user="a@example.com"), *(push_event(number) for number in range(102, 160)))
    first = await admin.page("/pushes")
    assert "mc/159" in first
    assert "mc/101" not in first
    assert len(first) < 60_000
    following = first.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    second = await admin.page(following)
    assert "mc/101" in second
    assert 'rel="next"' not in second
    filtered = await admin.page("/pushes?repository=mc&user=%20a%40example.com&state=pending")
    assert text_of(filtered).count("mc/1") == 1
    assert 'name="user" value="a@example.com"' in filtered
    assert "<option selected>pending</option>" in filtered
    assert "No push matches" in text_of(await admin.page("/pushes?user=nobody&repository=&state="))


async def test_a_filter_that_cannot_be_is_told(admin: Browser) -> None:
    for query, status in {"state=sad": 422, "after=x": 422, "repository=nowhere": 404, "user=a&user=b": 422}.items():
        answer = await admin.get(f"/pushes?{query}")
        assert answer.status_code == status, query
        assert "text/html" in answer.headers["content-type"]


async def test_failed_steps_are_retried_by_a_button(admin: Browser) -> None:
    await admin.api.add()
    await admin.api.push(push_event(101))
    assert "Retry the failed steps" not in await admin.page("/pushes/mc/101")
    await admin.api.end_steps(State.FAILED, "gave up")
    page = await admin.page("/pushes/mc/101")
    assert 'action="/pushes/mc/101/retry"' in page
    assert (await admin.post("/pushes/mc/101/retry", form_token="x")).status_code == 403
    token = await admin.form_token("/")
    answer = await admin.post("/pushes/mc/101/retry", form_token=token)
    assert (answer.status_code, answer.headers["location"]) == (303, "/pushes/mc/101")
    assert {step.state for step in await admin.api.steps()} == {State.PENDING}
    again = await admin.post("/pushes/mc/101/retry", form_token=token)
    assert again.status_code == 409
    assert "nothing to retry" in text_of(again.text)


async def test_a_button_that_one_may_not_press_says_which_scope_is_missing(stranger: Browser) -> None:
    await stranger.api.add()
    await stranger.api.push(push_event(101))
    await stranger.api.end_steps(State.FAILED, "gave up")
    await stranger.sign_in(READER)
    page = await stranger.page("/pushes/mc/101")
    for scope in ("retry", "cancel-push", "retrigger-failed"):
        assert f"<code>tc-treeherder:action:{scope}:mc</code>" in page
    assert "<button>Preview" not in page
    answer = await stranger.post("/pushes/mc/101/retry", form_token=await stranger.form_token("/"))
    assert answer.status_code == 403


async def test_a_push_that_is_missing_can_be_ingested_from_the_list_of_its_repository(stranger: Browser) -> None:
    await stranger.api.add()
    await stranger.sign_in(READER)
    assert "<code>tc-treeherder:action:ingest:mc</code>" in await stranger.page("/pushes?repository=mc")
    await stranger.post("/sign-out", form_token=await stranger.form_token("/"))
    await stranger.sign_in(ADMIN)
    assert "Preview ingest" not in await stranger.page("/pushes")
    page = await stranger.page("/pushes?repository=mc")
    assert '<input type="hidden" name="action" value="ingest">' in page
    fields = {"action": "ingest", "project": "mc", "push": "7", "key": "k"}
    answer = await stranger.post("/actions", form_token=await stranger.form_token("/"), **fields)
    assert answer.status_code == 303
    (action,) = (await stranger.api.get("/actions")).json()["items"]
    assert (action["action"], action["push"]) == ("ingest", 7)
