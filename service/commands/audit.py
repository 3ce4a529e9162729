"""Implement `tc-treeherder audit`, which lists who changed what."""

import json
from typing import Annotated, Any

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, when

app = typer.Typer(help="List who changed what, and who signed in.")


@app.command()
def audit(
    event: Annotated[
        str | None, typer.Option(help="Kind of entry, such as repository-changed, action-asked or signed-in.")
    ] = None,
    caller: Annotated[
        str | None, typer.Option(help="Name of the token, Taskcluster's clientId, or whom Treeherder names.")
    ] = None,
    repository: Annotated[str | None, typer.Option("--repository", "-r", help="Alias of a repository.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of entries.")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List who changed what, the newest first. The token needs the scope tc-treeherder:audit:read."""
    with Service(url) as service:
        filters = {"event": event, "caller": caller, "repository": repository}
        entries = list(service.pages("audit", limit=limit, **filters))
    if as_json:
        output.document(entries)
        return
    output.table(
        ("ID", "AT", "CALLER", "BY", "EVENT", "REPOSITORY", "SUBJECT", "DETAILS"),
        (
            (
                entry["id"],
                when(entry["at"]),
                entry["caller"],
                entry["origin"],
                entry["event"],
                entry["repository"] or "",
                entry["subject"] or "",
                _details(entry["details"]),
            )
            for entry in entries
        ),
        "no entry matches",
    )


def _details(details: dict[str, Any]) -> str:
    return json.dumps(details, ensure_ascii=False) if details else ""
