"""Implement `tc-treeherder reports`, which lists job reports."""

from enum import StrEnum
from typing import Annotated

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, next_attempt

app = typer.Typer(no_args_is_help=True, help="List what was reported of each run to each Treeherder, and what waits.")


class ReportState(StrEnum):
    """A state of job reports that can be listed."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@app.callback()
def reports() -> None:
    """Keep `list` as a subcommand. Without this callback, typer merges a single command into its group."""


@app.command("list")
def list_reports(
    state: Annotated[ReportState | None, typer.Option(help="State of the report.")] = None,
    waiting_for_push: Annotated[
        bool, typer.Option("--waiting-for-push", help="Only reports whose push Treeherder does not have.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of reports.")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List job reports, the newest first."""
    waiting = "push" if waiting_for_push else None
    with Service(url) as service:
        job_reports = list(service.pages("reports", limit=limit, state=state, waiting=waiting))
    if as_json:
        output.document(job_reports)
        return
    output.table(
        ("TASK", "RUN", "TREEHERDER", "PROJECT", "REVISION", "STAGE", "REPORTED", "STATE", "NEXT ATTEMPT", "REASON"),
        (
            (
                report["task_id"],
                report["run_id"],
                report["environment"],
                report["project"],
                report["revision"] or report["revision_hash"],
                report["stage"],
                report["told"] or "nothing",
                report["state"],
                next_attempt(report),
                report["error"] or "",
            )
            for report in job_reports
        ),
        "no job report matches",
    )
