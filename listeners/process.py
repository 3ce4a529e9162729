"""A listener as a process: settings, log, signals, and an exit code."""

import gc
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from listeners.settings import ListenerSettings, load
from service.contract.configuration import SettingsError

log = structlog.get_logger()


Configure = Callable[[ListenerSettings], None]
"""Sets up the log of the process; the service's way is not this package's to know."""


class Listener(Protocol):
    def run(self) -> None:
        """Listen until `stop()`."""

    def stop(self) -> None:
        """From any thread."""


def run(make: Callable[[ListenerSettings], Listener], configure_log: Configure | None) -> int:
    """Run the listener until SIGTERM or SIGINT, and give the exit code: 2 when the settings are wrong.

    `configure_log` gets the settings.
    """
    # waited for on a thread: a handler would run between any two steps of the main thread, which may hold a lock
    ends = {signal.SIGTERM, signal.SIGINT}
    try:
        settings = load()
        if configure_log is not None:
            configure_log(settings)
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        listener = make(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2

    def stop_on_signal() -> None:
        log.info("stopping", signal=signal.Signals(signal.sigwait(ends)).name)
        listener.stop()

    threading.Thread(target=stop_on_signal, name="signals", daemon=True).start()
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection has to go through it
    try:
        listener.run()
    except Exception:
        log.exception("listener-failed", remedy="this is a bug: report it; starting it again loses nothing")
        return 1
    return 0
