"""The clock of shifts."""

import time

import pytest

from listeners.clock import boottime


def test_it_runs_at_least_as_long_as_the_monotonic_clock() -> None:
    assert boottime() >= time.monotonic() - 1


def test_it_never_goes_back() -> None:
    times = [boottime() for _ in range(1_000)]
    assert times == sorted(times)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has only the monotonic clock")
def test_it_is_the_clock_that_counts_suspended_time() -> None:
    assert time.clock_gettime(time.CLOCK_BOOTTIME) <= boottime() <= time.clock_gettime(time.CLOCK_BOOTTIME) + 1


def test_without_that_clock_it_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: 42.0)
    assert boottime() == 42.0
