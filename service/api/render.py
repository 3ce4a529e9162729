"""Try a `.taskcluster.yml` before it is pushed."""

import asyncio

import structlog
from fastapi import APIRouter, Response

from service.api.deps import MayRender, RepositoryAlias, ServicesDep
from service.api.openapi import problems
from service.api.pushes import find_push
from service.api.repositories import find
from service.api.route import API, Route
from service.api.schemas.pushes import RenderedTask, RenderRequest, RenderResult
from service.flow.pushes.preview import Preview, make_up_push, preview_file
from service.settings import RENDER

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/repositories", tags=["repositories"], route_class=Route)


@router.post(
    "/{alias}/render",
    response_model=RenderResult,
    operation_id="renderFile",
    responses=problems(404, scope=RENDER),
)
async def render_file(
    alias: RepositoryAlias, body: RenderRequest, services: ServicesDep, caller: MayRender
) -> Response:
    """Render a file as for a push of this repository, and check its tasks. Nothing is created or stored."""
    async with services.database.reading() as session:
        repository = await find(session, alias)
        known = None if body.push_id is None else await find_push(session, alias, body.push_id, None)
    push = known or make_up_push(repository, body.message, body.user)
    # a small file can make a plan of a hundred megabytes, which stays until it is an answer
    async with services.previews.use(caller.key):
        result = await preview_file(services, repository, push, body.file, f"render {caller.key}")
        log.info("file-rendered", repository=alias, tasks=len(result.tasks), error=result.error, by=caller.name)
        return Response(await asyncio.to_thread(_answer, result), media_type="application/json")


def _answer(result: Preview) -> str:
    lacking = result.lacking or [[] for _ in result.tasks]
    return RenderResult(
        error=result.error,
        skipped=result.skipped,
        scopes_unchecked=result.unchecked,
        tasks=[
            RenderedTask(task_id=task.task_id, name=task.name, definition=task.definition or {}, missing_scopes=missing)
            for task, missing in zip(result.tasks, lacking, strict=True)
        ],
    ).model_dump_json()
