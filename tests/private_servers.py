"""PostgreSQL and RabbitMQ servers of our own, which a test may stop, kill and start again.

They run from installed programs on free ports of 127.0.0.1 and leave nothing behind:

    with PrivateBroker() as broker:  # PrivatePostgres likewise
        ...  # broker.url
        broker.kill()
        broker.start()  # same port, same data

`python -m tests.private_servers start|stop|status` is what `bin/services` runs; it keeps a pair running for a person.
"""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TextIO
from urllib.parse import urlsplit, urlunsplit

import pika
import psutil
import psycopg
from pika.exceptions import AMQPError
from sqlalchemy import make_url

from sandbox.stack import free_port

STATE = Path(__file__).resolve().parents[1] / ".services" / "state.json"

POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks this program before it starts a service; 101 forbids it

START_TIMEOUT = 60.0  # seconds; RabbitMQ takes 4 to 10 of them on two busy cores
GREETING_TIMEOUT = 2.0  # seconds in which a broker says what it is
STOP_TIMEOUT = 30.0  # seconds before what is left is killed


class MissingServiceError(Exception):
    """A server could not be had; the message says what was tried and what to do."""


# What answers


def conninfo(url: str) -> str:
    """Return `url` in the form of libpq and psycopg: without SQLAlchemy's driver."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def check_postgres(url: str) -> None:
    """Raise MissingServiceError unless a PostgreSQL server answers at `url` and its user may create databases."""
    try:
        with psycopg.connect(conninfo(url), connect_timeout=3) as connection:
            role = connection.execute(
                "SELECT rolcreatedb OR rolsuper, rolname FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
    except psycopg.Error as error:
        raise MissingServiceError(f"{without_password(url)} does not answer ({one_line(error)})") from error
    if role is None or not role[0]:
        raise MissingServiceError(f"the user of {without_password(url)} may not create databases (see ALTER ROLE)")


def check_broker(url: str) -> None:
    """Raise MissingServiceError unless an AMQP 0-9-1 broker answers at `url` and accepts its credentials and vhost."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "amqp":
            _greet(parts.hostname or "127.0.0.1", parts.port or 5672)
        pika.BlockingConnection(_parameters(url)).close()
    except (AMQPError, OSError, ValueError) as error:
        raise MissingServiceError(f"{without_password(url)} does not answer ({one_line(error)})") from error


def _greet(host: str, port: int) -> None:
    """Raise an error unless a broker is there, without the log that pika writes if there is none."""
    with socket.create_connection((host, port), timeout=GREETING_TIMEOUT) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        if connection.recv(1) != b"\x01":  # AMQP 0-9-1, 4.2.3: frame type 1 is a method, here Connection.Start
            raise ConnectionError("what listens there is no AMQP 0-9-1 broker")


def _parameters(url: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = 5
    parameters.stack_timeout = 10
    parameters.blocked_connection_timeout = 10
    return parameters


# Private servers


class PrivateServer:
    """A server of our own on free ports of 127.0.0.1, with its data in a temporary folder.

    As a context manager it runs inside the block and leaves nothing behind. `stop` and `kill` keep ports and data for
    the next `start`; `close` ends it for good. The data is not below the project: as root the server runs as another
    user, who may not get there.
    """

    name: ClassVar[str]
    users: ClassVar[tuple[str, ...]]  # whom to run as where we are root, in order of preference
    packages: ClassVar[tuple[str, ...]]  # Debian's
    shutdown: ClassVar[signal.Signals]  # an orderly end
    crash: ClassVar[signal.Signals]  # an end at once, nothing saved

    def __init__(self, ports: Sequence[int] = (), folder: Path | None = None) -> None:
        self.program()
        self.ports = list(ports) or free_ports(4)
        self._as = _unprivileged(self.users)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix=f"tc-treeherder-{self.name}-"))
            if self._as:
                os.chown(folder, self._as["user"], self._as["group"])
        self.folder = folder
        self._process: psutil.Process | None = None
        self._helper: psutil.Process | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        raise NotImplementedError

    @classmethod
    def program(cls) -> str:
        """Return the path of the server's program. Raises MissingServiceError if it is not installed."""
        raise NotImplementedError

    def _launch(self) -> psutil.Process:
        raise NotImplementedError

    def _check(self) -> None:
        """Raise MissingServiceError while the server does not answer yet."""
        raise NotImplementedError

    @classmethod
    def install(cls) -> str:
        """Install the program if it is missing, as root on Debian; return what was done, for people."""
        try:
            cls.program()
        except MissingServiceError:
            apt = shutil.which("apt-get")
            if apt is None or os.geteuid() != 0:
                raise
            _apt_install(apt, cls.packages)
            cls.program()
            return f" (installed {' '.join(cls.packages)} with apt-get)"
        return ""

    @property
    def running(self) -> bool:
        return self._process is not None and _alive(self._process)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Start the server and return once it answers. Raises MissingServiceError with the end of its log."""
        if self.running:
            return
        try:
            self._process = self._launch()
            self._wait_until_ready()
        except BaseException:  # Ctrl-C too: what does not get ready must not stay
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self._check()
            except MissingServiceError as why:
                if not self.running or time.monotonic() > end:
                    tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-8:])
                    raise MissingServiceError(
                        f"a private {self.name} did not start ({why}); its log ends: {tail}"
                    ) from why
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        self._end(self.shutdown)

    def kill(self) -> None:
        """Kill the server as a crash does: at once, and nothing is written that was not on disk."""
        self._end(self.crash)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.kill()
        if self._helper:
            self._finish(self._helper, signal.SIGTERM)
            self._helper = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process:
            self._finish(self._process, how)
            self._process = None

    def _finish(self, process: psutil.Process, how: signal.Signals) -> None:
        """Signal a process and wait for it and its children; kill those that remain after STOP_TIMEOUT."""
        try:
            family = [process, *process.children(recursive=True)]
            process.send_signal(how)
        except psutil.NoSuchProcess:
            family = []
        end = time.monotonic() + STOP_TIMEOUT
        while left := [member for member in family if _alive(member)]:
            if time.monotonic() > end or not _alive(
                process
            ):  # children that outlive their parent have lost their purpose
                for member in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
            time.sleep(0.02)
        if child := self._children.pop(process.pid, None):
            child.wait()

    def _spawn(self, *command: str, environment: Mapping[str, str]) -> psutil.Process:
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests, which then stop the server
                **self._as,
            )
        self._children[child.pid] = child
        return psutil.Process(child.pid)

    def save(self) -> dict[str, Any]:
        """Return the state that another process needs to `load` the server."""
        processes = [process and (process.pid, process.create_time()) for process in (self._process, self._helper)]
        return {"ports": self.ports, "folder": str(self.folder), "processes": processes}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Self:
        server = cls(saved["ports"], Path(saved["folder"]))
        server._process, server._helper = (
            _same_process(*process) if process else None for process in saved["processes"]
        )
        return server


class PrivatePostgres(PrivateServer):
    """PostgreSQL that keeps its commits through `kill`, but not through a power cut. User postgres, no password."""

    name = "postgresql"
    users = ("postgres", "nobody")
    packages = ("postgresql",)
    shutdown = signal.SIGINT  # PostgreSQL's "fast": ends the sessions and does not wait for them
    crash = signal.SIGQUIT  # its "immediate": recovers at the next start, but leaves no shared memory, as SIGKILL would

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.ports[0]}/postgres"

    @classmethod
    def program(cls) -> str:
        # Debian keeps these out of PATH; the newest version wins.
        folders = ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"]
        folders += ["/usr/local/opt/postgresql*/bin", "/Applications/Postgres.app/Contents/Versions/latest/bin"]
        return _installed("initdb", folders, "postgres")

    def _launch(self) -> psutil.Process:
        bin_folder = Path(self.program()).parent
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C"}
        data = self.folder / "data"
        if not data.exists():
            initialized = self._spawn(
                str(bin_folder / "initdb"),
                f"--pgdata={data}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                environment=environment,
            )
            if self._children.pop(initialized.pid).wait(timeout=START_TIMEOUT) != 0:
                raise MissingServiceError(f"initdb failed: {one_line(self.log.read_text(errors='replace'))}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.ports[0]),
            "unix_socket_directories": "",  # temporary folders of macOS are longer than a socket's path may be
            "max_connections": "200",
            "fsync": "off",
            "full_page_writes": "off",
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return self._spawn(
            str(bin_folder / "postgres"), "-D", str(data), *options, environment={**environment, "TZ": "UTC"}
        )

    def _check(self) -> None:
        check_postgres(self.url)


class PrivateBroker(PrivateServer):
    """RabbitMQ, with an epmd (Erlang's port mapper) of its own so that it meets no other node. User guest/guest."""

    name = "rabbitmq"
    users = ("rabbitmq", "nobody")
    packages = ("rabbitmq-server",)
    shutdown = signal.SIGTERM
    crash = signal.SIGKILL
    management = False  # with it, there is an API at `management_url`, and a start takes longer

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.ports[0]}/%2F"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    @classmethod
    def program(cls) -> str:
        # Debian's /usr/sbin/rabbitmq-server is only for root and rabbitmq, and uses the system's log: look behind it.
        folders = ["/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", "/opt/homebrew/opt/rabbitmq/sbin"]
        folders += ["/usr/local/opt/rabbitmq/sbin", "/usr/lib/rabbitmq/bin"]
        return _installed("rabbitmq-server", folders, "rabbitmqctl")

    def _environment(self) -> dict[str, str]:
        amqp, distribution, epmd, _ = self.ports
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",  # RabbitMQ's tools refuse to work with file names that are not UTF-8
            "HOME": str(self.folder),  # where Erlang makes its cookie
            "RABBITMQ_NODENAME": f"tct{amqp}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(amqp),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",  # standard output
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),  # not the system's
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RUNNING_UNDER_SYSTEMD": "1",  # no shell in between, which would take the signals
        }

    def _launch(self) -> psutil.Process:
        configuration = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.ports[3]}\n"
        for name, content in {
            "rabbitmq.conf": configuration if self.management else "",
            "rabbitmq-env.conf": "",
            "enabled_plugins": "[rabbitmq_management]." if self.management else "[].",
        }.items():
            (self.folder / name).write_text(content)
        environment = self._environment()
        if self._helper is None:
            homes = ("/usr/lib/erlang", "/opt/homebrew/opt/erlang/lib/erlang", "/usr/local/opt/erlang/lib/erlang")
            epmd = _installed("epmd", [f"{home}/bin" for home in homes])
            self._helper = self._spawn(
                epmd, "-port", environment["ERL_EPMD_PORT"], "-address", "127.0.0.1", environment=environment
            )
        return self._spawn(self.program(), environment=environment)

    def _check(self) -> None:
        check_broker(self.url)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this broker and return its output. Raises MissingServiceError if it fails."""
        program = str(Path(self.program()).with_name("rabbitmqctl"))
        return run_ctl(program, *arguments, env=self._environment(), cwd=self.folder, **self._as)


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _installed(program: str, folders: Sequence[str], beside: str = "") -> str:
    """Return the path of `program` in the newest of `folders` (globs) that also has `beside`, otherwise in PATH."""
    for pattern in folders:
        paths = list(Path("/").glob(f"{pattern.lstrip('/')}/{program}"))
        for path in sorted(paths, key=_version, reverse=True):
            if os.access(path, os.X_OK) and (not beside or path.with_name(beside).exists()):
                return str(path)
    if path_of := shutil.which(program):
        return path_of
    raise MissingServiceError(f"{program} is not installed (neither in PATH nor in {', '.join(folders)})")


def find_faketime() -> Path:
    """Return the library that fakes the time of a process that preloads it; install it if needed, as servers are."""
    pattern = "usr/lib/*/faketime/libfaketimeMT.so.1"
    if not list(Path("/").glob(pattern)):
        apt = shutil.which("apt-get")
        if apt is None or os.geteuid() != 0:
            raise MissingServiceError("no faketime: neither is its library in /usr/lib, nor may it be installed here")
        _apt_install(apt, ["faketime"])
    return next(Path("/").glob(pattern))


def find_promtool() -> Path:
    """Return Prometheus' checker of rules; install it if needed, as servers are."""
    if shutil.which("promtool") is None:
        apt = shutil.which("apt-get")
        if apt is None or os.geteuid() != 0:
            raise MissingServiceError(
                "no promtool in PATH, nor may it be installed here: install Prometheus (Debian: apt-get install "
                "prometheus; macOS: brew install prometheus)"
            )
        _apt_install(apt, ["prometheus"])
    return Path(str(shutil.which("promtool")))


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
_BROWSER_OF_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def find_browser() -> Path:
    """Return a browser of Chromium's kind: TEST_BROWSER, or one that is there; install it if needed, as servers are."""
    if named := os.environ.get("TEST_BROWSER"):
        if program := shutil.which(named):
            return Path(program)
        raise MissingServiceError(f"TEST_BROWSER is set, but {named} is no program: correct it, or unset it")
    programs = [program for name in BROWSERS if (program := shutil.which(name))]
    programs += [str(_BROWSER_OF_MACOS)] if _BROWSER_OF_MACOS.exists() else []
    if not programs:
        apt = shutil.which("apt-get")
        if apt is None or os.geteuid() != 0:
            raise MissingServiceError(
                f"no browser: none of {', '.join(BROWSERS)} is in PATH, nor may one be installed here. What to do: "
                "install Chromium (Debian: apt-get install chromium; macOS: brew install --cask google-chrome), or set "
                "TEST_BROWSER to a browser of its kind"
            )
        _apt_install(apt, ["chromium", "fonts-dejavu-core"])  # without a font, texts have no width
        programs = [str(shutil.which("chromium"))]
    return Path(programs[0])


def _version(path: Path) -> list[int]:
    """Return the numbers in a path, so that postgresql/17 sorts after postgresql/9.6."""
    return [int(word) for word in "".join(c if c.isdigit() else " " for c in str(path)).split()]


def _unprivileged(users: Sequence[str]) -> dict[str, Any]:
    """Return arguments of Popen that drop root's rights, because PostgreSQL refuses to run with them."""
    if os.geteuid() != 0:
        return {}
    for user in users:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(user)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise MissingServiceError(f"as root none of the users {', '.join(users)} is there to run a server as")


def _apt_install(apt: str, packages: Sequence[str]) -> None:
    """Install Debian packages without letting their services start, now or at the next boot."""
    folder = os.open(POLICY.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # processes that share the tests may want the same package at once
        _apt_install_alone(apt, packages)
    finally:
        os.close(folder)


def _apt_install_alone(apt: str, packages: Sequence[str]) -> None:
    say(f"tests: installing {' '.join(packages)} with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    written_here = not POLICY.exists()
    if written_here:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        for step in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            done = subprocess.run(
                [apt, "--quiet", *step], capture_output=True, text=True, env=environment, timeout=900, check=False
            )
            if done.returncode != 0:
                words = one_line((done.stderr or done.stdout)[-600:])
                raise MissingServiceError(f"apt-get {' '.join(step)} failed ({words})")
    finally:
        if written_here:
            POLICY.unlink()
    if disable := shutil.which("update-rc.d"):  # services bear their packages' names
        for package in packages:
            subprocess.run([disable, package, "disable"], capture_output=True, timeout=60, check=False)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _same_process(pid: int, started: float) -> psutil.Process | None:
    """Return the process of that pid, or None if the pid belongs to another process by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 1:
            return process
    return None


# bin/services


KINDS: dict[str, type[PrivateServer]] = {kind.name: kind for kind in (PrivatePostgres, PrivateBroker)}
VARIABLES = {PrivatePostgres.name: "TEST_DATABASE_URL", PrivateBroker.name: "TEST_AMQP_URL"}


def load_state() -> dict[str, PrivateServer]:
    """Return the servers that `bin/services start` started, by name."""
    if not STATE.exists():
        return {}
    return {name: KINDS[name].load(saved) for name, saved in json.loads(STATE.read_text()).items()}


def _save_state(servers: Mapping[str, PrivateServer]) -> None:
    if servers:
        STATE.parent.mkdir(exist_ok=True)
        STATE.write_text(json.dumps({name: server.save() for name, server in servers.items()}, indent=2))
    else:
        shutil.rmtree(STATE.parent, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Run `bin/services`; return 0 on success (for status: both servers run), 1 on failure, 2 for a wrong call."""
    actions: dict[str, Callable[[dict[str, PrivateServer]], int]] = {"start": _start, "stop": _stop, "status": _status}
    if len(arguments) != 1 or arguments[0] not in actions:
        say("usage: bin/services start|stop|status")
        return 2
    try:
        return actions[arguments[0]](load_state())
    except MissingServiceError as why:
        say(f"bin/services: {why}")
        return 1


def _start(servers: dict[str, PrivateServer]) -> int:
    failed = False
    for name, kind in KINDS.items():
        if name in servers and servers[name].running:
            continue
        if name in servers:  # it died: its data goes with it
            servers.pop(name).close()
        try:
            kind.install()
            server = kind()
            server.start()
        except MissingServiceError as why:
            failed = True
            say(f"bin/services: no {name}: {why}. Install {' '.join(kind.packages)} (Debian), or set {VARIABLES[name]}")
            continue
        servers[name] = server
        _save_state(servers)  # after each, so that a failure later leaves nothing that `stop` does not know
    _exports(servers)
    return int(failed)


def _stop(servers: dict[str, PrivateServer]) -> int:
    for name in list(servers):
        servers[name].close()
        del servers[name]
        _save_state(servers)
        say(f"bin/services: {name} stopped", sys.stdout)
    return 0


def _status(servers: dict[str, PrivateServer]) -> int:
    running = {name: server for name, server in servers.items() if server.running}
    _exports(running)
    for name in KINDS.keys() - running.keys():
        say(f"bin/services: {name} is not running; 'bin/services start' starts it")
    for name, server in running.items():
        say(f"# {name}: log and data in {server.folder}", sys.stdout)
    return int(len(running) < len(KINDS))


def _exports(servers: Mapping[str, PrivateServer]) -> None:
    for name, server in servers.items():
        say(f"export {VARIABLES[name]}={server.url}", sys.stdout)


# Words


def say(line: str, where: TextIO | None = None) -> None:
    """Print one line for people, by default on standard error."""
    print(line, file=where or sys.stderr, flush=True)


def one_line(words: object) -> str:
    """Return an error's text, or its name if it has none, in a form for the middle of a sentence."""
    return " ".join(str(words).split()) or type(words).__name__


def without_password(url: str) -> str:
    """Return the URL without its password, to be shown."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}", query=""))


def run_ctl(program: str, *arguments: str, **options: Any) -> str:
    """Run a rabbitmqctl and return its output. Raises MissingServiceError if it fails."""
    command = [program, "--quiet", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True, **options
        )
    except subprocess.CalledProcessError as error:
        raise MissingServiceError(f"{' '.join(command)} failed: {one_line(error.stderr or error.stdout)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingServiceError(f"{' '.join(command)} failed: {one_line(error)}") from error
    return str(done.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
