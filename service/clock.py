"""Tell the time as the database has it, carried forward between two reads by a clock that counts suspended time.

The wall clock of the process is not used, so a replica whose wall clock is wrong does nothing at the wrong time.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

log = structlog.get_logger()

REPORTED = 5.0
"""Seconds by which the clocks may differ. `IN_A_ROW` larger differences in a row are reported."""

IN_A_ROW = 3

STOPPED = 60.0
"""Seconds of a difference beyond which no work is taken: one of the clocks has jumped, and it is not known which."""

SETTLED = 60.0
"""Seconds for which such a difference must stay the same until the database's clock is followed.

The database's clock may have been set, or this machine may have been paused without its clocks noticing. Holders have
renewed or lost their leases by then."""

EXACT = 0.1
"""Seconds of a difference that is ignored, because a round trip cannot measure it."""


def _wall() -> datetime:
    return datetime.now(UTC)


def _steady() -> float:
    """Return seconds of a clock that is never set, and that counts the time in which the machine was suspended."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class Clock:
    """A clock that shows the database's time. `wall` is read until the first comparison, and for SQLite."""

    def __init__(self, wall: Callable[[], datetime] = _wall, steady: Callable[[], float] = _steady) -> None:
        self.wall, self.steady = wall, steady
        self.difference = 0.0  # seconds by which the database was ahead (+) or behind (-) at the last comparison
        self._base = (
            wall(),
            steady(),
        )  # the database's time, and `steady` at that time; one value, because threads read it
        self._compared = False
        self._in_a_row = 0
        self._settling: tuple[float, float] | None = None  # the difference that is watched, and `steady` at its start

    def now(self) -> datetime:
        return self._carried(self.steady())

    @property
    def reported(self) -> bool:
        """Return True if the last `IN_A_ROW` comparisons showed a difference."""
        return self._in_a_row >= IN_A_ROW

    @property
    def usable(self) -> bool:
        """Return True if work may be taken. Incoming events are stored in any case."""
        return abs(self.difference) <= STOPPED

    def compare(self, database_time: datetime, sent: float, received: float) -> None:
        """Compare with the time that the database answered between `sent` and `received` (both of `steady`).

        The database may have read its clock at any time between them, so half of the round trip is subtracted from
        the difference.
        """
        middle = (sent + received) / 2
        if not self._compared:
            self._follow(database_time, middle)
            return
        measured = (database_time - self._carried(middle)).total_seconds()
        certain = max(abs(measured) - (received - sent) / 2, 0.0)
        self.difference = certain if measured > 0 else -certain
        if certain <= REPORTED:
            if self.reported:
                log.info("clock-agrees-again", seconds=round(self.difference, 1))
            self._in_a_row, self._settling = 0, None
            if certain > EXACT:
                self._follow(database_time, middle)
            return
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            log.error("clock-differs", seconds=round(self.difference, 1), takes_work=self.usable)
        if self._settling is None or abs(self._settling[0] - measured) > REPORTED:
            self._settling = measured, received
        elif received - self._settling[1] >= SETTLED:
            log.warning("clock-followed", seconds=round(self.difference, 1))
            self._follow(database_time, middle)

    def _carried(self, at: float) -> datetime:
        """Return the database's time when `steady` shows `at`."""
        time, since = self._base
        return time + timedelta(seconds=at - since)

    def _follow(self, database_time: datetime, at: float) -> None:
        # a driver may return it in another time zone
        self._base, self._compared = (database_time.astimezone(UTC), at), True
        self.difference, self._in_a_row, self._settling = 0.0, 0, None


process_clock = Clock()
"""The clock of this process, which `check_clock` of `service.store.database` feeds."""


def now() -> datetime:
    """Return the present, aware and in UTC: the only clock of the service."""
    return process_clock.now()


def clock_usable() -> bool:
    """Return False while the clock differs so much from the database's that no work may be taken."""
    return process_clock.usable


def clock_difference() -> float:
    """Return the seconds by which the database's clock was ahead at the last comparison."""
    return process_clock.difference


def check_wall_clock() -> None:
    """Compare with SQLite's clock, which is the wall clock of this machine."""
    at = process_clock.steady()
    process_clock.compare(process_clock.wall(), at, at)
