"""Benchmark of actions on whole pushes."""

import re

from tests.benchmarks.support import run_with_warm_stack


def test_a_push_is_cancelled_and_failed_tasks_are_planned() -> None:
    arguments = ["--size", "5", "--failing", "4", "--rounds", "1"]
    title, line, median, *plan = run_with_warm_stack("bulk", *arguments)
    assert title == "cancel-push, 20 ms a call, SQLite"
    assert re.fullmatch(r"  4 tasks: [\d.]+ s, CPU [\d.]+ s, 8 calls", line), line
    assert re.fullmatch(r"  median [\d.]+ s", median)
    assert plan[0] == "plan of retrigger-failed, 20 ms a call"
    assert re.fullmatch(r"  6 copies: CPU [\d.]+ s, [\d.]+ s", plan[1]), plan
    assert re.fullmatch(r"  median CPU [\d.]+ s", plan[2])
