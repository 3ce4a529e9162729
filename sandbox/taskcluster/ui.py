"""Pages for people, at the paths that Taskcluster's own have: task groups, the tasks of one, and one task.

GET  /                          the newest task groups
GET  /tasks/groups/{groupId}    the tasks of a group
GET  /tasks/{taskId}            a task, its runs and their artifacts
"""

import html
import json
from collections import Counter
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sandbox.taskcluster.instance import Taskcluster
from sandbox.taskcluster.tasks import Task

MOST_GROUPS, MOST_TASKS = 50, 500
"""Groups, and tasks of one, that a page shows."""

_COLOURS = {
    "completed": "#02822e",
    "failed": "#c3001c",
    "exception": "#77438d",
    "running": "#1d5fa8",
    "pending": "#5e5e5e",
    "unscheduled": "#8a5a00",
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light"><link rel="icon" href="data:,"><title>{title} - Taskcluster (sandbox)</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: .3em 1em .3em 0; border-top: 1px solid #ddd }}
pre {{ background: #f4f4f4; padding: .8em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere }}
b {{ white-space: nowrap }}
</style></head><body>
<p><a href="{base}/">Task groups</a></p>
<h1>{title}</h1>
{body}
</body></html>
"""


def ui_routes(tc: Taskcluster) -> list[Route]:
    """Return the routes of the pages."""

    async def root(request: Request) -> Response:
        groups = sorted(tc.queue.groups.values(), key=lambda group: _created(tc, group.task_ids), reverse=True)
        rows = "".join(
            f"<tr><td>{_link(request, 'tasks/groups', group.group_id)}</td><td>{_created(tc, group.task_ids)}</td>"
            f"<td>{html.escape(group.scheduler_id)}</td><td>{_states(tc, group.task_ids)}</td></tr>"
            for group in groups[:MOST_GROUPS]
        )
        body = (
            f"<p>{len(groups)} task groups, {len(tc.queue.tasks)} tasks; the newest {MOST_GROUPS} groups are shown.</p>"
        )
        body += _table(("Group", "Created", "Scheduler", "Tasks"), rows) if rows else "<p>No task yet.</p>"
        return _page(request, "Task groups", body)

    async def group(request: Request) -> Response:
        found = tc.queue.groups.get(request.path_params["groupId"])
        if found is None:
            return _page(request, "No such task group", "<p>It may have been forgotten.</p>", 404)
        tasks = sorted((tc.queue.tasks[task_id] for task_id in found.task_ids), key=_created_of)
        rows = "".join(
            f"<tr><td>{_link(request, 'tasks', task.task_id, task.definition['metadata']['name'])}</td>"
            f"<td>{_state(task.state)}</td><td>{len(task.runs)}</td>"
            f"<td>{html.escape(task.definition['taskQueueId'])}</td></tr>"
            for task in tasks[:MOST_TASKS]
        )
        body = f"<p>Scheduler {html.escape(found.scheduler_id)}. {_states(tc, found.task_ids)}</p>"
        if len(tasks) > MOST_TASKS:
            body += f"<p>The first {MOST_TASKS} of {len(tasks)} tasks are shown.</p>"
        return _page(request, f"Group {found.group_id}", body + _table(("Task", "State", "Runs", "Queue"), rows))

    async def task(request: Request) -> Response:
        found = tc.queue.tasks.get(request.path_params["taskId"])
        if found is None:
            return _page(request, "No such task", "<p>It may have been forgotten.</p>", 404)
        return _page(request, str(found.definition["metadata"]["name"]), _task(request, tc, found))

    return [
        Route("/", root),
        Route("/tasks/groups/{groupId}", group),
        Route("/tasks/{taskId}", task),
    ]


def _task(request: Request, tc: Taskcluster, task: Task) -> str:
    definition = task.definition
    runs = "".join(_run(request, task, run) for run in task.runs)
    dependencies = " ".join(
        _link(request, "tasks", name, _name(tc, name)) for name in definition["dependencies"] if name != task.task_id
    )
    facts = (
        f"<p>{_state(task.state)} <code>{task.task_id}</code> of group "
        f"{_link(request, 'tasks/groups', definition['taskGroupId'])}</p>"
        f"<p>{html.escape(str(definition['metadata']['description']))}</p>"
    )
    if dependencies:
        facts += f"<p>After {dependencies}</p>"
    facts += _table(("Run", "State", "Why", "Started", "Resolved", "Artifacts"), runs) if runs else "<p>No run yet.</p>"
    shown = html.escape(json.dumps(definition, indent=2, ensure_ascii=False))
    return f"{facts}<h2>Definition</h2><pre>{shown}</pre>"


def _run(request: Request, task: Task, run: dict[str, Any]) -> str:
    base = f"{_base(request)}/api/queue/v1/task/{task.task_id}/runs/{run['runId']}/artifacts/"
    artifacts = "<br>".join(
        f'<a href="{base}{quote(name, safe="/")}">{html.escape(name)}</a>'
        for name in sorted(task.artifacts.get(run["runId"], {}))
    )
    why = run.get("reasonResolved", run["reasonCreated"])
    cells = (run["runId"], _state(run["state"]), why, run.get("started", "-"), run.get("resolved", "-"), artifacts)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _name(tc: Taskcluster, task_id: str) -> str:
    task = tc.queue.tasks.get(task_id)
    return task_id if task is None else str(task.definition["metadata"]["name"])


def _created_of(task: Task) -> str:
    return str(task.definition["created"])


def _created(tc: Taskcluster, task_ids: list[str]) -> str:
    return html.escape(max((_created_of(tc.queue.tasks[task_id]) for task_id in task_ids), default="-"))


def _states(tc: Taskcluster, task_ids: list[str]) -> str:
    counts = Counter(tc.queue.tasks[task_id].state for task_id in task_ids)
    return " ".join(f"{_state(state)} {counts[state]}" for state in _COLOURS if state in counts)


def _state(state: str) -> str:
    return f'<b style="color:{_COLOURS[state]}">{state}</b>'


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _link(request: Request, path: str, name: str, text: str | None = None) -> str:
    return f'<a href="{_base(request)}/{path}/{quote(name, safe="")}">{html.escape(text or name)}</a>'


def _table(heads: tuple[str, ...], rows: str) -> str:
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _page(request: Request, title: str, body: str, status: int = 200) -> Response:
    text = _PAGE.format(title=html.escape(title), body=body, base=_base(request))
    return HTMLResponse(text, status, _HEADERS)
