"""Run the benchmarks as `bin/measure-*` run them, small enough for a test."""

import importlib
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import httpx
import pytest
import typer
from structlog.testing import capture_logs
from typer.testing import CliRunner

from sandbox.stack import Stack
from tests.system.warm import WarmProcess

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


class WarmStack(Stack):
    """A stack whose processes are forked from a warm one, and which closes its clients at its end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, process=WarmProcess)
        self._clients = ExitStack()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._clients:
            super().__exit__(kind, error, trace)

    def api(self) -> httpx.Client:
        return self._closed_with_stack(super().api())

    def control(self, part: str) -> httpx.Client:
        return self._closed_with_stack(super().control(part))

    def _closed_with_stack(self, client: httpx.Client) -> httpx.Client:
        self._clients.callback(client.close)
        return client


def run_with_warm_stack(name: str, *arguments: str) -> list[str]:
    """Run a benchmark in this process, and return the lines that it prints; fail unless it writes no error.

    The processes of its stack are forked from a warm one, because most of a small benchmark's time is their imports.
    That `python -m benchmarks.<name>` starts is what test_commands.py shows. It does not configure logging here: all
    tests that follow in this process would log by it.
    """
    app = typer.Typer()
    app.command()(importlib.import_module(f"benchmarks.{name}").main)
    with pytest.MonkeyPatch.context() as patch, capture_logs():
        patch.setattr(f"benchmarks.{name}.Stack", WarmStack)
        patch.setattr(f"benchmarks.{name}.configure", lambda *_, **__: None, raising=False)
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout.splitlines()


def labels(lines: list[str]) -> list[str]:
    """Return the first word of each line: what the line is about."""
    return [line.split(maxsplit=1)[0] for line in lines]
