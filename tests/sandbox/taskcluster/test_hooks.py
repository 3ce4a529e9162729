"""Hooks: what they create, what they answer, and what they say of their fires."""

import json
from typing import Any

import httpx
import pytest
from taskcluster import slugId

from sandbox.taskcluster import Client
from sandbox.taskcluster.clock import iso
from sandbox.taskcluster.errors import ApiError
from tests.sandbox.taskcluster.support import ROOT, Api, Refused, create, refused, sign

GROUP, HOOK = "project-x", "in-tree-action-3-generic/0123456789"
TRIGGER, LAST_FIRES = f"hooks:trigger-hook:{GROUP}/{HOOK}", f"hooks:list-last-fires:{GROUP}/{HOOK}"
ROLE = f"hook-id:{GROUP}/in-tree-action-3-generic/*"
METADATA = {"name": "h", "description": "d", "owner": "a@b.example"}
TASK: dict[str, Any] = {
    "provisionerId": "prov",
    "workerType": "w",
    "schedulerId": "sched",
    "created": {"$fromNow": ""},
    "deadline": {"$fromNow": "1 hour"},
    "payload": {"by": "${firedBy}", "who": "${clientId}", "own": "${taskId}", "what": {"$eval": "payload.what"}},
    "metadata": {"name": "an action", "description": "", "owner": "a@b.example", "source": "https://hg.example/x"},
}
SCHEMA = {
    "type": "object",
    "properties": {"what": {"type": ["string", "null"]}, "taskId": {"type": "string"}, "more": {"default": 5}},
    "required": ["what"],
    "additionalProperties": False,
}
SCOPES = ["queue:create-task:lowest:prov/w", "queue:create-task:project:none", "queue:scheduler-id:sched"]
PERSON = Client("person", "person-secret")


@pytest.fixture
def hooks(api: Api) -> Api:
    """Return the client of a stand-in with one hook, its role, and a caller who may trigger it and list its fires."""
    api.tc.hooks.define(GROUP, HOOK, {"metadata": METADATA, "task": TASK, "triggerSchema": SCHEMA})
    api.tc.auth.set_roles({ROLE: SCOPES})
    allow(api, TRIGGER, LAST_FIRES)
    return api


def allow(api: Api, *scopes: str) -> None:
    api.tc.auth.add_client(PERSON.client_id, PERSON.access_token, scopes)


async def trigger(api: Api, payload: Any, group: str = GROUP, hook: str = HOOK) -> Any:
    return await api("triggerHook", group, hook, body=payload, service="hooks", client=PERSON)


async def last_fires(api: Api, **query: Any) -> Any:
    return await api("listLastFires", GROUP, HOOK, query=query, service="hooks", client=PERSON)


def redefine(api: Api, **task: Any) -> None:
    """Define the hook with another task; a property given as None is left out."""
    template = {key: value for key, value in {**TASK, **task}.items() if value is not None}
    api.tc.hooks.define(GROUP, HOOK, {"metadata": METADATA, "task": template, "triggerSchema": SCHEMA})


# --- what is created ---


async def test_a_hook_creates_its_task_as_the_template_says(hooks: Api) -> None:
    answer = await trigger(hooks, {"what": "x"})
    task_id = answer["taskId"]
    assert answer == {"taskId": task_id, "status": {"taskId": task_id}}
    task = await hooks("task", task_id)
    assert task["payload"] == {"by": "triggerHook", "who": "person", "own": task_id, "what": "x"}
    assert task["taskGroupId"] == task_id
    assert task["created"] == iso(hooks.tc.clock.now())
    assert await hooks.state(task_id) == "pending"


async def test_each_trigger_creates_a_task_of_its_own(hooks: Api) -> None:
    ids = {(await trigger(hooks, {"what": None}))["taskId"] for _ in range(3)}
    assert ids == hooks.tc.queue.tasks.keys()


async def test_dates_and_group_are_added_where_the_template_has_none(hooks: Api) -> None:
    redefine(hooks, created=None, deadline=None)
    task = await hooks("task", (await trigger(hooks, {"what": "x"}))["taskId"])
    now = hooks.tc.clock.now()
    day = 24 * 3600 * 1000
    assert (task["created"], task["deadline"], task["expires"]) == (iso(now), iso(now + day), iso(now + 30 * day))


async def test_a_group_of_the_template_is_kept(hooks: Api) -> None:
    group = await create(hooks)
    redefine(hooks, taskGroupId="${payload.what}")
    task_id = (await trigger(hooks, {"what": group}))["taskId"]
    assert (await hooks("task", task_id))["taskGroupId"] == group


async def test_the_payload_may_name_the_task_if_the_schema_lets_it(hooks: Api) -> None:
    task_id = slugId()
    assert (await trigger(hooks, {"what": "x", "taskId": task_id}))["taskId"] == task_id
    again = trigger(hooks, {"what": "y", "taskId": task_id})
    await refused(again, 400, "InputError", "While calling createTask: RequestConflict\n\ntaskId")
    await refused(trigger(hooks, {"what": "x", "taskId": "no"}), 400, "InputError", "Invalid taskId format: no")


async def test_a_template_that_renders_to_nothing_creates_nothing_and_is_no_fire(hooks: Api) -> None:
    hooks.tc.hooks.define(
        GROUP, HOOK, {"metadata": METADATA, "task": {"$if": "false", "then": {}, "else": None}, "triggerSchema": SCHEMA}
    )
    assert await trigger(hooks, {"what": "x"}) == {}
    await refused(last_fires(hooks), 404, "ResourceNotFound")


async def test_defaults_of_the_schema_are_not_filled_in(hooks: Api) -> None:
    redefine(hooks, payload={"more": {"$eval": "payload.more"}})
    await refused(trigger(hooks, {"what": "x"}), 400, "InputError", "While firing hook:\n\n.*more")


# --- what is refused ---


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        ({}, "InputError", "data must have required property 'what'\n\n---"),
        ({"what": 5}, "InputError", "data/what must be string,null\n\n---"),
        (
            {"what": 5, "x": 1},
            "InputError",
            "data/what must be string,null; data must NOT have additional properties\n\n---",
        ),
        ([], "InputValidationError", "Schema Validation Failed!"),
        ("x", "InputValidationError", "Schema Validation Failed!"),
    ],
)
async def test_a_payload_that_the_schema_refuses_is_400(hooks: Api, payload: Any, code: str, message: str) -> None:
    await refused(trigger(hooks, payload), 400, code, message)
    assert not hooks.tc.queue.tasks
    await refused(last_fires(hooks), 404, "ResourceNotFound")


async def test_a_hook_without_a_schema_takes_an_empty_payload_only(hooks: Api) -> None:
    hooks.tc.hooks.define(GROUP, HOOK, {"metadata": METADATA, "task": {**TASK, "payload": {}}})
    await refused(trigger(hooks, {"what": "x"}), 400, "InputError", "data must NOT have additional properties")
    assert await trigger(hooks, {})


@pytest.mark.parametrize(("group", "hook"), [("other", HOOK), (GROUP, "in-tree-action-3-generic/other")])
async def test_an_unknown_hook_is_404_for_those_who_may_trigger_it(hooks: Api, group: str, hook: str) -> None:
    await refused(trigger(hooks, {}, group, hook), 403, "InsufficientScopes", f"hooks:trigger-hook:{group}/{hook}")
    allow(hooks, "hooks:trigger-hook:*")
    await refused(trigger(hooks, {}, group, hook), 404, "ResourceNotFound", "No such hook\n\n---")


async def test_without_scopes_a_call_is_403_and_names_the_scope(hooks: Api) -> None:
    allow(hooks, "hooks:trigger-hook:project-x/in-tree-action-1-*")
    await refused(trigger(hooks, {"what": "x"}), 403, "InsufficientScopes", TRIGGER)
    await refused(last_fires(hooks), 403, "InsufficientScopes", LAST_FIRES)
    assert not hooks.tc.queue.tasks


async def test_what_the_hooks_role_lacks_is_403_and_names_the_role(hooks: Api) -> None:
    hooks.tc.auth.set_roles({ROLE: SCOPES[1:]})
    with pytest.raises(Refused) as why:
        await trigger(hooks, {"what": "x"})
    assert (why.value.status, why.value.code) == (403, "InsufficientScopes")
    assert why.value.message.startswith(
        f"The role `hook-id:{GROUP}/{HOOK}` does not have sufficient scopes to create the task:\n\n"
        "Client ID static/taskcluster/hooks does not have sufficient scopes"
    )
    assert SCOPES[0] in why.value.message
    (fire,) = (await last_fires(hooks))["lastFires"]
    assert (fire["result"], fire["taskState"]) == ("error", "unknown")
    assert json.loads(fire["error"])["statusCode"] == 403


async def test_the_scopes_of_who_triggers_do_not_matter_to_the_task(hooks: Api) -> None:
    hooks.tc.auth.set_roles({})
    allow(hooks, TRIGGER, *SCOPES)
    await refused(trigger(hooks, {"what": "x"}), 403, "InsufficientScopes", "hook-id")


async def test_a_template_that_cannot_be_rendered_is_400_and_a_fire(hooks: Api) -> None:
    redefine(hooks, payload={"$eval": "nothing"})
    await refused(trigger(hooks, {"what": "x"}), 400, "InputError", "While firing hook:\n\nInterpreterError: .*nothing")
    (fire,) = (await last_fires(hooks))["lastFires"]
    assert (fire["result"], fire["taskState"]) == ("error", "unknown")
    assert fire["error"].startswith("InterpreterError")


async def test_a_task_that_the_queue_refuses_is_400_and_a_fire(hooks: Api) -> None:
    redefine(hooks, deadline={"$fromNow": "6 days"})
    await refused(
        trigger(hooks, {"what": "x"}), 400, "InputError", "While calling createTask: InputError\n\n`deadline`"
    )
    (fire,) = (await last_fires(hooks))["lastFires"]
    assert json.loads(fire["error"])["code"] == "InputError"


@pytest.mark.parametrize("hook", ["a b", "a:b", "é"])
async def test_a_name_of_another_form_is_400(hooks: Api, hook: str) -> None:
    await refused(trigger(hooks, {}, hook=hook), 400, "InvalidRequestArguments", "hookId")


async def test_a_slash_that_is_not_encoded_is_404(hooks: Api) -> None:
    url = f"http://taskcluster.example/api/hooks/v1/hooks/{GROUP}/{HOOK}/trigger"
    body = json.dumps({"what": "x"})
    answer = await hooks.http.post(url, content=body, headers=sign(ROOT, "POST", url, body))
    assert (answer.status_code, answer.json()["code"]) == (404, "ResourceNotFound")
    assert not hooks.tc.queue.tasks


# --- fires ---


async def test_fires_are_listed_the_newest_first_with_the_states_of_their_tasks(hooks: Api) -> None:
    first = (await trigger(hooks, {"what": "x"}))["taskId"]
    hooks.tc.clock.advance(1)
    second = (await trigger(hooks, {"what": "y"}))["taskId"]
    await hooks.claim()
    fires = (await last_fires(hooks))["lastFires"]
    assert [fire["taskId"] for fire in fires] == [second, first]
    assert [fire["taskState"] for fire in fires] == ["pending", "running"]
    assert fires[1] == {
        "hookGroupId": GROUP,
        "hookId": HOOK,
        "taskId": first,
        "firedBy": "triggerHook",
        "taskCreateTime": (await hooks("task", first))["created"],
        "result": "success",
        "error": "",
        "taskState": "running",
    }


async def test_fires_come_in_pages(hooks: Api) -> None:
    ids = [(await trigger(hooks, {"what": "x"}))["taskId"] for _ in range(5)]
    listed: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = await last_fires(hooks, **query)
        listed += [fire["taskId"] for fire in page["lastFires"]]
        if "continuationToken" not in page:
            break
        query["continuationToken"] = page["continuationToken"]
    assert listed == ids[::-1]


@pytest.mark.parametrize(("token", "code"), [("x", "InvalidRequestArguments"), ("v1-78", "InputError")])
async def test_a_token_that_is_none_is_400(hooks: Api, token: str, code: str) -> None:
    await trigger(hooks, {"what": "x"})
    await refused(last_fires(hooks, continuationToken=token), 400, code)


async def test_a_hook_that_never_fired_and_one_that_is_unknown_are_the_same_404(hooks: Api) -> None:
    await refused(last_fires(hooks), 404, "ResourceNotFound", "No such hook or never fired")
    hooks.tc.hooks.remove(GROUP, HOOK)
    await refused(last_fires(hooks), 404, "ResourceNotFound", "No such hook or never fired")


# --- faults ---


async def test_a_trigger_that_is_answered_500_after_the_work_was_done_is_a_fire(hooks: Api) -> None:
    hooks.tc.faults.add("after", "triggerHook", times=1)
    await refused(trigger(hooks, {"what": "x"}), 500, "InternalServerError")
    (fire,) = (await last_fires(hooks))["lastFires"]
    assert fire["taskId"] in hooks.tc.queue.tasks


@pytest.mark.parametrize("status", [500, 503])
async def test_a_hooks_service_that_is_away_does_nothing(hooks: Api, status: int) -> None:
    hooks.tc.faults.add("before", "triggerHook", status=status, times=1)
    await refused(trigger(hooks, {"what": "x"}), status, "InternalServerError")
    assert not hooks.tc.queue.tasks
    await refused(last_fires(hooks), 404, "ResourceNotFound")


@pytest.mark.parametrize(("kind", "fires"), [("drop", 0), ("drop-after", 1)])
async def test_a_connection_is_cut_before_or_after_the_work(hooks: Api, root: str, kind: str, fires: int) -> None:
    hooks.tc.faults.add(kind, "triggerHook", times=1)
    url = f"{root}/api/hooks/v1/hooks/{GROUP}/{HOOK.replace('/', '%2F')}/trigger"
    body = json.dumps({"what": "x"})
    async with httpx.AsyncClient() as http:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await http.post(url, content=body, headers=sign(PERSON, "POST", url, body))
    assert len(hooks.tc.queue.tasks) == fires


# --- definitions ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "data.task must be object"),
        ({"metadata": {}}, "must have required property 'owner'"),
        ({"triggerSchema": {"type": "objekt"}}, "triggerSchema is not a valid JSON schema"),
        ({"schedule": ["0 0 * * *"]}, "must NOT have more than 0 items"),
        ({"unknown": 1}, "must NOT have additional properties"),
    ],
)
def test_a_hook_of_another_form_cannot_be_defined(api: Api, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        api.tc.hooks.define(GROUP, HOOK, {"metadata": METADATA, "task": TASK, **change})


async def test_clear_forgets_fires_and_keeps_hooks(hooks: Api) -> None:
    await trigger(hooks, {"what": "x"})
    hooks.tc.clear()
    assert [hook["lastFires"] for hook in hooks.tc.hooks.describe()] == [[]]
