"""Run commands in terminals, as the person does who reads a page of the documents, and compare what is printed."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path
from typing import Self

COLUMNS = 80
PATIENCE = 60.0
"""Seconds that output may take on a busy machine."""

_PROMPT = "\r\n@prompt@"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """An interactive bash on a terminal of 80 columns, without echo."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        attributes = termios.tcgetattr(terminal)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "--noediting", "-i"],
            cwd=folder,
            env={**environment, "TERM": "dumb", "PS1": "\\n@prompt@", "PS2": ""},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - nothing else runs in this process
        )
        os.close(terminal)
        self._output = ""
        self._reader = threading.Thread(target=self._read)  # a terminal that nobody reads stops what prints to it
        self._reader.start()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs in bash, and bash."""
        try:
            if not self.idle:
                self.interrupt()
            self.send("exit\n")
            self._bash.wait(30)
        except (AssertionError, subprocess.TimeoutExpired):
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
        self._reader.join()
        os.close(self._master)

    def send(self, text: str) -> None:
        self._output = ""
        os.write(self._master, text.encode())

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # bash has ended
            while printed := os.read(self._master, 65_536):
                self._output += printed.decode(errors="replace")

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the prompt."""
        self.send("\x03")
        self.wait()

    @property
    def idle(self) -> bool:
        """Return True if bash waits for a command."""
        return self._output.endswith(_PROMPT)

    def wait(self, seconds: float = PATIENCE) -> None:
        """Wait for the prompt."""
        end = time.monotonic() + seconds
        while not self.idle:
            time.sleep(0.02)
            assert time.monotonic() < end, f"still running: {self.lines}"

    @property
    def lines(self) -> list[str]:
        """Return what was printed since `send`, without styles, the prompt, and blanks at the end of lines.

        An empty line at the begin is left out: a progress bar leaves it on a terminal that cannot erase.
        """
        text = _STYLE.sub("", self._output).replace("\r", "")
        return [line.rstrip() for line in text.removesuffix(_PROMPT.lstrip("\r")).strip().splitlines()]
