"""Pushes, templates and steps for tests of graphs."""

from typing import Any

from sqlmodel import select

from sandbox.hg import NewChangeset
from service.clock import now
from service.flow.pushes import graph
from service.flow.tasks.ids import slugid
from service.store.models import Push, PushStep, Repository, StepKind
from tests.service.harness import FlowHarness, node, push_event

KEY = b"k" * 32


def ids(count: int) -> list[str]:
    return [slugid(KEY, str(number)) for number in range(count)]


def make_repository(**fields: Any) -> Repository:
    values = {"alias": "mc", "url": "https://hg.mozilla.org/mc", "host": "hg.mozilla.org", "level": "3", **fields}
    return Repository(**{"last_push_id": 0, "scopes": ["assume:repo:x"], **values})


def make_push(changesets: int = 1, kept: int | None = None, **fields: Any) -> Push:
    nodes = [node(number) for number in range(changesets)]
    full = [
        {
            "node": own_node,
            "branch": "default",
            "desc": f"Bug {number}",
            "parents": [node(f"parent {number}"), node("p2")],
        }
        for number, own_node in enumerate(nodes)
    ][-(kept or changesets) :]
    values = {
        "repository_id": 1,
        "generation": 0,
        "push_id": 7,
        "user": "dev@example.com",
        "date": now(),
        "revision": nodes[-1] if nodes else None,
        "revision_hash": "f" * 40,
        "changesets": full if nodes else [],
        "nodes": nodes,
    }
    return Push(**{**values, **fields})


YML = """\
version: 1
tasks:
  - taskId: {$eval: ownTaskId}
    taskQueueId: prov/w
    schedulerId: test
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
    payload: {}
    metadata: &m {name: decision, description: d, owner: "${push.owner}", source: "${repository.url}"}
  - taskId: {$eval: as_slugid("error")}
    taskQueueId: prov/w
    schedulerId: test
    taskGroupId: {$eval: ownTaskId}
    dependencies: [{$eval: ownTaskId}]
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    payload: {}
    metadata: *m
"""


async def pushed(
    harness: FlowHarness,
    yml: str | bytes | None = YML,
    *,
    message: str = "Bug 1",
    user: str = "dev@example.com",
    **repository: Any,
) -> Push:
    """Push such a file, and store the push as the listener brings it."""
    await harness.add_repository(**repository)
    files: dict[str, str | bytes | None] = {"a": "b"} if yml is None else {".taskcluster.yml": yml}
    hg_push = harness.hg.push("mc", [NewChangeset(message=message, files=files)], user="dev@example.com")
    entry = {"node": hg_push.nodes[-1], "branch": "default", "desc": message, "parents": []}
    (verdict,) = await harness.store(push_event(hg_push.id, changesets=[entry], user=user))
    assert verdict.verdict == "accepted"
    (push,) = await harness.pushes()
    return push


async def run(harness: FlowHarness) -> PushStep:
    await graph.run(harness.services, await harness.lease(StepKind.GRAPH))
    return await harness.step(StepKind.GRAPH)


async def error_shown(harness: FlowHarness, step: PushStep) -> dict[str, Any]:
    """Return the error task in Taskcluster."""
    assert step.error_task is not None
    definition = harness.tc.queue.task(step.error_task)
    assert definition["extra"]["error"] == step.error
    assert definition["metadata"]["description"].endswith(str(step.error))
    assert definition["extra"]["treeherder"]["symbol"] == "D"
    return definition


async def stored_repository(harness: FlowHarness) -> Repository:
    async with harness.database.reading() as session:
        return (await session.exec(select(Repository))).one()


def described(text: str | None) -> Push:
    push = make_push()
    push.changesets[-1]["desc"] = text
    return push


def task(number: int = 0, **more: Any) -> dict[str, Any]:
    base = {
        "taskId": slugid(KEY, str(number)),
        "taskQueueId": "prov/w",
        "created": "2030-01-30T12:00:00.000Z",
        "deadline": "2030-01-31T12:00:00.000Z",
        "payload": {"n": None},
        "metadata": {"name": f"t{number}", "description": "d", "owner": "o", "source": "https://example.com"},
    }
    return {**base, **more}
