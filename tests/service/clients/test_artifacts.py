"""Artifacts: where the queue says that they are, within limits, and nowhere else."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sandbox.taskcluster import Taskcluster, create_app
from service.clients.artifacts import TaskclusterArtifacts
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import TaskclusterSettings
from tests.service.flow.graph_factory import WORKER, definition_of, slug
from tests.service.harness import ROOT, serving

TASK, NAME = slug("task"), "public/actions.json"


@asynccontextmanager
async def artifacts_at(url: str, **more: Any) -> AsyncIterator[TaskclusterArtifacts]:
    values = {"client_id": ROOT.client_id, "access_token": ROOT.access_token, "timeout": 5, **more}
    artifacts = TaskclusterArtifacts(TaskclusterSettings(root_url=url, **values))
    try:
        yield artifacts
    finally:
        await artifacts.close()


@pytest.fixture
def tc() -> Taskcluster:
    tc = Taskcluster([ROOT], claim_wait=0)
    tc.queue.create_task(TASK, definition_of("task"))
    tc.queue.claim_task(TASK, 0, WORKER)
    tc.artifacts.store(TASK, 0, NAME, b"content")
    return tc


@pytest.fixture
async def artifacts(tc: Taskcluster) -> AsyncIterator[TaskclusterArtifacts]:
    async with serving(create_app(tc)) as url, artifacts_at(url) as opened:
        yield opened


async def test_the_content_comes_from_the_storage(artifacts: TaskclusterArtifacts) -> None:
    assert await artifacts.fetch(TASK, 0, NAME, 7) == b"content"


async def test_what_does_not_exist_is_none(artifacts: TaskclusterArtifacts) -> None:
    assert await artifacts.fetch(TASK, 0, "public/other", 7) is None
    assert await artifacts.fetch(TASK, 1, NAME, 7) is None
    assert await artifacts.fetch(slug("missing"), 0, NAME, 7) is None


async def test_one_byte_more_than_the_limit_is_refused(artifacts: TaskclusterArtifacts) -> None:
    with pytest.raises(
        PermanentUpstreamError, match=f"the artifact {NAME} of task {TASK} has more than 6 bytes"
    ) as error:
        await artifacts.fetch(TASK, 0, NAME, 6)
    assert error.value.status == 413


async def test_requests_are_signed_and_a_missing_scope_is_named(tc: Taskcluster) -> None:
    async with serving(create_app(tc)) as url:
        async with artifacts_at(url, client_id=None, access_token=None) as anonymous:
            with pytest.raises(PermanentUpstreamError, match=f"lacks queue:get-artifact:{NAME}"):
                await anonymous.fetch(TASK, 0, NAME, 7)
        tc.auth.add_client(ROOT.client_id, ROOT.access_token, [f"queue:get-artifact:{NAME}"])
        async with artifacts_at(url) as allowed:
            assert await allowed.fetch(TASK, 0, NAME, 7) == b"content"


Answer = Response | Callable[[str], Response]


@asynccontextmanager
async def answering(*answers: Answer) -> AsyncIterator[tuple[TaskclusterArtifacts, list[Request]]]:
    """Serve these answers one after the other, whatever is asked for; a function gets the server's own address."""
    asked: list[Request] = []

    async def say(request: Request) -> Response:
        answer = answers[len(asked)]
        asked.append(request)
        return answer(str(request.base_url)) if callable(answer) and not isinstance(answer, Response) else answer

    app = Starlette(routes=[Route("/{path:path}", say)])
    async with serving(app) as url, artifacts_at(url) as artifacts:
        yield artifacts, asked


def to(target: str, kind: Any = "s3") -> Response:
    return JSONResponse({"storageType": kind, "url": target}, 303, {"location": target})


@pytest.mark.parametrize("kind", ["reference", "error", None, 7])
async def test_a_place_that_the_task_chose_is_not_asked(kind: Any) -> None:
    async with answering(to("http://127.0.0.1:9/latest", kind)) as (artifacts, asked):
        with pytest.raises(PermanentUpstreamError, match="which is not fetched"):
            await artifacts.fetch(TASK, 0, NAME, 7)
    assert len(asked) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/x", "//example.com/x", ""])
async def test_other_schemes_are_not_followed(target: str) -> None:
    async with answering(to(target)) as (artifacts, _):
        with pytest.raises(PermanentUpstreamError, match="does not begin with https://"):
            await artifacts.fetch(TASK, 0, NAME, 7)


async def test_the_storage_gets_no_signature_and_may_redirect_three_times() -> None:
    async with answering(to, *[RedirectResponse] * 3, Response(b"end")) as (artifacts, asked):
        assert await artifacts.fetch(TASK, 0, NAME, 7) == b"end"
    assert ["authorization" in request.headers for request in asked] == [True, False, False, False, False]
    async with answering(to, *[RedirectResponse] * 4) as (artifacts, _):
        with pytest.raises(Unavailable, match="answers 307"):
            await artifacts.fetch(TASK, 0, NAME, 7)


@pytest.mark.parametrize("status", [403, 404])
async def test_what_the_storage_has_deleted_is_none(status: int) -> None:
    async with answering(to, Response(status_code=status)) as (artifacts, _):
        assert await artifacts.fetch(TASK, 0, NAME, 7) is None


@pytest.mark.parametrize("status", [500, 429, 401, 200])
async def test_other_answers_are_for_later(status: int) -> None:
    async with answering(Response(status_code=status)) as (artifacts, _):
        with pytest.raises(Unavailable, match=f"Taskcluster answers {status} to getArtifact of {NAME}"):
            await artifacts.fetch(TASK, 0, NAME, 7)
