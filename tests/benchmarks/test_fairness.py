"""Benchmark of fairness: a push and a cancel are timed alone, and beside a greedy user."""

import pytest

from tests.benchmarks.support import labels, run_with_warm_stack

ONCE = ("--times", "1", "--upstream", "0", "--warm-up", "0")


@pytest.mark.long
def test_a_push_is_timed_alone_and_beside_a_graph() -> None:
    title, *lines = run_with_warm_stack("fairness", "graphs", *ONCE, "--graphs", "1", "--tasks", "2")
    assert title == "a push beside 1 graphs of 2 tasks, 1 times, 0 ms a call of Taskcluster:"
    assert labels(lines) == ["alone", "beside", "ratio", "of"]


@pytest.mark.long
def test_a_push_is_timed_alone_and_beside_a_slow_template() -> None:
    title, *lines = run_with_warm_stack("fairness", "templates", *ONCE, "--graphs", "1")
    assert title == "a push beside 1 templates of 10 s, 1 times, 0 ms a call of Taskcluster:"
    assert labels(lines) == ["alone", "beside", "ratio", "of"]


@pytest.mark.long
def test_a_cancel_is_timed_alone_and_beside_creations() -> None:
    title, *lines = run_with_warm_stack("fairness", "cancels", *ONCE, "--creations", "20")
    assert title == "a cancel beside 20 creations, 1 times, 0 ms a call of Taskcluster:"
    assert labels(lines) == ["alone", "beside", "ratio", "slowest"]
