"""The HTTP face of the stand-in: the queue's and auth's methods, and `/__control__/` for tests and demos.

`create_app(Taskcluster())` is an ASGI app; its root url is where it is served.

Control, all in JSON and without credentials:

    GET    /__control__/tasks            every task with its status (?taskId=: that one);
                                         POST creates some: {"tasks": [{"taskId", "task"}]}
    GET    /__control__/calls            calls and answers by method, createTask in order; DELETE begins anew
    GET    /__control__/faults           the faults; POST sets one (see faults.py); DELETE removes all, or /{id} one
    POST   /__control__/clock            {"advance": seconds} | {"freeze": true} | {"reset": true}; GET tells the time
    POST   /__control__/latency          {"seconds": 0.02}: how long each call takes at least
    POST   /__control__/clear            forget tasks, calls, faults; the clock goes back
"""

import asyncio
import contextlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.taskcluster import checks
from sandbox.taskcluster.artifacts import Artifacts
from sandbox.taskcluster.auth import Auth, AuthFailed, Caller, Client, Request, payload_hash, random_token, require
from sandbox.taskcluster.clock import Clock, iso
from sandbox.taskcluster.errors import ApiError, code_for
from sandbox.taskcluster.faults import Creation, Fault, Faults, Journal
from sandbox.taskcluster.pulse import Publisher
from sandbox.taskcluster.queue import QUEUE_CLIENT, Json, Queue
from sandbox.taskcluster.scopes import Roles
from sandbox.taskcluster.worker import Worker

MAX_BODY = 10 * 1024 * 1024
"""Bytes of a request body; more are answered 500, always."""


class Taskcluster:
    """The whole stand-in: state, faults, and what runs beside the HTTP app.

    In seconds: `claim_wait` is how long claimWork waits for work, `tick` how often deadlines are looked at, `latency`
    what each call takes at least. With a `worker`, tasks run to their end; with an `amqp_url`, messages go out to
    Pulse. The role `anonymous` holds what needs no credentials.
    """

    def __init__(
        self,
        clients: Iterable[Client] = (),
        roles: Roles | None = None,
        *,
        latency: float = 0.0,
        claim_wait: float = 20.0,
        tick: float = 0.5,
        amqp_url: str | None = None,
        exchange_prefix: str = "",
        worker: bool = False,
        worker_capacity: int = 32,
        worker_seconds: float = 0.2,
    ) -> None:
        self.clock = Clock()
        self.auth = Auth(self.clock, roles=roles or {})
        self.auth.add_client(QUEUE_CLIENT, random_token(), ["*"])
        for client in clients:
            self.auth.add_client(client.client_id, client.access_token, client.scopes)
        self.queue = Queue(self.clock, self.auth)
        self.artifacts = Artifacts(self.queue)
        self.faults = Faults()
        self.journal = Journal()
        self.latency = latency
        self.claim_wait = claim_wait
        self.worker = (
            Worker(self.queue, self.artifacts, capacity=worker_capacity, seconds=worker_seconds) if worker else None
        )
        self.publisher = Publisher(amqp_url, exchange_prefix) if amqp_url else None
        if self.publisher is not None:
            self.queue.listeners.append(self.publisher.publish)
        self._tick = tick

    def clear(self) -> None:
        """Forget tasks, calls and faults; the clock goes back to the real time."""
        self.queue.clear()
        if self.worker is not None:
            self.worker.clear()
        self.faults.remove()
        self.journal.clear()
        self.clock.reset()

    def advance(self, seconds: float) -> None:
        """Move the clock, and do what is due then."""
        self.clock.advance(seconds)
        self.queue.tick()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While inside: deadlines pass, the worker works, messages go out. The app's lifespan does this too."""
        background = [asyncio.create_task(self._keep_time())]
        if self.publisher is not None:
            await asyncio.to_thread(self.publisher.start)
        if self.worker is not None:
            background.append(asyncio.create_task(self.worker.run()))
        try:
            yield
        finally:
            self.faults.remove()
            for task in background:
                task.cancel()
            outcomes = await asyncio.gather(*background, return_exceptions=True)
            if self.publisher is not None:
                await asyncio.to_thread(self.publisher.stop)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(self._tick)
            self.queue.tick()


@dataclass
class Call:
    """An API call as a method sees it."""

    parameters: dict[str, str]
    query: dict[str, str]
    body: Any
    caller: Caller
    base_url: str

    @property
    def page(self) -> tuple[str | None, str | None]:
        """continuationToken and limit."""
        return self.query.get("continuationToken"), self.query.get("limit")

    def __getitem__(self, name: str) -> str:
        return self.parameters[name]

    @property
    def run_id(self) -> int | None:
        """The run that the path names; None for the latest."""
        return int(self.parameters["runId"]) if "runId" in self.parameters else None

    @property
    def run(self) -> tuple[str, int]:
        """The task and run that the path names."""
        return self["taskId"], int(self["runId"])


class Answer(NamedTuple):
    """What a call is answered; `body` None is no content."""

    status: int
    body: Json | None
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], Json | Answer | Awaitable[Json]]


class Method(NamedTuple):
    """An API method: its name in the reference, HTTP method and route, and what it does."""

    name: str
    verb: str
    path: str
    handle: Handler
    takes_body: bool = False
    public: bool = False


def _methods(tc: Taskcluster) -> Iterable[tuple[str, Method]]:
    """Every method with its service; the busy ones first, because routes are tried in order."""
    queue, artifacts = tc.queue, tc.artifacts

    async def claim_work(call: Call) -> Json:
        loop = asyncio.get_running_loop()
        until = loop.time() + tc.claim_wait
        while True:
            claimed = queue.claim_work(call["taskQueueId"], call.body, call.caller)
            left = until - loop.time()
            if claimed["tasks"] or left <= 0:
                return claimed
            await queue.arrival(left)

    def get_artifact(call: Call) -> Answer:
        found = artifacts.get(call["taskId"], call.run_id, call["name"], call.base_url, call.caller)
        if "url" not in found:
            return Answer(424, found)
        return Answer(303, found, ((b"location", found["url"].encode()),))

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


class Endpoint:
    """One API method as an ASGI app: faults, credentials, body, the method, the answer."""

    def __init__(self, tc: Taskcluster, method: Method) -> None:
        self._tc = tc
        self._method = method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = self._method.name
        self._tc.journal.calls[name] += 1
        raw = await _read(receive)
        if raw is None:
            return
        if self._tc.latency:
            await asyncio.sleep(self._tc.latency)
        struck = self._tc.faults.strike(name)
        for fault in struck:
            if not await self._stand_in_the_way(fault, scope, receive, send):
                return
        crashes = any(fault.kind == "crash" for fault in struck)
        answer = await self._answer(scope, raw, crashes)
        if name == "createTask":
            moment = iso(self._tc.clock.now())
            self._tc.journal.creations.append(Creation(scope["path_params"]["taskId"], answer.status, moment))
        for fault in struck:
            if fault.kind == "drop-after":
                await _drop(receive, send)
                return
            if fault.kind == "after":
                answer = self._failed(
                    scope, {}, ApiError(code_for(fault.status), "a fault was set: done, but not told"), fault.status
                )
        await self._send(answer, send)

    async def _stand_in_the_way(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> bool:
        """Do what the fault does before the work; False when the call ends with that."""
        if fault.kind == "delay":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(fault.removed.wait(), fault.seconds)
            return True
        if fault.kind == "hang":
            await _until_gone(receive, fault.removed)
            await _drop(receive, send)
            return False
        if fault.kind == "drop":
            await _drop(receive, send)
            return False
        if fault.kind in ("before", "throttle"):
            error = ApiError(code_for(fault.status), "a fault was set: nothing was done")
            answer = self._failed(scope, {}, error, fault.status)
            if fault.retry_after is not None:
                answer = answer._replace(headers=((b"retry-after", str(fault.retry_after).encode()),))
            await self._send(answer, send)
            return False
        return True

    async def _answer(self, scope: Scope, raw: bytes, crashes: bool) -> Answer:
        body: Any = {}
        try:
            parameters: dict[str, str] = scope["path_params"]
            checks.check_parameters(parameters)
            if len(raw) > MAX_BODY:
                raise ApiError("InternalServerError", f"request entity too large: at most {MAX_BODY} bytes")
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            caller = self._caller(scope, headers, raw)
            if self._method.takes_body:
                body = _parse(raw, headers.get("content-type", ""))
            query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
            call = Call(
                parameters,
                query,
                body,
                caller,
                f"{scope['scheme']}://{headers.get('host', '')}{scope.get('root_path', '')}",
            )
            result = self._crash(call) if crashes else self._method.handle(call)
            if inspect.isawaitable(result):
                result = await result
        except ApiError as error:
            return self._failed(scope, body, error, error.status)
        return result if isinstance(result, Answer) else Answer(200, result)

    def _crash(self, call: Call) -> Json:
        self._tc.queue.create_task(call["taskId"], call.body, call.caller, crash=True)
        raise ApiError("InternalServerError", "a fault was set: crashed in the middle")

    def _caller(self, scope: Scope, headers: dict[str, str], raw: bytes) -> Caller:
        if self._method.public:
            return self._tc.auth.authenticate(Request("GET", "", "", 0))
        host, port = _host(headers.get("host", ""), scope["scheme"])
        query = scope["query_string"].decode("latin-1")
        resource = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        request = Request(scope["method"], resource, host, port, headers.get("authorization"))
        try:
            caller = self._tc.auth.authenticate(request)
        except AuthFailed as failure:
            raise ApiError("AuthenticationFailed", str(failure)) from None
        if caller.hash:
            computed = payload_hash(raw, headers.get("content-type", ""))
            if computed != caller.hash:
                raise ApiError(
                    "AuthenticationFailed",
                    f"Invalid payload hash: {caller.hash}\nComputed payload hash: {computed}\n"
                    "This happens when your request carries a signed hash of the payload and the hash doesn't match "
                    "the hash we've computed on the server-side.",
                )
        return caller

    def _failed(self, scope: Scope, body: Any, error: ApiError, status: int) -> Answer:
        moment = iso(self._tc.clock.now())
        footer = (
            f"\n\n---\n\n* method:     {self._method.name}\n* errorCode:  {error.code}\n"
            f"* statusCode: {status}\n* time:       {moment}"
        )
        info = {"method": self._method.name, "params": scope["path_params"], "payload": body, "time": moment}
        headers = ((b"www-authenticate", b"hawk"),) if status == 401 else ()
        return Answer(status, {"code": error.code, "message": error.message + footer, "requestInfo": info}, headers)

    async def _send(self, answer: Answer, send: Send) -> None:
        self._tc.journal.answers[self._method.name, answer.status] += 1
        content = b"" if answer.body is None else json.dumps(answer.body, separators=(",", ":")).encode()
        headers = [*answer.headers]
        if answer.body is not None:
            headers.append((b"content-type", b"application/json; charset=utf-8"))
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def _read(receive: Receive) -> bytes | None:
    """The body, cut shortly after the limit; None when the caller has gone."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        if size <= MAX_BODY:
            parts.append(part)
        size += len(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _parse(raw: bytes, content_type: str) -> Any:
    if not raw:
        return {}
    if content_type.split(";", maxsplit=1)[0].strip().lower() != "application/json":
        raise ApiError(
            "MalformedPayload", f"Payload must be JSON with content-type: application/json got: {content_type}"
        )
    try:
        return json.loads(raw.decode("utf-8", "replace"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError("MalformedPayload", f"Failed to parse JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?")


def _host(header: str, scheme: str) -> tuple[str, int]:
    """Host and port as mohawk signs them: the scheme's port when the header has none, IPv6 without its brackets."""
    found = _HOST.fullmatch(header)
    if found is None:
        return header, 0
    return found[1].strip("[]"), int(found[2] or (443 if scheme == "https" else 80))


async def _until_gone(receive: Receive, removed: asyncio.Event) -> None:
    """Wait until the caller has gone, or the event is set."""
    waits = [asyncio.create_task(_gone(receive)), asyncio.create_task(removed.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _drop(receive: Receive, send: Send) -> None:
    """Close the connection without an answer: uvicorn's transport is reached through its `send`; elsewhere raise."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionResetError("a fault was set: the connection was dropped")
    transport.abort()
    await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Wait until the caller has gone: with the body read, that is all that is still to come."""
    message = await receive()
    if message["type"] != "http.disconnect":
        raise RuntimeError(f"{message['type']} came after the whole body")


def _control(tc: Taskcluster) -> list[Route]:
    """The routes for tests and demos."""

    async def tasks(request: HttpRequest) -> Response:
        if request.method == "POST":
            try:
                for each in (await request.json())["tasks"]:
                    tc.queue.create_task(each["taskId"], each["task"])
            except ApiError as error:
                return JSONResponse({"code": error.code, "message": error.message}, error.status)
            return JSONResponse({"tasks": len(tc.queue.tasks)}, 201)
        one = request.query_params.get("taskId")
        wanted = [task for task in tc.queue.tasks.values() if one in {None, task.task_id}]
        found = [{"status": task.status(), "task": task.definition} for task in wanted]
        return JSONResponse({"tasks": found})

    async def calls(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            tc.journal.clear()
        return JSONResponse(tc.journal.describe())

    async def faults(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            fault_id = request.path_params.get("id")
            tc.faults.remove(fault_id)
        if request.method == "POST":
            try:
                fault = tc.faults.add(**await request.json())
            except (TypeError, ValueError) as error:
                return JSONResponse({"message": f"no such fault: {error}"}, 400)
            return JSONResponse(fault.describe(), 201)
        return JSONResponse({"faults": tc.faults.describe()})

    async def clock(request: HttpRequest) -> Response:
        if request.method == "POST":
            wanted = await request.json()
            if wanted.get("reset"):
                tc.clock.reset()
            if wanted.get("freeze"):
                tc.clock.freeze()
            tc.advance(wanted.get("advance", 0))
        return JSONResponse({"now": iso(tc.clock.now())})

    async def latency(request: HttpRequest) -> Response:
        tc.latency = float((await request.json())["seconds"])
        return JSONResponse({"seconds": tc.latency})

    async def clear(request: HttpRequest) -> Response:
        tc.clear()
        return JSONResponse({})

    async def content(request: HttpRequest) -> Response:
        where = request.path_params["taskId"], request.path_params["runId"], request.path_params["name"]
        try:
            if request.method == "PUT":
                tc.artifacts.put(*where, await request.body())
                return Response()
            body, kind = tc.artifacts.bytes_of(*where)
        except ApiError as error:
            return JSONResponse({"code": error.code, "message": error.message}, error.status)
        return Response(body, media_type=kind)

    return [
        Route("/__control__/tasks", tasks, methods=["GET", "POST"]),
        Route("/__control__/calls", calls, methods=["GET", "DELETE"]),
        Route("/__control__/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/__control__/faults/{id:int}", faults, methods=["DELETE"]),
        Route("/__control__/clock", clock, methods=["GET", "POST"]),
        Route("/__control__/latency", latency, methods=["POST"]),
        Route("/__control__/clear", clear, methods=["POST"]),
        Route("/__content__/{taskId}/{runId:int}/{name:path}", content, methods=["GET", "PUT"]),
    ]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await JSONResponse({"code": "ResourceNotFound", "message": "Not found", "requestInfo": {}}, 404)(
            scope, receive, send
        )


def create_app(tc: Taskcluster) -> ASGIApp:
    """The ASGI app. Its lifespan runs `tc.running()`; who mounts it elsewhere must do that."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with tc.running():
            yield

    routes = [
        Route(f"/api/{service}/v1{method.path}", Endpoint(tc, method), methods=[method.verb])
        for service, method in _methods(tc)
    ]
    return Router([*routes, *_control(tc)], lifespan=lifespan, default=_not_found, redirect_slashes=False)
