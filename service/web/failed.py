"""Count the failed sign-ins of each address, and refuse further ones of an address that has too many."""

import math
import time
from collections.abc import Callable

from service.errors import Problem

MOST_FAILED, WINDOW = 10, 300.0
"""Failed sign-ins of one address within so many seconds, in one process."""

MOST_ADDRESSES = 10_000


class FailedSignIns:
    """The failed sign-ins of each address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, tuple[int, float]] = {}  # how many, and when the first was

    def check(self, address: str) -> None:
        """Raise a 429 if this address has failed too often."""
        count, since = self._failed.get(address, (0, 0.0))
        wait = since + WINDOW - self._clock()
        if count >= MOST_FAILED and wait > 0:
            detail = f"{count} sign-ins from {address} failed: wait {math.ceil(wait)} s"
            raise Problem(429, "Too many failed sign-ins", detail, {"Retry-After": str(math.ceil(wait))})

    def count(self, address: str) -> int:
        """Count a failed sign-in; return how many there were within the window."""
        at = self._clock()
        if len(self._failed) >= MOST_ADDRESSES:
            self._failed = {name: value for name, value in self._failed.items() if at - value[1] < WINDOW}
        while len(self._failed) >= MOST_ADDRESSES:
            del self._failed[next(iter(self._failed))]
        count, since = self._failed.get(address, (0, at))
        self._failed[address] = (count + 1, since) if at - since < WINDOW else (1, at)
        return self._failed[address][0]
