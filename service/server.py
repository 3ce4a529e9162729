"""Run uvicorn, with limits for its HTTP protocol, and without its ten looks a second for whether it is to end.

Without them, uvicorn waits for a request's head for ever, and limits neither the size of head and trailers nor the
number of pipelined requests. h11 (and hypercorn, which uses it) has such limits, but parses small chunks ten times as
slowly, which blocks the event loop for 0.1 s with every read, and would need the same timers.

The classes use parts of uvicorn that are not its documented interface (they are those of 0.54.0); of the server
main_loop, on_tick, handle_exit, and of `HttpToolsProtocol`:

    pipeline, cycle, cycle.response_complete, cycle.more_body, headers, loop, transport
    on_message_begin, on_headers_complete, on_body, on_message_complete, on_response_complete, send_400_response
    scope, shutdown

`tests/service/test_server.py` fails when an upgrade removes one of them.
"""

import asyncio
import json
import sys
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import problem_type

MAX_HEAD = 64 * 1024
"""Largest size of a request without its body, in bytes: first line, headers, chunk sizes and extensions, trailers."""

MAX_HEADERS = 200
"""Largest number of headers of a request."""

MAX_DISCARDED = 1024 * 1024
"""Bytes that are read and dropped after an early answer, because a caller that is still sending would see a reset."""

MAX_PIPELINED = 8
"""Largest number of requests on one connection that wait while another one is answered."""

_FRAMING = 16
"""Bytes of chunk framing that are allowed per byte of the body, beside MAX_HEAD: a chunk can have a single byte."""


TICK = 1.0
"""Seconds between two changes of the `Date` header."""

STARTUP_FAILED = 3
"""Exit code of a process whose app did not start."""


class Server(uvicorn.Server):
    """A server that sleeps until a signal. uvicorn's own looks took more than half of the CPU of an idle service."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Serve until a signal."""
        self._signalled = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._signalled.wait(), TICK)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End soon: a signal has come."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)


def run(config: uvicorn.Config) -> None:
    """Serve until a signal. Ends the process with exit code 3 if the app does not start."""
    server = Server(config)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal that stopped it again
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)


class Protocol(HttpToolsProtocol):
    """An HTTP protocol that limits everything of a request except the body, which the app reads and limits itself.

    A head must arrive within `seconds`, counted from the connection or from the head's first byte. So must the rest of
    a body that the app does not read to its end.
    """

    def __init__(self, *arguments: Any, seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._seconds = seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._bytes_left = MAX_HEAD  # that may still arrive, beside the body that the app reads
        self._head_begun = False  # bytes of the next head have arrived
        self._idle = False  # the last request is complete, and no byte of the next one has arrived

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_body_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._idle:  # here, because the parser does not report an empty line
            self._idle = False
            self._begin_head()
        self._head_begun = True
        self._bytes_left -= len(data)
        super().data_received(data)
        if self._bytes_left < 0 and not self.transport.is_closing():
            detail = f"a request may have {MAX_HEAD:,} bytes beside its body: send fewer or shorter headers or trailers"
            self._refuse(431, detail)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser ends, and calls `send_400_response`
        super().on_message_begin()
        self.scope["abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # for answers that nobody reads
        self._idle = False
        if self._head_timer is None:
            self._begin_head()
        self._head_begun = True

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        self._cancel_head_timer()
        super().on_headers_complete()
        self.headers = []  # otherwise uvicorn adds trailers to the headers that the app is reading

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if not self.cycle.response_complete:
            self._bytes_left = min(MAX_HEAD, self._bytes_left + _FRAMING * len(body))

    def on_message_complete(self) -> None:
        self._cancel_body_timer()
        self._idle = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:
            self._bytes_left += MAX_DISCARDED
            self._body_timer = self.loop.call_later(self._seconds, self.transport.close)
        super().on_response_complete()

    def shutdown(self) -> None:
        """End with the server: an answer without an end is cut off, every other one is waited for."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.scope.get("endless"):
            self.transport.close()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        detail = (
            f"this is not an HTTP/1.1 request, or it has more than {MAX_HEADERS} headers, or more than "
            f"{MAX_PIPELINED} requests wait on this connection"
        )
        self._refuse(400, detail)

    def _begin_head(self) -> None:
        self._cancel_head_timer()
        self._bytes_left = MAX_HEAD
        self._head_begun = False
        self._head_timer = self.loop.call_later(self._seconds, self._time_out_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _time_out_head(self) -> None:
        if self._head_begun:
            self._refuse(408, f"the request's head did not arrive within {self._seconds:g} s (request_timeout)")
        else:
            self._cancel_head_timer()
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer in the form of the app's errors, and close the connection."""
        self._cancel_head_timer()
        if self.cycle is None or self.cycle.response_complete:
            phrase = HTTPStatus(status).phrase
            body = json.dumps({"type": problem_type(phrase), "title": phrase, "status": status, "detail": detail})
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write((head + body).encode())
        self.transport.close()
