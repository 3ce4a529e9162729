"""List the API methods of the queue and of auth, with their routes and handlers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require
from sandbox.taskcluster.instance import Taskcluster
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


def api_methods(tc: Taskcluster) -> Iterable[tuple[str, Method]]:
    """Yield every method with its service, the frequent ones first, because routes are tried in order."""
    queue, artifacts = tc.queue, tc.artifacts

    async def claim_work(call: Call) -> Json:
        loop = asyncio.get_running_loop()
        until = loop.time() + tc.claim_wait
        while True:
            claims = queue.claim_work(call["taskQueueId"], call.body, call.caller)
            remaining = until - loop.time()
            if claims["tasks"] or remaining <= 0:
                return claims
            await queue.arrival(remaining)

    def get_artifact(call: Call) -> Answer:
        artifact = artifacts.get(call["taskId"], call.run_id, call["name"], call.base_url, call.caller)
        if "url" not in artifact:
            return Answer(424, artifact)
        return Answer(303, artifact, ((b"location", artifact["url"].encode()),))

    def finish_artifact(call: Call) -> Answer:
        artifacts.finish(*call.run, call["name"], call.body, call.caller)
        return Answer(204, None)

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

    def ping(call: Call) -> Json:
        return {"alive": True, "uptime": 0}

    task, run, group = "/task/{taskId}", "/task/{taskId}/runs/{runId}", "/task-group/{taskGroupId}"
    for method in (
        Method("createTask", "PUT", task, lambda c: queue.create_task(c["taskId"], c.body, c.caller), takes_body=True),
        Method("status", "GET", f"{task}/status", lambda c: queue.status(c["taskId"], c.caller)),
        Method("task", "GET", task, lambda c: queue.task(c["taskId"], c.caller)),
        Method(
            "statuses", "POST", "/tasks/status", lambda c: queue.statuses(c.body, c.caller, *c.page), takes_body=True
        ),
        Method("tasks", "POST", "/tasks", lambda c: queue.get_tasks(c.body, c.caller, *c.page), takes_body=True),
        Method(
            "listTaskGroup",
            "GET",
            f"{group}/list",
            lambda c: queue.list_task_group(c["taskGroupId"], c.caller, *c.page),
        ),
        Method("getTaskGroup", "GET", group, lambda c: queue.get_task_group(c["taskGroupId"], c.caller)),
        Method("sealTaskGroup", "POST", f"{group}/seal", lambda c: queue.seal_task_group(c["taskGroupId"], c.caller)),
        Method(
            "cancelTaskGroup", "POST", f"{group}/cancel", lambda c: queue.cancel_task_group(c["taskGroupId"], c.caller)
        ),
        Method(
            "listDependentTasks",
            "GET",
            f"{task}/dependents",
            lambda c: queue.list_dependent_tasks(c["taskId"], c.caller, *c.page),
        ),
        Method("scheduleTask", "POST", f"{task}/schedule", lambda c: queue.schedule_task(c["taskId"], c.caller)),
        Method("rerunTask", "POST", f"{task}/rerun", lambda c: queue.rerun_task(c["taskId"], c.caller)),
        Method("cancelTask", "POST", f"{task}/cancel", lambda c: queue.cancel_task(c["taskId"], c.caller)),
        Method(
            "changeTaskPriority",
            "POST",
            f"{task}/priority",
            lambda c: queue.change_task_priority(c["taskId"], c.body, c.caller),
            takes_body=True,
        ),
        Method(
            "changeTaskGroupPriority",
            "POST",
            f"{group}/priority",
            lambda c: queue.change_task_group_priority(c["taskGroupId"], c.body, c.caller),
            takes_body=True,
        ),
        Method("claimWork", "POST", "/claim-work/{taskQueueId:path}", claim_work, takes_body=True),
        Method(
            "claimTask", "POST", f"{run}/claim", lambda c: queue.claim_task(*c.run, c.body, c.caller), takes_body=True
        ),
        Method("reclaimTask", "POST", f"{run}/reclaim", lambda c: queue.reclaim_task(*c.run, c.caller)),
        Method("reportCompleted", "POST", f"{run}/completed", lambda c: queue.report_completed(*c.run, c.caller)),
        Method("reportFailed", "POST", f"{run}/failed", lambda c: queue.report_failed(*c.run, c.caller)),
        Method(
            "reportException",
            "POST",
            f"{run}/exception",
            lambda c: queue.report_exception(*c.run, c.body, c.caller),
            takes_body=True,
        ),
        Method(
            "createArtifact",
            "POST",
            f"{run}/artifacts/{{name:path}}",
            lambda c: artifacts.create(*c.run, c["name"], c.body, base_url=c.base_url, caller=c.caller),
            takes_body=True,
        ),
        Method("finishArtifact", "PUT", f"{run}/artifacts/{{name:path}}", finish_artifact, takes_body=True),
        Method("getArtifact", "GET", f"{run}/artifacts/{{name:path}}", get_artifact),
        Method("getLatestArtifact", "GET", f"{task}/artifacts/{{name:path}}", get_artifact),
        Method("listArtifacts", "GET", f"{run}/artifacts", lambda c: artifacts.list_page(*c.run, c.caller, *c.page)),
        Method(
            "listLatestArtifacts",
            "GET",
            f"{task}/artifacts",
            lambda c: artifacts.list_page(c["taskId"], None, c.caller, *c.page),
        ),
        Method(
            "artifactInfo",
            "GET",
            f"{run}/artifact-info/{{name:path}}",
            lambda c: artifacts.info(*c.run, c["name"], c.caller),
        ),
        Method(
            "latestArtifactInfo",
            "GET",
            f"{task}/artifact-info/{{name:path}}",
            lambda c: artifacts.info(c["taskId"], None, c["name"], c.caller),
        ),
        Method(
            "artifact",
            "GET",
            f"{run}/artifact-content/{{name:path}}",
            lambda c: artifacts.content(*c.run, c["name"], c.base_url, c.caller),
        ),
        Method(
            "latestArtifact",
            "GET",
            f"{task}/artifact-content/{{name:path}}",
            lambda c: artifacts.content(c["taskId"], None, c["name"], c.base_url, c.caller),
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
        Method("ping", "GET", "/ping", ping, public=True),
    ):
        yield "queue", method
    for method in (
        Method("authenticateHawk", "POST", "/authenticate-hawk", authenticate_hawk, takes_body=True, public=True),
        Method("currentScopes", "GET", "/scopes/current", current_scopes),
        Method("expandScopes", "POST", "/scopes/expand", expand_scopes, takes_body=True),
        Method("ping", "GET", "/ping", ping, public=True),
    ):
        yield "auth", method
