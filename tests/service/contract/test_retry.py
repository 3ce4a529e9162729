"""Backoff and Retry-After."""

from datetime import UTC, datetime

import pytest

from service.contract.retry import backoff, retry_after

NOW = datetime(2030, 1, 30, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 1), (1, 1), (2, 2), (3, 4), (7, 60), (10_000, 60)])
def test_the_pause_doubles_up_to_the_longest(failures: int, seconds: float) -> None:
    assert backoff(failures, 1, 60, spread=0) == seconds
    pauses = [backoff(failures, 1, 60) for _ in range(200)]
    assert seconds * 0.5 <= min(pauses) < max(pauses) <= seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 29, float("9" * 29)),
        ("9" * 5_000, float("inf")),
        ("Wed, 30 Jan 2030 12:00:30 GMT", 30),
        ("Wed, 30 Jan 2030 11:00:00 GMT", 0),
        ("Wed, 30 Jan 2030 12:00:30", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("\u0663", None),
        ("", None),
        (None, None),
    ],
)
def test_what_an_answer_asks_for(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
