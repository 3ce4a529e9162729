"""Listeners as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.listeners.fakes import SECRET

ROOT = Path(__file__).parents[2]


@contextmanager
def running_listener(name: str, service_url: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run `tc-treeherder listen <name>` with these settings and no others, and kill it at the end."""
    variables = {"service_url": service_url, "webhook_secrets": f'["{SECRET}"]', **settings}
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("TC_TREEHERDER_")},
        **{f"TC_TREEHERDER_{key.upper()}": value for key, value in variables.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "listen", name],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def terminate(process: subprocess.Popen[str], number: signal.Signals, seconds: float) -> str:
    """Send the signal, and return what the process printed; it must exit with 0, in time and without a traceback."""
    began = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < seconds, output
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output
