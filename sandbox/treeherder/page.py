"""Render Treeherder's page for people as a small table; the demo links to it."""

import html
import time

from sandbox.treeherder.store import Job, Push, Store

_COLOURS = {
    "success": "#02822e",
    "testfailed": "#dd6602",
    "busted": "#c3001c",
    "exception": "#77438d",
    "retry": "#2a6fbb",
    "usercancel": "#d14a92",
    "superseded": "#6f8fa8",
    "running": "#4d4d4d",
    "pending": "#a5a5a5",
}
"""Treeherder's colours, by result of a job that has completed and by state of one that has not."""

_NEWEST_PUSHES = 50

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Treeherder (sandbox)</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 1.5em; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .4em .8em .4em 0; border-top: 1px solid #ddd }}
code {{ color: #555 }}
pre {{ font: inherit; margin: 0; white-space: pre-wrap; max-width: 32em }}
button.job {{ border: 0; border-radius: 3px; color: #fff; font-weight: 600; padding: 0 .4em; cursor: pointer }}
#chosen {{ position: sticky; top: 0; background: #f4f4f4; padding: .4em .8em }}
</style></head><body>
<h1>Treeherder (sandbox)</h1>
<p id="chosen">{summary} Choose a job to retrigger or cancel it. {legend}</p>
<table><thead><tr><th>Push</th><th>Changes</th><th>Jobs</th></tr></thead><tbody>
{rows}
</tbody></table>
<script>
let chosen = null;
document.addEventListener("click", event => {{
  const job = event.target.closest("button.job"), action = event.target.dataset.action;
  const bar = document.getElementById("chosen");
  if (job) {{
    chosen = job.dataset;
    bar.textContent = `${{job.title}}  ${{chosen.guid}}  `;
    for (const name of ["retrigger", "cancel"]) {{
      const button = document.createElement("button");
      button.textContent = button.dataset.action = name;
      bar.append(button, " ");
    }}
  }} else if (action) {{
    fetch("/__control__/job-action", {{method: "POST", body: JSON.stringify(
      {{project: chosen.project, job_guid: chosen.guid, action, requester: "you@sandbox.example"}})}})
      .then(answer => answer.json())
      .then(answer => {{
        bar.textContent = answer.detail || `${{action}} sent` + (answer.heard ? "." : ", but nobody listens.");
        chosen = null;
      }});
  }}
}});
setInterval(() => chosen || location.reload(), 5000);
</script></body></html>
"""


def render_page(store: Store) -> str:
    """Render the newest pushes with their jobs by platform: a symbol and a colour for each, as on Treeherder's page."""
    newest = store.pushes[: -_NEWEST_PUSHES - 1 : -1]
    summary = f"{len(store.pushes)} pushes, {len(store.jobs)} jobs."
    if len(store.pushes) > len(newest):
        summary += f" The newest {len(newest)} pushes are shown."
    legend = " ".join(f'<b style="color:{colour}">{name}</b>' for name, colour in _COLOURS.items())
    rows = "\n".join(_push_row(push) for push in newest) or '<tr><td colspan="3">No pushes yet.</td></tr>'
    return _PAGE.format(summary=summary, legend=legend, rows=rows)


def _push_row(push: Push) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(push.body["push_timestamp"]))
    changes = "".join(
        f"<div><code>{revision['revision'][:12]}</code> {html.escape(_first_line(revision['comment']))}</div>"
        for revision in reversed(push.body["revisions"][-10:])
    )
    more = len(push.body["revisions"]) - 10
    if more > 0:
        changes += f"<div>and {more} more</div>"
    return (
        f"<tr><td><b>{html.escape(push.project)}</b> <code>{push.revision[:12]}</code><br>{when}<br>"
        f"{html.escape(push.body['author'])}</td><td>{changes}</td><td>{_jobs_cell(push)}</td></tr>"
    )


def _jobs_cell(push: Push) -> str:
    platforms: dict[str, list[Job]] = {}
    for job in push.jobs:
        options = "+".join(sorted(job.body["option_collection"]))
        platforms.setdefault(f"{job.body['machine_platform']['platform']} {options}", []).append(job)
    return "".join(
        f"<div>{html.escape(platform)}: {' '.join(_job_button(job) for job in platforms[platform])}</div>"
        for platform in sorted(platforms)
    )


def _job_button(job: Job) -> str:
    body = job.body
    kind = body["result"] if body["state"] == "completed" else body["state"]
    group = "" if body["group_symbol"] == "?" else f"{body['group_symbol']}-"
    title = f"{body['name']}: {kind} ({body['reason']})"
    return (
        f'<button class="job" style="background:{_COLOURS[kind]}" title="{html.escape(title)}" '
        f'data-project="{html.escape(job.push.project)}" data-guid="{html.escape(body["job_guid"])}">'
        f"{html.escape(group + body['job_symbol'])}</button>"
    )


def _first_line(comment: str) -> str:
    lines = comment.strip().splitlines()
    return lines[0][:120] if lines else ""
