"""Logs as data. Each is written by a process of its own: logging is set up once a process."""

import gzip
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

SCRIPT = """
import logging, sys
import structlog
from pydantic import SecretStr
from service.log import configure

log = structlog.get_logger()
configure(sys.argv[1], {"json": True, "text": False, "none": None}[sys.argv[2]])
log.debug("too-much")
structlog.contextvars.bind_contextvars(work="PushStep")
log.info("push-stored", push=101, revision=None, secret=SecretStr("hunter2"), odd="\\udce9\\x00\\n\\x1b[31m")
structlog.contextvars.clear_contextvars()

def breaks():
    password = "hunter2"
    raise ValueError("no good")

try:
    breaks()
except ValueError:
    log.exception("step-broke")
log.critical("end-is-near")
logging.getLogger("uvicorn.error").warning("from %s", "uvicorn", extra={"color_message": "\\x1b[1mfrom\\x1b[0m"})
for chatty in ("httpx", "httpcore.http11", "pika", "taskcluster", "aiohttp.client", "mohawk.base", "asyncio"):
    logging.getLogger(chatty).info("Authorization: Hawk hunter2")
logging.getLogger("mohawk").debug("Authorization: Hawk hunter2")
"""


def written(level: str, form: str) -> list[str]:
    """Return the lines that the script wrote to standard output, which is not a terminal."""
    command = [sys.executable, "-c", SCRIPT, level, form]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    text = done.stdout.decode()
    assert "hunter2" not in text
    return text.splitlines()


def test_away_from_a_terminal_each_line_is_mozlog_json() -> None:
    before = time.time_ns()
    lines: list[dict[str, Any]] = [json.loads(line) for line in written("INFO", "none")]
    for line in lines:
        assert set(line) == {"Timestamp", "Type", "Logger", "Hostname", "EnvVersion", "Severity", "Pid", "Fields"}
        assert (line["EnvVersion"], line["Logger"]) == ("2.0", "tc-treeherder")
        assert before < line["Timestamp"] < time.time_ns()
    assert [(line["Type"], line["Severity"]) for line in lines] == [
        ("push-stored", 6),
        ("step-broke", 3),
        ("end-is-near", 2),
        ("from uvicorn", 4),
    ]
    stored = lines[0]["Fields"]
    expected = {"push": 101, "revision": None, "secret": "*" * 10, "odd": "\udce9\x00\n\x1b[31m", "work": "PushStep"}
    assert {name: stored[name] for name in expected} == expected
    assert "ValueError: no good" in lines[1]["Fields"]["exception"]
    assert "work" not in lines[2]["Fields"]
    assert "color_message" not in lines[3]["Fields"]


def test_for_people_it_is_one_line_an_event_and_no_local_variables() -> None:
    lines = written("DEBUG", "text")
    assert "too-much" in lines[0]
    assert "push-stored" in lines[1]
    assert "push=101" in lines[1]
    assert "work=PushStep" in lines[1]
    assert any("ValueError: no good" in line for line in lines)
    assert len(lines) < 20


def test_the_level_holds() -> None:
    assert [json.loads(line)["Type"] for line in written("ERROR", "json")] == ["step-broke", "end-is-near"]


def test_errors_reach_sentry_without_variables() -> None:
    received: list[bytes] = []

    class Sentry(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Sentry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dsn = f"http://key@127.0.0.1:{server.server_port}/1"
        script = SCRIPT.replace(
            'configure(sys.argv[1], {"json": True, "text": False, "none": None}[sys.argv[2]])',
            f'configure("INFO", True, SecretStr("{dsn}"))',
        )
        subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
        server.shutdown()
    reports = b"\n".join(received)
    assert b"step-broke" in reports
    assert b"ValueError" in reports
    assert b"hunter2" not in reports
