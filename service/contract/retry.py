"""Compute when to retry: exponential backoff with jitter, and the wait that a `Retry-After` header asks for."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_DOUBLINGS = 30
"""A pause is not doubled more often than this, so that no number grows without bound."""


def backoff(failures: int, first: float, longest: float, spread: float = 0.5) -> float:
    """Return the seconds before the next attempt, after `failures` failures in a row.

    `first` is doubled after each further failure, up to `longest`, and then shortened at random by up to `spread` of
    itself, so that processes that failed together do not come back together.
    """
    doublings = min(max(failures - 1, 0), MOST_DOUBLINGS)
    return min(first * 2.0**doublings, longest) * random.uniform(1 - spread, 1)  # noqa: S311 - jitter, no secret


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, None if it asks for nothing that can be read.

    RFC 9110 allows a number of seconds or a date. The result is not negative, and may be
    infinite: the caller sets the upper limit.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None
    return max(seconds, 0.0)
