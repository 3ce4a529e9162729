"""Implement `tc-treeherder dead-letters`, which lists, replays and drops dead letters."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from service.commands import FAILED, USAGE, Failed, output
from service.commands.client import DEFAULT_URL, Refused, Service, Unreachable, Url
from service.commands.output import AsJson, Yes, when

app = typer.Typer(no_args_is_help=True, help="List, replay and drop invalid events, and work that ran out of retries.")

Ids = Annotated[list[int] | None, typer.Argument(min=1, help="Ids of dead letters.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All current dead letters, or all of --kind.")]
Kind = Annotated[
    str | None,
    typer.Option(
        help="Kind of the dead letters, such as push-event, job-action, task-event, graph, resultset, action."
    ),
]


@app.command("list")
def list_letters(
    kind: Kind = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of dead letters.")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first."""
    with Service(url) as service:
        letters = list(service.pages("dead-letters", limit=limit, kind=kind))
    if as_json:
        output.document(letters)
        return
    output.table(
        ("ID", "KIND", "SINCE", "SUBJECT", "REASON"),
        (
            (letter["id"], letter["kind"], when(letter["since"]), letter["subject"], letter["reason"])
            for letter in letters
        ),
        "no dead letters",
    )


@app.command()
def show(letter_id: Annotated[int, typer.Argument(min=1)], url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show a dead letter, with the original event."""
    with Service(url) as service:
        letter = service.get("dead-letters", letter_id)
    if as_json:
        output.document(letter)
        return
    output.fields(
        [
            ("dead letter", letter["id"]),
            ("kind", letter["kind"]),
            ("since", when(letter["since"])),
            ("subject", letter["subject"]),
            ("reason", letter["reason"]),
            ("payload", letter["payload"]),
            *([("shown", f"the first MiB of {letter['payload_bytes']:,} bytes")] if _is_cut(letter) else []),
        ]
    )


def _is_cut(letter: dict[str, Any]) -> bool:
    return (letter["payload_bytes"] or 0) > 1024 * 1024


@app.command()
def replay(
    ids: Ids = None,
    everything: Everything = False,
    kind: Kind = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Process dead letters again. Those that fail stay dead letters, and the command continues with the others."""
    with Service(url) as service:
        _apply_to_each(
            _select_ids(service, ids, everything, kind),
            "replayed",
            lambda letter_id: service.send("POST", "dead-letters", letter_id, "replay"),
            as_json,
        )


@app.command()
def drop(
    ids: Ids = None,
    everything: Everything = False,
    kind: Kind = None,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters permanently."""
    with Service(url) as service:
        selected = _select_ids(service, ids, everything, kind)
        if selected:
            output.confirm(f"drop {len(selected)} dead letter{'s' if len(selected) > 1 else ''}", yes)
        _apply_to_each(
            selected, "dropped", lambda letter_id: service.send("DELETE", "dead-letters", letter_id), as_json
        )


def _select_ids(service: Service, ids: list[int] | None, everything: bool, kind: str | None) -> list[int]:
    if bool(ids) == everything:
        raise Failed("give ids of dead letters, or --all", USAGE)
    if ids and kind is not None:
        raise Failed("--kind is for --all: remove it, or the ids", USAGE)
    if ids:
        return list(dict.fromkeys(ids))
    # in the order in which they came
    return sorted(letter["id"] for letter in service.pages("dead-letters", kind=kind))


def _apply_to_each(ids: list[int], verb: str, call: Callable[[int], Any], as_json: bool) -> None:
    """Make the call for each dead letter, continue after a refusal, and report refusals at the end.

    `verb` is a participle: replayed or dropped.
    """
    done: list[int] = []
    refusals: list[tuple[int, Refused]] = []
    unreachable: Unreachable | None = None
    for letter_id in output.progress(ids, "dead letters"):
        try:
            call(letter_id)
        except Refused as error:
            refusals.append((letter_id, error))
        except Unreachable as error:
            unreachable = error
            break
        else:
            done.append(letter_id)
    if as_json:
        failed = [{"id": letter_id, "reason": str(refusal)} for letter_id, refusal in refusals]
        output.document({verb: done, "failed": failed})
    else:
        for letter_id, refusal in refusals:
            output.warn(f"{letter_id}: {refusal}")
        output.say(f"{verb} {len(done)} of {len(ids)}")
    if unreachable is not None:
        raise unreachable
    if refusals:
        message = f"{len(refusals)} of {len(ids)} could not be {verb}"
        raise Failed(message, refusals[0][1].code if len(ids) == 1 else FAILED)
