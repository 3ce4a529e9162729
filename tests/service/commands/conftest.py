"""Fixtures that run commands as an operator does, against a running service.

system    sandbox, service and listener as processes, one for all tests here: each test keeps to aliases of its own.
pushed    two pushes to `try`: one whose graph was created, one whose `.taskcluster.yml` is broken
run       a command in this process
pretend   a web server that gives the answers that a test wants, for what the sandbox does not do
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from sandbox.stack import Stack
from service.cli import app
from tests.system.conftest import SHORT, System
from tests.system.warm import WarmProcess

GRAPH = """\
version: 1
tasks:
  $let:
    common:
      taskGroupId: {$eval: ownTaskId}
      taskQueueId: sandbox/test
      schedulerId: sandbox-level-3
      created: {$fromNow: ""}
      deadline: {$fromNow: "1 day"}
      routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
      payload: {sandbox: {seconds: 0}}
  in:
    - $merge:
        - {$eval: common}
        - taskId: {$eval: ownTaskId}
          metadata: {name: decision, description: d, owner: "${push.owner}", source: "${repository.url}"}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("test")}
          dependencies: [{$eval: ownTaskId}]
          metadata: {name: test, description: d, owner: "${push.owner}", source: "${repository.url}"}
"""


@dataclass
class Ran:
    """A command's output and exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """Return the lines of a table, split into words."""
        return [line.split() for line in self.out.splitlines()[1:]]


Run = Callable[..., Ran]


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with ExitStack() as exits:
        stack = exits.enter_context(
            Stack(tmp_path_factory.mktemp("commands") / "stack", settings=SHORT, process=WarmProcess)
        )
        running = System(stack)
        for client in (running.api, running.hg, running.taskcluster, running.treeherder):
            exits.enter_context(client)
        stack.service()
        stack.listener()
        yield running


@dataclass
class Pushed:
    good: int
    broken: int
    tasks: list[str]  # of the good push, the decision task first


@pytest.fixture(scope="package")
def pushed(system: System) -> Pushed:
    system.add_repository()
    ids = []
    for graph in (GRAPH, "version: 1\ntasks: {$eval: nonsense}\n"):
        changeset = {"message": "Bug 1 - a change", "files": {".taskcluster.yml": graph}}
        answer = system.hg.post(
            "/push", json={"repository": "try", "user": "dev@example.com", "changesets": [changeset]}
        )
        ids.append(int(answer.json()["id"]))

    def settled() -> bool:
        states = {push["push_id"]: push["graph"]["state"] for push in system.pushes() if push["repository"] == "try"}
        return [states.get(push_id) for push_id in ids] == ["done", "failed"]

    system.wait(settled)
    push = system.api.get(f"/pushes/try/{ids[0]}").json()
    return Pushed(ids[0], ids[1], [task["task_id"] for task in push["graph"]["tasks"]])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command with no other TC_TREEHERDER_ variables than the given ones."""
    for name in [name for name in os.environ if name.startswith("TC_TREEHERDER_")]:
        monkeypatch.delenv(name)

    def invoke(*arguments: str, **variables: str) -> Ran:
        environment = {f"TC_TREEHERDER_{name}": value for name, value in variables.items()}
        result = CliRunner().invoke(app, arguments, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def tc(system: System, run: Run) -> Run:
    """Return a function that runs a command with a token that allows everything at the service."""

    def invoke(*arguments: str) -> Ran:
        return run(*arguments, SERVICE_URL=system.stack.service_url, TOKEN=system.stack.token)

    return invoke


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Pretended:
    """A web server. `answers` has what a path is answered, one after another, the last for ever."""

    url: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def json(self, path: str, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = "application/json" if status < 400 else "application/problem+json"
        answer = status, {"Content-Type": kind, **(headers or {})}, json.dumps(body).encode()
        self.answers.setdefault(path, []).append(answer)

    def hang(self, path: str) -> None:
        self.answers[path] = [(0, {}, b"")]


@pytest.fixture
def pretend() -> Iterator[Pretended]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.partition("?")[0]
            pretended.asked.append((self.command, self.path, body))
            queue = pretended.answers.get(path, [(404, {"Content-Type": "text/html"}, b"<h1>no such page</h1>")])
            status, headers, content = queue.pop(0) if len(queue) > 1 else queue[0]
            if status == 0:
                pretended.released.wait(30)
                self.close_connection = True
                return
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pretended = Pretended(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield pretended
    pretended.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
