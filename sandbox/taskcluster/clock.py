"""Define the stand-in's clock, and parse and write dates in the form of Taskcluster.

Moments are integers: milliseconds since the epoch, UTC, which is the resolution of Taskcluster.
"""

import re
import time
from datetime import UTC, datetime, timedelta

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# RFC 3339, as the schemas' `format: date-time` requires; `fromisoformat` alone also takes dates and week dates.
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Clock:
    """A clock with the real time plus an offset that tests change; it can be frozen."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._frozen: float | None = None

    def now(self) -> int:
        """Return the time in milliseconds since the epoch."""
        seconds = time.time() if self._frozen is None else self._frozen
        return int((seconds + self._offset) * 1000)

    def advance(self, seconds: float) -> None:
        """Move the clock forward, or back by a negative number, by that many seconds."""
        self._offset += seconds

    def freeze(self) -> None:
        """Stop the clock; afterwards only `advance` moves it."""
        if self._frozen is None:
            self._frozen = time.time()

    def reset(self) -> None:
        """Return to the real time."""
        self._offset = 0.0
        self._frozen = None


def parse(text: object) -> int | None:
    """Parse an RFC 3339 date-time, cut to milliseconds as JavaScript's `Date` does; return None for anything else.

    >>> parse("1970-01-01T00:00:01.0029Z")
    1002
    """
    if not isinstance(text, str) or not _DATE_TIME.fullmatch(text):
        return None
    try:
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        return None


def iso(moment: int) -> str:
    """Format a moment as Taskcluster does, with milliseconds and `Z`.

    >>> iso(1002)
    '1970-01-01T00:00:01.002Z'
    """
    seconds, millisecond = divmod(moment, 1000)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{millisecond:03d}Z"


def a_year_later(moment: int) -> int:
    """Return the same date a year later, and 1 March for 29 February, as JavaScript's `setFullYear` does."""
    date = _EPOCH + timedelta(milliseconds=moment)
    try:
        later = date.replace(year=date.year + 1)
    except ValueError:
        later = date.replace(year=date.year + 1, month=3, day=1)
    return (later - _EPOCH) // _MILLISECOND
