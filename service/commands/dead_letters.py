"""`tc-treeherder dead-letters`: what could not be understood or ran out of retries, listed, replayed, dropped."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from service.commands import FAILED, USAGE, Failed, output
from service.commands.client import DEFAULT_URL, Refused, Service, Unreachable, Url
from service.commands.output import AsJson, Yes, when

app = typer.Typer(no_args_is_help=True, help="Events that were not understood, and work that ran out of retries.")

Ids = Annotated[list[int] | None, typer.Argument(min=1, help="ids of dead letters", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All there are now (of --kind).")]
Kind = Annotated[str | None, typer.Option(help="such as push-event, job-action, task-event, graph, resultset, action")]


@app.command("list")
def list_letters(
    kind: Kind = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 50,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Dead letters, the newest first."""
    with Service(url) as service:
        letters = _letters(service, kind, limit)
    if as_json:
        output.document(letters)
        return
    output.table(
        ("ID", "KIND", "SINCE", "SUBJECT", "REASON"),
        ((each["id"], each["kind"], when(each["since"]), each["subject"], each["reason"]) for each in letters),
        "no dead letters",
    )


def _letters(service: Service, kind: str | None, limit: int | None = None) -> list[dict[str, Any]]:
    # of one kind all must be looked through: the API has no filter
    found = []
    for letter in service.pages("dead-letters", limit=limit if kind is None else None):
        if kind in {None, letter["kind"]}:
            found.append(letter)
        if len(found) == limit:
            break
    return found


@app.command()
def show(letter_id: Annotated[int, typer.Argument(min=1)], url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One dead letter, with the event as it came."""
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
            *([("shown", f"of {letter['payload_bytes']:,} bytes the first MiB")] if _is_cut(letter) else []),
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
    """Take them in once more. What fails stays a dead letter, and the others go on."""
    with Service(url) as service:
        _each(
            _chosen(service, ids, everything, kind),
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
    """Forget them, for good."""
    with Service(url) as service:
        chosen = _chosen(service, ids, everything, kind)
        if chosen:
            output.confirm(f"drop {len(chosen)} dead letters", yes)
        _each(chosen, "dropped", lambda letter_id: service.send("DELETE", "dead-letters", letter_id), as_json)


def _chosen(service: Service, ids: list[int] | None, everything: bool, kind: str | None) -> list[int]:
    if bool(ids) == everything:
        raise Failed("give ids of dead letters, or --all", USAGE)
    if ids and kind is not None:
        raise Failed("--kind goes with --all: ids name what is meant", USAGE)
    # oldest first: what came first is taken in first
    return list(dict.fromkeys(ids)) if ids else sorted(each["id"] for each in _letters(service, kind))


def _each(ids: list[int], what: str, do: Callable[[int], Any], as_json: bool) -> None:
    """Do it to each; go on after one that is refused, and say so at the end."""
    done: list[int] = []
    failures: list[tuple[int, Refused]] = []
    gone: Unreachable | None = None
    for letter_id in output.progress(ids, "dead letters"):
        try:
            do(letter_id)
        except Refused as error:
            failures.append((letter_id, error))
        except Unreachable as error:
            gone = error
            break
        else:
            done.append(letter_id)
    if as_json:
        failed = [{"id": letter_id, "reason": str(why)} for letter_id, why in failures]
        output.document({what: done, "failed": failed})
    else:
        for letter_id, why in failures:
            output.warn(f"{letter_id}: {why}")
        output.say(f"{what} {len(done)} of {len(ids)}")
    if gone is not None:
        raise gone
    if failures:
        message = f"{len(failures)} of {len(ids)} could not be {what}"
        raise Failed(message, failures[0][1].code if len(ids) == 1 else FAILED)
