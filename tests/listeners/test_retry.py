"""Pauses between attempts."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from listeners.retry import ListenerStopped, jitter, retry_after, wait_or_stop


def test_jitter_stays_between_its_factors() -> None:
    values = [jitter(10, 0.9, 1.1) for _ in range(500)]
    assert 9 <= min(values) < max(values) <= 11


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", 0), ("7", 7), (" 7 ", 7), ("0", 0), ("9" * 400, 300), ("-3", 0), ("soon", 0), ("\u0663", 0),
     ("Thu, 01 Jan 2026 00:00:00 GMT", 0), ("Thu, 01 Jan 2099 00:00:00 GMT", 300), ("Thu, 01 Jan 2099 00:00:00", 0)],
)  # fmt: skip
def test_retry_after_is_read_within_limits(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_retry_after_may_be_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < retry_after({"retry-after": at}) <= 100


def test_without_retry_after_there_is_no_pause() -> None:
    assert retry_after({}) == 0


def test_waiting_returns_after_its_time() -> None:
    began = time.monotonic()
    wait_or_stop(threading.Event(), 0.02)
    assert time.monotonic() - began >= 0.02


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(ListenerStopped):
        wait_or_stop(stop, 60)
