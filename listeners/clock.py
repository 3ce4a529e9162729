"""The clock by which shifts are counted."""

import time


def steady() -> float:
    """Return seconds of a clock that nobody sets, and that counts the time in which the machine was suspended."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
