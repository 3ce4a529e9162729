"""Run a listener. The command line is not loaded for it, which saves 2 MB of memory."""

from importlib import import_module

from service import lean

LIBRARIES: dict[str, list[str]] = {"pushlog": [], "pulse": ["pika"]}
"""The listeners, and the libraries that one has for itself."""


def run(listener: str) -> int:
    """Listen until SIGTERM or SIGINT, and return the exit code; see `listeners.process.run_listener`."""
    lean.load_for_listener(*LIBRARIES[listener])
    from service.log import configure  # noqa: PLC0415 - after what `lean` loads

    code: int = import_module(f"listeners.{listener}").main(
        lambda settings: configure(settings.log_level, settings.log_json, settings.sentry_dsn)
    )
    return code
