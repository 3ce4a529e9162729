"""Run the whole system as real processes, with the sandbox: for the demo, the system tests and the benchmarks."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from sandbox import broker
from sandbox.credentials import SIGN_IN, SIGN_IN_PATH
from sandbox.taskcluster.tasks import EXCHANGES
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE

ENVIRONMENT = "tc-treeherder"
"""The route prefix of the one Treeherder that a stack has unless it is given others."""


class StackError(RuntimeError):
    """An error of a process that did not start or did not answer; the message has the end of its log."""


class Running(Protocol):
    """Part of `subprocess.Popen` that a started process needs."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...


class Process:
    """A process `python -m <module> …` whose output goes to a file; `service` is the module of `tc-treeherder`."""

    def __init__(self, module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._module, self._arguments, self._environment, self.log = module, arguments, environment, log
        self._process: Running | None = None

    def start(self) -> None:
        with _undisturbed():  # a started process without a handle would run for ever
            self._process = self._launch()

    def _launch(self) -> Running:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the process that started the stack
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self._end(signal.SIGKILL, 10)

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM, wait, and return the exit code. Raises StackError if the process does not end in time."""
        return self._end(signal.SIGTERM, seconds)

    def _end(self, number: signal.Signals, seconds: float) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            raise StackError(
                f"{self._arguments} did not end within {seconds} s of {number.name}\n{self.tail()}"
            ) from None
        self._process = None
        return code

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Stack:
    """A sandbox, services and listeners, each a process. `settings` are environment variables for all of them.

    Leaving the context stops everything and removes everything from the broker. Without `database_url`, the database is
    SQLite in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        mercurial: bool = False,
        amqp_url: str | None = None,
        settings: dict[str, str] | None = None,
        environments: tuple[str, ...] = (ENVIRONMENT,),
        ports: tuple[int, int, int] = (0, 0, 0),
        service_port: int = 0,
        process: type[Process] = Process,
    ) -> None:
        self.folder = folder
        self._mercurial, self.amqp_url, self._ports = mercurial, amqp_url, ports
        self.pulse_user = broker.new_user()
        self._environments = environments
        self._extra = settings or {}
        self._database_url = database_url or f"sqlite+aiosqlite:///{folder / 'tc-treeherder.sqlite'}"
        self._service_port = service_port or free_port()
        self.token = secrets.token_urlsafe(24)
        self._webhook_secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        self.sandbox: dict[str, Any] = {}
        self._process = process
        self.processes: dict[str, Process] = {}
        self.service_url = f"http://127.0.0.1:{self._service_port}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_sandbox()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_all()

    def _stop_all(self) -> None:
        with _undisturbed():
            try:
                for name, process in reversed(self.processes.items()):
                    if process.running() and name != "sandbox":
                        process.kill()
                if "sandbox" in self.processes:
                    self.processes["sandbox"].stop()  # it has folders to remove
            finally:
                if self.amqp_url:
                    self._clean(self.amqp_url)

    def _clean(self, amqp_url: str) -> None:
        try:
            broker.remove(amqp_url, self.pulse_user)
        except broker.BrokerError as error:
            left = f"exchange/{self.pulse_user}/… and queue/{self.pulse_user}/…"
            sys.stderr.write(f"{error}. Delete what remains there of {left}.\n")

    def _start_sandbox(self) -> None:
        ready = self.folder / "sandbox.json"
        hg, taskcluster, treeherder = (str(port) for port in self._ports)
        arguments = ["--hg-port", hg, "--taskcluster-port", taskcluster, "--treeherder-port", treeherder]
        arguments += ["--service-port", str(self._service_port)]
        arguments += ["--ready-file", str(ready), "--mercurial" if self._mercurial else "--no-mercurial"]
        environment = {name: value for name, value in os.environ.items() if name != "SANDBOX_AMQP_URL"}
        if self.amqp_url:
            arguments += ["--exchange-prefix", broker.exchange_prefix(self.pulse_user)]
            environment["SANDBOX_AMQP_URL"] = self.amqp_url  # it contains a password, and every user can read arguments
        process = self._add("sandbox", arguments, environment, module="sandbox")
        process.start()
        wait_for(ready.is_file, 30, process)
        self.sandbox = json.loads(ready.read_text())

    def _add(self, name: str, arguments: list[str], environment: dict[str, str], module: str = "service") -> Process:
        process = self._process(module, arguments, environment, self.folder / f"{name}.log")
        self.processes[name] = process
        return process

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables for services and listeners."""
        client = self.sandbox["credentials"]["taskcluster"]
        hawk = self.sandbox["credentials"]["treeherder"]
        treeherder = {"url": self.sandbox["treeherder"], "client_id": hawk["id"], "secret": hawk["key"]}
        host = self.sandbox["hg"].removeprefix("http://")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TC_TREEHERDER_")}
        return {
            **clean,
            "TC_TREEHERDER_DATABASE_URL": self._database_url,
            "TC_TREEHERDER_PORT": str(self._service_port),
            "TC_TREEHERDER_SERVICE_URL": self.service_url,
            "TC_TREEHERDER_TOKENS": json.dumps([{"name": "demo", "value": self.token, "scopes": ["tc-treeherder:*"]}]),
            "TC_TREEHERDER_WEBHOOK_SECRETS": json.dumps([self._webhook_secret]),
            "TC_TREEHERDER_ALLOWED_HOSTS": json.dumps([host]),
            "TC_TREEHERDER_TASKCLUSTER__ROOT_URL": self.sandbox["taskcluster"],
            "TC_TREEHERDER_TASKCLUSTER__CLIENT_ID": client["clientId"],
            "TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN": client["accessToken"],
            "TC_TREEHERDER_WEB_SIGN_IN__CLIENT_ID": SIGN_IN,
            "TC_TREEHERDER_WEB_SIGN_IN__REDIRECT_URL": self.service_url + SIGN_IN_PATH,
            "TC_TREEHERDER_ENVIRONMENTS": json.dumps(dict.fromkeys(self._environments, treeherder)),
            **self._pulse,
            **self._extra,
        }

    @property
    def _pulse(self) -> dict[str, str]:
        if self.amqp_url is None:
            return {}
        prefix = broker.exchange_prefix(self.pulse_user)
        return {
            "TC_TREEHERDER_PULSE__URL": self.amqp_url,
            "TC_TREEHERDER_PULSE__USER": self.pulse_user,
            "TC_TREEHERDER_PULSE_JOB_ACTIONS": prefix + JOB_ACTIONS_EXCHANGE,
            "TC_TREEHERDER_PULSE_TASKS": prefix + EXCHANGES,
        }

    def service(
        self, name: str = "service", *arguments: str, port: int | None = None, module: str = "service", **settings: str
    ) -> Process:
        """Start `tc-treeherder serve` and wait until it answers; a second call with the same name starts it again."""
        environment = {**self.environment, **settings}
        if port is not None:
            environment["TC_TREEHERDER_PORT"] = str(port)
        process = self._add(name, ["serve", *arguments], environment, module)
        process.start()
        url = f"http://127.0.0.1:{environment['TC_TREEHERDER_PORT']}/__lbheartbeat__"
        with httpx.Client(timeout=5) as client:  # one client, because each reads all CA certificates
            wait_for(lambda: _answers(client, url), 30, process)
        return process

    def upgrade(self) -> None:
        """Upgrade the schema of the database to the newest one."""
        process = self._add("upgrade", ["db", "upgrade"], self.environment)
        process.start()
        wait_for(lambda: not process.running(), 30, process, may_end=True)

    def listener(self, name: str = "listener", kind: str = "pushlog", **settings: str) -> Process:
        """Start a listener."""
        process = self._add(name, ["listen", kind], {**self.environment, **settings})
        process.start()
        return process

    def worker(self, name: str = "worker", **settings: str) -> Process:
        """Start a worker of its own, for a service that was started with `--no-worker`."""
        process = self._add(name, ["work"], {**self.environment, **settings})
        process.start()
        return process

    def api(self) -> httpx.Client:
        """Return a client of the service's API with all scopes."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=f"{self.service_url}/api/v1", headers=headers, timeout=30)

    def control(self, part: str) -> httpx.Client:
        """Return a client for the control endpoints of a stand-in: hg, taskcluster or treeherder."""
        return httpx.Client(base_url=f"{self.sandbox[part]}/__control__", timeout=60)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Defer Ctrl-C and other signals while inside, so that an impatient second Ctrl-C leaves nothing half done."""
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted
        yield
        return
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def free_port() -> int:
    """Return a free port of 127.0.0.1, below the range of ports that systems assign by themselves."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # not `random`, which parallel tests seed equally
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _answers(client: httpx.Client, url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return client.get(url).is_success
    return False


def wait_for(
    condition: Callable[[], bool], seconds: float, process: Process | None = None, *, may_end: bool = False
) -> None:
    """Wait until `condition` is true. Raises StackError after `seconds`, or if `process` ends meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and not may_end and not process.running():
            raise StackError(f"A process ended before it was ready. The end of its log:\n{process.tail()}")
        if time.monotonic() > end:
            log = f" The end of the log:\n{process.tail()}" if process else ""
            raise StackError(f"The system was not ready within {seconds:g} s.{log}")
        time.sleep(0.02)
