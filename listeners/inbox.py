"""What was read from a queue, until it is given on in batches."""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from listeners.channel import Session

Item = TypeVar("Item", bytes, str)

Delivery = tuple[Item, Session, int]
"""What was read, the channel that brought it, and its tag there."""


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

    def put(self, item: Item, session: Session, tag: int) -> None:
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
