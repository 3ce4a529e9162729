"""POST /repositories/{alias}/render: who may, and what is answered."""

import asyncio
from typing import Any

import pytest

from service.flow.pushes.preview import preview_file
from tests.service.asgi import READER, WRITER, Api, is_problem, push_event

FILE = "version: 1\ntasks: []"


async def test_who_may_render(sqlite_api: Api) -> None:
    await sqlite_api.add()
    is_problem(
        await sqlite_api.post("/repositories/mc/render", {"file": FILE}, token=None), 401, "tc-treeherder:render"
    )
    for token in (READER, WRITER):
        answer = await sqlite_api.post("/repositories/mc/render", {"file": FILE}, token=token)
        is_problem(answer, 403, "tc-treeherder:render")
    assert (await sqlite_api.post("/repositories/mc/render", {"file": FILE})).status_code == 200


async def test_an_anonymous_caller_is_refused_before_the_body_is_looked_at(sqlite_api: Api) -> None:
    answer = await sqlite_api.call("POST", "/api/v1/repositories/mc/render", content=b"{" * 100_000, token=None)
    is_problem(answer, 401)


async def test_a_file_without_tasks_and_a_broken_one(sqlite_api: Api) -> None:
    await sqlite_api.add()
    answer = (await sqlite_api.post("/repositories/mc/render", {"file": FILE})).json()
    assert (answer["error"], answer["tasks"]) == (None, [])
    assert "could not be looked up" in answer["scopes_unchecked"], "there is no Taskcluster here"
    answer = (await sqlite_api.post("/repositories/mc/render", {"file": "version: 1\ntasks: ["})).json()
    assert answer["error"].startswith(".taskcluster.yml not YAML: in line 3")


async def test_a_large_file_with_many_commas_is_taken(sqlite_api: Api) -> None:
    await sqlite_api.add()
    text = "version: 1\ntasks: []\nlist: [" + ",".join(["a"] * 100_000) + "]"
    answer = await sqlite_api.post("/repositories/mc/render", {"file": text})
    assert answer.json()["error"] is None
    text += "#" * 2 * 1024 * 1024
    is_problem(await sqlite_api.post("/repositories/mc/render", {"file": text}), 422, "file")


async def test_one_caller_has_one_file_at_a_time_in_memory(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await sqlite_api.add()
    under_way, most = 0, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        try:
            return await preview_file(*arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr("service.api.render.preview_file", counted)
    async with sqlite_api.services.previews.use("another"):
        answers = [sqlite_api.post("/repositories/mc/render", {"file": FILE}) for _ in range(4)]
        assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * 4
    assert most == 1


async def test_a_repository_and_a_push_that_are_not_known(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.post("/repositories/nobody/render", {"file": FILE}), 404, "nobody")
    await sqlite_api.add()
    await sqlite_api.push(push_event(101))
    is_problem(await sqlite_api.post("/repositories/mc/render", {"file": FILE, "push_id": 5}), 404, "5")
    assert (await sqlite_api.post("/repositories/mc/render", {"file": FILE, "push_id": 101})).status_code == 200
