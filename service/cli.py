"""The tc-treeherder command."""

import asyncio
import gc
import signal
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service import lean  # before anything else imports what it trims
from service.commands import Commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.settings import Settings

# Every command imports what it needs by itself: a listener is to stay small, and has no use for the service's half.

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
db = typer.Typer(no_args_is_help=True, help="The database's schema.")
listen = typer.Typer(no_args_is_help=True, help="The listeners: they read, forward, and keep no state.")
app.add_typer(db, name="db")
app.add_typer(listen, name="listen")


def _fail(message: str) -> NoReturn:
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(2)


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
def _only(settings: "Settings") -> "Iterator[bool]":
    """On SQLite, make sure that this is the only service, before it touches the database.

    Gives whether it is; on PostgreSQL any number may be.
    """
    from service.engine.replica import LockedError, only

    try:
        with only(settings.database_url.get_secret_value()) if settings.sqlite else nullcontext():
            yield settings.sqlite
    except LockedError as error:
        _fail(str(error))


def _ready_schema(settings: "Settings") -> None:
    """SQLite's is brought up to date; PostgreSQL's must be, for other replicas may run on it."""
    from service.store import database

    url = settings.database_url.get_secret_value()
    with _readable_errors(url):
        if settings.sqlite:
            database.upgrade(url)
        else:
            database.check_schema(url)


@contextmanager
def _readable_errors(url: str) -> "Iterator[None]":
    """What an operator can mend is said in one line and ends the program with 2."""
    from sqlalchemy.exc import DBAPIError

    from service.store.database import SchemaError, shown

    try:
        yield
    except SchemaError as error:
        _fail(str(error))
    except DBAPIError as error:
        words = " ".join(str(error.orig).split())
        _fail(f"the database {shown(url)} cannot be used: {words}. Start it, or change TC_TREEHERDER_DATABASE_URL.")


@app.command()
def serve(
    worker: Annotated[bool, typer.Option(help="Run the worker in this process too.")] = True,
) -> None:
    """Run the API, and the worker in it."""
    from functools import partial

    import uvicorn

    from service.app import create_app
    from service.auth import is_loopback
    from service.server import Protocol

    settings = _settings()
    if not settings.has_credentials and not is_loopback(settings.host):
        _fail(
            f"host is {settings.host}, but no tokens are configured: without credentials the service listens on "
            "loopback only. Set TC_TREEHERDER_TOKENS or TC_TREEHERDER_TASKCLUSTER_LOGINS, or "
            "TC_TREEHERDER_HOST=127.0.0.1."
        )
    if not worker:
        _refuse_sqlite(settings, "a service without a worker")
    with _only(settings) as alone:
        _ready_schema(settings)
        # uvicorn raises the signal that stopped it once more: being told to stop is a good end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        app = create_app(settings, work=worker, alone=alone)
        # 170,000 objects that stay: else each full collection goes through them, in the midst of a request
        gc.collect()
        gc.freeze()
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            http=partial(Protocol, seconds=settings.request_timeout.total_seconds()),  # type: ignore[arg-type]  # makes one
            ws="none",
            proxy_headers=False,  # who calls is known by credentials, and our address by public_url
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
        )


@app.command()
def work() -> None:
    """Run a worker alone, beside `serve --no-worker`."""
    settings = _settings()
    _refuse_sqlite(settings, "a worker of its own")
    _ready_schema(settings)
    asyncio.run(_work(settings))


def _refuse_sqlite(settings: "Settings", what: str) -> None:
    if settings.sqlite:
        _fail(
            f"{what} needs PostgreSQL, and SQLite is for one process: run `tc-treeherder serve` alone, or set "
            "TC_TREEHERDER_DATABASE_URL to a postgresql+psycopg:// URL."
        )


async def _work(settings: "Settings") -> None:
    from service.engine import retention
    from service.engine.reporter import Reporter
    from service.engine.worker import Worker
    from service.services import open_services
    from service.store.database import Database

    opened = Database(settings.database_url.get_secret_value(), settings.database_pool)
    try:
        async with open_services(settings, opened) as services:
            await services.replica.start()
            worker, reporter = Worker(services), Reporter(services)

            def stop() -> None:
                worker.stop()
                reporter.stop()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
            helpers = [
                asyncio.create_task(retention.run(opened, settings.retention)),
                asyncio.create_task(opened.wakeups.listen(settings.database_url.get_secret_value())),
            ]
            await asyncio.gather(worker.run(), reporter.run())
            for helper in helpers:
                helper.cancel()
    finally:
        await opened.close()


@app.command()
def settings() -> None:
    """Print every setting with its default and meaning, as Markdown."""
    from listeners.settings import ListenerSettings
    from service.describe import describe
    from service.settings import Settings

    typer.echo(describe(service=Settings, listeners=ListenerSettings), nl=False)


@app.command()
def openapi() -> None:
    """Print the API as an OpenAPI document, which docs/openapi.json is a copy of."""
    import json

    from service.app import create_app
    from service.settings import Settings

    document = create_app(Settings.model_construct()).openapi()  # the defaults: no deployment's own
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@db.command()
def upgrade(revision: Annotated[str, typer.Argument()] = "head") -> None:
    """Bring the schema to the newest migration."""
    from service.store import database

    url = _settings().database_url.get_secret_value()
    with _readable_errors(url):
        database.upgrade(url, revision)
    typer.echo(f"the schema is at {revision}")


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="a revision; base: nothing is left")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: it is meant.")] = False,
) -> None:
    """Take the schema back, and delete what only the newer one can hold."""
    from service.commands import output
    from service.store import database

    url = _settings().database_url.get_secret_value()
    output.confirm(f"delete what schema {revision} cannot hold from {database.shown(url)}", yes)
    with _readable_errors(url):
        database.downgrade(url, revision)
    typer.echo(f"the schema is at {revision}")


@listen.command()
def pushlog() -> None:
    """Ask the monitored repositories' pushlogs, and forward what is new."""
    lean.load_httpx()
    from listeners.pushlog import main as run
    from service.log import configure

    raise typer.Exit(run(lambda settings: configure(settings.log_level, settings.log_json, settings.sentry_dsn)))


@listen.command()
def pulse() -> None:
    """Hear pressed buttons, task events and announced pushes on Pulse, and forward them."""
    lean.load_httpx()
    from listeners.pulse import main as run
    from service.log import configure

    raise typer.Exit(run(lambda settings: configure(settings.log_level, settings.log_json, settings.sentry_dsn)))


def main() -> None:
    app()
