"""Benchmark of actions on whole pushes."""

import re

from tests.benchmarks.support import run_with_warm_stack


def test_a_push_is_cancelled() -> None:
    title, line, median = run_with_warm_stack("bulk", "--size", "5", "--rounds", "1")
    assert title == "cancel-push, 20 ms a call, SQLite"
    assert re.fullmatch(r"  4 tasks: [\d.]+ s, CPU [\d.]+ s, 8 calls", line), line
    assert re.fullmatch(r"  median [\d.]+ s", median)
