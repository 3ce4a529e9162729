"""Tasks, groups and dependents are read, one or many, in pages."""

import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import HOUR, iso, parse
from sandbox.taskcluster.errors import ApiError
from tests.sandbox.taskcluster.support import Api, create, refused


async def test_dependents_are_listed_in_pages_whatever_their_group(api: Api) -> None:
    root = await create(api)
    expected = {await create(api, dependencies=[root]) for _ in range(5)}
    listed: list[str] = []
    token: dict[str, str] = {}
    pages = 0
    while True:
        page = await api("listDependentTasks", root, query={"limit": 2, **token})
        assert page["taskId"] == root
        listed += [task["status"]["taskId"] for task in page["tasks"]]
        pages += 1
        if "continuationToken" not in page:
            break
        token = {"continuationToken": page["continuationToken"]}
    assert (pages, len(listed), set(listed)) == (3, 5, expected)
    await refused(api("listDependentTasks", slugId()), 404, "ResourceNotFound")


async def test_a_group_is_listed_in_pages_of_tasks_with_status_in_no_order(api: Api) -> None:
    group = slugId()
    ids = [slugId() for _ in range(1005)]
    for task_id in ids:
        api.tc.queue.create_task(task_id, api.define(taskGroupId=group))
    queue = api.tc.queue
    large = queue.list_task_group(group)
    assert len(large["tasks"]) == 1000
    assert len(queue.list_task_group(group, None, large["continuationToken"])["tasks"]) == 5
    listed: list[str] = []
    token: dict[str, str] = {}
    for _ in range(3):
        page = await api("listTaskGroup", group, query={"limit": 50, **token})
        listed += [task["status"]["taskId"] for task in page["tasks"]]
        token = {"continuationToken": page["continuationToken"]}
    assert listed == [task["status"]["taskId"] for task in large["tasks"][:150]]
    assert listed != ids[:150]
    first = page
    assert first["tasks"][0]["task"]["taskGroupId"] == group
    group_facts = {key: first[key] for key in ("taskGroupId", "schedulerId", "expires")}
    assert await api("getTaskGroup", group) == group_facts
    assert group_facts["expires"] == iso((parse(first["tasks"][0]["task"]["expires"]) or 0) + HOUR)


async def test_a_group_that_is_not_there_is_404_and_a_strange_token_400(api: Api) -> None:
    for method in ("listTaskGroup", "getTaskGroup", "sealTaskGroup", "cancelTaskGroup"):
        await refused(api(method, slugId()), 404, "ResourceNotFound", "No task-group")
    group = await create(api)
    for query in ({"continuationToken": "x"}, {"limit": "many"}):
        await refused(api("listTaskGroup", group, query=query), 400, "InvalidRequestArguments")


async def test_definitions_and_statuses_come_for_many_without_those_that_are_missing(api: Api) -> None:
    ids = [await create(api) for _ in range(3)]
    requested = [*ids, ids[0], slugId(), "no slugid"]
    tasks = await api("tasks", body={"taskIds": requested})
    assert {entry["taskId"]: entry["task"]["metadata"]["name"] for entry in tasks["tasks"]} == dict.fromkeys(
        ids, "a task"
    )
    assert len(tasks["tasks"]) == 3
    statuses = await api("statuses", body={"taskIds": requested})
    assert {entry["taskId"] for entry in statuses["statuses"]} == set(ids)
    assert {entry["status"]["state"] for entry in statuses["statuses"]} == {"pending"}
    assert await api("statuses", body={}) == {"statuses": []}


async def test_reading_many_asks_for_the_scope_of_each(api: Api) -> None:
    ids = [await create(api) for _ in range(2)]
    api.tc.auth.add_client("c", "c", [f"queue:status:{ids[0]}", f"queue:get-task:{ids[0]}"])
    api.client = Client("c", "c")
    for method, scope in (("statuses", "queue:status"), ("tasks", "queue:get-task")):
        await api(method, body={"taskIds": ids[:1]})
        await refused(api(method, body={"taskIds": ids}), 403, "InsufficientScopes", f"{scope}:{ids[1]}")


def test_the_program_itself_needs_no_scopes_but_keeps_the_rules(api: Api) -> None:
    with pytest.raises(ApiError, match="ResourceNotFound"):
        api.tc.queue.status(slugId())
