"""An AMQP channel that acknowledges handled messages, and tells whether the broker still has it."""

import threading
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions
import structlog

log = structlog.get_logger()

CHECK_INTERVAL = 0.25
"""Seconds between two checks whether the channel is closed, or the listener is to stop."""

REDELIVERY_REASON = "the channel is closed, so the broker delivers the messages again"


class ChannelLostError(Exception):
    """The channel that delivered a batch is closed: the broker delivers the batch again, so it needs no handling."""


class AckChannel:
    """A channel, and how far its deliveries are acknowledged.

    Delivery tags count per channel, and begin at 1 on each. `consumer_cancelled`: the broker has ended the consumer, as
    it does when the queue is deleted. Nobody delivers these messages again.
    """

    def __init__(
        self, connection: Any, channel: Any, prefetch: int, count_acknowledged: Callable[[int], None] | None = None
    ) -> None:
        self.id = str(uuid.uuid4())
        self._connection, self._channel, self._prefetch = connection, channel, prefetch
        self._count_acknowledged = count_acknowledged or (lambda _: None)
        self._acknowledged_tag = 0
        self._handled_tags: deque[int] = deque()
        self.consumer_cancelled = False

    @property
    def is_lost(self) -> bool:
        """True if the channel is closed, so that the broker delivers its messages again. Callable from any thread."""
        return not self.consumer_cancelled and not self._channel.is_open

    def acknowledge_up_to(self, tag: int) -> None:
        """Let the thread that owns the connection acknowledge all deliveries up to `tag`. Callable from any thread.

        On a closed channel this does nothing: the broker delivers what it still has again, as redelivered.
        """
        self._handled_tags.append(tag)
        try:
            self._connection.add_callback_threadsafe(self.send_acknowledgements)
        except pika.exceptions.ConnectionWrongStateError:
            if not self.consumer_cancelled:
                log.info("not-acknowledged", channel=self.id, reason=REDELIVERY_REASON)

    def send_acknowledgements(self) -> None:
        """Acknowledge what is handled. Only the thread that owns the connection may call this."""
        while self._handled_tags and self._channel.is_open:
            tag = self._handled_tags.popleft()
            self._channel.basic_ack(tag, multiple=True)
            self._count_acknowledged(tag - self._acknowledged_tag)
            self._acknowledged_tag = tag

    def confirm_acknowledgements(self) -> bool:
        """Return True once the broker has every acknowledgement that was due, False if the channel is closed.

        This waits for the broker's answer as long as the connection seems to hold. Call it from the thread that handles
        batches.
        """
        answered = threading.Event()

        def request_answer() -> None:
            self.send_acknowledgements()
            # AMQP does not confirm an acknowledgement, but the broker serves a channel in order, and answers this
            # request, which changes nothing
            self._channel.basic_qos(prefetch_count=self._prefetch)
            answered.set()

        try:
            self._connection.add_callback_threadsafe(request_answer)
        except pika.exceptions.ConnectionWrongStateError:
            return False
        while not answered.wait(CHECK_INTERVAL):
            if not self._channel.is_open:
                return False
        return True
