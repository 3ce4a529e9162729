"""Preview of a file: the tasks that it would make, and that none is created."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from sandbox.taskcluster import Client
from service.flow.pushes.preview import Preview, make_up_push, preview_file
from service.store.models import PlannedTask, Push, Repository
from tests.service.harness import FlowHarness, push_event

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "taskcluster-yml.md"

YML = """\
version: 1
tasks:
  - taskId: {$eval: ownTaskId}
    taskQueueId: prov/w
    schedulerId: gecko-level-3
    priority: low
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}", "index.secret"]
    scopes: ["secrets:get:x"]
    payload: {comment: "${push.comment}", owner: "${push.owner}"}
    metadata: {name: decision, description: d, owner: "o", source: "${repository.url}"}
"""

ROLE = [
    "queue:scheduler-id:gecko-level-3",
    "queue:create-task:highest:prov/*",
    "queue:create-task:project:none",
    "queue:route:tc-treeherder.v2.mc.*",
]


async def tried(
    harness: FlowHarness, text: str, *, message: str = "try: a", user: str = "me", **repository: Any
) -> Preview:
    stored = await harness.add_repository(**{"scopes": ROLE, "level": "3", **repository})
    return await preview_file(harness.services, stored, make_up_push(stored, message, user), text, "share")


async def test_the_tasks_of_a_file_with_what_the_project_lacks(harness: FlowHarness) -> None:
    result = await tried(harness, YML)
    assert (result.error, result.skipped, result.unchecked) == (None, None, None)
    (task,) = result.tasks
    assert task.definition is not None
    assert task.definition["payload"] == {"comment": "try: a", "owner": "me"}
    assert task.definition["taskGroupId"] == task.task_id
    assert task.definition["retries"] == 5, "completed as the queue completes it"
    assert result.lacking == [["queue:route:index.secret", "secrets:get:x"]]
    assert harness.tc.queue.tasks == {}
    async with harness.database.reading() as session:
        assert (await session.exec(select(PlannedTask))).all() == []
        assert (await session.exec(select(Push))).all() == []
    assert dict(harness.tc.journal.calls) == {"expandScopes": 1}


async def test_what_the_role_brings_is_expanded(harness: FlowHarness) -> None:
    harness.tc.auth.set_roles({"repo:x": (*ROLE, "queue:route:index.*", "secrets:get:*")})
    assert (await tried(harness, YML, scopes=["assume:repo:x"])).lacking == [[]]


async def test_the_ids_are_nobodys(harness: FlowHarness) -> None:
    first = await tried(harness, YML)
    async with harness.database.reading() as session:
        repository = (await session.exec(select(Repository))).one()
    second = await preview_file(harness.services, repository, make_up_push(repository, "", "me"), YML, "share")
    assert first.tasks[0].task_id != second.tasks[0].task_id


async def test_a_push_that_is_known(harness: FlowHarness) -> None:
    await harness.add_repository(scopes=ROLE)
    await harness.store(push_event(7, user="dev@example.com"))
    (push,) = await harness.pushes()
    async with harness.database.reading() as session:
        repository = (await session.exec(select(Repository))).one()
    result = await preview_file(harness.services, repository, push, YML, "share")
    (task,) = result.tasks
    assert task.definition is not None
    assert task.definition["routes"][0] == f"tc-treeherder.v2.mc.{push.revision}.7"


async def test_a_file_that_cannot_be_used_says_where(harness: FlowHarness) -> None:
    result = await tried(harness, "version: 1\ntasks: [\n  {a: 1, a: 2}]")
    assert result.error == ".taskcluster.yml cannot be read: the key 'a' is repeated, in lines 3 and 3"
    assert result.tasks == []


async def test_a_push_that_would_get_no_graph_says_so(harness: FlowHarness) -> None:
    result = await tried(harness, YML, message="Bug 1 DONTBUILD")
    assert result.skipped == "DONTBUILD in the tip's message"
    assert len(result.tasks) == 1


@pytest.mark.parametrize(("number", "names"), [(0, ["Decision task"]), (1, ["build", "unit", "lint"])])
async def test_the_examples_of_the_documentation(harness: FlowHarness, number: int, names: list[str]) -> None:
    examples = re.findall(r"```yaml\n(version: 1\ntasks:\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    result = await tried(harness, examples[number])
    assert result.error is None
    assert [task.name for task in result.tasks] == names


async def test_scopes_that_cannot_be_looked_up(harness: FlowHarness) -> None:
    client = Client("tc-treeherder", "service-secret", ())
    harness.tc.auth.add_client(client.client_id, client.access_token, client.scopes)
    result = await tried(harness, YML)
    assert len(result.tasks) == 1
    assert "auth:expand-scopes" in str(result.unchecked)
