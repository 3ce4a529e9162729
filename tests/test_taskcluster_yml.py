"""Our own `.taskcluster.yml` is one that this service takes: it is rendered and checked as that of any other push."""

import os
import re
from pathlib import Path
from typing import Any

from service.clients.taskcluster import satisfies
from service.clock import now
from service.engine.render import Renderer
from service.flow.pushes.template import FILE, context_of, plan_of
from service.flow.tasks.definition import needed_scopes
from service.flow.tasks.facts import TaskFacts
from service.flow.tasks.ids import slugid
from service.flow.tasks.routes import parse_route
from service.settings import Settings, load
from service.store.models import Push, PushStep, Repository, StepKind

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / FILE).read_text()
REVISION = "c0ffee" * 6 + "c0ff"

REPOSITORY = Repository(
    alias="tc-treeherder",
    url="https://hg.example.com/projects/tc-treeherder",
    host="hg.example.com",
    level="1",
    last_push_id=0,
)


async def tasks_of(**changes: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the task ids and completed definitions that a push of ours gets; `changes` are made to its context."""
    push = Push(
        repository_id=1,
        generation=0,
        push_id=17,
        user="dev@example.com",
        date=now(),
        revision=REVISION,
        revision_hash="f" * 40,
        changesets=[{"node": REVISION, "branch": "default", "desc": "A change"}],
        nodes=[REVISION],
    )
    settings: Settings = load()
    renderer = Renderer(settings.render)
    try:
        rendered = await renderer.taskcluster_yml(TEXT, context_of(settings, REPOSITORY, push) | changes)
    finally:
        await renderer.close()
    rendering = rendered.parse(lambda label: slugid(b"k" * 32, label))
    step = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph hg.example.com")
    plan = plan_of(rendering.result, rendering.ids, step)
    return [(task.task_id, task.definition or {}) for task in plan]


async def test_a_push_of_ours_gets_a_task_that_runs_what_ci_runs() -> None:
    ((_, definition),) = await tasks_of()
    assert definition["payload"]["env"] == {"REPOSITORY": REPOSITORY.url, "REVISION": REVISION}
    (*_, script) = definition["payload"]["command"]
    command = script.split()[-1]
    assert command == ".ci/run"
    assert os.access(ROOT / command, os.X_OK)


async def test_treeherder_shows_it_on_the_push() -> None:
    ((task_id, definition),) = await tasks_of()
    (route,) = [parse_route("tc-treeherder", route) for route in definition["routes"]]
    assert route is not None
    assert (route.full_project, route.revision) == ("tc-treeherder", REVISION)
    assert TaskFacts(task_id, definition).symbol == "CI"


async def test_the_scopes_that_the_file_names_are_enough_and_none_is_idle() -> None:
    ((_, definition),) = await tasks_of()
    named = re.findall(r"^#   (queue:\S+)$", TEXT, re.M)
    needed = needed_scopes(definition)
    assert not [scopes for scopes in needed if not any(satisfies(named, scope) for scope in scopes)]
    for idle in named:
        fewer = [scope for scope in named if scope != idle]
        assert [scopes for scopes in needed if not any(satisfies(fewer, scope) for scope in scopes)], idle


async def test_for_anything_else_it_makes_no_tasks() -> None:
    assert await tasks_of(tasks_for="github-push") == []
