"""A queue at a broker: read on one thread, given on by another, and acknowledged only when that is done.

    broker ──▶ read ──▶ Inbox ──▶ give: a batch at a time ──▶ acknowledge, on the thread that reads

Each queue has a connection and a channel of its own, so that none waits for another, breaks with it, or is acknowledged
by its `multiple`. While nothing can be given, `prefetch` ends the reading, and heartbeats go on.
"""

import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import pika
import pika.exceptions
import structlog
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from listeners.forward import Rejected, Stopped, Unanswered
from listeners.settings import ListenerSettings

log = structlog.get_logger()

Item = TypeVar("Item", bytes, str)

Delivery = tuple[Item, "Session", int]
"""What was read, the channel that brought it, and its tag there."""

Found = Literal["there", "new", "deleted"]
"""How a queue was found: it was there; it was not, and was declared; likewise, though it had been read before."""

LOOK = 0.25
"""Seconds between two looks whether the listener is to end."""

BROKER_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)
"""What pika raises when a broker is away, breaks off, refuses, or takes a connection and then says nothing."""

ACCESS_REFUSED = 403
"""AMQP's reply code to who may not do something."""

LOST = "their channel is gone, and they are delivered again"

STEADY = 10.0
"""Seconds; a connection that held so long was a good one, and its loss is no reason to wait long for the next."""


class Lost(Exception):
    """The channel is gone that brought a batch: the broker brings it again, so there is nothing more to do with it."""


class CancelledError(pika.exceptions.AMQPError):  # type: ignore[misc]  # pika publishes no types
    """The broker ended the consumer, as it does when the queue is deleted."""


@dataclass(frozen=True)
class Binding:
    exchange: str
    routing_keys: tuple[str, ...]


class Inbox(Generic[Item]):
    """What was read and is not given on yet.

    A batch is ready when it is full (`most` items or `most_bytes`), or when `linger` seconds have passed since the last
    one was taken: so a message that comes alone goes on at once, and a flood in large batches.
    """

    def __init__(self, most: int, most_bytes: int, linger: float) -> None:
        self._most, self._most_bytes, self._linger = most, most_bytes, linger
        self._items: deque[Delivery[Item]] = deque()
        self._bytes = 0
        self._taken_at = 0.0
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Those that wait, and those of the batch that is under way."""
        return len(self._items) + self._under_way

    def put(self, item: Item, session: "Session", tag: int) -> None:
        with self._changed:
            self._items.append((item, session, tag))
            self._bytes += len(item)
            if len(self._items) == 1 or self._full():
                self._changed.notify()

    def drop(self) -> None:
        """What waits is not given on: its channel is gone, and the broker brings it again.

        What a deleted queue had brought stays: nobody brings that again.
        """
        with self._changed:
            self._items = deque(each for each in self._items if each[1].cancelled)
            self._bytes = sum(len(item) for item, *_ in self._items)

    @property
    def waiting(self) -> int:
        """Those that wait, without the batch that is under way."""
        return len(self._items)

    def close(self) -> None:
        """Nothing more comes: what waits is ready at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def batch(self, wait: float) -> list[Delivery[Item]] | None:
        """The next batch, all of one channel; empty when nothing came within `wait` seconds.

        None when nothing ever will.
        """
        end = time.monotonic() + wait
        with self._changed:
            self._under_way = 0  # whoever asks has given the last one
            while not self._closed and not self._full():
                at = self._taken_at + self._linger if self._items else end
                if (left := at - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            if not self._items:
                return None if self._closed else []
            self._taken_at = time.monotonic()
            taken: list[Delivery[Item]] = []
            size = 0
            while self._items and len(taken) < self._most:
                size += len(self._items[0][0])
                if taken and size > self._most_bytes:
                    break
                taken.append(self._items.popleft())
                self._bytes -= len(taken[-1][0])
            self._under_way = len(taken)
            return taken

    def _full(self) -> bool:
        return len(self._items) >= self._most or self._bytes >= self._most_bytes


class Session:
    """One channel, and how far it is acknowledged. Delivery tags count per channel, and begin at 1 on each.

    `cancelled`: the broker has ended its consumer, as it does when the queue is deleted: what it brought is here only.
    """

    def __init__(self, connection: Any, channel: Any, prefetch: int) -> None:
        self.id = str(uuid.uuid4())
        self._connection, self._channel, self._prefetch = connection, channel, prefetch
        self._due: deque[int] = deque()  # tags up to which all are given
        self.cancelled = False

    @property
    def lost(self) -> bool:
        """Whether it is no more, and the broker brings again what it brought. From any thread."""
        return not self.cancelled and not self._channel.is_open

    def done(self, tag: int) -> None:
        """All up to this one are given. From any thread; the one that owns the connection acknowledges.

        On a channel that is no more it does nothing: what the broker still has it delivers again, as redelivered.
        """
        self._due.append(tag)
        try:
            self._connection.add_callback_threadsafe(self.acknowledge)
        except pika.exceptions.ConnectionWrongStateError:
            if not self.cancelled:
                log.info("not-acknowledged", channel=self.id, reason=LOST)

    def acknowledge(self) -> None:
        while self._due and self._channel.is_open:
            self._channel.basic_ack(self._due.popleft(), multiple=True)

    def confirmed(self) -> bool:
        """Whether the broker still has this channel, and with it has taken every acknowledgement that was due.

        Waits until that is known, which is as long as the connection seems to hold. From the thread that gives.
        """
        answered = threading.Event()

        def ask() -> None:
            self.acknowledge()
            # AMQP does not confirm an acknowledgement, but a channel is served in order: this one changes nothing
            self._channel.basic_qos(prefetch_count=self._prefetch)
            answered.set()

        try:
            self._connection.add_callback_threadsafe(ask)
        except pika.exceptions.ConnectionWrongStateError:
            return False
        while not answered.wait(LOOK):
            if not self._channel.is_open:
                return False
        return True


class Consumer(Generic[Item]):
    """Reads `queue`, declares and binds it, and reconnects whenever it has to, until `stop` is set.

    `read` makes an item of a delivery (the channel's UUID, method, properties, body); `give` takes a batch of them and
    their session, and returns when they may be acknowledged, or raises `Lost`; `idle` is called when nothing more came
    for a moment, and at the end; `report` tells the service what was found. The last three may take as long as they
    need, and raise `Stopped` at the end. `counts` and `missing` (exchanges that are not there) are for people.
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
        except Stopped:
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
        pause = min(longest, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
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


def _wanted(error: pika.exceptions.ChannelClosedByBroker) -> str:
    return "this user may read it" if error.reply_code == ACCESS_REFUSED else "it is there"


def close(connection: Any) -> None:
    try:
        if connection.is_open:
            connection.close()
    except BROKER_ERRORS as error:
        log.info("close-failed", error=told(error))


def told(error: BaseException) -> str:
    """An error of pika's in words: many have none of their own, and hold another that has."""
    parts: list[str] = []
    for part in _within(error):
        words = " ".join(str(part).split())
        parts.append(f"{type(part).__name__}: {words}".rstrip(": "))
    return "; ".join(parts)


def _within(error: BaseException) -> Iterable[BaseException]:
    inner = [part for part in (*error.args, getattr(error, "exception", None)) if isinstance(part, BaseException)]
    if not inner:
        yield error
    for part in inner:
        yield from _within(part)


def remedy(error: BaseException) -> dict[str, str]:
    """What to do about it, where a person has to."""
    words = told(error)
    for sign, what in _REMEDIES:
        if sign in words if isinstance(sign, str) else isinstance(error, sign):
            return {"remedy": what}
    return {}


_REMEDIES: list[tuple[str | tuple[type[BaseException], ...], str]] = [
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the broker's certificate is not trusted: check the host in the url, or name your own CA in SSL_CERT_FILE",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "nothing speaks TLS there: check the port in TC_TREEHERDER_PULSE_URL (Pulse's is 5671; a broker without TLS "
        "has 5672 and amqp://)",
    ),
    (
        (pika.exceptions.IncompatibleProtocolError,),
        "nothing speaks AMQP without TLS there: check the port in TC_TREEHERDER_PULSE_URL, and whether it must begin "
        "with amqps://",
    ),
    (
        (pika.exceptions.AuthenticationError, pika.exceptions.ProbableAuthenticationError),
        "check user and password in TC_TREEHERDER_PULSE_URL",
    ),
    (
        (pika.exceptions.ProbableAccessDeniedError,),
        "check the virtual host, which is the end of TC_TREEHERDER_PULSE_URL: Pulse's is %2F",
    ),
    (
        "ACCESS_REFUSED",
        "the user may use queues named queue/<user>/… only: check TC_TREEHERDER_PULSE_USER",
    ),
]
"""What words of an error, or its type, tell of; the first that fits."""
