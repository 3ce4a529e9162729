"""Stand-in for a Treeherder that takes REST submissions, for the demo and for tests.

    POST /api/project/<project>/resultset/    pushes      GET the same with ?revision= or ?revision_hash=
    POST /api/project/<project>/jobs/         jobs        GET the same with ?job_guid=
    GET  /api/project/<project>/push/?revision=           GET /api/repository/
    GET  /                                    the page for people: pushes with their jobs
    GET  /__control__/state, /__control__/counters        what it holds, what it was asked
    GET PATCH DELETE /__control__/behaviour   faults and settings (class Behaviour); DELETE brings the defaults back
    DELETE /__control__/data                  forget pushes, jobs and counters
    POST /__control__/repositories            {"name", "url"}: a further project
    POST /__control__/job-action              what pressing a button on Treeherder's page does

Which of them are there depends on the setting `year`: Treeherder took resultsets and jobs until 2017, and has `push/`
since. Faults hit `/api/` only, so that a test can always look and repair.
"""

import asyncio
import contextlib
import io
import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import httpx
import pika
import pika.exceptions
from mohawk import Receiver
from mohawk.exc import HawkFail
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from listeners.broker import BROKER_ERRORS
from sandbox.treeherder.page import render_page
from sandbox.treeherder.store import Job, Push, Repository, Store, SubmissionError, UnknownPushError

JOB_ACTIONS_EXCHANGE = "exchange/treeherder/v1/job-actions"

ALWAYS = -1
"""As a number of requests: every one, until it is set to something else."""

_LIBRARY_AGENT = re.compile(
    r"(python|curl|wget|node-fetch|axios|undici|aiohttp|okhttp|go-http-client|java|libwww|$)", re.IGNORECASE
)
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


Year = Literal[2015, 2016, 2017, "today"]

SUBMISSION: tuple[Year, ...] = (2015, 2016, 2017)
"""Years of the REST submission; 2017 as it was in March, 2016 in June."""

_ANY: tuple[Year, ...] = (*SUBMISSION, "today")

_YEARS: dict[str, tuple[Year, ...]] = {
    "POST resultset": SUBMISSION,
    "GET resultset": SUBMISSION,
    "POST jobs": SUBMISSION,
    "GET jobs": _ANY,
    "GET push": ("today",),
    "GET repository": _ANY,
}
"""In which years a call is there."""


class Behaviour(BaseModel):
    """Which Treeherder it is, and how it misbehaves.

    Numbers of requests count down as they are used up; ALWAYS (-1) never does.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    year: Year = Field(
        2017, description="2015: jobs need a revision_hash; 2015 to 2017: resultsets; today: push/ alone"
    )
    down: int = Field(0, ge=ALWAYS, description="requests that find nobody at home")
    down_how: Literal["503", "drop"] = Field("503", description="an answer, or a connection that is cut without one")
    delay: float = Field(0, ge=0, description="seconds before anything happens")
    too_many: int = Field(0, ge=ALWAYS, description="submissions answered 429, whatever the rate")
    fail_after: int = Field(0, ge=ALWAYS, description="submissions that are stored and answered 500 all the same")
    refuse_jobs: frozenset[str] = Field(frozenset(), description="job guids whose bulk is never taken")
    bad_job_status: Literal[400, 500] = Field(400, description="answer to a bulk with a job that breaks a rule")
    unknown_push: Literal["error", "drop"] = Field("error", description="jobs before their push: 500, or 200 and lost")
    throttle: bool = Field(False, description="whether the limits below hold, for each credential")
    jobs_per_minute: int = Field(220, ge=0)
    resultsets_per_minute: int = Field(400, ge=0)
    retry_after: bool = Field(False, description="whether a 429 says how long to wait")

    def uses_up(self, fault: Literal["down", "too_many", "fail_after"]) -> bool:
        """Whether this request is hit by the fault; counts it down."""
        left: int = getattr(self, fault)
        if left > 0:
            setattr(self, fault, left - 1)
        return left != 0


class Press(BaseModel):
    """A button pressed on Treeherder's page; further fields are passed on in the message."""

    model_config = ConfigDict(extra="allow")

    project: str
    job_guid: str
    action: Literal["backfill", "cancel", "retrigger"]
    requester: str
    trailing_dot: bool = Field(False, description="whether the routing key ends in a dot, as some publishers have it")


@dataclass
class State:
    """One Treeherder: `credentials` are Hawk ids and keys, `amqp_url` is the broker for job actions."""

    store: Store
    credentials: dict[str, str]
    amqp_url: str | None = None
    job_actions_exchange: str = JOB_ACTIONS_EXCHANGE
    behaviour: Behaviour = field(default_factory=Behaviour)
    counters: Counter[str] = field(default_factory=Counter)
    """Requests by method, kind and status (`POST jobs 200`), and `jobs received`."""
    _accepted: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    _nonces: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget pushes, jobs, counters and what the limits counted."""
        self.store.clear()
        self.counters.clear()
        self._accepted.clear()

    def seconds_to_wait(self, client_id: str, kind: str, per_minute: int) -> float:
        """0 when the credential may make one more request of this kind (it is counted), else how long it must wait."""
        now = time.monotonic()
        accepted = self._accepted.setdefault((client_id, kind), deque())
        while accepted and accepted[0] <= now - 60:
            accepted.popleft()
        if len(accepted) >= per_minute:
            return accepted[0] + 60 - now if accepted else 60
        accepted.append(now)
        return 0

    def seen_nonce(self, client_id: str, nonce: str, timestamp: str) -> bool:
        """Whether this signature was used before; Hawk's clock skew is 60 s, so two minutes are remembered."""
        now = time.monotonic()
        for key in list(self._nonces):  # insertion order is age
            if self._nonces[key] > now - 120:
                break
            del self._nonces[key]
        key = client_id, nonce, timestamp
        if key in self._nonces:
            return True
        self._nonces[key] = now
        return False


def create_app(state: State) -> ASGIApp:
    """The whole of it as an ASGI app."""
    api = _Api(state)
    control = _Control(state)
    app = Starlette(
        routes=[
            Route("/api/project/{project}/resultset/", api.post_resultsets, methods=["POST"]),
            Route("/api/project/{project}/resultset/", api.get_resultsets),
            Route("/api/project/{project}/push/", api.get_pushes),
            Route("/api/project/{project}/jobs/", api.post_jobs, methods=["POST"]),
            Route("/api/project/{project}/jobs/", api.get_jobs),
            Route("/api/repository/", api.get_repositories),
            Route("/", control.page),
            Route("/__control__/state", control.state),
            Route("/__control__/counters", control.counters),
            Route("/__control__/data", control.clear, methods=["DELETE"]),
            Route("/__control__/behaviour", control.behaviour, methods=["GET", "PATCH", "DELETE"]),
            Route("/__control__/repositories", control.add_repository, methods=["POST"]),
            Route("/__control__/job-action", control.job_action, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _detail},
    )
    app.router.redirect_slashes = False  # Django redirects GET only and fails a POST: here both are 404
    return _Front(app, state)


class _Front:
    """What comes before any view: counters, and the faults of a server as a whole."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        asked = f"{scope['method']} {_kind(scope['path'])}"
        behaviour = self._state.behaviour

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._state.counters[f"{asked} {message['status']}"] += 1
            await send(message)

        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if not behaviour.uses_up("down"):
            years = _YEARS.get(asked, _ANY)
            gone = _json({"detail": "Not found."}, 404)
            await (self._app if behaviour.year in years else gone)(scope, receive, counting)
        elif behaviour.down_how == "503":
            await _json({"detail": "Service Unavailable"}, 503)(scope, receive, counting)
        else:
            self._state.counters[f"{asked} dropped"] += 1
            await _cut(receive, send)


async def _cut(receive: Receive, send: Send) -> None:
    """End the connection without an answer."""
    # uvicorn hands out bound methods of the object that owns the connection; ASGI itself has no word for this
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        # called in-process: what httpx would make of a cut connection
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def _kind(path: str) -> str:
    """`resultset`, `jobs`, `push` or `repository`: the last word of the path; `other` where no view is."""
    last = path.strip("/").rsplit("/", 1)[-1]
    return last if last in ("resultset", "jobs", "push", "repository") else "other"


class _Api:
    """Treeherder's own API, as far as submission needs it."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def post_resultsets(self, request: Request) -> Response:
        project, resultsets = await self._submission(request, "resultset", self._state.behaviour.resultsets_per_minute)
        try:
            self._state.store.store_resultsets(project, resultsets)
        except SubmissionError as error:
            raise HTTPException(500, str(error)) from None
        return self._done("well-formed JSON stored")

    async def post_jobs(self, request: Request) -> Response:
        behaviour = self._state.behaviour
        project, jobs = await self._submission(request, "jobs", behaviour.jobs_per_minute)
        if isinstance(jobs, list):
            self._state.counters["jobs received"] += len(jobs)
        try:
            self._state.store.store_jobs(
                project,
                jobs,
                refuse=behaviour.refuse_jobs,
                drop_unknown_push=behaviour.unknown_push == "drop",
                old=behaviour.year == 2015,
            )
        except UnknownPushError as error:
            raise HTTPException(500, str(error)) from None
        except SubmissionError as error:
            raise HTTPException(behaviour.bad_job_status, str(error)) from None
        return self._done("Job successfully updated")

    def _done(self, message: str) -> Response:
        if self._state.behaviour.uses_up("fail_after"):
            raise HTTPException(500, "Internal Server Error")
        return _json({"message": message})

    async def get_resultsets(self, request: Request) -> Response:
        return await self._pushes(request)

    async def get_pushes(self, request: Request) -> Response:
        return await self._pushes(request)

    async def _pushes(self, request: Request) -> Response:
        await self._admit(request)
        project = self._project(request)
        query = request.query_params
        if "revision" not in query and "revision_hash" not in query:
            raise HTTPException(400, "ask with ?revision=<40 hex> or ?revision_hash=<40 hex>")
        store, year = self._state.store, self._state.behaviour.year
        if "revision" not in query and year in (2017, "today"):  # they ignore the parameter
            pushes = store.newest(project, 10)
        else:
            found = store.push(
                project,
                revision=query.get("revision"),
                revision_hash=query.get("revision_hash"),
                any_changeset=year != 2015,
            )
            pushes = [] if found is None else [found]
        results = [{"id": push.id, **push.body, "revision_count": len(push.body["revisions"])} for push in pushes]
        if year == "today":
            for result in results:
                del result["revision_hash"]
        return _json({"meta": {"count": len(results), "repository": project, **query}, "results": results})

    async def get_jobs(self, request: Request) -> Response:
        await self._admit(request)
        project = self._project(request)
        guid = request.query_params.get("job_guid")
        if guid is None:
            raise HTTPException(400, "ask with ?job_guid=<uuid>/<runId>")
        job = self._state.store.jobs.get((project, guid))
        results = [] if job is None else [{"id": job.id, "push_id": job.push.id, **job.body}]
        return _json({"meta": {"count": len(results), "offset": 0, "repository": project}, "results": results})

    async def get_repositories(self, request: Request) -> Response:
        await self._admit(request)
        return _json([_repository(repository) for repository in self._state.store.repositories.values()])

    async def _submission(self, request: Request, kind: str, per_minute: int) -> tuple[str, Any]:
        """The project and the parsed body of a POST that may go on; HTTPException for every other."""
        behaviour = self._state.behaviour
        client_id = await self._admit(request)
        if client_id is None:
            raise HTTPException(403, "Authentication credentials were not provided: sign the request with Hawk.")
        if behaviour.uses_up("too_many"):
            self._too_many(60)
        wait = self._state.seconds_to_wait(client_id, kind, per_minute) if behaviour.throttle else 0
        if wait:
            self._too_many(wait)
        project = self._project(request)
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise HTTPException(415, "send Content-Type: application/json")
        return project, _parse(await request.body())

    def _too_many(self, wait: float) -> NoReturn:
        seconds = str(math.ceil(wait))
        headers = {"Retry-After": seconds} if self._state.behaviour.retry_after else None
        raise HTTPException(429, f"Request was throttled. Expected available in {seconds} seconds.", headers)

    async def _admit(self, request: Request) -> str | None:
        """The Hawk id behind a request, None when it is not signed; HTTPException when it is not let in."""
        agent = request.headers.get("user-agent", "")
        if _LIBRARY_AGENT.match(agent):
            raise HTTPException(403, f"User-Agent {agent!r} is a library's default: send one that names your service")
        if not _accepts_version_1(request.headers.get("accept", "")):
            raise HTTPException(406, 'Invalid version in "Accept" header: send application/json; version=1.0')
        header = request.headers.get("authorization")
        if header is None:
            return None
        credentials = self._state.credentials

        def look_up(client_id: str) -> dict[str, str]:
            return {"id": client_id, "key": credentials[client_id], "algorithm": "sha256"}

        body = await request.body()
        try:
            receiver = Receiver(
                look_up,
                header,
                str(request.url),
                request.method,
                # as a file: mohawk pretty-prints bytes for its debug log, read or not, some 24 ms for 200 jobs
                content=io.BytesIO(body) if body else "",
                content_type=request.headers.get("content-type", ""),
                seen_nonce=self._state.seen_nonce,
            )
        # mohawk looks up parts of the header without asking whether they are there
        except (HawkFail, KeyError, ValueError) as error:
            raise HTTPException(403, f"Hawk authentication failed: {type(error).__name__}: {error}") from None
        return str(receiver.parsed_header["id"])

    def _project(self, request: Request) -> str:
        project: str = request.path_params["project"]
        if project not in self._state.store.repositories:
            raise HTTPException(404, f"No project with name {project}")
        return project


class _Control:
    """What only a stand-in has: a look inside, faults, and the page with its buttons."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def page(self, request: Request) -> Response:
        return HTMLResponse(render_page(self._state.store))

    async def state(self, request: Request) -> Response:
        query = request.query_params

        def wanted(push: Push) -> bool:
            return query.get("project", push.project) == push.project and (
                query.get("revision", push.revision) == push.revision
            )

        pushes = [push for push in self._state.store.pushes if wanted(push)]
        jobs = [job for push in pushes for job in push.jobs if query.get("job_guid") in (None, job.body["job_guid"])]
        return _json(
            {
                "repositories": [_repository(repository) for repository in self._state.store.repositories.values()],
                "resultsets": [_push_inside(push) for push in pushes],
                "jobs": [_job_inside(job) for job in jobs],
                **self._counters(),
            }
        )

    async def counters(self, request: Request) -> Response:
        return _json(self._counters())

    def _counters(self) -> dict[str, Any]:
        store = self._state.store
        return {
            "requests": dict(self._state.counters),
            "resultsets_stored": len(store.pushes),
            "jobs_stored": len(store.jobs),
            "jobs_dropped": store.dropped_jobs,
        }

    async def clear(self, request: Request) -> Response:
        self._state.clear()
        return _json({"message": "pushes, jobs and counters are gone"})

    async def behaviour(self, request: Request) -> Response:
        if request.method == "PATCH":
            changes = _object(_parse(await request.body()))
            try:
                self._state.behaviour = Behaviour.model_validate(self._state.behaviour.model_dump() | changes)
            except ValidationError as error:
                raise HTTPException(400, str(error)) from None
        elif request.method == "DELETE":
            self._state.behaviour = Behaviour()
        return _json(self._state.behaviour.model_dump(mode="json"))

    async def add_repository(self, request: Request) -> Response:
        given = _object(_parse(await request.body()))
        if not isinstance(given.get("name"), str) or not re.fullmatch(r"[\w-]{1,50}", given["name"]):
            raise HTTPException(400, f"name {given.get('name')!r} is not 1 to 50 letters, digits, _ and -")
        repository = Repository(given["name"], str(given.get("url", "")))
        self._state.store.repositories[repository.name] = repository
        return _json(_repository(repository), 201)

    async def job_action(self, request: Request) -> Response:
        try:
            press = Press.model_validate(_parse(await request.body()))
        except ValidationError as error:
            raise HTTPException(400, str(error)) from None
        if self._state.amqp_url is None:
            raise HTTPException(
                409, "no broker is configured, so nobody can hear the button: start the sandbox with an AMQP URL"
            )
        message: dict[str, Any] = {"version": 1, **press.model_dump(exclude={"trailing_dot"})}
        job = self._state.store.jobs.get((press.project, press.job_guid))
        if job is not None:
            message["job_id"] = job.id
        routing_key = f"taskcluster.{press.project}.{press.action}{'.' if press.trailing_dot else ''}"
        try:
            heard = await asyncio.to_thread(
                publish_job_action, self._state.amqp_url, routing_key, message, self._state.job_actions_exchange
            )
        except BROKER_ERRORS as error:
            raise HTTPException(
                503, f"the broker did not take the message ({type(error).__name__}: {error}): is it up, press again"
            ) from None
        return _json(
            {
                "exchange": self._state.job_actions_exchange,
                "routing_key": routing_key,
                "message": message,
                "heard": heard,
            }
        )


def declare_job_actions(amqp_url: str, exchange: str = JOB_ACTIONS_EXCHANGE) -> None:
    """Make the exchange, so that listeners, who may only look for it, find it before a button was ever pressed.

    Raises pika's AMQPError when the broker is away or says no. Blocks: not for the event loop's thread.
    """
    with _job_actions(amqp_url, exchange):
        pass


def publish_job_action(
    amqp_url: str, routing_key: str, message: dict[str, Any], exchange: str = JOB_ACTIONS_EXCHANGE
) -> bool:
    """Publish a message of data/treeherder/job-action-message.json, confirmed by the broker.

    Returns whether any queue is bound to hear it. Raises and blocks as `declare_job_actions` does.
    """
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    with _job_actions(amqp_url, exchange) as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, routing_key, json.dumps(message).encode(), properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            return False
        return True


@contextlib.contextmanager
def _job_actions(amqp_url: str, exchange: str) -> Iterator[BlockingChannel]:
    """A channel on which the exchange is declared; a button is pressed seldom, so each press connects anew."""
    parameters = pika.URLParameters(amqp_url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 5
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        yield channel
    finally:
        if connection.is_open:
            connection.close()


def _repository(repository: Repository) -> dict[str, Any]:
    return {"name": repository.name, "url": repository.url, "dvcs_type": "hg", "active_status": "active"}


def _push_inside(push: Push) -> dict[str, Any]:
    return {
        "id": push.id,
        "project": push.project,
        "posts": push.posts,
        "first_posted": push.first_posted,
        "last_posted": push.last_posted,
        "jobs": len(push.jobs),
        "resultset": push.body,
    }


def _job_inside(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "project": job.push.project,
        "revision": job.push.revision,
        "posts": len(job.history),
        "history": [
            {"at": at, "state": state, "result": result, "outcome": outcome}
            for at, state, result, outcome in job.history
        ],
        "job": job.body,
        "artifacts": list(job.artifacts.values()),  # as they are shown
    }


def _accepts_version_1(accept: str) -> bool:
    for choice in accept.split(","):
        media_type, *parameters = (part.strip() for part in choice.split(";"))
        if media_type == "application/json" and "version=1.0" in parameters:
            return True
    return False


def _parse(body: bytes) -> Any:
    """The body as JSON; HTTPException 400 when it is none, 500 when it has text that no database takes."""
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise HTTPException(400, f"JSON parse error - {error}") from None
    if _LONE_SURROGATE.search(body):
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise HTTPException(500, f"'utf-8' codec can't encode a lone surrogate: {error.reason}") from None
    return parsed


def _object(parsed: Any) -> dict[str, Any]:
    if not isinstance(parsed, dict):
        raise HTTPException(400, "send a JSON object")
    return parsed


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")


async def _detail(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"detail": error.detail}, error.status_code, dict(error.headers or {}))
