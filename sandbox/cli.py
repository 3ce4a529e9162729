"""Define the command `python -m sandbox`: run the stand-ins, and push to them."""

import asyncio
from pathlib import Path
from typing import Annotated, NoReturn

import httpx
import typer

from sandbox.hg import Client, NewChangeset
from sandbox.run import HG_PORT, HOST, TASKCLUSTER_PORT, TREEHERDER_PORT, SandboxError, run
from service.contract.ports import EXIT_CODE, PortError

app = typer.Typer(
    help="Stand-ins for Mercurial, Taskcluster and Treeherder, for demos and tests.", add_completion=False
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    hg_port: Annotated[int, typer.Option(help="Port of Mercurial's pushlog; 0 is any free one.")] = HG_PORT,
    taskcluster_port: Annotated[int, typer.Option(help="Port of Taskcluster; 0 is any free one.")] = TASKCLUSTER_PORT,
    treeherder_port: Annotated[int, typer.Option(help="Port of Treeherder; 0 is any free one.")] = TREEHERDER_PORT,
    amqp_url: Annotated[
        str | None, typer.Option(help="URL of a RabbitMQ to publish to.", envvar="SANDBOX_AMQP_URL")
    ] = None,
    mercurial: Annotated[bool, typer.Option(help="Keep real repositories, otherwise a pushlog in memory.")] = True,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to write the URLs to, as JSON, once all answer.")
    ] = None,
    exchange_prefix: Annotated[str, typer.Option(help="Prefix of the exchanges' names at the RabbitMQ.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = HOST,
) -> None:
    """Run the stand-ins as one process, each on a port of its own, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    try:
        run(
            hg_port,
            taskcluster_port,
            treeherder_port,
            amqp_url,
            mercurial,
            ready_file,
            exchange_prefix=exchange_prefix,
            host=host,
        )
    except SandboxError as error:
        _fail(str(error))
    except PortError as error:
        _fail(str(error), EXIT_CODE)


_START = "Start one with bin/sandbox, or name another one with --hg-url."


@app.command()
def push(
    repository: Annotated[str, typer.Argument(help="Path of the repository, such as try.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files to commit, under their names.")] = None,
    message: Annotated[str, typer.Option("--message", "-m")] = "A change",
    user: Annotated[str, typer.Option(help="User who pushes.")] = "dev@example.com",
    hg_url: Annotated[str, typer.Option(help="URL of the sandbox's Mercurial.")] = f"http://{HOST}:{HG_PORT}",
) -> None:
    """Commit files and push them to a running sandbox."""
    contents: dict[str, str | bytes] = {}
    for path in files or []:
        try:
            contents[path.name] = path.read_bytes()
        except OSError as error:
            _fail(f"The file {path} cannot be read: {error.strerror}.")
    try:
        tip, number = asyncio.run(_push(hg_url, repository, NewChangeset(files=contents, message=message), user))
    except RuntimeError as error:
        _fail(f"The sandbox at {hg_url} refuses the push: {error}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"No sandbox answers at {hg_url} ({error}). {_START}")
    except ValueError:  # the answer is no JSON
        _fail(f"What answers at {hg_url} is no sandbox. {_START}")
    typer.echo(f"push {number} of {repository}: {tip}")


async def _push(url: str, repository: str, changeset: NewChangeset, user: str) -> tuple[str, int]:
    """Push one changeset; return its node and the push id."""
    async with Client(url) as client:
        pushed = await client.push(repository, [changeset], user=user)
    return pushed["changesets"][-1], pushed["id"]


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"sandbox: {message}", err=True)
    raise typer.Exit(code)
