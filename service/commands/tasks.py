"""Implement `tc-treeherder tasks`, which shows what a Taskcluster task belongs to."""

from typing import Annotated, Any

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, when

app = typer.Typer(no_args_is_help=True, help="Show what a task belongs to, and what was reported of it.")


@app.callback()
def tasks() -> None:
    """Keep `show` as a subcommand. Without this callback, typer merges a single command into its group."""


@app.command()
def show(
    task_id: Annotated[str, typer.Argument(help="Id of the task. Put -- before an id that begins with a dash.")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a task's push or action, the reports of its runs, the actions on it, and its copies."""
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
        ("action", f"{action['id']}: {action['action']} by {action['requester']}, {action['state']}")
        for action in task["actions"]
    ]
    pairs += [("copy", f"{copy['task_id']}  {copy['name']}") for copy in task["copies"]]
    output.fields(pairs)


def _run(run: dict[str, Any]) -> str:
    reported = f"{run['told'] or 'nothing'} was reported to {run['environment']}"
    reason = f": {run['error']}" if run["error"] else ""
    return f"{run['run_id']}, {run['result'] or run['stage']} at {when(run['last_event_at'])}; {reported}{reason}"
