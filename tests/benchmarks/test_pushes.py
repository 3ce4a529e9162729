"""Benchmark of the push path: everything is printed that docs/performance.md compares."""

import re

import pytest

from tests.benchmarks.support import labels, run_with_warm_stack


@pytest.mark.long
def test_latency_compares_the_service_with_the_bare_sequence() -> None:
    title, *lines = run_with_warm_stack("pushes", "latency", "--pushes", "1", "--warm-up", "0")
    assert title == "notice to graph, 1 pushes, 0 ms a call upstream, SQLite:"
    assert labels(lines) == ["tc-treeherder", "bare", "ratio", "service", "memory"]
    assert re.search(r"median [\d.]+ ms, p95 [\d.]+ ms$", lines[0])
    assert re.search(r"service \d+ MB.*, listener \d+ MB", lines[-1])


@pytest.mark.long
def test_backlog_counts_the_upstream_calls_of_all_pushes() -> None:
    title, *lines = run_with_warm_stack("pushes", "backlog", "--waiting", "3")
    assert title == "3 pushes waiting, SQLite:"
    assert labels(lines) == ["noticed", "through", "service", "upstream", "memory"]
    assert "{'createTask': 3}" in lines[3]
    assert lines[3].endswith("resultsets 3")


def test_idle_compares_the_polls_with_the_bare_loop() -> None:
    options = ("--repositories", "1", "--seconds", "0.5", "--rounds", "1", "--warm", "0.5", "--tag-age", "0")
    title, *lines = run_with_warm_stack("pushes", "idle", *options)
    assert title == "1 idle repositories, 0.5 s in 1 rounds, SQLite:"
    assert [label for label in labels(lines) if label.isalpha() and label != "nan"] == [
        "requests",
        "bare",
        "listener",
        "service",
        "ratio",
        "memory",
    ]
    assert re.fullmatch(r"  bare loop   [\d.]+ ms of CPU a poll, at the same pace", lines[1])
