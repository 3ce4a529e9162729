"""Define the service's errors, and answer with application/problem+json (RFC 9457).

Problem                     an answer of our API
UpstreamError               an upstream system did not do what was requested
  Unavailable               a temporary failure: retry later
  PermanentUpstreamError    a permanent failure: the same request will fail again
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.contract.retry import retry_after
from service.contract.validation import explain
from service.sanitize import sanitize_json

log = structlog.get_logger()

_TITLES = {413: "Content Too Large"}
"""Titles that Python has other words for before 3.13."""

_MAX_ERRORS = 20
"""Errors of one request that an answer lists: a list can have a million of them."""


class Problem(Exception):
    """An error for the caller of the API: what is wrong, with which value, and what to do."""

    def __init__(
        self, status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.headers, self.more = status, title, detail, headers, more


class UpstreamError(Exception):
    """An upstream system did not do what was requested. `system` is hg, taskcluster, treeherder or pulse."""

    def __init__(self, system: str, message: str) -> None:
        super().__init__(message)
        self.system = system


class Unavailable(UpstreamError):
    """A temporary failure. `retry_after` is the wait that the upstream asked for, and `status` is HTTP's, if any."""

    def __init__(
        self, system: str, message: str, retry_after: timedelta | None = None, status: int | None = None
    ) -> None:
        super().__init__(system, message)
        self.retry_after, self.status = retry_after, status


MAX_RETRY_AFTER = 3600
"""Seconds that an upstream may ask us to wait at most."""


def wait_asked_for(headers: Mapping[str, str]) -> timedelta | None:
    """Return the wait that the answer's `Retry-After` asks for, up to `MAX_RETRY_AFTER`; None: our own backoff."""
    seconds = retry_after(headers.get("retry-after"))
    return None if seconds is None else timedelta(seconds=min(seconds, MAX_RETRY_AFTER))


class PermanentUpstreamError(UpstreamError):
    """A permanent failure, which a retry does not change. `status` is HTTP's."""

    def __init__(self, system: str, message: str, status: int) -> None:
        super().__init__(system, message)
        self.status = status


def problem_anchor(title: str) -> str:
    """Return the anchor of the section that explains problems of this title."""
    return title.lower().replace(" ", "-")


def problem_type(title: str) -> str:
    """Return the `type` of problems of this title: the address of their explanation, relative to this service."""
    return f"/problems#{problem_anchor(title)}"


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return a problem+json answer, sanitized."""
    return JSONResponse(
        sanitize_json({"type": problem_type(title), "title": title, "status": status, "detail": detail, **more}),
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` with problem+json."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> Response:
        return problem(error.status, error.title, error.detail, error.headers, **error.more)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        body = getattr(request.scope.get("route"), "body_field", None)
        model = None if body is None else body.field_info.annotation
        errors = [
            {"at": ".".join(map(str, it["loc"])), "message": explain(it, model, quote=True)}
            for it in error.errors()[:_MAX_ERRORS]
        ]
        return problem(422, "Invalid request", "; ".join(it["message"] for it in errors), errors=errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            # not request.url, which raises if the query is not UTF-8
            detail = f"the API has no path {request.scope['path']}: see /docs for all paths"
        headers = dict(error.headers or {})
        title = _TITLES.get(error.status_code, HTTPStatus(error.status_code).phrase)
        if error.status_code == 405:  # Starlette only names the methods of the first route with that path
            headers["Allow"] = _methods(app, request.scope["path"])
            detail = f"{request.scope['path']} accepts {headers['Allow']}, and not {request.method}: see /docs"
        return problem(error.status_code, title, detail, headers)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        log.error("request-failed", path=request.scope["path"], exc_info=error)
        return problem(
            500, "Internal error", "this is a bug, or the database cannot be reached: try again; the log has the cause"
        )


def _methods(app: FastAPI, path: str) -> str:
    """Return all methods that the path accepts, in the form of `Allow`."""
    methods: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            methods |= operations.keys()
    return ", ".join(sorted(methods)).upper()
