"""Configure logging to standard output: mozlog JSON in production, readable text on a terminal.

mozlog: https://github.com/mozilla-services/Dockerflow/blob/main/docs/mozlog.md

Event names are static, and identifiers are fields.
"""

import logging
import os
import socket
import sys
import time
from importlib.metadata import version
from typing import Any

import structlog
from pydantic import SecretStr

_SEVERITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def _mozlog(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Put the event into Mozilla's logging envelope, version 2.0."""
    level = event.pop("level", "info")
    return {
        "Timestamp": event.pop("timestamp_ns"),
        "Type": event.pop("event"),
        "Logger": "tc-treeherder",
        "Hostname": socket.gethostname(),
        "EnvVersion": "2.0",
        "Severity": _SEVERITY.get(level, 6),
        "Pid": os.getpid(),
        "Fields": event,
    }


def _plain(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    event.pop("color_message", None)  # from uvicorn, with escape codes
    return event


def _nanoseconds(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    event["timestamp_ns"] = time.time_ns()
    return event


def configure(level: str, as_json: bool | None, sentry_dsn: SecretStr | None = None) -> None:
    """Configure structlog, and let the standard library's loggers log through it.

    `as_json` None: JSON unless standard output is a terminal.
    """
    if as_json is None:
        as_json = not sys.stdout.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _plain,
    ]
    if as_json:
        shared += [_nanoseconds, structlog.processors.format_exc_info]
        last: list[Any] = [_mozlog, structlog.processors.JSONRenderer(default=str)]
    else:
        shared.append(structlog.processors.TimeStamper("%H:%M:%S.%f", utc=False))
        # the default prints every local variable with a traceback, which is slow, and some are secrets
        formatter = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=formatter)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # below WARNING these log requests with their headers, or every step of a connection
    for name in ("httpx", "httpcore", "pika", "taskcluster", "aiohttp", "mohawk", "asyncio", "alembic", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _report_errors(sentry_dsn)


def _report_errors(dsn: SecretStr | None) -> None:
    """Report errors in the log, and uncaught exceptions, to Sentry, without requests, variables or client addresses."""
    if dsn is None:
        return
    import sentry_sdk  # noqa: PLC0415 - some megabytes, only if it is used
    from sentry_sdk.integrations.atexit import AtexitIntegration  # noqa: PLC0415
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration  # noqa: PLC0415
    from sentry_sdk.integrations.logging import LoggingIntegration  # noqa: PLC0415

    sentry_sdk.init(
        dsn.get_secret_value(),
        release=version("tc-treeherder"),
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        default_integrations=False,
        integrations=[
            LoggingIntegration(event_level=logging.ERROR),
            ExcepthookIntegration(),
            AtexitIntegration(),
        ],
    )
