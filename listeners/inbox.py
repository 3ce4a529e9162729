"""A buffer of deliveries between the thread that reads a queue and the thread that handles batches."""

import math
import threading
import time
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from listeners.channel import AckChannel

Item = TypeVar("Item", bytes, str)


class Delivery(NamedTuple, Generic[Item]):
    """A parsed message, the channel that delivered it, and its delivery tag on that channel."""

    item: Item
    channel: AckChannel
    tag: int


class Inbox(Generic[Item]):
    """Deliveries that are not handled yet, taken in batches.

    A batch is ready when it is full (`max_items` or `max_bytes`), or when `linger` seconds have passed since the
    previous one was taken. So a single message is handled at once, and a flood in large batches.
    """

    def __init__(self, max_items: int, max_bytes: int, linger: float) -> None:
        self._max_items, self._max_bytes, self._linger = max_items, max_bytes, linger
        self._deliveries: deque[Delivery[Item]] = deque()
        self._bytes = 0
        self._batch_taken_at = -math.inf
        self._batch_size = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return the number of deliveries that wait or are in the current batch."""
        return len(self._deliveries) + self._batch_size

    def put(self, delivery: Delivery[Item]) -> None:
        """Add a delivery."""
        with self._changed:
            self._deliveries.append(delivery)
            self._bytes += len(delivery.item)
            if len(self._deliveries) == 1 or self._is_full():
                self._changed.notify()

    def drop_redelivered(self) -> None:
        """Drop what waits after its channel was closed, because the broker delivers it again.

        Messages of a deleted queue are kept, because nobody delivers them again.
        """
        with self._changed:
            self._deliveries = deque(delivery for delivery in self._deliveries if delivery.channel.consumer_cancelled)
            self._bytes = sum(len(delivery.item) for delivery in self._deliveries)

    @property
    def waiting(self) -> int:
        """The number of deliveries that wait, without the current batch."""
        return len(self._deliveries)

    def close(self) -> None:
        """Mark the end of the deliveries: what waits is ready at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next_batch(self, timeout: float) -> list[Delivery[Item]] | None:
        """Return the next batch, which counts as handled when this is called again.

        The batch is empty if no message came within `timeout` seconds, None if the inbox is closed and empty. All of
        it came on one channel, because the consumer reads from a new one only after the old one's are handled or
        dropped.
        """
        timeout_at = time.monotonic() + timeout
        with self._changed:
            self._batch_size = 0
            while not self._closed and not self._is_full():
                ready_at = self._batch_taken_at + self._linger if self._deliveries else timeout_at
                if (seconds := ready_at - time.monotonic()) <= 0:
                    break
                self._changed.wait(seconds)
            if not self._deliveries:
                return None if self._closed else []
            self._batch_taken_at = time.monotonic()
            return self._take_batch()

    def _take_batch(self) -> list[Delivery[Item]]:
        batch: list[Delivery[Item]] = []
        size = 0
        while self._deliveries and len(batch) < self._max_items:
            size += len(self._deliveries[0].item)
            if batch and size > self._max_bytes:
                break
            batch.append(self._deliveries.popleft())
            self._bytes -= len(batch[-1].item)
        self._batch_size = len(batch)
        return batch

    def _is_full(self) -> bool:
        return len(self._deliveries) >= self._max_items or self._bytes >= self._max_bytes
