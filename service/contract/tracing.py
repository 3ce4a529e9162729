"""Send OpenTelemetry traces of this process where the environment names an endpoint.

The variables are OpenTelemetry's own (`OTEL_…`), and its libraries read them. Without an endpoint nothing of them is
loaded, and every function here does nothing. What is sent leaves on a thread of its own, from a queue that drops spans
when it is full: an endpoint that is away delays nothing.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from service.contract.configuration import SettingsError

if TYPE_CHECKING:
    import aiohttp
    import httpx
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

LONGEST_STOP = 1.0
"""Seconds that the end of a process waits until the last spans are sent."""

_provider: "TracerProvider | None" = None


def configured() -> bool:
    """Return True if the environment asks for traces. Raises SettingsError if it asks for something that cannot be."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None:
        return False
    try:
        parts = urlsplit(os.environ[variable])
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:  # its value can hold a password
        raise SettingsError(f"{variable} is no URL of a collector: set it to http://HOST:4318 or https://HOST:4318")
    for name in PROTOCOLS:
        if (protocol := os.environ.get(name) or PROTOCOL) != PROTOCOL:
            raise SettingsError(
                f"{name} is {protocol!r}, which is not spoken here: set it to {PROTOCOL}, and {variable} to the "
                "collector's port for that, which is 4318 by default"
            )
    return True


def start(name: str) -> None:
    """Begin to send traces, if the environment asks for it; `OTEL_SERVICE_NAME` goes before `name`.

    Raises SettingsError.
    """
    global _provider  # noqa: PLW0603 - one for a process, as in OpenTelemetry itself
    if _provider is not None or not configured():
        return
    # here, and not above: some 10 MB, only if they are used
    from opentelemetry import propagate  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    try:
        exporter = OTLPSpanExporter()
        attributes = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or name,
            "service.version": version("tc-treeherder"),
        }
        _provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        _provider.add_span_processor(BatchSpanProcessor(_OutageLog(exporter)))  # type: ignore[arg-type]  # it has the methods of one
    except (ValueError, OSError) as error:  # of a number, a certificate
        raise SettingsError(f"a variable OTEL_… cannot be used: {error}") from None
    propagate.set_global_textmap(TraceContextTextMapPropagator())  # and no baggage: strangers would fill it


class _OutageLog:
    """An exporter that logs an outage of the endpoint once when it begins, and when it ends."""

    def __init__(self, exporter: "SpanExporter") -> None:
        self._exporter = exporter
        self._away = False
        for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):  # they log each attempt
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        result = self._exporter.export(spans)
        away = result.name != "SUCCESS"
        if away and not self._away:
            remedy = f"Let a collector answer there, or unset {ENDPOINTS[1]}. Nothing but traces is lost meanwhile."
            log.warning("traces-not-sent", endpoint=_endpoint(), remedy=remedy)
        elif self._away and not away:
            log.info("traces-sent-again", endpoint=_endpoint())
        self._away = away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _endpoint() -> str:
    """Return the endpoint's host and port, without a password that its URL may hold."""
    return next(urlsplit(os.environ[name]).netloc for name in ENDPOINTS if os.environ.get(name)).rpartition("@")[2]


def stop() -> None:
    """Send what is left, for `LONGEST_STOP` at most."""
    global _provider  # noqa: PLW0603 - as above
    if _provider is None:
        return
    ending = threading.Thread(target=_provider.shutdown, name="traces", daemon=True)
    _provider = None
    ending.start()
    ending.join(LONGEST_STOP)


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str | int) -> Iterator[None]:
    """Record what is done inside as a span, of the trace that the traceparent `parent` names, or of the present one.

    An exception that leaves it is recorded.
    """
    if _provider is None:
        yield
        return
    from opentelemetry.propagate import extract  # noqa: PLC0415 - loaded by `start`

    context = None if parent is None else extract({"traceparent": parent})
    attributes = _named(attributes)
    with _provider.get_tracer("tc-treeherder").start_as_current_span(name, context, attributes=attributes):
        yield


def _named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"tc_treeherder.{key}": value for key, value in attributes.items()}


def describe(**attributes: str | int) -> None:
    """Set attributes of the present span."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415 - loaded by `start`

        get_current_span().set_attributes(_named(attributes))


def fail(reason: str) -> None:
    """Mark the present span as failed."""
    if _provider is not None:
        from opentelemetry.trace import Status, StatusCode, get_current_span  # noqa: PLC0415 - loaded by `start`

        get_current_span().set_status(Status(StatusCode.ERROR, reason))


def quiet() -> AbstractContextManager[Any]:
    """Record no requests that are sent inside: they are repeated every few seconds."""
    if _provider is None:
        return nullcontext()
    from opentelemetry.instrumentation.utils import suppress_http_instrumentation  # noqa: PLC0415 - likewise

    return suppress_http_instrumentation()


def current_traceparent() -> str | None:
    """Return the W3C traceparent of the present span, with which another process continues it; None without one."""
    if _provider is None:
        return None
    from opentelemetry.propagate import inject  # noqa: PLC0415 - loaded by `start`

    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")


def trace_id() -> str | None:
    """Return the id of the present trace, for the log."""
    traceparent = current_traceparent()
    return None if traceparent is None else traceparent.split("-")[1]


# --- libraries -------------------------------------------------------------------------------------------------------


def instrument_httpx(client: "httpx.Client") -> None:
    """Record the requests of a client, and send them with a traceparent."""
    if _provider is not None:
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor  # noqa: PLC0415 - likewise

        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=_provider)


def aiohttp_configs() -> list["aiohttp.TraceConfig"]:
    """Return what records the requests of an aiohttp session, and sends them with a traceparent."""
    if _provider is None:
        return []
    from opentelemetry.instrumentation.aiohttp_client import create_trace_config  # noqa: PLC0415 - likewise

    # without the query, which can hold a signature
    return [create_trace_config(lambda url: str(url.with_query(None)), tracer_provider=_provider)]


def app_config(ignored: tuple[str, ...]) -> "TelemetryConfig":
    """Return what lets FastAPI record the requests of an app, but for paths that begin with one of `ignored`."""
    return {
        "tracing": _provider is not None,
        "tracer_provider": _provider,
        "exclude": lambda scope: str(scope.get("path", "")).startswith(ignored),
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
    }


def hide_query() -> None:
    """Leave the query out of the present span, which is a request's: a bewit in it is a credential."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415 - likewise

        get_current_span().set_attribute("url.query", "")
