"""What open pages cost."""

import re

from tests.benchmarks.support import run_benchmark


def test_pages_are_watched_while_commits_are_pushed() -> None:
    head, line = run_benchmark("pages", "--pages", "10", "--seconds", "4", "--rounds", "1")
    assert head == 'SQLite, {"pages": 10, "seconds": 4}'
    measured = re.fullmatch(
        r"round 1: [\d.]+ % of a core with nobody, [\d.]+ % with 10 open pages \([+-][\d.]+\); "
        r"(\d+) events, \d+ kB a second",
        line,
    )
    assert measured is not None, line
    assert int(measured[1]) > 0
