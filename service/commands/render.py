"""Implement `tc-treeherder render`, which tries a `.taskcluster.yml` before it is pushed."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands import USAGE, Failed, output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson

app = typer.Typer()


@app.command()
def render(
    file: Annotated[Path, typer.Argument(help="A .taskcluster.yml, or - for standard input.")],
    push: Annotated[str | None, typer.Option("--push", metavar="ALIAS/ID", help="Push to render the file for.")] = None,
    repository: Annotated[
        str | None,
        typer.Option("--repository", metavar="ALIAS", help="Without --push: repository of an imaginary push."),
    ] = None,
    message: Annotated[str, typer.Option(help="Without --push: commit message of the tip.")] = "",
    user: Annotated[str, typer.Option(help="Without --push: user who pushes.")] = "somebody@example.com",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the tasks that a file would create, and the scopes that its project lacks. Nothing is created.

    The exit code is 1 if the file cannot be used or a scope is missing.
    """
    alias, push_id = _target(push, repository)
    body = {"file": _read(file), "push_id": push_id, "message": message, "user": user}
    with Service(url) as service, output.waiting("rendering"):
        result = service.send("POST", "repositories", alias, "render", body=body)
    if as_json:
        output.document(result)
    else:
        _show(result)
    if result["error"]:
        raise Failed(result["error"])
    if lacking := [task["name"] for task in result["tasks"] if task["missing_scopes"]]:
        raise Failed(f"the project lacks scopes for {len(lacking)} of {len(result['tasks'])} tasks")


def _target(push: str | None, repository: str | None) -> tuple[str, int | None]:
    if (push is None) == (repository is None):
        raise Failed("give --push ALIAS/ID for an existing push, or --repository ALIAS for an imaginary one", USAGE)
    if push is None:
        return str(repository), None
    alias, _, number = push.rpartition("/")
    if not alias or not (number.isascii() and number.isdigit()):
        raise Failed(f"--push {push!r} is not ALIAS/ID, such as try/12345", USAGE)
    return alias, int(number)


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise Failed(f"{file} cannot be read: {error.strerror}", USAGE) from None
    except UnicodeDecodeError as error:
        raise Failed(f"{file} is not UTF-8: {error}", USAGE) from None


def _show(result: dict[str, Any]) -> None:
    for key in ("skipped", "scopes_unchecked"):
        if result[key]:
            output.say(result[key])
    rows = []
    for task in result["tasks"]:
        definition = task["definition"]
        missing = ", ".join(task["missing_scopes"])
        rows.append((task["name"], definition["taskQueueId"], definition["schedulerId"], missing))
    if not result["error"]:
        output.table(("TASK", "QUEUE", "SCHEDULER", "MISSING SCOPES"), rows, "the template has no tasks for this push")
