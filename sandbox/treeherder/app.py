"""Serve a Treeherder that accepts REST submissions, for the demo and for tests.

    POST /api/project/<project>/resultset/    pushes      GET the same with ?revision= or ?revision_hash=
    POST /api/project/<project>/jobs/         jobs        GET the same with ?job_guid=
    GET  /api/project/<project>/push/?revision=           GET /api/repository/
    GET  /api/project/<project>/push/decisiontask/?push_ids=
    GET  /                                    the page for people: pushes with their jobs
    GET  /__control__/state, /__control__/counters        its contents, and counts of its requests
    GET PATCH DELETE /__control__/behaviour   faults and settings (class Behaviour); DELETE restores the defaults
    DELETE /__control__/data                  delete pushes, jobs and counters
    POST /__control__/repositories            {"name", "url"}: add a project
    POST /__control__/job-action              press a button of Treeherder's page

The setting `year` decides which of them exist: Treeherder accepted resultsets and jobs until 2017, and has `push/`
since. Faults affect `/api/` only, so that a test can always inspect and repair.
"""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.treeherder.api import Api
from sandbox.treeherder.behaviour import ANY_YEAR, SUBMISSION, Year
from sandbox.treeherder.bodies import json_response
from sandbox.treeherder.control import Control
from sandbox.treeherder.state import State

_YEARS: dict[str, tuple[Year, ...]] = {
    "POST resultset": SUBMISSION,
    "GET resultset": SUBMISSION,
    "POST jobs": SUBMISSION,
    "GET jobs": ANY_YEAR,
    "GET push": ("today",),
    "GET decisiontask": ("today",),
    "GET repository": ANY_YEAR,
}
"""In which years a call is there."""


def create_app(state: State) -> ASGIApp:
    """Return the ASGI app."""
    api = Api(state)
    control = Control(state)
    app = Starlette(
        routes=[
            Route("/api/project/{project}/resultset/", api.post_resultsets, methods=["POST"]),
            Route("/api/project/{project}/resultset/", api.get_resultsets),
            Route("/api/project/{project}/push/", api.get_pushes),
            Route("/api/project/{project}/push/decisiontask/", api.get_decision_tasks),
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
    """ASGI middleware that counts requests and applies the faults of a server as a whole."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        call = f"{scope['method']} {_kind(scope['path'])}"
        behaviour = self._state.behaviour

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._state.counters[f"{call} {message['status']}"] += 1
            await send(message)

        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if not behaviour.uses_up("down"):
            years = _YEARS.get(call, ANY_YEAR)
            gone = json_response({"detail": "Not found."}, 404)
            await (self._app if behaviour.year in years else gone)(scope, receive, counting)
        elif behaviour.down_how == "503":
            await json_response({"detail": "Service Unavailable"}, 503)(scope, receive, counting)
        else:
            self._state.counters[f"{call} dropped"] += 1
            await _cut(receive, send)


async def _cut(receive: Receive, send: Send) -> None:
    """End the connection without an answer."""
    # uvicorn's `send` is a method of the object that owns the connection; ASGI has no way to drop one
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        # in-process: the error of httpx for a dropped connection
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def _kind(path: str) -> str:
    """Return the last word of the path: `resultset`, `jobs`, `push`, …, or `other` for anything else."""
    last = path.strip("/").rsplit("/", 1)[-1]
    return last if last in ("resultset", "jobs", "push", "decisiontask", "repository") else "other"


async def _detail(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"detail": error.detail}, error.status_code, dict(error.headers or {}))
