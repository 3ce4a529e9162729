"""A cache of values with a size, such as files that strangers wrote: all of them together have a limit."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class SizedCache:
    """The most recently used values, as many as have `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0

    def get(self, key: Hashable) -> Any:
        """Return the value of a key, None if it is not in the cache."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Put in a value of this size; the least recently used ones are dropped. One that is too large is left out."""
        if key in self._values:
            self._size -= self._values.pop(key)[1]
        if size > self._limit:
            return
        self._values[key] = (value, size)
        self._size += size
        while self._size > self._limit:
            _, (_, dropped) = self._values.popitem(last=False)
            self._size -= dropped
