"""Publishing to Pulse: pika on one thread of its own, with confirms. What is confirmed is on the broker."""

import asyncio
import json
import queue
import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import pika
import pika.exceptions
import structlog

from service.errors import Unavailable
from service.settings import PulseSettings

log = structlog.get_logger()


class Publisher(Protocol):
    async def publish(self, exchange: str, routing_key: str, message: dict[str, Any]) -> None:
        """Publish to `exchange/<user>/<exchange>`; returns once the broker has confirmed. At least once."""


@dataclass
class _Message:
    exchange: str
    routing_key: str
    body: bytes
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
    """The real one. The connection is made when it is first needed, and anew after any error."""

    def __init__(self, settings: PulseSettings) -> None:
        assert settings.url is not None
        self._parameters = pika.URLParameters(settings.url.get_secret_value())
        self._parameters.socket_timeout = self._parameters.blocked_connection_timeout = settings.timeout.total_seconds()
        self._timeout = settings.timeout.total_seconds()
        if self._parameters.heartbeat is None:  # a broker that went away without a word is noticed within two of them
            self._parameters.heartbeat = max(int(self._timeout), 10)
        self._prefix = f"exchange/{settings.user}/"
        self._messages: queue.Queue[_Message | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="pulse-publisher", daemon=True)
        self._thread.start()

    async def publish(self, exchange: str, routing_key: str, message: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        body = json.dumps(message).encode()
        item = _Message(self._prefix + exchange, routing_key, body, loop.create_future(), loop)
        self._messages.put(item)
        try:
            await asyncio.wait_for(item.confirmed, self._timeout)
        except TimeoutError:
            raise Unavailable(
                "pulse", f"the broker confirmed nothing on {item.exchange} within {self._timeout} s"
            ) from None

    async def close(self) -> None:
        """End the thread and the connection; one that hangs at a silent broker is left to end with the process."""
        self._messages.put(None)
        await asyncio.to_thread(self._thread.join, self._timeout)
        if self._thread.is_alive():
            log.warning("pulse-not-closed", why=f"the broker did not answer within {self._timeout:g} s")

    def _run(self) -> None:
        connection: pika.BlockingConnection | None = None
        channel: Any = None
        declared: set[str] = set()
        while (message := self._next(connection)) is not None:
            if message.confirmed.done():
                continue  # nobody waits for it any more, and whoever did will try again
            try:
                if connection is None or connection.is_closed:
                    connection = pika.BlockingConnection(self._parameters)
                    channel, declared = connection.channel(), set()
                    channel.confirm_delivery()
                if message.exchange not in declared:
                    channel.exchange_declare(message.exchange, "topic", durable=True)
                    declared.add(message.exchange)
                properties = pika.BasicProperties(
                    content_type="application/json", content_encoding="utf-8", delivery_mode=2
                )
                channel.basic_publish(message.exchange, message.routing_key, message.body, properties)
            except Exception as error:  # the thread must outlive whatever it meets
                log.warning("publish-failed", exchange=message.exchange, error=type(error).__name__, exc_info=True)
                message.settle(Unavailable("pulse", f"{message.exchange}: {type(error).__name__} {error}".strip()))
                _close(connection)
                connection = None
            else:
                message.settle(None)
        _close(connection)

    def _next(self, connection: pika.BlockingConnection | None) -> _Message | None:
        """The next message; heartbeats are answered while there is none."""
        while True:
            try:
                return self._messages.get(timeout=1)
            except queue.Empty:
                try:
                    if connection is not None and connection.is_open:
                        connection.process_data_events(0)
                except (pika.exceptions.AMQPError, OSError) as error:
                    log.info("pulse-connection-lost", error=type(error).__name__)


def _close(connection: pika.BlockingConnection | None) -> None:
    try:
        if connection is not None and connection.is_open:
            connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        log.info("pulse-close-failed", error=type(error).__name__)
