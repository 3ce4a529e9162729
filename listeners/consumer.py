"""Consume a queue: read on one thread, handle batches on another, acknowledge only what is handled.

    broker ──▶ parse ──▶ Inbox ──▶ handle: a batch at a time ──▶ acknowledge, on the thread that reads

Each queue has its own connection and channel, so that no queue waits for another, loses its connection with another, or
is acknowledged by another's `multiple`. While no batch can be handled, `prefetch` stops the reading, and heartbeats go
on.
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

from listeners import metrics
from listeners.broker import close_connection, unbound_reason
from listeners.channel import CHECK_INTERVAL, REDELIVERY_REASON, AckChannel, ChannelLostError
from listeners.forward import RequestRejectedError, UnansweredError
from listeners.inbox import Delivery, Inbox, Item
from listeners.retry import ListenerStopped
from listeners.settings import ListenerSettings
from service.contract.broker import BROKER_ERRORS, error_text, find_remedy
from service.contract.retry import backoff

log = structlog.get_logger()

QueuePresence = Literal["there", "new", "deleted"]
"""State of a queue at connecting: it existed; it was declared; it was declared although this process had read it."""

STABLE_AFTER = 10.0
"""Seconds; a connection that held this long was a good one, so its loss starts the backoff anew."""


@dataclass(frozen=True)
class Binding:
    """An exchange and the routing keys that a queue gets from it."""

    exchange: str
    routing_keys: tuple[str, ...]


class Consumer(Generic[Item]):
    """A reader of `queue` that declares and binds it, and reconnects when necessary, until `stop` is set.

    `parse` makes an item of a delivery (the channel's UUID, method, properties, body). `handle` gets a batch of items
    and their channel, and returns when they may be acknowledged, or raises ChannelLostError. `on_idle` is called when
    no message came for a moment, and at the end. `report` tells the service whether the queue existed. The last three
    may take as long as they need, and raise ListenerStopped at the end. `counts` and `missing_exchanges` are for
    people.
    """

    def __init__(
        self,
        queue: str,
        bindings: Sequence[Binding],
        settings: ListenerSettings,
        parameters: Any,
        stop: threading.Event,
        parse: Callable[[str, Any, Any, bytes], Item],
        handle: Callable[[list[Item], AckChannel], None],
        report: Callable[[QueuePresence], None],
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self.queue = queue
        self.inbox: Inbox[Item] = Inbox(
            settings.pulse_batch, settings.chunk_bytes, settings.pulse_linger.total_seconds()
        )
        self.counts: Counter[str] = Counter()
        self.missing_exchanges: list[str] = []
        self.connected = False
        self._bindings, self._settings, self._parameters, self._stop = bindings, settings, parameters, stop
        self._parse: Callable[[str, Any, Any, bytes], Item] = parse
        self._handle: Callable[[list[Item], AckChannel], None] = handle
        self._report, self._on_idle = report, on_idle or (lambda: None)
        self._was_declared = False
        self._last_connected_at = time.monotonic()
        self._presence: QueuePresence = "there"
        self._report_at = 0.0
        self._all_handled = threading.Event()

    @property
    def seconds_since_connected(self) -> float:
        """Seconds since the connection was last known to work."""
        return time.monotonic() - self._last_connected_at

    # The thread that handles batches

    def handle_until_stopped(self) -> None:
        """Handle batches until `stop` is set; a batch that is in progress then is handled first."""
        try:
            self._handle_batches()
        except ListenerStopped:
            log.info("not-given", queue=self.queue, messages=len(self.inbox), reason="the broker delivers them again")
        finally:
            self._all_handled.set()

    def _handle_batches(self) -> None:
        while (batch := self.inbox.next_batch(CHECK_INTERVAL)) is not None:
            if self.connected and time.monotonic() >= self._report_at:
                self._report_presence()
            if batch:
                self._handle_batch(batch)
            else:
                self._on_idle()
        self._on_idle()

    def _handle_batch(self, batch: list[Delivery[Item]]) -> None:
        channel = batch[-1].channel
        try:
            self._handle([delivery.item for delivery in batch], channel)
        except ChannelLostError:
            log.info("dropped", queue=self.queue, messages=len(batch), channel=channel.id, reason=REDELIVERY_REASON)
            return
        self.counts["forwarded"] += len(batch)
        metrics.messages_forwarded(self.queue, len(batch))
        channel.acknowledge_up_to(batch[-1].tag)

    def _report_presence(self) -> None:
        presence = self._presence
        try:
            self._report(presence)
        except (UnansweredError, RequestRejectedError) as error:
            # a missing report must not delay messages
            log.warning("report-failed", queue=self.queue, error=str(error))
            pause = self._settings.max_retry
        else:
            pause = self._settings.pulse_report_every
            if self._presence == presence:
                self._presence = "there"
        self._report_at = time.monotonic() + pause.total_seconds()

    # The thread that reads

    def read_until_stopped(self) -> None:
        """Read the queue over one connection after another until `stop` is set."""
        failures = 0
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    self._read()
                except BROKER_ERRORS as error:
                    self.inbox.drop_redelivered()
                    if self._stop.is_set():
                        log.info("connection-lost", queue=self.queue, error=error_text(error))
                        return
                    failures = 1 if time.monotonic() - began > STABLE_AFTER else failures + 1
                    self._wait_to_reconnect(failures, error)
        finally:
            self.connected = False
            self.inbox.close()

    def _wait_to_reconnect(self, failures: int, error: Exception) -> None:
        first, longest = self._settings.first_retry.total_seconds(), self._settings.max_retry.total_seconds()
        pause = backoff(failures, first, longest)
        event = "connection-lost" if self.connected else "broker-away"
        self.connected = False
        if event == "connection-lost":
            self.counts["connections lost"] += 1
            metrics.connection_lost(self.queue)
        broker = f"{self._parameters.host}:{self._parameters.port}"
        remedy = find_remedy(error, *self._settings.pulse_variables)
        fields = {"remedy": remedy} if remedy else {}
        log.warning(event, queue=self.queue, broker=broker, error=error_text(error), again_in=round(pause, 1), **fields)
        self._stop.wait(pause)

    def _read(self) -> None:
        """Read the queue over a new connection, until it fails or the listener stops."""
        connection = pika.BlockingConnection(self._parameters)
        try:
            connection.add_on_connection_blocked_callback(self._log_blocked)
            amqp_channel = connection.channel()
            channel = AckChannel(connection, amqp_channel, self._settings.pulse_prefetch, self._count_acknowledged)
            presence = self._declare(connection)
            self.missing_exchanges = self._bind(connection)
            amqp_channel.basic_qos(prefetch_count=self._settings.pulse_prefetch)
            if presence != "there":  # otherwise an earlier presence may still have to be reported
                self._presence = presence
            self._report_at = 0
            self.connected, self._last_connected_at = True, time.monotonic()
            log.info("connected", queue=self.queue, broker=self._parameters.host, channel=channel.id, found=presence)
            if self._wait_for_older_batches(connection):
                self._consume(connection, amqp_channel, channel)
            self._finish(connection, channel)
        finally:
            close_connection(connection)

    def _count_acknowledged(self, messages: int) -> None:
        metrics.messages_acknowledged(self.queue, messages)

    def _wait_for_older_batches(self, connection: Any) -> bool:
        """Wait until what a deleted queue had delivered is handled; return False if the listener stops first.

        Otherwise each queue that is deleted while the service is away would add messages to the inbox.
        """
        interval = self._settings.pulse_bind_every.total_seconds()
        check_at = time.monotonic() + interval
        while self.inbox.waiting and not self._stop.is_set():
            connection.process_data_events(CHECK_INTERVAL)
            self._last_connected_at = now = time.monotonic()
            if now > check_at:  # without a consumer, the broker does not announce a deletion
                if not self._queue_exists(connection):
                    raise pika.exceptions.ConsumerCancelled("the queue was deleted before it was read")
                check_at = now + interval
        return not self._stop.is_set()

    def _consume(self, connection: Any, amqp_channel: Any, channel: AckChannel) -> None:
        bind_at = time.monotonic() + self._settings.pulse_bind_every.total_seconds()
        for method, properties, body in amqp_channel.consume(self.queue, inactivity_timeout=CHECK_INTERVAL):
            self._last_connected_at = now = time.monotonic()
            if method is not None:
                self.counts["received"] += 1
                self.counts["redelivered"] += method.redelivered
                metrics.message_received(self.queue, redelivered=method.redelivered)
                item = self._parse(channel.id, method, properties, body)
                self.inbox.put(Delivery(item, channel, method.delivery_tag))
            if self._stop.is_set():
                # cancel() would reject the messages that pika has buffered
                if not amqp_channel.get_waiting_message_count():
                    amqp_channel.cancel()
                    return
            elif now > bind_at:
                # all exchanges: one that was deleted and declared anew has lost its bindings
                self.missing_exchanges = self._bind(connection)
                bind_at = now + self._settings.pulse_bind_every.total_seconds()
        channel.consumer_cancelled = True
        raise pika.exceptions.ConsumerCancelled("the broker cancelled the consumer, as it does when a queue is deleted")

    def _finish(self, connection: Any, channel: AckChannel) -> None:
        """Wait up to `drain` until what was read is handled, and acknowledge it."""
        self.inbox.close()
        finish_until = time.monotonic() + self._settings.drain.total_seconds()
        while not self._all_handled.is_set() and time.monotonic() < finish_until:
            connection.process_data_events(0.02)
        channel.send_acknowledgements()

    def _log_blocked(self, _: Any, frame: Any) -> None:
        seconds = self._parameters.blocked_connection_timeout
        log.warning("connection-blocked", queue=self.queue, reason=frame.method.reason, reconnect_after=seconds)

    # Declaring and binding

    def _declare(self, connection: Any) -> QueuePresence:
        if self._queue_exists(connection):
            self._was_declared = True
            return "there"
        channel = connection.channel()
        channel.queue_declare(self.queue, durable=True)
        channel.close()
        if not self._was_declared:
            self._was_declared = True
            return "new"
        self.record_deletion("while it was read")
        return "deleted"

    def record_deletion(self, when: str) -> None:
        """Count and log that the queue was deleted at the broker, and was declared anew."""
        self.counts["deleted"] += 1
        metrics.queue_deleted(self.queue)
        log.error(
            "queue-deleted",
            queue=self.queue,
            problem=f"The queue was deleted {when}, and is declared anew: messages sent in between are lost.",
            remedy="Check whether its events are missing. Pulse deletes queues that hold some thousand messages.",
        )

    def _queue_exists(self, connection: Any) -> bool:
        channel = connection.channel()
        try:
            channel.queue_declare(self.queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False  # any other reason shows when the queue is declared
        channel.close()
        return True

    def _bind(self, connection: Any) -> list[str]:
        """Bind the queue to the exchanges that exist, and return the names of the others."""
        missing, channel = [], None
        for binding in self._bindings:
            channel = channel or connection.channel()
            try:
                # passive: exchanges of other users are never declared
                channel.exchange_declare(binding.exchange, passive=True)
                for key in binding.routing_keys:
                    channel.queue_bind(self.queue, binding.exchange, key)
            except pika.exceptions.ChannelClosedByBroker as error:
                channel = None
                missing.append(binding.exchange)
                self._log_missing(binding.exchange, error)
        if channel is not None:
            channel.close()
        for exchange in sorted(set(self.missing_exchanges) - set(missing)):
            log.info("exchange-bound", queue=self.queue, exchange=exchange)
        return missing

    def _log_missing(self, exchange: str, error: pika.exceptions.ChannelClosedByBroker) -> None:
        log.warning(
            "exchange-missing",
            queue=self.queue,
            exchange=exchange,
            error=error_text(error),
            remedy=f"No message arrives from the exchange while {unbound_reason(error)}: check its name in the "
            "settings, and the user's permissions. Other bindings are not affected.",
            again_in=self._settings.pulse_bind_every.total_seconds(),
        )
