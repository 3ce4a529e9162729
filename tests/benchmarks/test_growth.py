"""Benchmark of a grown database: each page, each list, each claim, the sweep and /metrics are timed."""

import re

from benchmarks.growth import LISTS, PAGES
from tests.benchmarks.support import run_benchmark

# the smallest numbers that leave work for each claim, and a repository for each push through the ingress
SIZES = ("--pushes", "2000", "--reports", "2000", "--actions", "60", "--letters", "8", "--repositories", "60")


def test_each_list_each_claim_and_the_sweep_are_timed() -> None:
    lines = run_benchmark("growth", *SIZES, "--times", "1")
    names = [re.split(r"  +", line)[0] for line in lines]
    assert names[0] == "a push through the ingress, the first"
    assert "a push through the ingress, after 2,000" in names
    assert set(LISTS) <= set(names)
    assert {f"page {path}" for path in PAGES} <= set(names)
    assert {"worker: claim two steps", "reporter: claim two reports", "/metrics"} <= set(names)
    assert any(name.startswith("sweep: pushes, ") for name in names)
    assert names[-1].startswith("the whole sweep: ")
    timed = [line for line in lines if " ms, " in line]
    assert all(re.search(r" [\d.]+ ms, (at best|the longest) [\d.]+$", line) for line in timed)
