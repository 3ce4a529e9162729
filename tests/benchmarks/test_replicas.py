"""Benchmark of several services: a backlog is processed, and the bound is named."""

import re

import pytest

from tests.benchmarks.support import run_benchmark


@pytest.mark.long
def test_one_service_works_off_a_backlog(postgres_url: str) -> None:
    options = ("--waiting", "8", "--upstream", "0", "--services", "1", "--database-url", postgres_url)
    title, line = run_benchmark("growth", "replicas", *options)
    assert title == "8 pushes in 8 repositories, 0 ms a call upstream, PostgreSQL:"
    assert re.match(r"  1 services: +[\d.]+ pushes a second, 0 deadlocks, ", line)
    assert re.search(r"the machine is \d+% busy \(services \d+%, PostgreSQL \d+%, .*\), so the bound is ", line)
