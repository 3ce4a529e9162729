"""Answer one API method over HTTP: faults, credentials, the body, the method, the answer."""

import asyncio
import contextlib
import inspect
import json
import re
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import AuthFailed, Caller, Request, payload_hash
from sandbox.taskcluster.clock import iso
from sandbox.taskcluster.errors import ApiError, code_for, footer
from sandbox.taskcluster.faults import Creation, Fault
from sandbox.taskcluster.instance import Taskcluster
from sandbox.taskcluster.methods import Answer, Call, Method
from sandbox.taskcluster.tasks import Json

MAX_BODY = 10 * 1024 * 1024
"""Bytes of a request body; more are answered 500, always."""


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
            if not await self._apply_fault(fault, scope, receive, send):
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

    async def _apply_fault(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> bool:
        """Apply a fault before the method is called; return False if the call ends with it."""
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
            self._check_segments(scope)
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

    def _check_segments(self, scope: Scope) -> None:
        """Raise the 404 for a slash that is not encoded in a parameter; only names of artifacts may have one."""
        raw = scope["raw_path"].decode("latin-1").partition("/v1/")[2]
        if "{name:path}" not in self._method.path and raw.count("/") != self._method.path.count("/") - 1:
            raise ApiError("ResourceNotFound", "Not found")

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
        ending = footer(self._method.name, error.code, status, moment)
        info = {"method": self._method.name, "params": scope["path_params"], "payload": body, "time": moment}
        headers = ((b"www-authenticate", b"hawk"),) if status == 401 else ()
        return Answer(status, {"code": error.code, "message": error.message + ending, "requestInfo": info}, headers)

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
    """Return the body, cut shortly after the limit, or None if the caller disconnected."""
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
    except RecursionError:
        raise ApiError("MalformedPayload", "Failed to parse JSON: nested too deeply") from None
    except ValueError as error:
        raise ApiError("MalformedPayload", f"Failed to parse JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?")


def _host(header: str, scheme: str) -> tuple[str, int]:
    """Parse host and port as mohawk signs them: the scheme's default port, and IPv6 without brackets."""
    match = _HOST.fullmatch(header)
    if match is None:
        return header, 0
    return match[1].strip("[]"), int(match[2] or (443 if scheme == "https" else 80))


async def _until_gone(receive: Receive, removed: asyncio.Event) -> None:
    """Wait until the caller disconnects, or the event is set."""
    waits = [asyncio.create_task(_gone(receive)), asyncio.create_task(removed.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _drop(receive: Receive, send: Send) -> None:
    """Close the connection without an answer through uvicorn's transport; without one raise ConnectionResetError."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionResetError("a fault was set: the connection was dropped")
    transport.abort()
    await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Wait until the caller disconnects, which is the only message after the body."""
    message = await receive()
    if message["type"] != "http.disconnect":
        raise RuntimeError(f"{message['type']} came after the whole body")
