"""The tc-treeherder command."""

import asyncio
import ipaddress
import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvicorn

from service import database, log
from service.app import create_app
from service.database import SchemaBehindError
from service.parts import parts
from service.settings import Settings, SettingsError, load
from service.worker import Worker

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
db = typer.Typer(no_args_is_help=True, help="The database's schema.")
listen = typer.Typer(no_args_is_help=True, help="The listeners: they read, forward, and keep no state.")
sandbox = typer.Typer(help="Stand-ins for Mercurial, Taskcluster and Treeherder, for trying things out.")
app.add_typer(db, name="db")
app.add_typer(listen, name="listen")
app.add_typer(sandbox, name="sandbox")


def _fail(message: str) -> NoReturn:
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(2)


def _settings() -> Settings:
    try:
        settings = load()
    except SettingsError as error:
        _fail(str(error))
    log.configure(settings.log_level, settings.log_json)
    return settings


def _ready_schema(settings: Settings) -> None:
    """SQLite's is brought up to date; PostgreSQL's must be, for other replicas may run on it."""
    url = settings.database_url.get_secret_value()
    try:
        if settings.sqlite:
            database.upgrade(url)
        else:
            database.check_schema(url)
    except SchemaBehindError as error:
        _fail(str(error))


@app.command()
def serve(
    worker: Annotated[bool, typer.Option(help="Run the worker in this process too.")] = True,
) -> None:
    """Run the API, and the worker in it."""
    settings = _settings()
    if not settings.has_credentials and not _loopback(settings.host):
        _fail(
            f"host is {settings.host}, but no tokens are configured: without credentials the service listens on "
            "loopback only. Set TC_TREEHERDER_TOKENS, or TC_TREEHERDER_HOST=127.0.0.1."
        )
    _ready_schema(settings)
    uvicorn.run(
        create_app(settings, work=worker),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@app.command()
def work() -> None:
    """Run a worker alone, beside `serve --no-worker`."""
    settings = _settings()
    _ready_schema(settings)
    asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    opened = database.Database(settings.database_url.get_secret_value(), settings.database_pool)
    try:
        async with parts(settings, opened) as made:
            worker = Worker(made)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.stop)
            await worker.run()
    finally:
        await opened.close()


@db.command()
def upgrade(revision: Annotated[str, typer.Argument()] = "head") -> None:
    """Bring the schema to the newest migration."""
    database.upgrade(_settings().database_url.get_secret_value(), revision)
    typer.echo(f"the schema is at {revision}")


@db.command()
def downgrade(revision: Annotated[str, typer.Argument(help="a revision; base: nothing is left")]) -> None:
    """Take the schema back."""
    database.downgrade(_settings().database_url.get_secret_value(), revision)
    typer.echo(f"the schema is at {revision}")


@listen.command()
def pushlog() -> None:
    """Ask the monitored repositories' pushlogs, and forward what is new."""
    from listeners.pushlog import main as run  # noqa: PLC0415 - a process of its own, with little memory

    raise typer.Exit(run())


@sandbox.callback(invoke_without_command=True)
def run_sandbox(
    context: typer.Context,
    hg_port: int = 7801,
    taskcluster_port: int = 7802,
    treeherder_port: int = 7803,
    amqp_url: Annotated[str | None, typer.Option(help="publish to this RabbitMQ too")] = None,
    mercurial: Annotated[bool, typer.Option(help="Real repositories; else a pushlog in memory.")] = True,
    ready_file: Annotated[Path | None, typer.Option(help="gets the addresses, as JSON, once all answer")] = None,
) -> None:
    """Run the stand-ins as one process, each on a port of its own (0: any that is free)."""
    if context.invoked_subcommand is None:
        from sandbox.run import run  # noqa: PLC0415 - needs the sandbox extra

        run(hg_port, taskcluster_port, treeherder_port, amqp_url, mercurial, ready_file)


def main() -> None:
    app()
