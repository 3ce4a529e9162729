"""Run a listener as a process: settings, log, signals and exit code."""

import gc
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from listeners.settings import ListenerSettings, load
from service.contract import tracing
from service.contract.configuration import SettingsError
from service.contract.ports import EXIT_CODE, PortError

log = structlog.get_logger()

ConfigureLog = Callable[[ListenerSettings], None]
"""Sets up the log of the process. The caller passes it, because this package imports nothing of the service's log."""


class Listener(Protocol):
    """A program that listens until it is stopped."""

    def run(self) -> None:
        """Listen until `stop()`."""

    def stop(self) -> None:
        """Let `run` return. Callable from any thread."""


def run_listener(name: str, create: Callable[[ListenerSettings], Listener], configure_log: ConfigureLog | None) -> int:
    """Run a listener until SIGTERM or SIGINT, and return the exit code.

    It is 2 if the settings are wrong, 5 if the port of its probe cannot be listened on, and 1 after a bug.

    `name` is its name in traces, `create` makes the listener of the settings, and `configure_log` sets up the log.
    """
    # a thread waits for them, because a handler would interrupt the main thread anywhere, perhaps while it holds a lock
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    try:
        settings = load()
        if configure_log is not None:
            configure_log(settings)
        signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # before any thread begins, for it inherits this
        tracing.start(f"tc-treeherder-{name}")
        listener = create(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except PortError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE

    def stop_on_signal() -> None:
        log.info("stopping", signal=signal.Signals(signal.sigwait(stop_signals)).name)
        listener.stop()

    threading.Thread(target=stop_on_signal, name="signals", daemon=True).start()
    gc.collect()
    gc.freeze()  # what is loaded stays, so no collection has to go through it
    try:
        listener.run()
    except Exception:
        log.exception("listener-failed", remedy="This is a bug: report it. A restart loses nothing.")
        return 1
    finally:
        tracing.stop()
    return 0
