"""`tc-treeherder reports`: what each Treeherder has been told of each run."""

from enum import StrEnum
from typing import Annotated

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, when

app = typer.Typer(no_args_is_help=True, help="What each Treeherder has been told of each run, and what waits.")


class ReportState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@app.callback()
def reports() -> None:
    """Keep `list` a command of its own: typer would otherwise make the only one the group."""


@app.command("list")
def list_reports(
    state: Annotated[ReportState | None, typer.Option(help="of the report")] = None,
    waiting_for_push: Annotated[
        bool, typer.Option("--waiting-for-push", help="Only those whose push Treeherder does not know.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Job reports, the newest first."""
    waiting = "push" if waiting_for_push else None
    with Service(url) as service:
        found = list(service.pages("reports", limit=limit, state=state, waiting=waiting))
    if as_json:
        output.document(found)
        return
    output.table(
        ("TASK", "RUN", "TREEHERDER", "PROJECT", "REVISION", "STAGE", "TOLD", "STATE", "NEXT ATTEMPT", "REASON"),
        (
            (
                each["task_id"],
                each["run_id"],
                each["environment"],
                each["project"],
                each["revision"] or each["revision_hash"],
                each["stage"],
                each["told"] or "nothing",
                each["state"],
                when(each["next_attempt_at"]),
                each["error"] or "",
            )
            for each in found
        ),
        "no job report is like that",
    )
