"""Define the command `python -m sandbox`: run the stand-ins, push to them, and press their buttons."""

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer

from sandbox.run import HG_PORT, HOST, SERVICE_PORT, TASKCLUSTER_PORT, TREEHERDER_PORT, SandboxError, run
from service.contract.ports import EXIT_CODE, PortError

app = typer.Typer(
    help="Stand-ins for Mercurial, Taskcluster and Treeherder, for demos and tests.", add_completion=False
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    hg_port: Annotated[
        int, typer.Option(help="Port of Mercurial's pushlog; 0 is any free one.", envvar="SANDBOX_HG_PORT")
    ] = HG_PORT,
    taskcluster_port: Annotated[
        int, typer.Option(help="Port of Taskcluster; 0 is any free one.", envvar="SANDBOX_TASKCLUSTER_PORT")
    ] = TASKCLUSTER_PORT,
    treeherder_port: Annotated[
        int, typer.Option(help="Port of Treeherder; 0 is any free one.", envvar="SANDBOX_TREEHERDER_PORT")
    ] = TREEHERDER_PORT,
    amqp_url: Annotated[
        str | None, typer.Option(help="URL of a RabbitMQ to publish to.", envvar="SANDBOX_AMQP_URL")
    ] = None,
    mercurial: Annotated[bool, typer.Option(help="Keep real repositories, otherwise a pushlog in memory.")] = True,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to write the URLs to, as JSON, once all answer.")
    ] = None,
    exchange_prefix: Annotated[str, typer.Option(help="Prefix of the exchanges' names at the RabbitMQ.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = HOST,
    settings: Annotated[
        Path | None,
        typer.Option(help="File to write a configuration of tc-treeherder to, with new secrets; - prints it."),
    ] = None,
    service_port: Annotated[
        int,
        typer.Option(
            help="Port of the service in that configuration, and to which people sign in.",
            envvar="SANDBOX_SERVICE_PORT",
        ),
    ] = SERVICE_PORT,
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
            settings=settings,
            service_port=service_port,
        )
    except SandboxError as error:
        _fail(str(error))
    except PortError as error:
        _fail(str(error), EXIT_CODE)


_REMEDY = "Start one with bin/sandbox, or name another one with --hg-url or --treeherder-url."

HgUrl = Annotated[str, typer.Option("--hg-url", help="URL of the sandbox's Mercurial.", envvar="SANDBOX_HG_URL")]
TreeherderUrl = Annotated[
    str, typer.Option("--treeherder-url", help="URL of the sandbox's Treeherder.", envvar="SANDBOX_TREEHERDER_URL")
]
_HG_URL, _TREEHERDER_URL = f"http://{HOST}:{HG_PORT}", f"http://{HOST}:{TREEHERDER_PORT}"


@app.command()
def create(
    repository: Annotated[str, typer.Argument(help="Path of the repository, such as projects/mine.")],
    hg_url: HgUrl = _HG_URL,
    treeherder_url: TreeherderUrl = _TREEHERDER_URL,
) -> None:
    """Create an empty repository in a running sandbox, and its project in Treeherder."""
    url = f"{hg_url.rstrip('/')}/{repository}"
    _ask(hg_url, "POST", "repositories", {"repository": repository})
    _ask(treeherder_url, "POST", "repositories", {"name": repository.rsplit("/", 1)[-1], "url": url})
    typer.echo(f"{url} is there.")


@app.command()
def push(
    repository: Annotated[str, typer.Argument(help="Path of the repository, such as try.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files to commit, under their names.")] = None,
    message: Annotated[str, typer.Option("--message", "-m")] = "A change",
    user: Annotated[str, typer.Option(help="User who pushes.")] = "dev@example.com",
    hg_url: HgUrl = _HG_URL,
) -> None:
    """Commit files and push them to a running sandbox."""
    contents: dict[str, str] = {}
    for path in files or []:
        try:
            contents[path.name] = path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            _fail(f"The file {path} cannot be read: {error.strerror}.")
    changeset = {"files": contents, "message": message}
    pushed = _ask(hg_url, "POST", "push", {"repository": repository, "user": user, "changesets": [changeset]})
    typer.echo(f"push {pushed['id']} of {repository}: {pushed['changesets'][-1]}")


@app.command()
def jobs(
    project: Annotated[str, typer.Argument(help="Project of Treeherder, such as try.")],
    limit: Annotated[int, typer.Option(min=1, help="Largest number of pushes.")] = 10,
    treeherder_url: TreeherderUrl = _TREEHERDER_URL,
) -> None:
    """Print a running sandbox's Treeherder: the pushes of a project, the newest first, and their jobs by platform."""
    state = _ask(treeherder_url, "GET", f"state?project={quote(project)}")
    names = {repository["name"] for repository in state["repositories"]}
    if project not in names:
        name = project.rsplit("/", 1)[-1]
        if name in names:
            _fail(f"Treeherder has no project {project}. It is called {name} there: bin/sandbox jobs {name}.")
        _fail(f"Treeherder has no project {project}. Create it with bin/sandbox create {project}.")
    for resultset in state["resultsets"][: -limit - 1 : -1]:
        body = resultset["resultset"]
        summary = body["revisions"][-1]["comment"].partition("\n")[0]
        typer.echo(f"{body['revision'][:12]}  {body['author']}  {summary}")
        for job in sorted(_describe(job) for job in state["jobs"] if job["revision"] == body["revision"]):
            typer.echo("  " + "  ".join(job))
    if not state["resultsets"]:
        typer.echo("no pushes")


def _describe(job: dict[str, Any]) -> tuple[str, ...]:
    body = job["job"]
    group = "" if body["group_symbol"] == "?" else f"{body['group_symbol']}-"
    platform = " ".join([body["machine_platform"]["platform"], "+".join(sorted(body["option_collection"]))])
    result = body["result"] if body["state"] == "completed" else body["state"]
    return f"{platform:<24}", f"{group + body['job_symbol']:<8}", f"{result:<10}", body["name"]


@app.command()
def press(
    button: Annotated[str, typer.Argument(help="Button: retrigger or cancel.")],
    project: Annotated[str, typer.Argument(help="Project of Treeherder, such as try.")],
    symbol: Annotated[str, typer.Argument(help="Symbol of the job. The newest job that has it is meant.")],
    job_guid: Annotated[str | None, typer.Option(help="Guid to send instead of that of the job.")] = None,
    treeherder_url: TreeherderUrl = _TREEHERDER_URL,
) -> None:
    """Press a button of a job in a running sandbox's Treeherder, as on its page."""
    state = _ask(treeherder_url, "GET", f"state?project={quote(project)}")
    guids = [job["job"]["job_guid"] for job in state["jobs"] if job["job"]["job_symbol"] == symbol]
    if not guids:
        _fail(f"The project {project} has no job with the symbol {symbol}. See bin/sandbox jobs {project}.")
    body = {"project": project, "job_guid": job_guid or guids[-1], "action": button, "requester": "you@sandbox.example"}
    heard = _ask(treeherder_url, "POST", "job-action", body)["heard"]
    typer.echo(f"{button} sent" + ("." if heard else ", but nobody listens: start tc-treeherder listen pulse."))


def _ask(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return the answer of a stand-in's control endpoint, or end with the reason."""
    try:
        # json.dumps escapes lone surrogates, which httpx's own encoder refuses
        content = None if body is None else json.dumps(body)
        answer = httpx.request(method, f"{url.rstrip('/')}/__control__/{path}", content=content, timeout=60)
        document = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(f"No sandbox answers at {url} ({error}). {_REMEDY}")
    except ValueError:  # the answer is no JSON
        _fail(f"What answers at {url} is no sandbox. {_REMEDY}")
    if answer.is_error:
        reason = document.get("error") or document.get("detail") or answer.status_code
        _fail(f"The sandbox at {url} refuses this: {reason}")
    return document


def _fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"sandbox: {message}", err=True)
    raise typer.Exit(code)
