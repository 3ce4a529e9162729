"""Implement `tc-treeherder pushes`, which shows pushes with their steps, retries them, and ingests earlier ones."""

from typing import Annotated, Any

import typer

from service.commands import Failed, actions, output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, next_attempt, when

app = typer.Typer(no_args_is_help=True, help="Show pushes with their steps, retry them, ingest earlier ones.")

Alias = Annotated[str, typer.Argument(help="Alias of the repository.")]


def _push_id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise typer.BadParameter(
            f"{text!r} is no push id: give the number of the push in the pushlog, such as 43210. "
            "`tc-treeherder pushes list --revision` finds the push with a tip."
        )
    return int(text)


PushId = Annotated[int, typer.Argument(help="Id of the push in the pushlog.", parser=_push_id)]
Generation = Annotated[
    int | None, typer.Option(help="Generation of the repository. Default: the newest that has the push.", min=0)
]


@app.command("list")
def list_pushes(
    repository: Annotated[str | None, typer.Option("--repository", "-r", help="Alias of the repository.")] = None,
    state: Annotated[
        str | None, typer.Option(help="State of at least one step: pending, done, skipped or failed.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the tip, all 40 digits.")] = None,
    user: Annotated[str | None, typer.Option(help="User who pushed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of pushes.")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List pushes, the newest first."""
    with Service(url) as service:
        pushes = list(
            service.pages("pushes", limit=limit, repository=repository, state=state, revision=revision, user=user)
        )
    if as_json:
        output.document(pushes)
        return
    output.table(
        ("REPOSITORY", "PUSH", "TIP", "USER", "NOTICED", "TREEHERDER", "GRAPH", "TASKS", "WHY"),
        (
            (
                push["repository"],
                push["push_id"],
                (push["revision"] or "-")[:12],
                push["user"],
                when(push["noticed_at"]),
                _resultsets(push),
                push["graph"] and push["graph"]["state"],
                push["graph"] and push["graph"]["tasks_planned"],
                _reason(push),
            )
            for push in pushes
        ),
        "no push matches",
    )


def _resultsets(push: dict[str, Any]) -> str | None:
    states = [resultset["state"] for resultset in push["resultsets"]]
    if len(set(states)) <= 1:
        return states[0] if states else None
    return ", ".join(f"{resultset['environment']} {resultset['state']}" for resultset in push["resultsets"])


def _reason(push: dict[str, Any]) -> str:
    graph = push["graph"] or {}
    superseded = f"superseded by push {graph['superseded_by']}" if graph.get("superseded_by") is not None else None
    errors = [graph.get("reason"), superseded, *(resultset["error"] for resultset in push["resultsets"])]
    return "; ".join(dict.fromkeys(error for error in errors if error))


@app.command()
def show(
    alias: Alias, push_id: PushId, generation: Generation = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Show a push, with its steps, tasks and changesets."""
    with Service(url) as service:
        push = service.get("pushes", alias, push_id, generation=generation)
        if as_json:
            output.document(push)
            return
        try:
            push_tasks = service.get("pushes", alias, push_id, "tasks", generation=push["generation"])
        except Failed as error:
            output.warn(f"the states of its tasks are not known: {error}")
            push_tasks = None
    _show(push, push_tasks)


@app.command()
def tasks(
    alias: Alias, push_id: PushId, generation: Generation = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """List the tasks of a push with their states, those that failed first."""
    with Service(url) as service:
        push_tasks = service.get("pushes", alias, push_id, "tasks", generation=generation)
    if as_json:
        output.document(push_tasks)
        return
    output.table(
        ("TASK", "STATE", "RUN", "STARTED", "ENDED", "COPIES", "NAME"),
        (
            (
                task["task_id"] or "(no id yet)",
                _state(task),
                task["run_id"],
                when(task["started"]),
                when(task["ended"]),
                ", ".join(f"{copy['task_id']} {copy['state'] or NOT_REPORTED}" for copy in task["copies"]),
                task["name"],
            )
            for task in sorted(push_tasks["tasks"], key=lambda task: task["state"] in _UNFAILED)
        ),
        "it has no tasks",
    )
    for sentence in _remarks(push_tasks):
        output.warn(sentence)


NOT_REPORTED = "not reported"

_UNFAILED = {None, "unscheduled", "pending", "running", "completed"}


def _state(task: dict[str, Any]) -> str:
    return "planned" if task["task_id"] is None else task["state"] or NOT_REPORTED


def _remarks(push_tasks: dict[str, Any]) -> list[str]:
    """Return why these are not all tasks."""
    problem = push_tasks["problem"] and f"Taskcluster does not tell the newest: {push_tasks['problem']}"
    more = (
        push_tasks["more"]
        and "there are more tasks than are listed: the page of the task group in Taskcluster has them all"
    )
    return [remark for remark in (problem, more) if remark]


@app.command()
def retry(
    alias: Alias, push_id: PushId, generation: Generation = None, url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Retry the failed steps of a push."""
    with Service(url) as service:
        push = service.send("POST", "pushes", alias, push_id, "retry", query={"generation": generation})
    if as_json:
        output.document(push)
        return
    _show(push)


@app.command()
def ingest(
    alias: Alias,
    push_id: PushId,
    any_age: Annotated[
        bool, typer.Option("--any-age", help="Create its task graph even if it is older than max_push_age.")
    ] = False,
    key: Annotated[str | None, typer.Option(help="Idempotency-Key: the same call with it is the same action.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what it would do, and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 when it fails.")] = False,
    wait_seconds: Annotated[float, typer.Option(min=0, help="Longest time to wait.")] = 300,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Read a push from the pushlog, and process it as if it had just been seen: one from before the cursor."""
    told = {"any_age": True} if any_age else {}
    request = {"action": "ingest", "project": alias, "push": push_id, "input": told}
    actions.ask(request, key, url, plan=plan, wait_seconds=wait_seconds if wait else None, as_json=as_json)


def _show(push: dict[str, Any], push_tasks: dict[str, Any] | None = None) -> None:
    """Print a push, with the states of its tasks if they are known."""
    graph = push["graph"]
    pairs: list[tuple[str, Any]] = [
        ("push", f"{push['push_id']} of {push['repository']}, generation {push['generation']}"),
        ("user", push["user"]),
        ("pushed", when(push["date"])),
        ("noticed", when(push["noticed_at"])),
        ("tip", push["revision"]),
        ("revision_hash", push["revision_hash"]),
        ("changesets", push["changesets_count"]),
    ]
    for resultset in push["resultsets"]:
        pairs += _step(f"resultset {resultset['environment']}", resultset, resultset["error"])
    if graph is not None:
        pairs += _step("graph", graph, graph["reason"])
        if graph["superseded_by"] is not None:
            pairs.append(("superseded", f"by push {graph['superseded_by']}: what had not run yet was cancelled"))
        if graph["supersedes"]:
            pairs.append(("supersedes", [f"push {number}" for number in graph["supersedes"]]))
        if graph["error_task"]:
            pairs.append(("error task", graph["error_task"]))
        if graph["error_task_refused"]:
            pairs.append(("left out of it", graph["error_task_refused"]))
        if push_tasks is None:
            lines = [_line(task, "created" if task["created"] else "planned") for task in graph["tasks"]]
            pairs.append(("tasks", lines))
    if push_tasks is not None:
        counts = ", ".join(f"{number} {state}" for state, number in push_tasks["states"].items())
        lines = [line for task in push_tasks["tasks"] for line in _task_lines(task)]
        pairs.append(("tasks", [counts, *lines] if counts else lines))
        pairs += [("remark", remark) for remark in _remarks(push_tasks)]
    output.fields(pairs)


def _line(task: dict[str, Any], state: str) -> str:
    return f"{task['task_id'] or '(no id yet)':22}  {state:12}  {task['name']}"


def _task_lines(task: dict[str, Any]) -> list[str]:
    """Return a line for a task, and one for each copy of it."""
    lines = [_line(task, _state(task))]
    for copy in task["copies"]:
        lines.append(
            f"{copy['task_id']}  {copy['state'] or NOT_REPORTED:12}  {copy['name']}, a copy for {copy['requester']}"
        )
    return lines


def _step(name: str, step: dict[str, Any], error: str | None) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = [(name, step["state"]), ("  attempts", step["attempts"])]
    if error:
        pairs.append(("  reason", error))
    if step["working"] or step["next_attempt_at"]:
        pairs.append(("  next attempt", next_attempt(step)))
    if step["at"]:
        pairs.append(("  ended", when(step["at"])))
    return pairs
