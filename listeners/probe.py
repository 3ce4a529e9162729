"""Answer the health checks of a listener as the service does its own: `/__lbheartbeat__` and `/__heartbeat__`."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STOP_CHECK_INTERVAL = 0.2
"""Seconds between two checks whether the server is to stop."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


class ProbeServer(AbstractContextManager["ProbeServer"]):
    """An HTTP server on `port` of `host` (0: any free port) that runs while it is entered.

    `get_state` returns what is answered as JSON. Its `status` is ok, warning or error; error is answered with 503.
    Raises OSError if the port cannot be opened.
    """

    def __init__(self, host: str, port: int, get_state: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds for a request, so that a silent client does not hold a thread for ever

            def do_GET(self) -> None:
                if self.path not in {"/__lbheartbeat__", "/__heartbeat__"}:
                    self.send_error(404, "Ask for /__lbheartbeat__ or /__heartbeat__.")
                    return
                state = get_state()
                content = {"status": state["status"]} if self.path == "/__lbheartbeat__" else state
                body = json.dumps(content).encode()
                self.send_response(503 if state["status"] == "error" else 200)
                self.send_header("Content-Type", "application/json")
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
