"""Wait between a listener's attempts: jitter, a limit for `Retry-After`, and waits that a stop ends."""

import random
import threading
from collections.abc import Mapping

from service.contract import retry

MAX_RETRY_AFTER = 300.0
"""Seconds; a longer `Retry-After` is cut to this, because a wrong value in a proxy would stop everything for a day."""


class ListenerStopped(Exception):
    """The listener is stopping: whatever is under way ends without a result."""


def jitter(seconds: float, least: float, most: float) -> float:
    """Return `seconds` times a random factor from `least` to `most`."""
    return seconds * random.uniform(least, most)  # noqa: S311 - no secret


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that an answer asks us to wait, at most `MAX_RETRY_AFTER`; 0 if it asks for nothing."""
    return min(retry.retry_after(headers.get("retry-after")) or 0.0, MAX_RETRY_AFTER)


def wait_or_stop(stop: threading.Event, seconds: float) -> None:
    """Wait for `seconds`. Raises ListenerStopped as soon as the listener is to stop."""
    if stop.wait(seconds):
        raise ListenerStopped("the listener is stopping")
