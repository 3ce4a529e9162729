"""Pauses between attempts: exponential backoff with jitter, `Retry-After`, and waiting that a stop ends."""

import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 300.0
"""Seconds; a longer `Retry-After` is cut to this, because a wrong value in a proxy would stop everything for a day."""

_MAX_DOUBLINGS = 30
"""Beyond, the pause is at its maximum anyway, and some day the power would overflow a float."""


class ListenerStopped(Exception):
    """The listener is stopping: whatever is under way ends without a result."""


def backoff(attempt: int, first: float, longest: float) -> float:
    """Return the seconds to wait after the failed `attempt`, which is counted from 1.

    The pause begins at `first` seconds, doubles with each attempt up to `longest`, and is shortened by up to half at
    random, so that clients that failed together do not come back together.
    """
    return jitter(min(longest, first * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS)), 0.5, 1)


def jitter(seconds: float, least: float, most: float) -> float:
    """Return `seconds` times a random factor from `least` to `most`."""
    return seconds * random.uniform(least, most)  # noqa: S311 - no secret


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that an answer asks us to wait, at most `MAX_RETRY_AFTER`; 0 if it asks for nothing.

    RFC 9110: `Retry-After` is a number of seconds, or a date.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def wait_or_stop(stop: threading.Event, seconds: float) -> None:
    """Wait for `seconds`. Raises ListenerStopped as soon as the listener is to stop."""
    if stop.wait(seconds):
        raise ListenerStopped("the listener is stopping")
