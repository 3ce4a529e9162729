"""The pages for people: groups, tasks, runs and artifacts, and nothing of a stranger's in their structure."""

import pytest

from sandbox.taskcluster import ui
from tests.sandbox.taskcluster.support import Api, create, finish

XSS = "\"'><script>alert(1)</script>{0}"


async def page(api: Api, path: str, status: int = 200) -> str:
    answer = await api.http.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in answer.text
    return answer.text


async def test_groups_lead_to_tasks_and_these_to_runs(api: Api) -> None:
    assert "No task yet." in await page(api, "/")
    metadata = {"name": XSS, "description": XSS, "owner": "a@b.example", "source": "https://hg.example/x"}
    first = await create(api, metadata=metadata, payload={XSS: XSS})
    group = (await api("task", first))["taskGroupId"]
    second = await create(api, taskGroupId=group, dependencies=[first])
    await finish(api, first)
    assert f'href="/tasks/groups/{group}"' in await page(api, "/")
    listed = await page(api, f"/tasks/groups/{group}")
    assert "&lt;script&gt;" in listed
    assert listed.index(">completed</b> 1") < listed.index(">pending</b> 1")
    assert f'href="/tasks/{second}"' in listed
    task = await page(api, f"/tasks/{first}")
    assert f'href="/tasks/groups/{group}"' in task
    assert "<td>completed</td>" in task  # why
    assert "&lt;script&gt;" in task
    assert f'After <a href="/tasks/{first}">' in await page(api, f"/tasks/{second}")


async def test_artifacts_are_linked(api: Api) -> None:
    task_id = await create(api)
    claim = await api.claim()
    body = {"storageType": "link", "expires": (await api("task", task_id))["expires"], "contentType": "text/html"}
    await api("createArtifact", task_id, claim["runId"], 'public/a "b".log', body={**body, "artifact": "public/x"})
    shown = await page(api, f"/tasks/{task_id}")
    assert f'href="/api/queue/v1/task/{task_id}/runs/0/artifacts/public/a%20%22b%22.log"' in shown


async def test_what_is_not_there_is_told(api: Api) -> None:
    assert "No such task" in await page(api, "/tasks/x", 404)
    assert "No such task group" in await page(api, "/tasks/groups/x", 404)


async def test_few_are_shown_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "MOST_GROUPS", 1)
    monkeypatch.setattr(ui, "MOST_TASKS", 1)
    first = await create(api)
    await create(api, taskGroupId=first)
    api.tc.clock.advance(60)
    newest = await create(api)
    groups = await page(api, "/")
    assert (groups.count('href="/tasks/groups/'), newest in groups) == (1, True)
    assert "The first 1 of 2 tasks are shown." in await page(api, f"/tasks/groups/{first}")
