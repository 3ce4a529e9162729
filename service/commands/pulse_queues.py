"""Implement `tc-treeherder pulse-queues`, which lists the queues of the Pulse listeners."""

from typing import Any

import typer

from service.commands import output
from service.commands.client import DEFAULT_URL, Service, Url
from service.commands.output import AsJson, when

app = typer.Typer(help="List the Pulse queues, and whether a listener reads them.")


@app.command()
def pulse_queues(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the Pulse queues, those that were read last first."""
    with Service(url) as service:
        queues = service.get("pulse-queues")["items"]
    if as_json:
        output.document(queues)
        return
    output.table(
        ("QUEUE", "EVENTS", "STATE", "LAST READ", "FOUND DELETED", "LOST SINCE"),
        (
            (
                queue["name"],
                queue["events"],
                "read" if queue["read"] else "unread",
                when(queue["seen_at"]),
                _deletions(queue),
                when(queue["messages_lost_since"]),
            )
            for queue in queues
        ),
        "no listener has read a queue: is `tc-treeherder listen pulse` running?",
    )


def _deletions(queue: dict[str, Any]) -> str:
    return f"{queue['deletions']}, last {when(queue['deleted_at'])}" if queue["deletions"] else "never"
