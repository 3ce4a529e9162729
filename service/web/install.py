"""Add the page to the app, and answer errors as pages where a person looks."""

import json

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import Problem, problem_anchor
from service.settings import Settings
from service.web import (
    actions,
    asking,
    audit,
    badge,
    dead_letters,
    events,
    home,
    offers,
    pushes,
    repositories,
    search,
    sign_in,
    taskcluster,
    tasks,
    watch,
)
from service.web.pages import PageRoute, show

MODULES = (
    *(home, sign_in, taskcluster, search, pushes, tasks, actions, asking, offers),
    *(watch, dead_letters, repositories, audit, events, badge),
)
"""The modules that have routes."""

_MACHINES = ("/api/", "/__", "/metrics", "/openapi.json", "/static/")
"""Paths whose errors are for programs, whatever they accept."""


def install(app: FastAPI, settings: Settings) -> None:
    """Add the page to `app`, unless it is switched off. `app.state.site` must be there before the first request."""
    if not settings.web:
        return
    for module in MODULES:
        app.router.routes.extend(module.router.routes)
    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        _answer_as_page(app, kind)


def page_routes() -> list[PageRoute]:
    """Return the routes of all pages."""
    return [route for module in MODULES for route in module.router.routes if isinstance(route, PageRoute)]


def _answer_as_page(app: FastAPI, kind: type[Exception]) -> None:
    """Answer errors of this kind as a page that says what the API would say, if a person asks."""
    answer = app.exception_handlers[kind]

    async def handler(request: Request, error: Exception) -> Response:
        response: Response = await answer(request, error)  # type: ignore[misc]  # ours are all async
        if not _is_for_people(request):
            return response
        told = json.loads(bytes(response.body))
        if told["status"] == 404 and isinstance(error, HTTPException):
            told["detail"] = (
                f"there is no page {request.scope['path']}: search for what you want, or begin at the start"
            )
        page = show(request, "error.html", told["status"], problem=told, anchor=problem_anchor(told["title"]))
        for name in ("allow", "retry-after"):
            if name in response.headers:
                page.headers[name] = response.headers[name]
        return page

    app.add_exception_handler(kind, handler)


def _is_for_people(request: Request) -> bool:
    if isinstance(request.scope.get("route"), PageRoute):
        return True
    accepts = request.headers.get("accept", "")
    return "text/html" in accepts and not request.scope["path"].startswith(_MACHINES)
