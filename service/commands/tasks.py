"""`tc-treeherder tasks`: what a task of Taskcluster's belongs to."""

from typing import Annotated, Any

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, when

app = typer.Typer(no_args_is_help=True, help="What a task belongs to, and what was reported of it.")


@app.callback()
def tasks() -> None:
    """Keep `show` a command of its own: typer would otherwise make the only one the group."""


@app.command()
def show(
    task_id: Annotated[str, typer.Argument(help="put -- before one that begins with a dash")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """A task's push or action, its runs as they were reported, the actions on it and its copies."""
    with Service(url) as service:
        task = service.get("tasks", task_id)
    if as_json:
        output.document(task)
        return
    push = task["push"]
    pairs: list[tuple[str, Any]] = [("task", task["task_id"]), ("name", task["name"])]
    if push:
        pairs.append(("push", f"{push['push_id']} of {push['repository']}, generation {push['generation']}"))
    if task["copy_of"]:
        pairs.append(("copy of", f"{task['copy_of']}, by action {task['made_by']}"))
    pairs += [("run", _run(run)) for run in task["runs"]]
    pairs += [
        ("action", f"{each['id']}: {each['action']} by {each['requester']}, {each['state']}")
        for each in task["actions"]
    ]
    pairs += [("copy", f"{copy['task_id']}  {copy['name']}") for copy in task["copies"]]
    output.fields(pairs)


def _run(run: dict[str, Any]) -> str:
    told = f"{run['environment']} was told {run['told'] or 'nothing yet'}"
    why = f": {run['error']}" if run["error"] else ""
    return f"{run['run_id']}, {run['stage']} at {when(run['heard_at'])}; {told}{why}"
