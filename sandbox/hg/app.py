"""Serve the stand-in over HTTP: hgweb's json-pushes and raw-file, and `/__control__/` to change repositories."""

from __future__ import annotations

import asyncio
import functools
import html
import json
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from sandbox.hg.faults import Fault, Faults, Requests
from sandbox.hg.memory import MemoryPushlog
from sandbox.hg.pushlog import (
    MissingFileError,
    NewChangeset,
    Pushlog,
    Query,
    UnknownRepositoryError,
    UnknownRevisionError,
)

_REQUEST = re.compile(r"/(?:(?P<repository>.+?)/)?(?P<command>json-pushes|raw-file)(?:/(?P<rest>.*))?", re.DOTALL)
_NO_REPOSITORY = """\
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en-US">
<head><title>Mercurial repository not found</title></head>
<body>
<h2>Mercurial repository not found</h2>
The specified repository "{}" is unknown, sorry.
</body>
</html>
"""


def create_app(pushlog: Pushlog) -> Starlette:
    """Return an ASGI app that serves a pushlog.

    `app.state` has the `pushlog`, its `faults` and the counted `requests`. Every answer carries its own `Date`, by the
    pushlog's clock: run uvicorn with `date_header=False`, otherwise answers have two dates.
    """
    faults, requests = Faults(pushlog.clock), Requests()
    app = Starlette(
        routes=[
            Mount("/__control__", routes=_control(pushlog, faults, requests)),
            Mount("/", app=_Hgweb(pushlog, faults, requests)),
        ]
    )
    app.state.pushlog, app.state.faults, app.state.requests = pushlog, faults, requests
    return app


class _Hgweb:
    def __init__(self, pushlog: Pushlog, faults: Faults, requests: Requests) -> None:
        self._pushlog = pushlog
        self._faults = faults
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = unquote_to_bytes(scope["raw_path"].removeprefix(scope.get("root_path", "").encode()))
        match = _REQUEST.fullmatch(path.decode("utf-8", "surrogateescape"))
        command = match["command"] if match else "other"
        repository = (match["repository"] or "") if match else ""
        status, began_at = 500, time.time()
        self._requests.begin(command, repository, conditional="if-none-match" in request.headers)
        try:
            if match is None:
                response = _no_repository(path.decode(errors="replace").strip("/"))
            else:
                response = await self._answer(request, repository, command, match["rest"] or "")
            status = response.status_code
            if command == "json-pushes" and status == 200:
                self._requests.listed(repository, self._pushlog.last_push_id(repository), began_at)
            response.headers["Date"] = formatdate(self._pushlog.clock(), usegmt=True)
            await response(scope, receive, send)
        finally:
            self._requests.end(command, status)

    async def _answer(self, request: Request, repository: str, command: str, rest: str) -> Response:
        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("the stand-in only answers GET", 405)
        fault = self._faults.take(repository, command)
        if fault is not None:
            if fault.kind == "status":
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return PlainTextResponse(f"{fault.status}: a fault that was asked for\n", fault.status, headers)
            if fault.kind == "garbage":
                return Response(b"<html>\xff\x00 not what you asked for", media_type="application/json")
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
        lag = fault if fault is not None and fault.kind == "lag" else None
        read = functools.partial(self._read, request, repository, command, rest, lag)
        response = await asyncio.to_thread(read) if self._pushlog.blocking else read()
        if fault is not None and fault.kind in {"truncated", "hangup"}:
            kind = _HangUp if fault.kind == "hangup" else Response
            half = bytes(response.body)[: len(response.body) // 2]
            return kind(half, media_type=response.headers.get("content-type"))
        return response

    def _read(self, request: Request, repository: str, command: str, rest: str, lag: Fault | None) -> Response:
        upto = None if lag is None else lag.upto
        try:
            if lag is not None and upto is None:
                upto = self._pushlog.last_push_id(repository) - 1
            # whole seconds, read before the data: a later change in the same second has the same tag
            tag = f'W/"{int(self._pushlog.changed(repository, upto=upto))}"'
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304)
            if command == "json-pushes":
                ahead = lag is not None and lag.ahead
                response = self._json_pushes(repository, request.query_params.multi_items(), upto, ahead)
            else:
                response = self._raw_file(repository, rest, upto)
        except UnknownRepositoryError:
            return _no_repository(repository)
        response.headers["ETag"] = tag
        return response

    def _json_pushes(
        self, repository: str, parameters: list[tuple[str, str]], upto: int | None, ahead: bool
    ) -> Response:
        try:
            body = self._pushlog.json_pushes(repository, Query.parse(parameters), upto=upto, ahead=ahead)
        except UnknownRevisionError as error:
            body = json.dumps({"error": str(error)}, indent=1).encode()
            return Response(body, 404, media_type="application/json")
        except ValueError as error:
            return PlainTextResponse(f"Internal Server Error\n{error}\n", 500)
        return Response(body, media_type="application/json")

    def _raw_file(self, repository: str, rest: str, upto: int | None) -> Response:
        revision, _, path = rest.partition("/")
        try:
            body, listing = self._pushlog.raw_file(
                repository, revision or "tip", path.encode("utf-8", "surrogateescape"), upto=upto
            )
        except UnknownRevisionError as error:
            name = error.name.encode("utf-8", "surrogateescape")
            # hgweb puts a node's 20 bytes, not their hex, into its answer
            displayed_name = bytes.fromhex(error.name) if re.fullmatch("[0-9a-f]{40}", error.name) else name
            return _text(b"\nerror: revision not found: " + displayed_name + b"\n", 404)
        except MissingFileError as error:
            return _text(b"\nerror: %s@%s: not found in manifest\n" % (error.path, error.node.encode()), 404)
        return _text(body, 200) if listing else Response(body, media_type="application/binary")


class _HangUp(Response):
    """A response that announces a longer body than it sends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["content-length"] = str(2 * len(self.body) + 1)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # uvicorn drops the connection; through httpx.ASGITransport the client gets the same error as on a socket
        raise httpx.RemoteProtocolError("hangup: a fault that was asked for")


def _text(body: bytes, status: int) -> Response:
    return Response(body, status, media_type="text/plain")


def _no_repository(name: str) -> Response:
    escaped_name = html.escape(name.encode(errors="replace").decode())
    return Response(_NO_REPOSITORY.format(escaped_name), 404, media_type="text/html")


def _control(pushlog: Pushlog, faults: Faults, requests: Requests) -> list[Route]:
    """Return the routes under `/__control__`; each takes a JSON object with the arguments of its method."""

    def list_repositories() -> Any:
        return [{"repository": name, "last_push_id": pushlog.last_push_id(name)} for name in pushlog.repositories()]

    def push(repository: str, changesets: list[dict[str, Any]] | None = None, **options: Any) -> Any:
        new = (NewChangeset(),) if changesets is None else [NewChangeset(**changeset) for changeset in changesets]
        pushed = pushlog.push(repository, new, **options)
        return {"id": pushed.id, "user": pushed.user, "date": pushed.date, "changesets": list(pushed.nodes)}

    def fault(**options: Any) -> None:
        faults.add(Fault(**options))

    commands: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/repositories", list_repositories),
        ("POST", "/repositories", pushlog.create),
        ("POST", "/push", push),
        ("POST", "/obsolete", pushlog.obsolete),
        ("POST", "/strip", pushlog.strip),
        ("POST", "/reset", pushlog.reset),
        ("POST", "/faults", fault),
        ("DELETE", "/faults", faults.clear),
        ("GET", "/requests", requests.report),
        ("DELETE", "/requests", requests.clear),
        ("GET", "/arrivals", requests.arrivals),
    ]
    if isinstance(pushlog, MemoryPushlog):
        commands.append(("POST", "/load", pushlog.load))
    return [Route(path, _endpoint(command), methods=[method]) for method, path, command in commands]


def _endpoint(command: Callable[..., Any]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        body = await request.body()
        try:
            done = await asyncio.to_thread(command, **(json.loads(body) if body else {}))
        except LookupError as error:
            return _json({"error": str(error)}, 404)
        except (TypeError, ValueError) as error:  # TypeError: unknown or missing arguments
            return _json({"error": str(error)}, 400)
        except (OSError, RuntimeError) as error:  # hg reports a read-only or a full disk by its exit code
            remedy = "Give the folder write access and free space, or start the sandbox with TMPDIR or --no-mercurial."
            return _json({"error": f"the repositories cannot be written ({error}). {remedy}"}, 507)
        return _json({} if done is None else done)

    return answer


def _json(content: Any, status: int = 200) -> Response:
    """Return JSON in ASCII: no UTF-8 can hold the lone surrogates that stand for raw bytes."""
    return Response(json.dumps(content), status, media_type="application/json")
