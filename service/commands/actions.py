"""Implement `tc-treeherder actions`, which asks for actions on tasks and pushes, and shows what became of them."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands import FAILED, Failed, output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, next_attempt, when
from service.contract.validation import closest

app = typer.Typer(no_args_is_help=True, help="Ask for actions on tasks and pushes, and show them.")

Task = Annotated[str | None, typer.Option(metavar="ALIAS/TASKID", help="Task, with its repository's alias.")]
Push = Annotated[
    str | None,
    typer.Option(metavar="ALIAS/ID", help="Push, with its repository's alias and its id in the pushlog."),
]

LOOK = 0.5
"""Seconds between two looks at an action that is waited for."""

GOOD_ENDS = {"done", "nothing-to-do"}
ENDS = {*GOOD_ENDS, "failed", "rejected"}


@app.command("list")
def list_actions(
    project: Annotated[str | None, typer.Option("--project", "-p", help="of this alias alone")] = None,
    state: Annotated[
        str | None, typer.Option(help="received, planned, done, failed, rejected or nothing-to-do")
    ] = None,
    task_id: Annotated[str | None, typer.Option(help="on this task")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="[ALIAS/]ID", help="on the push of this id, of this alias if it is given")
    ] = None,
    requester: Annotated[str | None, typer.Option(help="whom it was asked for by")] = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Actions, the newest first."""
    project, push_id = _parse_push_filter(project, push)
    with Service(url) as service:
        filters = {"project": project, "state": state, "task_id": task_id, "push": push_id, "requester": requester}
        actions = list(service.pages("actions", limit=limit, **filters))
    if as_json:
        output.document(actions)
        return
    output.table(
        ("ID", "ACTION", "PROJECT", "SUBJECT", "REQUESTER", "FROM", "RECEIVED", "STATE", "TASKS", "WHY"),
        (
            (
                each["id"],
                each["action"],
                each["project"],
                _subject(each),
                each["requester"],
                each["source"],
                when(each["received_at"]),
                each["state"],
                _tasks_of(each),
                each["reason"] or "",
            )
            for each in actions
        ),
        "no action matches",
    )


def _parse_push_filter(project: str | None, push: str | None) -> tuple[str | None, int | None]:
    """Return the alias and the id of the push that a list is of."""
    alias, separator, name = ("", "", push) if push is None or "/" not in push else push.partition("/")
    if push is None or name is None:
        return project, None
    if not (name.isascii() and name.isdigit()) or (separator and not alias):
        raise typer.BadParameter(f"--push is {push!r}, not [ALIAS/]ID: give one such as {_EXAMPLES['--push']} or 43210")
    if separator and project not in {None, alias}:
        raise typer.BadParameter(f"--push {push} is of another repository than --project {project}: leave one out")
    return alias or project, int(name)


def _tasks_of(action: dict[str, Any]) -> str | None:
    """Return the number of tasks that an action made of those that it plans, or that it cancels; None without any."""
    cancels, planned = action["cancels_count"], action["tasks_planned"]
    if cancels:
        return f"{cancels} cancelled"
    return f"{action['tasks_created']}/{planned}" if planned else None


@app.command("kinds")
def list_kinds(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the actions that can be asked for."""
    with Service(url) as service:
        kinds = service.get("actions", "kinds")["items"]
    if as_json:
        output.document(kinds)
        return
    rows = (
        (kind["name"], " or ".join(kind["subjects"]), kind["summary"], ", ".join(kind["input"].get("properties", ())))
        for kind in kinds
    )
    output.table(("ACTION", "ON", "WHAT IT DOES", "INPUT"), rows, "no actions")


@app.command("offered")
def list_offered(
    task: Task = None,
    push: Push = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the actions that the tree offers for a task or a push. Give --task or --push."""
    subject = _parse_subject(task, push)
    with Service(url) as service, output.waiting("asking what the tree offers"):
        offered = _offered(service, subject)
    if as_json:
        output.document(offered)
        return
    rows = (
        (
            each["name"],
            each["title"],
            ", ".join(each["input"].get("properties", ())) if isinstance(each["input"], dict) else "",
            each["broken"] or ("yes" if each["allowed"] else f"no: it needs {each['missing_scope']}"),
        )
        for each in offered["items"]
    )
    nothing = f"no actions: {offered['reason']}" if offered["reason"] else "no actions"
    output.table(("ACTION", "WHAT IT IS", "INPUT", "MAY YOU"), rows, nothing)


def _offered(service: Service, subject: dict[str, Any]) -> Any:
    if "task_id" in subject:
        return service.get("tasks", subject["task_id"], "actions", project=subject["project"])
    return service.get("pushes", subject["project"], subject["push"], "actions")


def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of our own actions, and of those that the tree offers if a task or push is given already."""
    given = ctx.params
    try:
        with Service(given.get("url") or os.environ.get("TC_TREEHERDER_SERVICE_URL") or DEFAULT_URL) as service:
            names = [kind["name"] for kind in service.get("actions", "kinds")["items"]]
            if given.get("task") or given.get("push"):
                subject = _parse_subject(given.get("task"), given.get("push"))
                names += [action["name"] for action in _offered(service, subject)["items"]]
    except (Failed, typer.BadParameter):  # a shell shows no errors of a completion
        return []
    return sorted({name for name in names if name.startswith(incomplete)})


@app.command()
def show(action_id: Annotated[int, typer.Argument(min=1)], url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One action, with the tasks that it made."""
    with Service(url) as service:
        action = service.get("actions", action_id)
    _show(action, as_json)


@app.command()
def run(
    action: Annotated[
        str,
        typer.Argument(
            help="Name, such as retrigger: `actions kinds` lists our own, `actions offered` those of the tree.",
            autocompletion=complete_names,
        ),
    ],
    task: Task = None,
    push: Push = None,
    run_id: Annotated[int | None, typer.Option(min=0, help="Run of the task. Default: the latest.")] = None,
    times: Annotated[int | None, typer.Option(min=1, help="Number of copies, for an action that makes some.")] = None,
    requester: Annotated[str | None, typer.Option(help="on whose behalf; your token's name, if not given")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency-Key: the same call with the same key is the same action, done once")
    ] = None,
    told: Annotated[str | None, typer.Option("--input", help="what the action is told, as JSON")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input-file", allow_dash=True, help="The same, from a file; - is stdin."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what it would do, and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 when it fails.")] = False,
    wait_seconds: Annotated[float, typer.Option(min=0, help="how long at most")] = 300,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Do something to a task or a push, such as retrigger or cancel it. Give --task or --push."""
    subject = _parse_subject(task, push)
    content = _read_input(told, input_file)
    if times is not None:
        if not isinstance(content, dict):
            raise typer.BadParameter(
                "--times goes into an input that is an object: leave it out, or give such an input"
            )
        content = {**content, "times": times}
    request = {"action": action, **subject, "run_id": run_id, "requester": requester, "input": content}
    if key is None and not plan:
        _check_name(action, subject, url)
    ask(request, key, url, plan=plan, wait_seconds=wait_seconds if wait else None, as_json=as_json)


def _check_name(name: str, subject: dict[str, Any], url: str) -> None:
    """Raise Failed for a name that is neither ours nor offered by the tree, before anything is asked for.

    The service says so too, but only once the action is carried out.
    """
    with Service(url) as service:
        try:
            known = [kind["name"] for kind in service.get("actions", "kinds")["items"]]
            if name in known:
                return
            with output.waiting("asking what the tree offers"):
                offered = [action["name"] for action in _offered(service, subject)["items"]]
        except Failed:  # what is wrong is the answer to the action itself, too
            return
    if offered and name not in offered:
        meant = closest(name, [*offered, *known])
        guess = f" ({meant}?)" if meant else ""
        about = f"--push {subject['project']}/{subject['push']}" if "push" in subject else None
        about = about or f"--task {subject['project']}/{subject['task_id']}"
        remedy = f"`tc-treeherder actions offered {about}` those of the tree"
        raise Failed(f"there is no action {name!r}{guess}: `tc-treeherder actions kinds` lists our own, {remedy}")


def ask(
    request: dict[str, Any], key: str | None, url: str, *, plan: bool, wait_seconds: float | None, as_json: bool
) -> None:
    """Ask for an action or its plan, show it, and wait for its end if `wait_seconds` says how long."""
    with Service(url) as service:
        if plan:
            with output.waiting("planning"):
                planned = service.send("POST", "actions", "plan", body=request)
            _show_plan(planned, as_json)
            return
        headers = {} if key is None else {"Idempotency-Key": key}
        made = service.send("POST", "actions", body=request, headers=headers)
        if wait_seconds is not None:
            made = _wait(service, made, wait_seconds)
    _show(made, as_json)
    if made["state"] in ENDS - GOOD_ENDS:
        raise Failed(f"action {made['id']} {made['state']}: {made['reason']}")
    if wait_seconds is not None and made["state"] not in ENDS:
        raise Failed(f"action {made['id']} has not ended within {wait_seconds:g} s; it goes on")


def _parse_subject(task: str | None, push: str | None) -> dict[str, Any]:
    """Return the members of a request that say what the action is about."""
    if (task is None) == (push is None):
        raise typer.BadParameter("give either --task ALIAS/TASKID or --push ALIAS/ID")
    option, form, text = ("--task", "ALIAS/TASKID", task) if push is None else ("--push", "ALIAS/ID", push)
    alias, separator, name = (text or "").partition("/")
    is_number = name.isascii() and name.isdigit()
    if not (alias and separator and name) or (push is not None and not is_number):
        raise typer.BadParameter(f"{option} is {text!r}, not {form}: give one such as {option} {_EXAMPLES[option]}")
    return {"project": alias, "task_id": name} if push is None else {"project": alias, "push": int(name)}


_EXAMPLES = {"--task": "try/fN1SbArXTPSVFNUvaOlinQ", "--push": "try/43210"}


def _subject(action: dict[str, Any]) -> str:
    """Return what an action is about."""
    return action["task_id"] if action["push"] is None else f"push {action['push']}"


def _read_input(text: str | None, file: Path | None) -> Any:
    if text is not None and file is not None:
        raise typer.BadParameter("give either --input or --input-file")
    if file is None:
        return _parse_input("--input", "{}" if text is None else text)
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--input-file {file} cannot be read: {error}") from None
    return _parse_input("--input-file", content)


def _parse_input(option: str, text: str) -> Any:
    try:
        parsed = json.loads(text)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()  # as it is sent
    except RecursionError:
        raise typer.BadParameter(f"{option} is no JSON: nested too deeply") from None
    except ValueError as error:
        raise typer.BadParameter(f"{option} is no JSON: {error}") from None
    return parsed


def _wait(service: Service, action: dict[str, Any], seconds: float) -> dict[str, Any]:
    end = time.monotonic() + seconds
    with output.waiting(f"waiting for action {action['id']}"):
        while action["state"] not in ENDS and time.monotonic() < end:
            time.sleep(min(LOOK, seconds))
            action = service.get("actions", action["id"])
    return action


def _show(action: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.document(action)
        return
    run_id = "" if action["run_id"] is None else f", run {action['run_id']}"
    pairs: list[tuple[str, Any]] = [
        ("action", f"{action['id']}: {action['action']} of {_subject(action)}{run_id} in {action['project']}"),
        ("requester", f"{action['requester']} ({action['source']})"),
        ("received", when(action["received_at"])),
        ("state", action["state"]),
    ]
    if action["reason"]:
        pairs.append(("why", action["reason"]))
    if action["done_at"]:
        pairs.append(("ended", when(action["done_at"])))
    elif action["working"] or action["next_attempt_at"]:
        pairs.append(("next attempt", next_attempt(action)))
    pairs += [("note", note) for note in action["notes"]]
    if action["in_tree"]:
        of_tree = action["in_tree"]
        pairs += [(name, of_tree[key]) for name, key in _OF_TREE.items() if of_tree[key]]
    pairs.append(
        (
            "tasks",
            [
                f"{t['task_id'] or '(no id yet)':22}  {'created' if t['created'] else 'not yet'}  {t['name']}"
                for t in action["tasks"]
            ],
        )
    )
    if action["cancels"]:
        pairs.append(("cancels", [f"{task['task_id']}  {task['name']}" for task in action["cancels"]]))
    output.fields([*pairs, *_left_out(action)])


_OF_TREE = {"decision task": "decision_task", "hook": "hook", "action task": "task_id", "its state": "state"}


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    good = plan["state"] in {"planned", *GOOD_ENDS}
    if as_json:
        output.document(plan)
    else:
        pairs: list[tuple[str, Any]] = [
            ("plan", f"{plan['action']} of {_subject(plan)} in {plan['project']}; nothing is done"),
            ("state", plan["state"]),
        ]
        if plan["reason"]:
            pairs.append(("why", plan["reason"]))
        pairs += [("note", note) for note in plan["notes"]]
        if plan["tasks"]:
            pairs.append(("copies", [f"{t['copy_of']}  {t['name']}" for t in plan["tasks"]]))
        if plan["cancels"]:
            pairs.append(("cancels", [f"{t['task_id']}  {t['state']:11}  {t['name']}" for t in plan["cancels"]]))
        output.fields([*pairs, *_left_out(plan), *_of_tree(plan["in_tree"])])
    if not good:
        raise Failed(f"it would be {plan['state']}: {plan['reason']}", FAILED)


def _left_out(of: dict[str, Any]) -> list[tuple[str, Any]]:
    entries = [f"{each['task_id']}  {each['name']}: {each['reason']}" for each in of["left_out"]]
    return [("left out", entries)] if entries else []


def _of_tree(plan: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """Return what the plan of an in-tree action has besides."""
    if plan is None:
        return []
    pairs: list[tuple[str, Any]] = [("decision task", plan["decision_task"])]
    if plan["hook"] is not None:
        pairs.append(("hook", plan["hook"]))
    pairs.append(("input", json.dumps(plan["input"])))
    missing = [f"{each['scope']}: {each['holder']} lacks it" for each in plan["missing_scopes"]]
    pairs += [("missing", missing)] if missing else []
    rendered = json.dumps(plan["rendered"], indent=2, sort_keys=True).splitlines()
    return [*pairs, ("task" if plan["hook"] is None else "payload", rendered)]
