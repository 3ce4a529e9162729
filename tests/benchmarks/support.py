"""Run the benchmarks as `bin/measure-*` run them, small enough for a test."""

import signal
import subprocess
import sys

PATIENCE = 100
"""Seconds for a benchmark on a busy machine, below the timeout of a test."""


def run_benchmark(name: str, *arguments: str) -> list[str]:
    """Return the lines that `python -m benchmarks.<name>` prints; fail unless it ends with 0 and writes no error."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = process.communicate(timeout=PATIENCE)
    except BaseException:
        process.send_signal(signal.SIGINT)  # it stops the processes that it started
        process.communicate()
        raise
    assert (process.returncode, errors) == (0, "")
    return printed.splitlines()


def labels(lines: list[str]) -> list[str]:
    """Return the first word of each line: what the line is about."""
    return [line.split(maxsplit=1)[0] for line in lines]
