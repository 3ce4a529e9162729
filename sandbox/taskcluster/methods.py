"""List the API methods of the queue, of auth and of hooks, with their routes and handlers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from sandbox.taskcluster import checks
from sandbox.taskcluster.artifacts import Artifacts
from sandbox.taskcluster.auth import Caller, require
from sandbox.taskcluster.hooks import Hooks
from sandbox.taskcluster.instance import Taskcluster
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Json


@dataclass
class Call:
    """An API call in the form that a method needs."""

    parameters: dict[str, str]
    query: dict[str, str]
    body: Any
    caller: Caller
    base_url: str

    @property
    def page(self) -> tuple[str | None, str | None]:
        """Return continuationToken and limit."""
        return self.query.get("continuationToken"), self.query.get("limit")

    def __getitem__(self, name: str) -> str:
        return self.parameters[name]

    @property
    def run_id(self) -> int | None:
        """Return the run that the path names, or None for the latest."""
        return int(self.parameters["runId"]) if "runId" in self.parameters else None

    @property
    def run(self) -> tuple[str, int]:
        """Return the task and the run that the path names."""
        return self["taskId"], int(self["runId"])


class Answer(NamedTuple):
    """An answer to a call; `body` None is no content."""

    status: int
    body: Json | None
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], Json | Answer | Awaitable[Json]]


class Method(NamedTuple):
    """An API method: its name in the reference, HTTP method and route, and its handler."""

    name: str
    verb: str
    path: str
    handle: Handler
    takes_body: bool = False
    public: bool = False


_TASK, _RUN, _GROUP = "/task/{taskId}", "/task/{taskId}/runs/{runId}", "/task-group/{taskGroupId}"
_HOOK = "/hooks/{hookGroupId}/{hookId:path}"


def api_methods(tc: Taskcluster) -> Iterable[tuple[str, Method]]:
    """Yield every method with its service, the frequent ones first, because routes are tried in order."""
    queue = (_of_tasks(tc.queue), _of_groups(tc.queue), _of_runs(tc), _of_artifacts(tc.artifacts))
    for service, methods in (("queue", chain(*queue)), ("auth", _of_auth(tc)), ("hooks", _of_hooks(tc.hooks))):
        for method in methods:
            yield service, method
        yield service, Method("ping", "GET", "/ping", lambda _: {"alive": True, "uptime": 0}, public=True)


def _of_tasks(queue: Queue) -> Sequence[Method]:
    return [
        Method("createTask", "PUT", _TASK, lambda c: queue.create_task(c["taskId"], c.body, c.caller), takes_body=True),
        Method("status", "GET", f"{_TASK}/status", lambda c: queue.status(c["taskId"], c.caller)),
        Method("task", "GET", _TASK, lambda c: queue.task(c["taskId"], c.caller)),
        Method(
            "statuses", "POST", "/tasks/status", lambda c: queue.statuses(c.body, c.caller, *c.page), takes_body=True
        ),
        Method("tasks", "POST", "/tasks", lambda c: queue.get_tasks(c.body, c.caller, *c.page), takes_body=True),
        Method(
            "listDependentTasks",
            "GET",
            f"{_TASK}/dependents",
            lambda c: queue.list_dependent_tasks(c["taskId"], c.caller, *c.page),
        ),
        Method("scheduleTask", "POST", f"{_TASK}/schedule", lambda c: queue.schedule_task(c["taskId"], c.caller)),
        Method("rerunTask", "POST", f"{_TASK}/rerun", lambda c: queue.rerun_task(c["taskId"], c.caller)),
        Method("cancelTask", "POST", f"{_TASK}/cancel", lambda c: queue.cancel_task(c["taskId"], c.caller)),
        Method(
            "changeTaskPriority",
            "POST",
            f"{_TASK}/priority",
            lambda c: queue.change_task_priority(c["taskId"], c.body, c.caller),
            takes_body=True,
        ),
    ]


def _of_groups(queue: Queue) -> Sequence[Method]:
    return [
        Method(
            "listTaskGroup",
            "GET",
            f"{_GROUP}/list",
            lambda c: queue.list_task_group(c["taskGroupId"], c.caller, *c.page),
        ),
        Method("getTaskGroup", "GET", _GROUP, lambda c: queue.get_task_group(c["taskGroupId"], c.caller)),
        Method("sealTaskGroup", "POST", f"{_GROUP}/seal", lambda c: queue.seal_task_group(c["taskGroupId"], c.caller)),
        Method(
            "cancelTaskGroup", "POST", f"{_GROUP}/cancel", lambda c: queue.cancel_task_group(c["taskGroupId"], c.caller)
        ),
        Method(
            "changeTaskGroupPriority",
            "POST",
            f"{_GROUP}/priority",
            lambda c: queue.change_task_group_priority(c["taskGroupId"], c.body, c.caller),
            takes_body=True,
        ),
    ]


def _of_runs(tc: Taskcluster) -> Sequence[Method]:
    queue = tc.queue

    async def claim_work(call: Call) -> Json:
        loop = asyncio.get_running_loop()
        until = loop.time() + tc.claim_wait
        while True:
            claims = queue.claim_work(call["taskQueueId"], call.body, call.caller)
            remaining = until - loop.time()
            if claims["tasks"] or remaining <= 0:
                return claims
            await queue.arrival(remaining)

    return [
        Method("claimWork", "POST", "/claim-work/{taskQueueId:path}", claim_work, takes_body=True),
        Method(
            "claimTask", "POST", f"{_RUN}/claim", lambda c: queue.claim_task(*c.run, c.body, c.caller), takes_body=True
        ),
        Method("reclaimTask", "POST", f"{_RUN}/reclaim", lambda c: queue.reclaim_task(*c.run, c.caller)),
        Method("reportCompleted", "POST", f"{_RUN}/completed", lambda c: queue.report_completed(*c.run, c.caller)),
        Method("reportFailed", "POST", f"{_RUN}/failed", lambda c: queue.report_failed(*c.run, c.caller)),
        Method(
            "reportException",
            "POST",
            f"{_RUN}/exception",
            lambda c: queue.report_exception(*c.run, c.body, c.caller),
            takes_body=True,
        ),
        Method(
            "pendingTasks",
            "GET",
            "/pending/{taskQueueId:path}",
            lambda c: queue.pending_tasks(c["taskQueueId"], c.caller),
        ),
        Method(
            "taskQueueCounts",
            "GET",
            "/task-queues/{taskQueueId:path}/counts",
            lambda c: queue.task_queue_counts(c["taskQueueId"], c.caller),
        ),
    ]


def _of_artifacts(artifacts: Artifacts) -> Sequence[Method]:
    def get_artifact(call: Call) -> Answer:
        artifact = artifacts.get(call["taskId"], call.run_id, call["name"], call.base_url, call.caller)
        storage_type = (b"x-taskcluster-artifact-storage-type", artifact.get("storageType", "error").encode())
        if "url" not in artifact:
            return Answer(424, artifact, (storage_type,))
        return Answer(303, artifact, (storage_type, (b"location", artifact["url"].encode())))

    def finish_artifact(call: Call) -> Answer:
        artifacts.finish(*call.run, call["name"], call.body, call.caller)
        return Answer(204, None)

    return [
        Method(
            "createArtifact",
            "POST",
            f"{_RUN}/artifacts/{{name:path}}",
            lambda c: artifacts.create(*c.run, c["name"], c.body, base_url=c.base_url, caller=c.caller),
            takes_body=True,
        ),
        Method("finishArtifact", "PUT", f"{_RUN}/artifacts/{{name:path}}", finish_artifact, takes_body=True),
        Method("getArtifact", "GET", f"{_RUN}/artifacts/{{name:path}}", get_artifact),
        Method("getLatestArtifact", "GET", f"{_TASK}/artifacts/{{name:path}}", get_artifact),
        Method("listArtifacts", "GET", f"{_RUN}/artifacts", lambda c: artifacts.list_page(*c.run, c.caller, *c.page)),
        Method(
            "listLatestArtifacts",
            "GET",
            f"{_TASK}/artifacts",
            lambda c: artifacts.list_page(c["taskId"], None, c.caller, *c.page),
        ),
        Method(
            "artifactInfo",
            "GET",
            f"{_RUN}/artifact-info/{{name:path}}",
            lambda c: artifacts.info(*c.run, c["name"], c.caller),
        ),
        Method(
            "latestArtifactInfo",
            "GET",
            f"{_TASK}/artifact-info/{{name:path}}",
            lambda c: artifacts.info(c["taskId"], None, c["name"], c.caller),
        ),
        Method(
            "artifact",
            "GET",
            f"{_RUN}/artifact-content/{{name:path}}",
            lambda c: artifacts.content(*c.run, c["name"], c.base_url, c.caller),
        ),
        Method(
            "latestArtifact",
            "GET",
            f"{_TASK}/artifact-content/{{name:path}}",
            lambda c: artifacts.content(c["taskId"], None, c["name"], c.base_url, c.caller),
        ),
    ]


def _of_auth(tc: Taskcluster) -> Sequence[Method]:
    def expand_scopes(call: Call) -> Json:
        checks.SCOPESET.check(call.body)
        require(call.caller, "auth:expand-scopes")
        return {"scopes": tc.auth.expand(call.body.get("scopes", ())).scopes}

    def current_scopes(call: Call) -> Json:
        require(call.caller, "auth:current-scopes")
        return {"scopes": call.caller.scopes.scopes}

    def authenticate_hawk(call: Call) -> Json:
        checks.AUTHENTICATE_HAWK.check(call.body)
        return tc.auth.authenticate_hawk(call.body)

    return [
        Method("authenticateHawk", "POST", "/authenticate-hawk", authenticate_hawk, takes_body=True, public=True),
        Method("client", "GET", "/clients/{clientId:path}", lambda c: tc.auth.describe(c["clientId"], c.caller)),
        Method("currentScopes", "GET", "/scopes/current", current_scopes),
        Method("expandScopes", "POST", "/scopes/expand", expand_scopes, takes_body=True),
    ]


def _of_hooks(hooks: Hooks) -> Sequence[Method]:
    def hook_of(call: Call) -> tuple[str, str]:
        return call["hookGroupId"], call["hookId"]

    return [
        Method(
            "triggerHook",
            "POST",
            f"{_HOOK}/trigger",
            lambda c: hooks.trigger(*hook_of(c), c.body, c.caller),
            takes_body=True,
        ),
        Method(
            "listLastFires",
            "GET",
            f"{_HOOK}/last-fires",
            lambda c: hooks.list_last_fires(*hook_of(c), c.caller, *c.page),
        ),
    ]
