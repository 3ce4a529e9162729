"""What commands print: tables for people, one JSON document for programs, progress on standard error.

What comes from outside is printed as it is but for control characters, which could steer a terminal.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from service.commands import USAGE, Failed
from service.commands.text import visible

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of text for people.")]

T = TypeVar("T")

WIDE = 100_000
"""Characters of a line where nobody looks at it: a table that is piped is neither cut nor wrapped."""

_STYLES = dict.fromkeys(("ok", "done", "created", "added", "yes"), "green")
_STYLES |= dict.fromkeys(("warning", "pending", "received", "planned", "new", "changed", "skipped"), "yellow")
_STYLES |= dict.fromkeys(("error", "failed", "rejected", "refused"), "red")


def document(value: Any) -> None:
    """Print JSON: in ASCII, so that no terminal and no encoding is in its way."""
    typer.echo(json.dumps(value, indent=2, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    """Print a table, a row a line where it is piped; `nothing` is said on standard error when there are no rows."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in made.columns:
        column.overflow = "fold"
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    if made.rows:
        _print(made)
    else:
        typer.echo(nothing, err=True)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, a line each; lists a line an entry."""
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        entries = value if isinstance(value, list) and value else [value]
        for position, entry in enumerate(entries):
            made.add_row("" if position else name, _cell(entry, lines=True))
    _print(made)


def say(text: str) -> None:
    """Print a sentence."""
    typer.echo(visible(text))


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask: it is meant.")]


def confirm(what: str, yes: bool) -> None:
    """Ask whether to do what cannot be taken back, unless `yes`; without a terminal, raise Failed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed(f"this would {what}, for good: add --yes if that is meant", USAGE)
    typer.confirm(f"{what[0].upper()}{what[1:]}, for good?", abort=True, err=True)


def warn(text: str) -> None:
    """Print a sentence on standard error."""
    typer.secho(visible(text), err=True, fg="red")


def when(moment: str | None) -> str:
    """A point in time of the API, to the second in UTC."""
    return "-" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%F %T}Z"


def _cell(value: Any, *, lines: bool = False) -> Text:
    if value is None or value == []:
        text = "-"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return Text(visible(text, lines=lines), style=_STYLES.get(text, ""))


def _print(made: Table) -> None:
    # the console is made anew each time: standard output is whatever it is now
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout.isatty():
        Console(highlight=False).print(made)
        return
    console = Console(width=WIDE, highlight=False, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(made)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a bar on standard error where that is a terminal."""
    with _bar(BarColumn(), MofNCompleteColumn()) as bar:
        yield from bar.track(items, description=what)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """While inside, a sign of life on standard error where that is a terminal."""
    with _bar() as bar:
        bar.add_task(what, total=None)
        yield


def _bar(*columns: Any) -> Progress:
    console = Console(file=sys.stderr, markup=False)
    shown = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *columns)
    return Progress(*shown, console=console, transient=True, disable=not sys.stderr.isatty())
