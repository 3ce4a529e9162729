"""Benchmark of retriggers: growing graphs, single leaves and presses, by turns with a bare loop."""

import re

import pytest

from tests.benchmarks.support import run_benchmark, run_with_warm_stack


@pytest.mark.parametrize("kind", [pytest.param("fan", marks=pytest.mark.long), "chain"])
def test_a_graph_is_retriggered_with_and_without_latency(kind: str) -> None:
    title, *lines = run_with_warm_stack("retrigger", kind, "--sizes", "4")
    assert title.startswith(f"{kind}: tasks, ms a call: ")
    pattern = r"      4, +(\d+) ms: .* s \(.* s\), CPU .* s \(.* s\), \d+ calls \(limit 34; .*\), \+\d+ MB"
    assert [match[1] for line in lines if (match := re.fullmatch(pattern, line))] == ["0", "20"]


@pytest.mark.long
def test_copies_are_compared_with_the_bare_loop() -> None:
    title, turn, median = run_with_warm_stack(
        "retrigger", "against", "--kinds", "random", "--size", "4", "--rounds", "1"
    )
    assert title == "against: random of 4, 20 ms a call, 10 connections, SQLite"
    assert turn.startswith("  stored plan ")
    assert re.match(r"  median: [\d.]+ and [\d.]+ times, first createTask [\d.]+ s, CPU ", median)


@pytest.mark.long
def test_the_rate_is_compared_with_the_bare_loop() -> None:
    title, line = run_with_warm_stack("retrigger", "rate", "--sizes", "4", "--rounds", "1")
    assert title == "rate: 4 tasks, 10 connections, 0 ms a call"
    assert re.match(r"  service .* a second, .* ms of CPU each; bare loop \d+, ", line)


@pytest.mark.long
def test_a_leaf_in_a_group_is_retriggered() -> None:
    lines = run_with_warm_stack("retrigger", "leaf", "--group", "4")
    assert [line.partition(":")[0] for line in lines] == [
        "leaf in a group of 4, 0 ms a call",
        "leaf in a group of 4, 20 ms a call",
    ]


@pytest.mark.long
def test_a_press_is_timed_until_its_first_task(amqp_url: str) -> None:
    lines = run_benchmark("retrigger", "press", "--presses", "1", "--amqp-url", amqp_url)
    assert [line.partition(":")[0] for line in lines] == ["press, 0 ms a call", "press, 20 ms a call"]
    assert all(re.search(r"stored after \d+ ms .*, first createTask after \d+ ms ", line) for line in lines)
