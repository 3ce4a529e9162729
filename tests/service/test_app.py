"""Start and stop of the app, and properties of all routes."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from service.app import create_app
from service.clients.treeherder import RestTreeherder
from service.clock import now
from service.engine.render import Rendered, Renderer
from service.engine.worker import Worker
from service.flow.pushes import push
from service.store.database import Database, SchemaBehindError, insert_rows
from service.store.models import PlannedTask, Repository, State, Work
from tests.service.asgi import ADMIN, NEVER_SHOWN, Api, is_problem, node, push_event, running, settings_for
from tests.service.flow.pushes.support import YML


async def test_it_does_not_start_on_a_schema_that_is_behind(empty_database_url: str) -> None:
    app = create_app(settings_for(empty_database_url), work=False)
    with pytest.raises(SchemaBehindError, match="tc-treeherder db upgrade"):
        async with app.router.lifespan_context(app):
            pytest.fail("it started")


async def test_its_worker_begins_on_what_is_taken_in_and_ends_with_it(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, environments={}), work=True) as api:
        await api.add(graph=False)
        await api.push(push_event(101))
        worker = api.app.state.worker_task
        for _ in range(200):
            graph = (await api.get("/pushes/mc/101")).json()["graph"]
            if graph["state"] != "pending":
                break
            await asyncio.sleep(0.02)
        assert (graph["state"], graph["reason"]) == ("skipped", "graphs are off for mc")
    assert worker.done()
    assert worker.exception() is None


class Mercurial:
    """A Mercurial whose every changeset has a `.taskcluster.yml`; `asked` is set once it was asked for one."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    async def raw_file(self, *_: str) -> bytes:
        self.asked.set()
        return YML.encode()


async def test_a_push_that_is_being_stored_is_planned_as_soon_as_it_is_stored(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, real_render, real_insert = threading.Event(), Renderer.taskcluster_yml, insert_rows
    order: list[str] = []

    async def render(*arguments: Any) -> Rendered:
        try:
            return await real_render(*arguments)
        finally:
            order.append("rendered")
            rendered.set()

    def insert(*arguments: Any) -> None:
        assert rendered.wait(10), "nobody rendered the file meanwhile"
        order.append("inserted")
        real_insert(*arguments)

    def preclaim(worker: Worker, new: Sequence[Work]) -> list[Work]:
        assert threading.current_thread() is threading.main_thread(), "a worker is used by one thread"
        return real_preclaim(worker, new)

    real_preclaim = Worker.preclaim
    monkeypatch.setattr(Worker, "preclaim", preclaim)
    monkeypatch.setattr(Renderer, "taskcluster_yml", render)
    monkeypatch.setattr(push, "insert_rows", insert)
    away = {"root_url": "http://127.0.0.1:9"}
    async with running(settings_for(sqlite_url, environments={}, taskcluster=away), work=True) as api:
        api.app.state.services.hg = Mercurial()
        await api.add()
        await api.push(push_event(101))
        plan: list[PlannedTask] = []
        for _ in range(200):
            async with api.database.reading() as session:
                plan = list(await session.exec(select(PlannedTask)))
            if plan:
                break
            await asyncio.sleep(0.02)
        (step,) = await api.steps()
        assert [(task.step_id, task.position) for task in plan] == [(step.id, 0), (step.id, 1)]
    assert order == ["rendered", "inserted", "inserted"]


async def test_of_a_push_that_could_not_be_stored_nobody_is_told(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mercurial, told = Mercurial(), []

    async def tell(_: Any, project: str, resultset: Any) -> None:
        told.append((project, resultset["revision"]))

    def fail(*_: Any) -> None:
        assert mercurial.asked.wait(10), "nobody asked for the file meanwhile"
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(RestTreeherder, "post_resultset", tell)
    async with running(settings_for(sqlite_url, taskcluster={"root_url": "http://127.0.0.1:9"}), work=True) as api:
        api.app.state.services.hg = mercurial
        await api.add()
        with monkeypatch.context() as broken:
            broken.setattr(push, "insert_rows", fail)
            assert (await api.signed("/events/pushes", {"events": [push_event(101)]})).status_code == 500
        worker = api.app.state.worker
        for _ in range(200):
            if not worker._running.leases:
                break
            await asyncio.sleep(0.02)
        assert (worker._running.leases, await api.pushes(), told) == ([], [], [])
        assert [verdict["verdict"] for verdict in await api.push(push_event(101))] == ["accepted"]
        for _ in range(200):
            if len(told) == 2:
                break
            await asyncio.sleep(0.02)
        assert told == [("mc", node(101))] * 2, "one for each environment"


async def test_a_push_whose_request_is_cancelled_meanwhile_is_worked_on_all_the_same(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, cancelled = threading.Event(), threading.Event()

    def insert(*arguments: Any) -> None:
        storing.set()
        assert cancelled.wait(10)
        insert_rows(*arguments)

    monkeypatch.setattr(push, "insert_rows", insert)
    async with running(settings_for(database_url, environments={}), work=True) as api:
        await api.add(graph=False)
        request = asyncio.create_task(api.signed("/events/pushes", {"events": [push_event(101)]}))
        assert await asyncio.to_thread(storing.wait, 10)
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
        cancelled.set()
        for _ in range(200):
            if [step.state for step in await api.steps()] == [State.SKIPPED]:
                break
            await asyncio.sleep(0.02)
        assert [step.error for step in await api.steps()] == ["graphs are off for mc"]


async def test_the_database_is_closed_after_all_that_read_it(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    async def read_slowly(database: Database) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            async with database.reading() as session:
                ended.append((await session.exec(select(func.count()).select_from(Repository))).one())

    monkeypatch.setattr("service.app.follow_clock", read_slowly)
    async with running(settings_for(sqlite_url)) as api:
        assert (await api.get("/repositories")).status_code == 200
        pool = api.database.engine.pool
    assert ended == [0]
    assert pool.checkedout() == 0  # type: ignore[attr-defined]  # of the pool that is used with files


async def test_without_a_worker_the_work_is_left_to_others(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url)) as api:
        await api.add()
        await api.push(push_event(101))
        assert {step.state for step in await api.steps()} == {State.PENDING}
        assert all(
            step.due_at is not None and step.due_at <= now() and step.fencing_token == 0 for step in await api.steps()
        )


async def test_two_apps_share_one_secret(database_url: str) -> None:
    async with running(settings_for(database_url)) as one, running(settings_for(database_url)) as two:
        assert one.services.secret == two.services.secret
        assert len(one.services.secret) == 32


async def test_no_route_but_health_answers_a_stranger(sqlite_api: Api) -> None:
    """Whatever is added later, too."""
    action = {"action": "retrigger", "project": "mc", "task_id": "fN1SbArXTPSVFNUvaOlinQ"}
    paths = sqlite_api.app.openapi()["paths"]
    seen = 0
    for template, operations in paths.items():
        if not template.startswith("/api/v1"):
            assert template.startswith("/__") or template == "/metrics", template
            continue
        path = template.replace("{alias}", "mc").replace("{push_id}", "1").replace("{letter_id}", "1")
        path = path.replace("{action_id}", "1")
        for method in operations:
            answer = await sqlite_api.call(method.upper(), path, token=None, json=action)
            is_problem(answer, 401)
            seen += 1
    assert seen >= 14


async def test_every_route_has_a_name_and_the_listeners_are_marked_internal(sqlite_api: Api) -> None:
    paths = sqlite_api.app.openapi()["paths"]
    operations = [(path, operation) for path, methods in paths.items() for operation in methods.values()]
    names = [operation["operationId"] for _, operation in operations]
    assert len(set(names)) == len(names)
    assert all(name.isalnum() for name in names)
    for path, operation in operations:
        assert operation.get("summary") or operation.get("description"), path
        assert ("internal" in operation["tags"]) == path.startswith(
            ("/api/v1/events", "/api/v1/polls", "/api/v1/listen")
        )


async def test_the_description_is_served_without_secrets(sqlite_api: Api) -> None:
    assert (await sqlite_api.call("GET", "/docs", token=None)).status_code == 200
    answer = await sqlite_api.call("GET", "/openapi.json", token=None)
    assert answer.status_code == 200
    assert not any(secret in answer.text for secret in NEVER_SHOWN)


async def test_an_error_of_the_database_holds_no_values(api: Api) -> None:
    await api.add()
    duplicate = Repository(
        alias="x", url="https://hg.mozilla.org/mc", host="x", level="1", last_push_id=1, contains="hunter2"
    )
    with pytest.raises(IntegrityError) as error:
        async with api.database.writing() as session:
            session.add(duplicate)
    assert "INSERT INTO repository" in str(error.value)
    assert "hunter2" not in str(error.value)


async def test_nothing_shows_a_secret(sqlite_api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    await sqlite_api.add()
    bad = await sqlite_api.call("GET", "/api/v1/pushes", token=ADMIN + "x")
    with sqlite_api.commits_fail():
        broken = await sqlite_api.signed("/events/pushes", {"events": [push_event(101)]})
    outputs = [
        repr(sqlite_api.settings),
        str(sqlite_api.settings),
        bad.text,
        broken.text,
        repr(sqlite_api.services.settings),
    ]
    outputs += [repr(sqlite_api.settings.tokens), repr(sqlite_api.settings.environments), "".join(capfd.readouterr())]
    for secret in NEVER_SHOWN:
        assert not any(secret in text for text in outputs)
    assert repr(sqlite_api.services.secret) not in "".join(outputs)
