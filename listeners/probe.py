"""Where Kubernetes and people ask how a listener is: `/__lbheartbeat__`, `/__heartbeat__`, as the service has them."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOK = 0.2
"""Seconds between two looks whether it is to end."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


class Probe(AbstractContextManager["Probe"]):
    """Answers on `port` of `host` (0: any that is free) while it is entered. Raises OSError when it cannot.

    `state` gives what is told as JSON; its `status` is ok, warning or error, and error is answered 503.
    """

    def __init__(self, host: str, port: int, state: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds for a request: who connects and says nothing holds no thread for ever

            def do_GET(self) -> None:
                if self.path not in {"/__lbheartbeat__", "/__heartbeat__"}:
                    self.send_error(404, "ask for /__lbheartbeat__ or /__heartbeat__")
                    return
                told = state()
                short = {"status": told["status"]} if self.path == "/__lbheartbeat__" else told
                body = json.dumps(short).encode()
                self.send_response(503 if told["status"] == "error" else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """A probe comes every few seconds: say nothing."""

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(LOOK,), name="probe", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
