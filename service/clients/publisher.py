"""Publish messages to Pulse, with pika on a thread of its own and publisher confirms.

A confirmed message has reached the broker, but not necessarily a queue: the broker confirms and drops a message that no
queue is bound for. A message that somebody has to read is published as `mandatory`; if the broker returns it, it counts
as not published.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions
import structlog

from service.clients.pulse import exchange_name
from service.contract import tracing
from service.contract.broker import error_text, find_remedy
from service.errors import Unavailable
from service.settings import PulseSettings

log = structlog.get_logger()

LONGEST_CLOSE = 5.0
"""Seconds that the end of the process waits for the broker: by then nobody waits for a confirm."""


def _with_remedy(error: Exception) -> str:
    """Return the reason why the broker cannot be used, and what a person can do about it."""
    return f"{error_text(error)}. {remedy}" if (remedy := find_remedy(error)) else error_text(error)


@dataclass
class _Message:
    exchange: str
    routing_key: str
    body: bytes
    mandatory: bool
    confirmed: "asyncio.Future[None]" = field(repr=False)
    loop: asyncio.AbstractEventLoop = field(repr=False)

    def settle(self, error: Exception | None) -> None:
        def resolve() -> None:
            if self.confirmed.done():
                return
            if error is None:
                self.confirmed.set_result(None)
            else:
                self.confirmed.set_exception(error)

        self.loop.call_soon_threadsafe(resolve)


class PulsePublisher:
    """A publisher that connects and declares `exchanges` at once, and again after any error.

    An exchange must exist before its first message: a message without a bound queue is lost, and no queue can be bound
    to an exchange that does not exist. While the broker is unreachable, the connection is retried every `retry`.
    """

    def __init__(self, settings: PulseSettings, exchanges: Iterable[str] = ()) -> None:
        assert settings.url is not None
        self._parameters = pika.URLParameters(settings.url.get_secret_value())
        self._parameters.socket_timeout = self._parameters.blocked_connection_timeout = settings.timeout.total_seconds()
        self._timeout = settings.timeout.total_seconds()
        if self._parameters.heartbeat is None:  # a broken connection is noticed within two heartbeats
            self._parameters.heartbeat = max(int(self._timeout), 10)
        self._user = settings.user
        self._retry = settings.retry.total_seconds()
        self._exchanges = list(exchanges)
        self._messages: queue.Queue[_Message | None] = queue.Queue()
        self._connection: pika.BlockingConnection | None = None
        self._channel: Any = None
        self._declared: set[str] = set()
        self._connect_at = 0.0  # time.monotonic() of the next attempt to connect without a message
        self._unavailable = False  # the failed connection was logged
        self._thread = threading.Thread(target=self._run, name="pulse-publisher", daemon=True)
        self._thread.start()

    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        loop = asyncio.get_running_loop()
        body = json.dumps(message).encode()
        name = exchange_name(self._user, exchange)
        item = _Message(name, routing_key, body, mandatory, loop.create_future(), loop)
        with tracing.span("publish", exchange=name, routing_key=routing_key):
            self._messages.put(item)
            try:
                await asyncio.wait_for(item.confirmed, self._timeout)
            except TimeoutError:
                raise Unavailable(
                    "pulse", f"the broker sent no confirm for {item.exchange} within {self._timeout} s"
                ) from None

    async def close(self) -> None:
        """End the thread and the connection. A thread that waits for a silent broker ends with the process."""
        self._messages.put(None)
        seconds = min(self._timeout, LONGEST_CLOSE)
        await asyncio.to_thread(self._thread.join, seconds)
        if self._thread.is_alive():
            log.warning("pulse-not-closed", why=f"the broker did not answer within {seconds:g} s")

    def _run(self) -> None:
        while (message := self._next()) is not None:
            if message.confirmed.done():
                continue  # the caller timed out, and will retry
            try:
                self._connect()
                self._declare(message.exchange)
                properties = pika.BasicProperties(
                    content_type="application/json", content_encoding="utf-8", delivery_mode=2
                )
                self._channel.basic_publish(
                    message.exchange, message.routing_key, message.body, properties, mandatory=message.mandatory
                )
            except pika.exceptions.UnroutableError:
                reason = (
                    f"no queue is bound to {message.exchange} for {message.routing_key!r}, so nobody would receive it"
                )
                message.settle(Unavailable("pulse", reason))
            except Exception as error:  # the thread must survive any error
                log.warning("publish-failed", exchange=message.exchange, error=type(error).__name__, exc_info=True)
                message.settle(Unavailable("pulse", f"{message.exchange}: {_with_remedy(error)}"))
                self._disconnect()
            else:
                message.settle(None)
        self._disconnect()

    def _next(self) -> _Message | None:
        """Return the next message. Until there is one, answer heartbeats and restore a lost connection."""
        while True:
            self._prepare()
            try:
                return self._messages.get(timeout=max(0.01, min(1.0, self._retry)))
            except queue.Empty:
                continue

    def _prepare(self) -> None:
        """Answer heartbeats, or connect if no message waits and the next attempt is due."""
        try:
            if self._connection is not None and self._connection.is_open:
                self._connection.process_data_events(0)
            elif self._messages.empty() and time.monotonic() >= self._connect_at:
                self._connect_at = time.monotonic() + self._retry
                self._connect()
        except Exception as error:  # noqa: BLE001 - the thread must survive any error; the connection is retried
            if not self._unavailable:
                log.warning("pulse-unavailable", why=_with_remedy(error), again_in=self._retry)
            self._unavailable = True
            self._disconnect()

    def _connect(self) -> None:
        if self._connection is not None and self._connection.is_open:
            return
        self._connection = pika.BlockingConnection(self._parameters)
        self._declared = set()
        self._open_channel()
        refusals = [reason for name in self._exchanges if (reason := self._try_declare(name))]
        if refusals:  # the name is in use with other properties, or a permission is missing; the others still work
            log.error("exchanges-refused", why=refusals, remedy="tc-treeherder doctor")
        if self._unavailable:
            log.info("pulse-available")
        self._unavailable = False

    def _open_channel(self) -> None:
        assert self._connection is not None
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def _try_declare(self, exchange: str) -> str | None:
        """Declare an exchange. Return the broker's reason if it refuses."""
        try:
            self._declare(exchange)
        except pika.exceptions.ChannelClosedByBroker as error:
            self._open_channel()
            return f"{exchange}: {error.reply_text}"
        return None

    def _declare(self, exchange: str) -> None:
        if exchange not in self._declared:
            self._channel.exchange_declare(exchange, "topic", durable=True)
            self._declared.add(exchange)

    def _disconnect(self) -> None:
        try:
            if self._connection is not None and self._connection.is_open:
                self._connection.close()
        except (pika.exceptions.AMQPError, OSError) as error:
            log.info("pulse-close-failed", error=type(error).__name__)
        self._connection = None
