"""A queue at a broker: read on one thread, given on by another, and acknowledged only when that is done.

    broker ──▶ read ──▶ Inbox ──▶ give: a batch at a time ──▶ acknowledge, on the thread that reads

Each queue has a connection and a channel of its own, so that none waits for another, breaks with it, or is acknowledged
by its `multiple`. While nothing can be given, `prefetch` ends the reading, and heartbeats go on.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

import pika
import pika.exceptions
import structlog

from listeners.broker import BROKER_ERRORS, _wanted, close, remedy, told
from listeners.channel import LOOK, LOST, Lost, Session
from listeners.forward import Rejected, Unanswered
from listeners.inbox import Delivery, Inbox, Item
from listeners.retry import ListenerStopped, backoff
from listeners.settings import ListenerSettings

log = structlog.get_logger()

Found = Literal["there", "new", "deleted"]
"""How a queue was found: it was there; it was not, and was declared; likewise, though it had been read before."""

STEADY = 10.0
"""Seconds; a connection that held so long was a good one, and its loss is no reason to wait long for the next."""


class CancelledError(pika.exceptions.AMQPError):  # type: ignore[misc]  # pika publishes no types
    """The broker ended the consumer, as it does when the queue is deleted."""


@dataclass(frozen=True)
class Binding:
    exchange: str
    routing_keys: tuple[str, ...]


class Consumer(Generic[Item]):
    """Reads `queue`, declares and binds it, and reconnects whenever it has to, until `stop` is set.

    `read` makes an item of a delivery (the channel's UUID, method, properties, body); `give` takes a batch of them and
    their session, and returns when they may be acknowledged, or raises `Lost`; `idle` is called when nothing more came
    for a moment, and at the end; `report` tells the service what was found. The last three may take as long as they
    need, and raise `ListenerStopped` at the end. `counts` and `missing` (exchanges that are not there) are for people.
    """

    def __init__(
        self,
        queue: str,
        bindings: Sequence[Binding],
        settings: ListenerSettings,
        parameters: Any,
        stop: threading.Event,
        read: Callable[[str, Any, Any, bytes], Item],
        give: Callable[[list[Item], Session], None],
        report: Callable[[Found], None],
        idle: Callable[[], None] | None = None,
    ) -> None:
        self.queue = queue
        self.inbox: Inbox[Item] = Inbox(
            settings.pulse_batch, settings.chunk_bytes, settings.pulse_linger.total_seconds()
        )
        self.counts: Counter[str] = Counter()
        self.missing: list[str] = []
        self.connected = False
        self._bindings, self._settings, self._parameters, self._stop = bindings, settings, parameters, stop
        self._read: Callable[[str, Any, Any, bytes], Item] = read
        self._give_on: Callable[[list[Item], Session], None] = give
        self._report, self._idle = report, idle or (lambda: None)
        self._known = False
        self._seen = time.monotonic()
        self._found: Found = "there"
        self._report_at = 0.0
        self._given = threading.Event()

    @property
    def away(self) -> float:
        """Seconds since it was last seen connected."""
        return time.monotonic() - self._seen

    # Giving

    def give_until_stopped(self) -> None:
        """What the giving thread does. A batch that is under way at the end is given first."""
        try:
            self._give()
        except ListenerStopped:
            log.info("not-given", queue=self.queue, messages=len(self.inbox), reason="they are delivered again")
        finally:
            self._given.set()

    def _give(self) -> None:
        while (batch := self.inbox.batch(LOOK)) is not None:
            if self.connected and time.monotonic() >= self._report_at:
                self._report_found()
            if batch:
                self._give_batch(batch)
            else:
                self._idle()
        self._idle()

    def _give_batch(self, batch: list[Delivery[Item]]) -> None:
        _, session, last = batch[-1]
        try:
            self._give_on([item for item, *_ in batch], session)
        except Lost:
            log.info("dropped", queue=self.queue, messages=len(batch), channel=session.id, reason=LOST)
            return
        self.counts["forwarded"] += len(batch)
        session.done(last)

    def _report_found(self) -> None:
        found = self._found
        try:
            self._report(found)
        except (Unanswered, Rejected) as error:
            # it is not worth to hold up what was read
            log.warning("report-failed", queue=self.queue, error=str(error))
            pause = self._settings.max_retry
        else:
            pause = self._settings.pulse_report_every
            if self._found == found:
                self._found = "there"
        self._report_at = time.monotonic() + pause.total_seconds()

    # Reading

    def read_until_stopped(self) -> None:
        """What the reading thread does: a session after another."""
        failures = 0
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    self._session()
                except BROKER_ERRORS as error:
                    self.inbox.drop()
                    if self._stop.is_set():
                        log.info("connection-lost", queue=self.queue, error=told(error))
                        return
                    failures = 1 if time.monotonic() - began > STEADY else failures + 1
                    self._wait(failures, error)
        finally:
            self.connected = False
            self.inbox.close()

    def _wait(self, failures: int, error: Exception) -> None:
        first, longest = self._settings.first_retry.total_seconds(), self._settings.max_retry.total_seconds()
        pause = backoff(failures, first, longest)
        event = "connection-lost" if self.connected else "broker-away"
        self.connected = False
        self.counts["connections lost"] += event == "connection-lost"
        host = f"{self._parameters.host}:{self._parameters.port}"
        log.warning(event, queue=self.queue, broker=host, error=told(error), again_in=round(pause, 1), **remedy(error))
        self._stop.wait(pause)

    def _session(self) -> None:
        connection = pika.BlockingConnection(self._parameters)
        try:
            connection.add_on_connection_blocked_callback(self._blocked)
            channel = connection.channel()
            session = Session(connection, channel, self._settings.pulse_prefetch)
            found = self._declare(connection)
            self.missing = self._bind(connection)
            channel.basic_qos(prefetch_count=self._settings.pulse_prefetch)
            if found != "there":  # what could not be reported yet is not forgotten
                self._found = found
            self._report_at = 0
            self.connected, self._seen = True, time.monotonic()
            log.info("connected", queue=self.queue, broker=self._parameters.host, channel=session.id, found=found)
            if self._older_given(connection):
                self._consume(connection, channel, session)
            self._finish(connection, session)
        finally:
            close(connection)

    def _older_given(self, connection: Any) -> bool:
        """Wait until what a deleted queue had brought is given, False when it is time to end.

        Otherwise each queue that is deleted while the service is away would add to what is held.
        """
        every = self._settings.pulse_bind_every.total_seconds()
        look_at = time.monotonic() + every
        while self.inbox.waiting and not self._stop.is_set():
            connection.process_data_events(LOOK)
            self._seen = now = time.monotonic()
            if now > look_at:  # nobody consumes, so nobody is told
                if not self._exists(connection):
                    raise CancelledError("the queue was deleted before it was read")
                look_at = now + every
        return not self._stop.is_set()

    def _consume(self, connection: Any, channel: Any, session: Session) -> None:
        bind_at = time.monotonic() + self._settings.pulse_bind_every.total_seconds()
        for method, properties, body in channel.consume(self.queue, inactivity_timeout=LOOK):
            self._seen = now = time.monotonic()
            if method is not None:
                self.counts["received"] += 1
                self.counts["redelivered"] += method.redelivered
                self.inbox.put(self._read(session.id, method, properties, body), session, method.delivery_tag)
            if self._stop.is_set():
                # those that wait in pika already would be rejected by cancel()
                if not channel.get_waiting_message_count():
                    channel.cancel()
                    return
            elif now > bind_at:
                # also those that were bound: an exchange that was made anew has lost its bindings
                self.missing = self._bind(connection)
                bind_at = now + self._settings.pulse_bind_every.total_seconds()
        session.cancelled = True
        raise CancelledError("the broker cancelled the consumer, as it does when the queue is deleted")

    def _finish(self, connection: Any, session: Session) -> None:
        """Let what was read be given and acknowledged."""
        self.inbox.close()
        end = time.monotonic() + self._settings.drain.total_seconds()
        while not self._given.is_set() and time.monotonic() < end:
            connection.process_data_events(0.02)
        session.acknowledge()

    def _blocked(self, _: Any, frame: Any) -> None:
        seconds = self._parameters.blocked_connection_timeout
        log.warning("connection-blocked", queue=self.queue, reason=frame.method.reason, reconnect_after=seconds)

    # Declaring

    def _declare(self, connection: Any) -> Found:
        if self._exists(connection):
            self._known = True
            return "there"
        channel = connection.channel()
        channel.queue_declare(self.queue, durable=True)
        channel.close()
        if not self._known:
            self._known = True
            return "new"
        self.deleted("while it was read")
        return "deleted"

    def deleted(self, when: str) -> None:
        """Tell of a queue that was deleted at the broker, and was declared anew."""
        self.counts["deleted"] += 1
        log.error(
            "queue-deleted",
            queue=self.queue,
            problem=f"it was deleted {when}, and is declared anew: messages sent in between are lost",
            remedy="look whether its events are missing; Pulse deletes queues that grow past some thousand messages",
        )

    def _exists(self, connection: Any) -> bool:
        channel = connection.channel()
        try:
            channel.queue_declare(self.queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False  # what else may be wrong with it, the declaration will say
        channel.close()
        return True

    def _bind(self, connection: Any) -> list[str]:
        """Bind to the exchanges that are there, and give the names of the others."""
        missing, channel = [], None
        for binding in self._bindings:
            channel = channel or connection.channel()
            try:
                # other people's exchanges are looked for only, never made
                channel.exchange_declare(binding.exchange, passive=True)
                for key in binding.routing_keys:
                    channel.queue_bind(self.queue, binding.exchange, key)
            except pika.exceptions.ChannelClosedByBroker as error:
                channel = None
                missing.append(binding.exchange)
                log.warning(
                    "exchange-missing",
                    queue=self.queue,
                    exchange=binding.exchange,
                    error=told(error),
                    remedy=f"nothing is heard from it until {_wanted(error)}; other bindings are not affected",
                    again_in=self._settings.pulse_bind_every.total_seconds(),
                )
        if channel is not None:
            channel.close()
        for exchange in sorted(set(self.missing) - set(missing)):
            log.info("exchange-bound", queue=self.queue, exchange=exchange)
        return missing
