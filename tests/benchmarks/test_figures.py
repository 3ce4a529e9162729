"""Figures that cannot be measured are printed as such."""

import math

import pytest

from benchmarks.figures import ms, p95, ratio


@pytest.mark.parametrize(("values", "figure"), [([1.0], 1.0), (list(map(float, range(1, 101))), 95.0)])
def test_95_percent_of_the_values_do_not_exceed_p95(values: list[float], figure: float) -> None:
    assert p95(values[::-1]) == figure


def test_a_ratio_to_nothing_is_not_a_number() -> None:
    assert ratio(3, 2) == 1.5
    assert math.isnan(ratio(3, 0))


def test_seconds_are_printed_in_milliseconds() -> None:
    assert ms(0.01234) == "12.3 ms"
