"""Clock and dates of the stand-in."""

import doctest

import pytest

from sandbox.taskcluster import clock
from sandbox.taskcluster.clock import SECOND, Clock, a_year_later, iso, parse


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-11-23T19:26:55Z", "2026-11-23T19:26:55.000Z"),
        ("2026-11-23T19:26:55.7246Z", "2026-11-23T19:26:55.724Z"),
        ("2026-11-23t19:26:55.7z", "2026-11-23T19:26:55.700Z"),
        ("2026-11-23T20:26:55.724+01:00", "2026-11-23T19:26:55.724Z"),
        ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
    ],
)
def test_dates_are_rewritten_in_one_form(text: str, written: str) -> None:
    moment = parse(text)
    assert moment is not None
    assert iso(moment) == written


@pytest.mark.parametrize(
    "text", ["2026-11-23", "2026-11-23T19:26:55", "2026-13-01T00:00:00Z", "2026-02-29T00:00:00Z", "", "soon", None, 5]
)
def test_what_is_no_date_time_is_none(text: object) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("date", "later"),
    [("2026-11-23T00:00:00.001Z", "2027-11-23T00:00:00.001Z"), ("2028-02-29T01:00:00Z", "2029-03-01T01:00:00.000Z")],
)
def test_a_year_later_is_what_javascript_makes_of_it(date: str, later: str) -> None:
    assert iso(a_year_later(parse(date) or 0)) == later


def test_a_clock_stands_moves_and_returns() -> None:
    clock = Clock()
    clock.freeze()
    before = clock.now()
    clock.advance(2.5)
    assert clock.now() == before + 2500
    clock.reset()
    assert abs(clock.now() - before) < 2 * SECOND


def test_the_examples_in_docstrings_hold() -> None:
    outcome = doctest.testmod(clock)
    assert (outcome.attempted > 0, outcome.failed) == (True, 0)
