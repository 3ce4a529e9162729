"""uvicorn's HTTP protocol with limits: uvicorn itself waits for a request's head for ever, and bounds neither head,
trailers nor the number of pipelined requests.

h11 (and hypercorn, which uses it) bounds these, but parses small chunks ten times as slowly, which blocks the event
loop for 0.1 s with every read, and would need the same timers.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request beside its body: first line, headers, sizes and extensions of chunks, trailers."""

MAX_HEADERS = 200
"""Lines of a request's head."""

MAX_DISCARDED = 1024 * 1024
"""Bytes that are read and dropped after an early answer: a caller that is still sending would otherwise see a reset."""

MAX_PIPELINED = 8
"""Requests of one connection that wait while another one is answered."""

_FRAMING = 16
"""Bytes around its body that each byte of the body may have in addition to MAX_HEAD: a chunk can be that small."""


class Protocol(HttpToolsProtocol):
    """Bound everything that is read of a request, but for the body that the app reads and limits itself.

    A head must come within `seconds`, from the connection or from its own first byte on; so must the rest of a body
    that the app does not wait for.
    """

    def __init__(self, *arguments: Any, seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._left = MAX_HEAD  # bytes that may still come, beside a body that the app takes
        self._asked = False  # something of the next head has come
        self._complete = False  # the last request is, and nothing of the next one has come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._end_rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._complete:  # also an empty line, of which the parser says nothing
            self._complete = False
            self._begin()
        self._asked = True
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            detail = f"a request may have {MAX_HEAD:,} bytes beside its body: send fewer or shorter headers or trailers"
            self._refuse(431, detail)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser ends, and `send_400_response` is called
        super().on_message_begin()
        self._complete = False
        if self._deadline is None:
            self._begin()
        self._asked = True

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        self._end()
        super().on_headers_complete()
        self.headers = []  # for trailers, which uvicorn would add to those of the head while the app reads them

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if not self.cycle.response_complete:
            self._left = min(MAX_HEAD, self._left + _FRAMING * len(body))

    def on_message_complete(self) -> None:
        self._end_rest()
        self._complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:
            self._left += MAX_DISCARDED
            self._rest = self.loop.call_later(self._seconds, self.transport.close)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        detail = (
            f"this is no HTTP/1.1 request, has more than {MAX_HEADERS} headers, or is one of more than "
            f"{MAX_PIPELINED} that wait on this connection"
        )
        self._refuse(400, detail)

    def _begin(self) -> None:
        self._end()
        self._left = MAX_HEAD
        self._asked = False
        self._deadline = self.loop.call_later(self._seconds, self._late)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _late(self) -> None:
        if self._asked:
            self._refuse(408, f"the request's head did not come within {self._seconds:g} s (request_timeout)")
        else:
            self._end()
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer as the app does, which this request does not reach, and close the connection."""
        self._end()
        if self.cycle is None or self.cycle.response_complete:
            phrase = HTTPStatus(status).phrase
            body = json.dumps({"type": "about:blank", "title": phrase, "status": status, "detail": detail})
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write((head + body).encode())
        self.transport.close()
