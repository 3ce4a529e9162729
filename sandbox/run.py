"""Run Mercurial, Taskcluster and Treeherder as one process, on one event loop: `python -m sandbox`.

Each stand-in has a port of its own on 127.0.0.1. `sandbox.credentials` defines who may do what.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import typer
import uvicorn

from sandbox import broker, credentials, hg, taskcluster, treeherder
from sandbox.settings import STANDARD_OUTPUT, configuration, is_foreign
from sandbox.treeherder.store import Repository, Store
from service.contract.broker import BROKER_ERRORS
from service.contract.ports import PortError

HG_PORT = 7801
TASKCLUSTER_PORT = 7802
TREEHERDER_PORT = 7803
SERVICE_PORT = 8080
HOST = "127.0.0.1"

STAND_INS = {"hg": "Mercurial", "taskcluster": "Taskcluster", "treeherder": "Treeherder"}
"""The systems that are stood in for. The option for the port of each is `--<key>-port`."""

REPOSITORIES = ("integration/autoland", "try")
"""Paths of the repositories that are there from the start. A project of Treeherder is named as the path ends."""

GRACE_SECONDS = 2
"""Time that requests under way may take once the sandbox was told to stop."""


class SandboxError(RuntimeError):
    """An error that keeps the sandbox from starting; the message has the reason and the remedy."""


class _Server(uvicorn.Server):
    """A uvicorn server that installs no signal handlers, because three servers would replace each other's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(
    hg_port: int = HG_PORT,
    taskcluster_port: int = TASKCLUSTER_PORT,
    treeherder_port: int = TREEHERDER_PORT,
    amqp_url: str | None = None,
    mercurial: bool = True,
    ready_file: Path | None = None,
    repositories: Iterable[str] = REPOSITORIES,
    exchange_prefix: str = "",
    host: str = HOST,
    settings: Path | None = None,
    service_port: int = SERVICE_PORT,
) -> None:
    """Run the sandbox until SIGTERM or SIGINT; a port of 0 is any free one. Raises SandboxError and PortError.

    With `amqp_url`, task events and pressed buttons are published to that broker, otherwise they are dropped.
    `exchange_prefix` is put before the names of the exchanges, which stay until somebody deletes them. Without
    `mercurial`, repositories are kept in memory, which is faster and needs no `hg`. `ready_file` is written once all
    three accept connections, and removed at the end: JSON with `hg`, `taskcluster` and `treeherder` (URLs),
    `repositories` and `credentials`. `host` is the address to listen on; the URLs name 127.0.0.1 in any case.
    People sign in to Taskcluster for a service on `service_port`. `settings` is the file to write a configuration to,
    for that service; `-` is standard output. With it, the exchanges are those of a new Pulse user, and are deleted at
    the end with that user's queues.
    """
    if settings is not None:
        _require_own(settings)
    user, paths = broker.new_user(), tuple(repositories)
    ports = {"hg": hg_port, "taskcluster": taskcluster_port, "treeherder": treeherder_port}
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(_listen(name, host, port)) for name, port in ports.items()}
        if settings is not None and amqp_url is not None and not exchange_prefix:
            exchange_prefix = broker.exchange_prefix(user)
            stack.callback(_remove_exchanges, amqp_url, user)

        def announce(urls: dict[str, str]) -> None:
            ready = _ready(urls, paths)
            _say(urls, paths, amqp_url is not None)
            if settings is not None:
                _write_settings(settings, ready, service_port, amqp_url, user)
            if ready_file is not None:
                _write(ready_file, json.dumps(ready, indent=2), "ready-file")
                stack.callback(ready_file.unlink, missing_ok=True)

        loop_factory = uvicorn.Config(app="").get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_run(sockets, amqp_url, exchange_prefix, mercurial, announce, paths, service_port))


def _listen(name: str, host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        remedy = f"Stop the program that uses it, or choose another one: --{name}-port 0 takes any free port."
        raise PortError(host, port, f"The stand-in for {STAND_INS[name]}", remedy, error) from error


async def _run(
    sockets: dict[str, socket.socket],
    amqp_url: str | None,
    exchange_prefix: str,
    mercurial: bool,
    announce: Callable[[dict[str, str]], None],
    repositories: tuple[str, ...],
    service_port: int,
) -> None:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    urls = {name: f"http://{HOST}:{listening.getsockname()[1]}" for name, listening in sockets.items()}
    projects = [Repository(path.rsplit("/", 1)[-1], f"{urls['hg']}/{path}") for path in repositories]
    tc = taskcluster.Taskcluster(
        [credentials.SERVICE, credentials.PERSON],
        credentials.ROLES,
        amqp_url=amqp_url,
        exchange_prefix=exchange_prefix,
        worker=True,
        people=credentials.PEOPLE,
        registered=[credentials.registered_client(service_port)],
    )
    job_actions = exchange_prefix + treeherder.JOB_ACTIONS_EXCHANGE
    keys = {credentials.TREEHERDER_ID: credentials.TREEHERDER_SECRET}
    th = treeherder.State(Store(projects), keys, amqp_url, job_actions)

    async with contextlib.AsyncExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvloop leaves its own handlers, which do nothing once the loop is closed
            stack.callback(signal.signal, number, signal.getsignal(number))
            stack.callback(loop.remove_signal_handler, number)
            loop.add_signal_handler(number, stopping.set)
        pushlog = stack.enter_context(_mercurial() if mercurial else hg.MemoryPushlog())
        for path in repositories:
            await asyncio.to_thread(_create_repository, pushlog, path)
        try:
            await stack.enter_async_context(tc.running())
            if amqp_url is not None:
                await asyncio.to_thread(treeherder.declare_job_actions, amqp_url, job_actions)
        except TimeoutError as error:
            raise SandboxError(str(error)) from error
        except BROKER_ERRORS as error:
            raise SandboxError(f"The broker refuses the exchange {job_actions}: {error!r}") from error
        apps = {
            "hg": hg.create_app(pushlog),
            "taskcluster": taskcluster.create_app(tc),
            "treeherder": treeherder.create_app(th),
        }
        servers = [(_server(name, app), sockets[name]) for name, app in apps.items()]
        await stack.enter_async_context(_serving(servers, stopping))
        if stopping.is_set():
            return
        announce(urls)
        await stopping.wait()


def _mercurial() -> hg.MercurialPushlog:
    try:
        return hg.MercurialPushlog()
    except RuntimeError as error:
        raise SandboxError(f"{error}; or start without Mercurial (--no-mercurial)") from error
    except OSError as error:
        raise _unwritable_folder(error) from error


def _create_repository(pushlog: hg.Pushlog, path: str) -> None:
    try:
        pushlog.create(path)
    except (OSError, RuntimeError) as error:  # `hg init` reports a full disk by its exit code
        raise _unwritable_folder(error) from error


def _unwritable_folder(error: Exception) -> SandboxError:
    return SandboxError(
        f"The repositories cannot be written to a temporary folder ({error}). Set TMPDIR to a folder with write access "
        "and free space, or keep the repositories in memory: --no-mercurial."
    )


def _server(name: str, app: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            lifespan="off",  # `tc.running()` is entered here, where its errors become SandboxError
            date_header=name != "hg",  # the pushlog dates its answers itself, by its own clock
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


@contextlib.asynccontextmanager
async def _serving(servers: list[tuple[_Server, socket.socket]], stopping: asyncio.Event) -> AsyncIterator[None]:
    """Let all servers accept connections while inside; set `stopping` if one of them ends by itself."""
    tasks = [asyncio.create_task(server.serve([listening])) for server, listening in servers]
    for task in tasks:
        task.add_done_callback(lambda _: stopping.set())
    try:
        while not all(server.started for server, _ in servers) and not stopping.is_set():  # noqa: ASYNC110 - uvicorn has only a flag
            await asyncio.sleep(0.01)
        yield
    finally:
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


def _ready(urls: dict[str, str], repositories: tuple[str, ...]) -> dict[str, Any]:
    def client(credentials_of: taskcluster.Client) -> dict[str, str]:
        return {"clientId": credentials_of.client_id, "accessToken": credentials_of.access_token}

    return {
        **urls,
        "repositories": {path.rsplit("/", 1)[-1]: f"{urls['hg']}/{path}" for path in repositories},
        "credentials": {
            "taskcluster": client(credentials.SERVICE),
            "person": client(credentials.PERSON),
            "treeherder": {"id": credentials.TREEHERDER_ID, "key": credentials.TREEHERDER_SECRET},
        },
    }


def _write(path: Path, content: str, option: str) -> None:
    """Write a temporary file of mode 0600 and rename it, so that nobody reads half of it. Raises SandboxError."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        temporary = Path(name)
        with os.fdopen(handle, "w") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _unusable_file(path, option, f"cannot be written ({error.strerror})") from error


def _unusable_file(path: Path, option: str, reason: str) -> SandboxError:
    kind = option.removesuffix("-file")
    return SandboxError(f"The {kind} file {path} {reason}. Name a file in a folder with write access: --{option} PATH.")


def _require_own(settings: Path) -> None:
    """Raise SandboxError if the file is somebody's, because a configuration of a real service could be lost."""
    try:
        foreign = settings != STANDARD_OUTPUT and is_foreign(settings)
    except OSError as error:
        raise _unusable_file(settings, "settings", f"cannot be read ({error.strerror})") from error
    if foreign:
        raise SandboxError(f"The file {settings} is none that a sandbox wrote. Name a new one: --settings PATH.")


def _write_settings(path: Path, ready: dict[str, Any], port: int, amqp_url: str | None, user: str) -> None:
    """Write the configuration and print how to use it. Raises SandboxError."""
    if path == STANDARD_OUTPUT:
        typer.echo(configuration(ready, Path.cwd(), port, amqp_url, user))
        return
    path = path.absolute()
    _write(path, configuration(ready, path.parent, port, amqp_url, user), "settings")
    name = shlex.quote(str(path))
    typer.echo("For `tc-treeherder serve`, `listen` and all other commands, in each shell:")
    typer.echo(f"  export TC_TREEHERDER_CONFIG={name}")
    typer.echo(f"  export TC_TREEHERDER_TOKEN=$(sed -n 's/.*value: //p' {name})")


def _remove_exchanges(amqp_url: str, user: str) -> None:
    try:
        broker.remove(amqp_url, user)
    except broker.BrokerError as error:
        typer.echo(f"{error}. Delete what remains there of exchange/{user}/… and queue/{user}/….", err=True)


def _say(urls: dict[str, str], repositories: tuple[str, ...], amqp: bool) -> None:
    typer.echo("The sandbox is up. Stop it with Ctrl-C.")
    for path in repositories:
        typer.echo(f"  Mercurial    {urls['hg']}/{path}/json-pushes?version=2")
    typer.echo(f"  Taskcluster  {urls['taskcluster']}  (TASKCLUSTER_ROOT_URL, and a page: look here)")
    typer.echo(f"  Treeherder   {urls['treeherder']}/  (a page: look here)")
    if not amqp:
        typer.echo("  No --amqp-url was given: task events and pressed buttons are not published.")
