"""Run tc-treeherder, which ties Mercurial's pushlog, Taskcluster and Treeherder together."""

import gc
import signal
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service import lean  # before any other module imports what it leaves out
from service.commands import USAGE, Commands
from service.listen import run as run_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.settings import Settings

# Each command imports what it needs, so that a listener does not load the service's modules.

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
db = typer.Typer(no_args_is_help=True, help="Migrate the database's schema.")
listen = typer.Typer(no_args_is_help=True, help="Run a listener, which forwards events and keeps no state.")
settings = typer.Typer(help="Print all settings, or check those of this deployment.")
app.add_typer(db, name="db")
app.add_typer(settings, name="settings")
app.add_typer(listen, name="listen")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tc-treeherder {version('tc-treeherder')}")
        raise typer.Exit


@app.callback()
def main_options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and leave.")
    ] = False,
) -> None:
    """Tie Mercurial's pushlog, Taskcluster and Treeherder together."""


def _fail(message: str, code: int = USAGE) -> NoReturn:
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(code)


def _settings() -> "Settings":
    import structlog

    from listeners.settings import ListenerSettings
    from service import log
    from service.contract.configuration import SettingsError, unknown
    from service.settings import Settings, load

    try:
        settings = load()
    except SettingsError as error:
        _fail(str(error))
    log.configure(settings.log_level, settings.log_json, settings.sentry_dsn)
    for variable, remedy in unknown(Settings, ListenerSettings).items():
        structlog.get_logger().warning("setting-unknown", variable=variable, remedy=remedy)
    return settings


@contextmanager
def _lock_sqlite(settings: "Settings") -> "Iterator[bool]":
    """Make sure that no other service uses the SQLite database, before this one does.

    Yield True if that is certain. On PostgreSQL any number of services may use the database.
    """
    from service.engine.replica import LockedError, only

    try:
        with only(settings.database_url.get_secret_value()) if settings.sqlite else nullcontext():
            yield settings.sqlite
    except LockedError as error:
        _fail(str(error))


def _prepare_schema(settings: "Settings") -> None:
    """Migrate SQLite's schema, or check PostgreSQL's, which other replicas may use."""
    from service.store import database

    url = settings.database_url.get_secret_value()
    with _readable_errors(url):
        if settings.sqlite:
            database.upgrade(url)
        else:
            database.check_schema(url)


@contextmanager
def _readable_errors(url: str) -> "Iterator[None]":
    """Report errors that an operator can fix in one line, and end the program with exit code 2."""
    from sqlalchemy.exc import DBAPIError

    from service.store.database import SchemaError, shown

    try:
        yield
    except SchemaError as error:
        _fail(str(error))
    except DBAPIError as error:
        # psycopg goes on with questions
        reason = " ".join(str(error.orig).split()).partition(" Is the server running")[0]
        _fail(f"the database {shown(url)} cannot be used: {reason}. Start it, or change TC_TREEHERDER_DATABASE_URL.")


def _exposure(settings: "Settings") -> str | None:
    """Return what is wrong if others could reach a service that asks nobody for credentials."""
    from service.auth import is_loopback

    if settings.has_credentials or is_loopback(settings.host):
        return None
    return (
        f"host is {settings.host}, but no tokens are configured: without credentials the service listens on loopback "
        "only. Set TC_TREEHERDER_TOKENS or TC_TREEHERDER_TASKCLUSTER_LOGINS, or TC_TREEHERDER_HOST=127.0.0.1."
    )


@app.command()
def serve(
    worker: Annotated[bool, typer.Option(help="Run the worker in this process, too.")] = True,
) -> None:
    """Run the API and the worker."""
    from functools import partial

    lean.load_uvicorn()
    import uvicorn

    from service import server
    from service.app import create_app
    from service.contract.ports import EXIT_CODE, PortError, require_free

    settings = _settings()
    if (problem := _exposure(settings)) is not None:
        _fail(problem)
    if not worker:
        _refuse_sqlite(settings, "a service without a worker")
    try:
        remedy = "Stop the program that uses it, or set TC_TREEHERDER_PORT to another one."
        require_free(settings.host, settings.port, "The API", remedy)
    except PortError as error:
        _fail(str(error), EXIT_CODE)
    with _lock_sqlite(settings) as alone, _tracing():
        _prepare_schema(settings)
        # uvicorn raises the signal that stopped it again, and SIGTERM is not a failure
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        app = create_app(settings, work=worker, alone=alone)
        # exclude 170,000 permanent objects from full collections, which would traverse them during a request
        gc.collect()
        gc.freeze()
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=partial(server.Protocol, seconds=settings.request_timeout.total_seconds()),  # type: ignore[arg-type]  # a factory
            ws="none",
            proxy_headers=False,  # credentials identify the caller, and public_url is our address
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
        )
        server.run(config)


@app.command()
def work() -> None:
    """Run only a worker, for a service that was started with `serve --no-worker`."""
    import asyncio

    settings = _settings()
    _refuse_sqlite(settings, "a worker of its own")
    _prepare_schema(settings)
    with _tracing():
        asyncio.run(_work(settings))


@contextmanager
def _tracing() -> "Iterator[None]":
    """Send traces within the block, if the environment asks for them."""
    from service.contract import tracing
    from service.contract.configuration import SettingsError

    try:
        tracing.start("tc-treeherder")
    except SettingsError as error:
        _fail(str(error))
    try:
        yield
    finally:
        tracing.stop()


def _refuse_sqlite(settings: "Settings", what: str) -> None:
    if settings.sqlite:
        _fail(
            f"{what} needs PostgreSQL, because SQLite is for one process: run only `tc-treeherder serve`, or set "
            "TC_TREEHERDER_DATABASE_URL to a postgresql+psycopg:// URL."
        )


async def _work(settings: "Settings") -> None:
    import asyncio

    from service.engine import retention
    from service.engine.reporter import Reporter
    from service.engine.worker import Worker
    from service.services import open_services
    from service.store.database import Database

    database = Database(settings.database_url.get_secret_value(), settings.database_pool)
    try:
        async with open_services(settings, database) as services:
            await services.replica.start()
            worker, reporter = Worker(services), Reporter(services)

            def stop() -> None:
                worker.stop()
                reporter.stop()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            helpers = [
                asyncio.create_task(retention.run(database, settings.retention)),
                asyncio.create_task(database.wakeups.listen(settings.database_url.get_secret_value())),
            ]
            await asyncio.gather(worker.run(), reporter.run())
            for helper in helpers:
                helper.cancel()
    finally:
        await database.close()


@settings.callback(invoke_without_command=True)
def describe_settings(
    context: typer.Context,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the YAML file instead, for editors.")
    ] = False,
) -> None:
    """Print every setting with its default and meaning, as Markdown."""
    import json

    from listeners.settings import ListenerSettings
    from service.describe import describe, describe_file
    from service.settings import Settings

    if context.invoked_subcommand is not None:
        return
    if schema:
        typer.echo(json.dumps(describe_file(Settings, ListenerSettings), indent=2, ensure_ascii=False))
        return
    typer.echo(describe(service=Settings, listeners=ListenerSettings), nl=False)


@settings.command("check")
def check_settings(
    listeners: Annotated[bool, typer.Option(help="Check what the listeners need, too.")] = True,
) -> None:
    """Check the settings of the environment and of the file that TC_TREEHERDER_CONFIG names; start nothing."""
    from listeners.settings import ListenerSettings
    from listeners.settings import load as load_listeners
    from service.contract import tracing
    from service.contract.configuration import SettingsError, unknown
    from service.settings import Settings, load

    problems = []
    try:
        if (exposure := _exposure(load())) is not None:
            problems.append(f"service: {exposure}")
    except SettingsError as error:
        problems.append(f"service: {error}")
    if listeners:
        try:
            load_listeners()
        except SettingsError as error:
            problems.append(f"listeners: {error}")
    try:
        tracing.configured()
    except SettingsError as error:
        problems.append(str(error))
    for variable, remedy in unknown(Settings, ListenerSettings).items():
        problems.append(f"there is no setting {variable}; {remedy}")
    if problems:
        _fail("\n".join(problems))
    typer.echo("the settings are good")


@app.command()
def openapi() -> None:
    """Print the API as an OpenAPI document. docs/openapi.json is a copy of it."""
    import json

    from service.app import create_app
    from service.settings import Settings

    document = create_app(Settings.model_construct()).openapi()  # defaults, and no deployment's settings
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="A revision; head is the newest.")] = "head") -> None:
    """Migrate the schema to the newest revision."""
    from service.store import database

    url = _settings().database_url.get_secret_value()
    with _readable_errors(url):
        database.upgrade(url, revision)
    typer.echo(f"the schema is at {revision}")


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision; base removes all tables.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Migrate the schema back, and delete the data that only the newer schema has."""
    from service.commands import output
    from service.store import database

    url = _settings().database_url.get_secret_value()
    output.confirm(f"delete the data from {database.shown(url)} that schema {revision} does not have", yes)
    with _readable_errors(url):
        database.downgrade(url, revision)
    typer.echo(f"the schema is at {revision}")


@listen.command()
def pushlog() -> None:
    """Poll the pushlogs of the monitored repositories, and forward new pushes."""
    raise typer.Exit(run_listener("pushlog"))


@listen.command()
def pulse() -> None:
    """Read pressed buttons, task events and announced pushes from Pulse, and forward them."""
    raise typer.Exit(run_listener("pulse"))
