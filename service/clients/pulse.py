"""Publishing to Pulse: pika on one thread of its own, with confirms. What is confirmed is on the broker.

A confirm does not say that anybody listens: a message that no queue takes is confirmed and gone. Where somebody has to
read it, it is published as `mandatory`, and one that the broker returns counts as not published.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pika
import pika.exceptions
import structlog

from service.errors import Unavailable
from service.settings import PulseSettings, Settings

log = structlog.get_logger()

HGPUSHES = "hgpushes/v1"
"""Pushes in the form that a Treeherder reads; it takes only exchanges with `/hgpushes/` in their names."""

JOBS = "v1/jobs"
"""Jobs in the form of pulse-job.yml."""

ANNOUNCEMENTS = "v1/pushes"
"""Pushes, for whoever wants to know of them."""

RETRIGGERS = "v1/retrigger"
"""Tasks that were copied, for whoever wants to know of them."""

LONGEST_CLOSE = 5.0
"""Seconds that the end of the process waits for the broker: nobody waits for a confirm any more."""


def exchange_name(user: str, name: str) -> str:
    """Return the full name of an exchange of ours; one that is named in full stays as it is."""
    return name if name.startswith("exchange/") else f"exchange/{user}/{name}"


def exchanges(settings: Settings) -> list[str]:
    """Return the full names of all exchanges that a service with these settings publishes on."""
    names = {ANNOUNCEMENTS, RETRIGGERS}
    for environment in settings.environments.values():
        if environment.pushes == "pulse":
            names.add(environment.pushes_exchange or HGPUSHES)
        if environment.jobs == "pulse":
            names.add(JOBS)
    return sorted(exchange_name(settings.pulse.user, name) for name in names)


class Publisher(Protocol):
    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        """Publish to `exchange/<user>/<exchange>`, or to an exchange that is named in full. At least once.

        Returns once the broker has confirmed. Raises Unavailable, for a `mandatory` message that no queue took too.
        """


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
    """The real one. It connects at once, declares `exchanges`, and does both again after any error.

    An exchange has to be there before its first message: a message without a queue is lost, and a queue cannot be bound
    to an exchange that is not there. A broker that is away is tried again every `retry`.
    """

    def __init__(self, settings: PulseSettings, exchanges: Iterable[str] = ()) -> None:
        assert settings.url is not None
        self._parameters = pika.URLParameters(settings.url.get_secret_value())
        self._parameters.socket_timeout = self._parameters.blocked_connection_timeout = settings.timeout.total_seconds()
        self._timeout = settings.timeout.total_seconds()
        if self._parameters.heartbeat is None:  # a broker that went away without a word is noticed within two of them
            self._parameters.heartbeat = max(int(self._timeout), 10)
        self._user = settings.user
        self._retry = settings.retry.total_seconds()
        self._exchanges = list(exchanges)
        self._messages: queue.Queue[_Message | None] = queue.Queue()
        self._connection: pika.BlockingConnection | None = None
        self._channel: Any = None
        self._declared: set[str] = set()
        self._connect_at = 0.0  # when to try it next without a message, by time.monotonic()
        self._away = False  # whether that was logged
        self._thread = threading.Thread(target=self._run, name="pulse-publisher", daemon=True)
        self._thread.start()

    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        loop = asyncio.get_running_loop()
        body = json.dumps(message).encode()
        name = exchange_name(self._user, exchange)
        item = _Message(name, routing_key, body, mandatory, loop.create_future(), loop)
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
        seconds = min(self._timeout, LONGEST_CLOSE)
        await asyncio.to_thread(self._thread.join, seconds)
        if self._thread.is_alive():
            log.warning("pulse-not-closed", why=f"the broker did not answer within {seconds:g} s")

    def _run(self) -> None:
        while (message := self._next()) is not None:
            if message.confirmed.done():
                continue  # nobody waits for it any more, and whoever did will try again
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
                reason = f"no queue is bound to {message.exchange} for {message.routing_key!r}: nobody listens there"
                message.settle(Unavailable("pulse", reason))
            except Exception as error:  # the thread must outlive whatever it meets
                log.warning("publish-failed", exchange=message.exchange, error=type(error).__name__, exc_info=True)
                message.settle(Unavailable("pulse", f"{message.exchange}: {type(error).__name__} {error}".strip()))
                self._disconnect()
            else:
                message.settle(None)
        self._disconnect()

    def _next(self) -> _Message | None:
        """Return the next message. While there is none, heartbeats are answered, and a lost connection is made anew."""
        while True:
            self._prepare()
            try:
                return self._messages.get(timeout=max(0.01, min(1.0, self._retry)))
            except queue.Empty:
                continue

    def _prepare(self) -> None:
        """Connect and declare, if that is to be tried now and no message waits; answer heartbeats."""
        try:
            if self._connection is not None and self._connection.is_open:
                self._connection.process_data_events(0)
            elif self._messages.empty() and time.monotonic() >= self._connect_at:
                self._connect_at = time.monotonic() + self._retry
                self._connect()
        except Exception as error:  # noqa: BLE001 - as above: it is tried again
            if not self._away:
                log.warning("pulse-unavailable", error=type(error).__name__, why=str(error), again_in=self._retry)
            self._away = True
            self._disconnect()

    def _connect(self) -> None:
        if self._connection is not None and self._connection.is_open:
            return
        self._connection = pika.BlockingConnection(self._parameters)
        self._declared = set()
        self._open_channel()
        refused = [error for name in self._exchanges if (error := self._refused(name))]
        if refused:  # by what is there under the name, or for want of a permission: the others are not kept from it
            log.error("exchanges-refused", why=refused, remedy="tc-treeherder doctor")
        if self._away:
            log.info("pulse-available")
        self._away = False

    def _open_channel(self) -> None:
        assert self._connection is not None
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def _refused(self, exchange: str) -> str | None:
        """Declare an exchange; return why the broker does not let us."""
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
