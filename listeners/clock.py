"""The clock of shifts and leases, which also counts the time in which the machine was suspended."""

import time


def boottime() -> float:
    """Return the seconds of a clock that nobody can set, and that runs on while the machine is suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it
    return time.monotonic() if clock is None else time.clock_gettime(clock)
