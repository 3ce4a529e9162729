"""uvicorn's HTTP protocol, less patient: by itself it waits for a request's head for ever, however large it grows."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of a request's first line and headers; what came with the last of them is not counted."""


class Protocol(HttpToolsProtocol):
    """A head must come within `seconds`, from the connection or from its own first byte on.

    So must the rest of a body that the app has not waited for; the app itself has a limit for those it reads.
    """

    def __init__(self, *arguments: Any, seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._end_rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head > MAX_HEAD and not self.transport.is_closing():
            self._refuse(431, f"a request's head may have {MAX_HEAD:,} bytes: send fewer or shorter headers")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._end_rest()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:
            self._rest = self.loop.call_later(self._seconds, self.transport.close)
        super().on_response_complete()

    def _begin(self) -> None:
        self._head = 0
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
        if self._head:
            self._refuse(408, f"the request's head did not come within {self._seconds:g} s (request_timeout)")
        else:  # nothing was asked
            self._end()
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer as the app does, which this request does not reach, and hang up."""
        self._end()
        if self.cycle is None or self.cycle.response_complete:
            phrase = HTTPStatus(status).phrase
            body = json.dumps({"type": "about:blank", "title": phrase, "status": status, "detail": detail})
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write((head + body).encode())
        self.transport.close()
