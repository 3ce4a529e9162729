"""Processes of the service, the listeners and the sandbox that start at once.

To import what they need would take longer than most of what tests watch.

Each is forked from one process that has imported it all and done nothing else. From then on it is one like any other:
with its own session, environment, output and end. That the command starts by itself is what tests/service/test_cli.py
and tests/system/test_demo.py show.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from sandbox.stack import Process, Running

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["service.app", "service.cli", "service.server", "listeners.pulse", "listeners.pushlog", "sandbox.cli", "uvloop"]
)


class WarmProcess(Process):
    def _launch(self) -> Running:
        self.log.touch()  # it is looked into before the process gets that far
        process = _FORKS.Process(
            target=_run, args=(self._module, self._arguments, self._environment, self.log), daemon=True
        )
        process.start()
        return _Forked(process)


class _Forked:
    """A forked process, as `subprocess.Popen` would have it."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.setsid()
    for name, flags, descriptors in (
        (os.devnull, os.O_RDONLY, (0,)),
        (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2)),
    ):
        opened = os.open(name, flags, 0o666)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tc-treeherder", *arguments]
    main = importlib.import_module(f"{module}.cli").app

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing's processes end without
