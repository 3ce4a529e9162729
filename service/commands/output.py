"""Print the output of commands: tables for people, one JSON document for programs, progress on standard error.

Control characters are escaped, because values from outside could control the terminal with them.
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
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from service.commands import USAGE, Failed
from service.commands.text import escape_control

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text for people.")]

T = TypeVar("T")

WIDE = 100_000
"""Width of a table that is not printed on a terminal, in characters, so that it is neither cut nor wrapped."""

_STYLES = dict.fromkeys(("ok", "done", "added", "yes"), "green")
_STYLES |= dict.fromkeys(("warning", "pending", "received", "planned", "working"), "yellow")
_STYLES |= dict.fromkeys(("new", "changed", "skipped"), "yellow")
_STYLES |= dict.fromkeys(("error", "failed", "rejected", "refused"), "red")


def document(value: Any) -> None:
    """Print a JSON document, in ASCII, which works with every terminal and encoding."""
    typer.echo(json.dumps(value, indent=2, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    """Print a table with one line per row. Without rows, print `nothing` on standard error.

    On a terminal that is too narrow, each row becomes a block of lines, without those that are empty, so that no id is
    folded or cut.
    """
    grid = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    cells = [list(row) for row in rows]
    for row in cells:
        grid.add_row(*(_cell(value) for value in row))
    console = Console()
    if not cells:
        typer.echo(nothing, err=True)
    elif sys.stdout.isatty() and _width(console, grid) > console.width:
        for number, row in enumerate(cells):
            if number:
                typer.echo()
            named = zip(columns, row, strict=True)
            fields([(column.lower(), value) for column, value in named if value not in ("", None, [])])
    else:
        _print(grid)


def _width(console: Console, grid: Table) -> int:
    """Return the width of a table that is neither cut nor wrapped."""
    return Measurement.get(console, console.options.update(width=WIDE), grid).maximum


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one per line. A list has one line per entry."""
    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        entries = value if isinstance(value, list) and value else [value]
        for position, entry in enumerate(entries):
            grid.add_row("" if position else name, _cell(entry, lines=True))
    _print(grid)


def say(text: str) -> None:
    """Print a sentence."""
    typer.echo(escape_control(text))


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def confirm(action: str, yes: bool) -> None:
    """Ask for confirmation of an action that cannot be undone, unless `yes`. Raises Failed without a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed(f"this would {action}, which cannot be undone: add --yes to confirm", USAGE)
    typer.confirm(f"{action[0].upper()}{action[1:]}? This cannot be undone.", abort=True, err=True)


def warn(text: str) -> None:
    """Print a sentence on standard error."""
    typer.secho(escape_control(text), err=True, fg="red")


def when(moment: str | None) -> str:
    """Return a time of the API in UTC, to the second."""
    return "-" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%F %T}Z"


def next_attempt(work: dict[str, Any]) -> str:
    """Return when work is tried next; or that a worker is at it."""
    return "working" if work["working"] else when(work["next_attempt_at"])


def _cell(value: Any, *, lines: bool = False) -> Text:
    if value is None or value == []:
        text = "-"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return Text(escape_control(text, lines=lines), style=_STYLES.get(text, ""))


def _print(grid: Table) -> None:
    # with a new console each time, because standard output may have been replaced
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdout.isatty():
        Console(highlight=False).print(grid)
        return
    console = Console(width=WIDE, highlight=False, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def progress(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield the items, and show a progress bar if standard error is a terminal."""
    with _bar(BarColumn(), MofNCompleteColumn()) as bar:
        yield from bar.track(items, description=description)


@contextlib.contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a spinner within the block if standard error is a terminal."""
    with _bar() as bar:
        bar.add_task(description, total=None)
        yield


def _bar(*columns: Any) -> Progress:
    console = Console(file=sys.stderr, markup=False)
    all_columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *columns)
    return Progress(*all_columns, console=console, transient=True, disable=not sys.stderr.isatty())
