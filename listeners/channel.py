"""A channel that acknowledges what was given on, and tells whether the broker still has it."""

import threading
import uuid
from collections import deque
from typing import Any

import pika
import pika.exceptions
import structlog

log = structlog.get_logger()

LOOK = 0.25
"""Seconds between two looks whether the listener is to end."""

LOST = "their channel is gone, and they are delivered again"


class Lost(Exception):
    """The channel is gone that brought a batch: the broker brings it again, so there is nothing more to do with it."""


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
