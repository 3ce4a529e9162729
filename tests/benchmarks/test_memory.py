"""What each process keeps in memory while everything is used."""

import re

from tests.benchmarks.support import run_with_warm_stack
from tests.services import Amqp


def test_pushes_and_presses_end_while_memory_is_looked_at(amqp: Amqp) -> None:
    options = ("--amqp-url", amqp.url, "--minutes", "0.1", "--rate", "2")
    head, columns, *rows, end = run_with_warm_stack("memory", *options)
    assert head == "SQLite, 2 pushes a second for 0.1 minutes; MB:"
    assert columns.split("  ")[-1].strip() == "pulse listener"
    assert [row.split()[:2] for row in rows][-1] == ["12", "2"]
    for row in rows:
        assert re.fullmatch(r" +\d+ +\d+( +\d+\.\d){3}", row), row
    assert end == "  all ended; of pushes and presses, 0 failed"
