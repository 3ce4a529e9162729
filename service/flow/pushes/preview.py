"""Preview a `.taskcluster.yml` for a push: render, complete and check its tasks, and create nothing."""

import secrets
from dataclasses import dataclass, field

from service.clients.taskcluster import ScopeSet
from service.clock import now
from service.engine.render import Rendered, TemplateError
from service.errors import UpstreamError
from service.flow.pushes.graph import reason_for_no_graph
from service.flow.pushes.template import FILE, context_of, plan_of, scopes_of
from service.flow.tasks.definition import needed_scopes
from service.flow.tasks.ids import slugid
from service.services import Services
from service.store.models import PlannedTask, Push, PushStep, Repository, StepKind


@dataclass
class Preview:
    """The tasks that a push with this file would get, with random ids."""

    tasks: list[PlannedTask] = field(default_factory=list)
    error: str | None = None  # why the file cannot be used
    skipped: str | None = None  # why this push gets no graph, whatever the file says
    lacking: list[list[str]] = field(default_factory=list)  # for each task the scopes that the project lacks
    unchecked: str | None = None  # why scopes could not be checked


def make_up_push(repository: Repository, message: str, user: str) -> Push:
    """Return an invented push of one changeset with this message, by this user."""
    node = secrets.token_hex(20)
    changeset = {"node": node, "branch": "default", "desc": message, "author": user, "parents": ["0" * 40]}
    return Push(
        repository_id=repository.id or 0,
        generation=repository.generation,
        push_id=repository.last_push_id + 1,
        user=user,
        date=now(),
        revision=node,
        revision_hash=secrets.token_hex(20),
        changesets=[changeset],
        nodes=[node],
    )


async def preview_file(services: Services, repository: Repository, push: Push, text: str, share: str) -> Preview:
    """Render `text` for this push and look up which scopes the project lacks; store nothing."""
    result = Preview(skipped=reason_for_no_graph(services.settings, repository, push))
    try:
        rendered = await services.renderer.taskcluster_yml(text, context_of(services.settings, repository, push), share)
        result.tasks = await services.compute(share, _plan, rendered)
    except TemplateError as error:
        result.error = str(error) if str(error).startswith(FILE) else f"{FILE} {error}"
        return result
    try:
        held = await services.queue.expand_scopes(scopes_of(services.settings, repository, push))
    except UpstreamError as error:
        result.unchecked = f"the scopes of the project could not be looked up: {error}"
        return result
    result.lacking = await services.compute(share, _find_missing_scopes, result.tasks, held)
    return result


def _plan(rendered: Rendered) -> list[PlannedTask]:
    key = secrets.token_bytes(32)  # so that nobody can create tasks of these ids later
    rendering = rendered.parse(lambda label: slugid(key, label))
    return plan_of(rendering.result, rendering.ids, PushStep(push_id=0, kind=StepKind.GRAPH, lane="none"))


def _find_missing_scopes(tasks: list[PlannedTask], held: list[str]) -> list[list[str]]:
    scopes = ScopeSet(held)
    return [
        [
            alternatives[-1]
            for alternatives in needed_scopes(task.definition or {})
            if not any(map(scopes.satisfies, alternatives))
        ]
        for task in tasks
    ]
