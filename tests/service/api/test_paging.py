"""Lists with filters, a page at a time: all that matches, in order, whatever index a list goes along."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlmodel import select

from benchmarks.growth import Sizes, alias, fill, revision, task_id
from service.api import paging
from service.store.models import Action, Push, PushStep, Repository, State
from tests.service.asgi import Api, is_problem, running, settings_for

SIZES = Sizes(pushes=60, reports=1, actions=60, letters=0, repositories=4)


@pytest.fixture
async def grown(database_url: str) -> AsyncIterator[Api]:
    fill(database_url, SIZES)
    async with running(settings_for(database_url, allowed_hosts=["hg.example.com"])) as started:
        yield started


@pytest.fixture(params=[(500, 10_000), (2, 5)], ids=["at once", "bit by bit"])
def _bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "CHUNK", request.param[0])
    monkeypatch.setattr(paging, "MOST_EXAMINED", request.param[1])


async def walk(api: Api, path: str, query: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: dict[str, Any] = {}
    for _ in range(200):
        page = (await api.get(path, params={**query, "limit": limit, **after})).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        if page["next"] is None:
            return items
        after = {"after": page["next"]}
    raise AssertionError(f"{path} {query} has no end")


def combinations(filters: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(some) for count in range(3) for some in itertools.combinations(filters.items(), count)]


@pytest.mark.usefixtures("_bounds")
async def test_pushes_are_listed_by_any_filters(grown: Api) -> None:
    async with grown.database.writing() as session:  # the alias passes from one repository to the next
        (await session.get_one(Repository, 3)).alias = alias(1)
        (await session.get_one(Repository, 3)).deleted_at = (await session.get_one(Repository, 3)).created_at
        repositories = {one.id: one.alias for one in await session.exec(select(Repository))}
        pushes = (await session.exec(select(Push))).all()
        steps = (await session.exec(select(PushStep))).all()
    states: dict[int, set[str]] = {}
    for step in steps:
        states.setdefault(step.push_id, set()).add(step.state)
    base = {"repository": alias(1), "user": "user5@example.com", "revision": revision(5)}
    for state in (State.DONE, State.FAILED, State.PENDING, State.SKIPPED):
        for query in combinations({**base, "state": state.value}):
            expected = [
                push.push_id
                for push in sorted(pushes, key=lambda each: -(each.id or 0))
                if query.get("repository") in {None, repositories[push.repository_id]}
                and query.get("user") in {None, push.user}
                and query.get("revision") in {None, push.revision}
                and ("state" not in query or query["state"] in states[push.id or 0])
            ]
            assert [item["push_id"] for item in await walk(grown, "/pushes", query, 7)] == expected, query


@pytest.mark.usefixtures("_bounds")
async def test_actions_are_listed_by_any_filters(grown: Api) -> None:
    async with grown.database.reading() as session:
        actions = (await session.exec(select(Action))).all()

    def state_of(action: Action) -> str:
        planned = "received" if action.planned_at is None else "planned"
        return planned if action.state == State.PENDING else str(action.state)

    base = {"project": alias(3), "requester": "user7@example.com", "task_id": task_id("t", 7)}
    for state in ("done", "failed", "received", "planned", "rejected"):
        for query in combinations({**base, "state": state}):
            expected = [
                action.id
                for action in sorted(actions, key=lambda each: -(each.id or 0))
                if query.get("project") in {None, action.project}
                and query.get("requester") in {None, action.requester}
                and query.get("task_id") in {None, action.task_id}
                and query.get("state") in {None, state_of(action)}
            ]
            assert [item["id"] for item in await walk(grown, "/actions", query, 7)] == expected, query


async def test_a_page_looks_at_so_many_rows_at_most(grown: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "CHUNK", 10)
    monkeypatch.setattr(paging, "MOST_EXAMINED", 20)
    query = {"repository": alias(0), "state": "skipped", "limit": 4}
    async with grown.database.writing() as session:
        for push in await session.exec(select(Push)):
            push.repository_id = 1
    page = (await grown.get("/pushes", params={"repository": alias(0), "user": "", "limit": 4})).json()
    assert page == {"items": [], "next": None}, "the index says at once that there is none"
    page = (await grown.get("/pushes", params=query)).json()
    assert page["items"] == []
    assert page["next"] is not None


async def test_a_cursor_beyond_all_ids_is_no_cursor(api: Api) -> None:
    after = "OTIyMzM3MjAzNjg1NDc3NTgwNw=="  # 2 ** 63 - 1
    for path in ("/pushes", "/actions", "/dead-letters", "/repositories"):
        is_problem(await api.get(path, params={"after": after}), 422, "no `next`")
