"""Answer the health checks of a listener as the service does its own, and `/__version__` and `/metrics`."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from listeners import metrics
from listeners.settings import ListenerSettings
from service.contract.build import read_build
from service.contract.ports import PortError

STOP_CHECK_INTERVAL = 0.2
"""Seconds between two checks whether the server is to stop."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


class ProbeServer(AbstractContextManager["ProbeServer"]):
    """An HTTP server on `port` of `host` (0: any free port) that runs while it is entered.

    `get_state` returns what the heartbeats answer as JSON. Its `status` is ok, warning or error; error is answered with
    503. `get_metrics` returns what `/metrics` answers. Raises OSError if the port cannot be opened.
    """

    def __init__(
        self,
        host: str,
        port: int,
        get_state: Callable[[], dict[str, Any]],
        get_metrics: Callable[[], bytes] = metrics.exposition,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds for a request, so that a silent client does not hold a thread for ever

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, get_metrics(), metrics.CONTENT_TYPE)
                elif self.path == "/__version__":
                    self._answer(200, json.dumps(read_build()).encode())
                elif self.path in {"/__lbheartbeat__", "/__heartbeat__"}:
                    state = get_state()
                    content = {"status": state["status"]} if self.path == "/__lbheartbeat__" else state
                    self._answer(503 if state["status"] == "error" else 200, json.dumps(content).encode())
                else:
                    self.send_error(404, "Ask for /__lbheartbeat__, /__heartbeat__, /__version__ or /metrics.")

            def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing, because a probe comes every few seconds."""

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(STOP_CHECK_INTERVAL,), name="probe", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "ProbeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def open_probe(
    name: str, settings: ListenerSettings, get_state: Callable[[], dict[str, Any]], get_metrics: Callable[[], bytes]
) -> ProbeServer | None:
    """Return the server that the settings ask for, None if they name no port; `name` is the listener's.

    Raises PortError.
    """
    host, port = settings.probe_host, settings.probe_port
    if port is None:
        return None
    metrics.running(read_build())
    try:
        return ProbeServer(host, port, get_state, get_metrics)
    except OSError as error:
        remedy = "Stop the program that uses it, or set TC_TREEHERDER_PROBE_PORT to another one."
        raise PortError(host, port, f"The probe of the {name} listener", remedy, error) from None
