"""Hooks: what a trigger answers, what is certain about one that failed, and which fires count."""

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.taskcluster import Taskcluster, create_app
from service.clients.hooks import TaskclusterHooks, fires_scope, trigger_scope
from service.clients.taskcluster import NotSentError, ScopesRefusal
from service.clock import now
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import TaskclusterSettings
from tests.service.harness import ROOT, serving

GROUP, HOOK = "project-x", "in-tree-action-3-generic/0123"
TASK: dict[str, Any] = {
    "taskQueueId": "prov/w",
    "schedulerId": "sched",
    "payload": {"what": {"$eval": "payload.what"}},
    "metadata": {"name": "an action", "description": "", "owner": "a@b.example", "source": "https://hg.example/x"},
}
SCHEMA = {"type": "object", "properties": {"what": {"type": "integer"}}, "required": ["what"]}
ROLE = ["queue:create-task:lowest:prov/w", "queue:create-task:project:none", "queue:scheduler-id:sched"]


@asynccontextmanager
async def hooks_at(url: str, **more: Any) -> AsyncIterator[TaskclusterHooks]:
    values = {"client_id": ROOT.client_id, "access_token": ROOT.access_token, "timeout": 5, **more}
    hooks = TaskclusterHooks(TaskclusterSettings(root_url=url, **values))
    try:
        yield hooks
    finally:
        await hooks.close()


@pytest.fixture
def tc() -> Taskcluster:
    tc = Taskcluster([ROOT], claim_wait=0)
    metadata = {"name": "h", "description": "d", "owner": "a@b.example"}
    tc.hooks.define(GROUP, HOOK, {"metadata": metadata, "task": TASK, "triggerSchema": SCHEMA})
    tc.auth.set_roles({f"hook-id:{GROUP}/*": ROLE})
    return tc


@pytest.fixture
async def hooks(tc: Taskcluster) -> AsyncIterator[TaskclusterHooks]:
    async with serving(create_app(tc)) as url, hooks_at(url) as opened:
        yield opened


async def test_a_trigger_answers_the_task_which_is_then_among_the_last_fires(
    tc: Taskcluster, hooks: TaskclusterHooks
) -> None:
    began = now() - timedelta(seconds=1)
    assert await hooks.last_fires(GROUP, HOOK, began) == []
    task_id = await hooks.trigger(GROUP, HOOK, {"what": 1})
    assert task_id is not None
    assert tc.queue.task(task_id)["payload"] == {"what": 1}
    (fire,) = await hooks.last_fires(GROUP, HOOK, began)
    assert fire.task_id == task_id
    assert await hooks.last_fires(GROUP, HOOK, now() + timedelta(minutes=1)) == []


async def test_all_pages_of_fires_are_read(tc: Taskcluster, hooks: TaskclusterHooks) -> None:
    for number in range(3):
        await hooks.trigger(GROUP, HOOK, {"what": number})
    hook = tc.hooks._hooks[GROUP, HOOK]
    hook.fires *= 500
    assert len(await hooks.last_fires(GROUP, HOOK, now() - timedelta(minutes=1))) == 1_500


async def test_a_hook_that_creates_no_task(tc: Taskcluster, hooks: TaskclusterHooks) -> None:
    metadata = {"name": "h", "description": "d", "owner": "a@b.example"}
    tc.hooks.define(GROUP, HOOK, {"metadata": metadata, "task": {"$if": "false"}, "triggerSchema": SCHEMA})
    assert await hooks.trigger(GROUP, HOOK, {"what": 1}) is None


@pytest.mark.parametrize(
    ("hook", "payload", "status", "why"),
    [("none", {"what": 1}, 404, "No such hook"), (HOOK, {"what": "x"}, 400, "what"), (HOOK, {}, 400, "what")],
)
async def test_what_is_refused_for_good_says_why(
    hooks: TaskclusterHooks, hook: str, payload: Any, status: int, why: str
) -> None:
    with pytest.raises(PermanentUpstreamError, match=why) as refused:
        await hooks.trigger(GROUP, hook, payload)
    assert refused.value.status == status


async def test_each_call_has_its_one_scope_and_a_missing_one_is_named(tc: Taskcluster, hooks: TaskclusterHooks) -> None:
    tc.auth.add_client(ROOT.client_id, ROOT.access_token, [fires_scope(GROUP, HOOK), "x:secret"])
    with pytest.raises(
        ScopesRefusal, match=f"\\(tc-treeherder\\) lacks hooks:trigger-hook:{GROUP}/{HOOK}: grant"
    ) as refused:
        await hooks.trigger(GROUP, HOOK, {"what": 1})
    assert refused.value.missing == [trigger_scope(GROUP, HOOK)]
    assert "x:secret" not in str(refused.value)
    tc.auth.add_client(ROOT.client_id, ROOT.access_token, [trigger_scope(GROUP, HOOK)])
    await hooks.trigger(GROUP, HOOK, {"what": 1})
    with pytest.raises(ScopesRefusal, match="lacks hooks:list-last-fires:"):
        await hooks.last_fires(GROUP, HOOK, now())


async def test_a_call_may_do_nothing_else() -> None:
    seen: list[Any] = []

    async def say(request: Request) -> Response:
        ext = re.search(r'ext="([^"]+)"', request.headers["authorization"])
        assert ext is not None
        seen.append(json.loads(base64.b64decode(ext[1]))["authorizedScopes"])
        return JSONResponse({"taskId": GROUP, "lastFires": []})

    app = Starlette(routes=[Route("/{path:path}", say, methods=["GET", "POST"])])
    async with serving(app) as url, hooks_at(url) as hooks:
        await hooks.trigger(GROUP, HOOK, {})
        await hooks.last_fires(GROUP, HOOK, now())
    assert seen == [[trigger_scope(GROUP, HOOK)], [fires_scope(GROUP, HOOK)]]


async def test_what_the_role_of_the_hook_lacks_is_not_said_of_our_client(
    tc: Taskcluster, hooks: TaskclusterHooks
) -> None:
    tc.auth.set_roles({f"hook-id:{GROUP}/*": ROLE[:2]})
    with pytest.raises(ScopesRefusal, match=f"the role hook-id:{GROUP}/{HOOK} lacks .*queue:scheduler-id:sched"):
        await hooks.trigger(GROUP, HOOK, {"what": 1})


async def test_without_a_connection_nothing_was_sent() -> None:
    async with hooks_at("http://127.0.0.1:9") as hooks:
        with pytest.raises(NotSentError):
            await hooks.trigger(GROUP, HOOK, {})


@pytest.mark.parametrize("fault", ["drop", "drop-after", "after", "before", "hang"])
async def test_what_is_unclear_is_neither_sent_again_nor_called_not_sent(tc: Taskcluster, fault: str) -> None:
    tc.faults.add(fault, "triggerHook")
    async with serving(create_app(tc)) as url, hooks_at(url, timeout=0.3) as hooks:
        with pytest.raises(Unavailable) as error:
            await hooks.trigger(GROUP, HOOK, {"what": 1})
        tc.faults.remove()
    assert not isinstance(error.value, NotSentError)
    assert tc.journal.calls["triggerHook"] == 1


@pytest.mark.parametrize(
    "answer", [{"lastFires": "none"}, {}, {"lastFires": [{"taskId": "x"}, None, 7, {"firedBy": "triggerHook"}]}]
)
async def test_answers_of_another_form(answer: Any) -> None:
    async def say(_: Request) -> Response:
        return JSONResponse(answer)

    async with serving(Starlette(routes=[Route("/{path:path}", say)])) as url, hooks_at(url) as hooks:
        if isinstance(answer.get("lastFires"), list):
            assert await hooks.last_fires(GROUP, HOOK, now()) == []
        else:
            with pytest.raises(Unavailable, match="has no list of fires"):
                await hooks.last_fires(GROUP, HOOK, now())
