"""Implement `repositories import`, which compares a source with the service, and applies the differences.

Verdicts on a repository:

    new               it is not monitored yet
    changed           fields differ, and will be set
    there             there is nothing to do
    known             its URL is monitored under another alias
    alias taken, host not allowed, refused
                      it will not be changed; `why` has the reason
    left out          it is not an active Mercurial repository, or is not monitored in the source
    needs a level     it is new, its source has no level, and --level was not given
    added, set, failed, not tried
                      the result with --apply
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands import USAGE, Failed, output
from service.commands.client import DEFAULT_URL, Refused, Service, Unreachable, Url
from service.commands.output import AsJson
from service.commands.sources import Source, Wanted, from_projects, from_treeherder, normal


@dataclass
class Row:
    """A repository of the source, and the verdict on it."""

    alias: str
    url: str
    verdict: str
    why: str = ""
    level: str | None = None  # the current or future one; so are the scopes
    scopes: list[str] | None = None
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # field: (old, new)
    wanted: Wanted | None = None


def run(
    treeherder: Annotated[
        str | None,
        typer.Option("--from-treeherder", metavar="URL", help="Import the active hg repositories of a Treeherder."),
    ] = None,
    projects: Annotated[
        Path | None,
        typer.Option("--from-projects", metavar="FILE", help="Import from a projects.yml, as in fxci-config."),
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Level of new repositories that have none in the source. There is no default.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Apply the differences. Without this, they are only shown.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Monitor the repositories of a Treeherder or a projects.yml. Without --apply, only show the differences."""
    if (treeherder is None) == (projects is None):
        raise Failed("give either --from-treeherder URL or --from-projects FILE", USAGE)
    source = from_projects(projects) if projects else from_treeherder(treeherder or "")
    with Service(url) as service:
        rows = compare(service, source, level)
        unreachable = carry_out(service, rows) if apply else None
    _show(rows, apply, as_json)
    if unreachable is not None:
        raise unreachable
    if failed := sum(row.verdict in {"failed", "refused", "needs a level"} for row in rows) if apply else 0:
        raise Failed(f"{failed} of {len(rows)} failed: fix the named problems, and import again")


def compare(service: Service, source: Source, level: str | None) -> list[Row]:
    """Return a row for each repository of the source, without changing anything.

    `level` is for new repositories without one. Raises Failed.
    """
    monitored = list(service.pages("repositories"))
    by_alias = {repository["alias"]: repository for repository in monitored}
    alias_of = {normal(repository["url"]): repository["alias"] for repository in monitored}
    rows = [Row(left_out.alias, "", "left out", left_out.why) for left_out in source.left_out]
    for wanted in output.progress(source.wanted, "comparing"):
        current = by_alias.get(wanted.alias)
        if wanted.url in alias_of and alias_of[wanted.url] != wanted.alias:
            rows.append(Row(wanted.alias, wanted.url, "known", f"as {alias_of[wanted.url]}"))
        elif current is None and wanted.fields.setdefault("level", level) is None:
            why = "the source has no level for it: import it with --level, after repositories with another level"
            rows.append(Row(wanted.alias, wanted.url, "needs a level", why))
        elif current is None:
            rows.append(_plan_new(service, wanted))
            alias_of[wanted.url] = wanted.alias
        elif normal(current["url"]) != wanted.url:
            rows.append(Row(wanted.alias, wanted.url, "alias taken", f"by {current['url']}"))
        else:
            changes = {
                name: (current[name], value) for name, value in _stated(wanted).items() if current[name] != value
            }
            current |= {name: new for name, (_, new) in changes.items()}
            verdict = "changed" if changes else "there"
            row = Row(wanted.alias, wanted.url, verdict, "", current["level"], current["scopes"])
            row.changes, row.wanted = changes, wanted
            rows.append(row)
    return rows


def _plan_new(service: Service, wanted: Wanted) -> Row:
    try:
        planned = service.send("POST", "repositories", "plan", body=_body(wanted))
    except Refused as error:
        if "host_not_allowed" in error.problem:
            return Row(wanted.alias, wanted.url, "host not allowed", f"{error.problem['host_not_allowed']}")
        if error.status in {401, 403}:
            raise
        return Row(wanted.alias, wanted.url, "refused", str(error))
    changes = {name: (None, planned[name]) for name in wanted.fields}
    return Row(wanted.alias, planned["url"], "new", "", planned["level"], planned["scopes"], changes, wanted)


def _stated(wanted: Wanted) -> dict[str, Any]:
    """Return the fields that the source states. Scopes of None are the default ones, which it does not know."""
    return {name: value for name, value in wanted.fields.items() if name != "scopes" or value is not None}


def _body(wanted: Wanted) -> dict[str, Any]:
    return {"alias": wanted.alias, "url": wanted.url, **wanted.fields}


def carry_out(service: Service, rows: list[Row]) -> Unreachable | None:
    """Apply the rows, and set their verdicts to the results.

    Continue after a failure. Return the error if the service cannot be reached any more.
    """
    for row in output.progress([row for row in rows if row.verdict in {"new", "changed"}], "importing"):
        assert row.wanted is not None
        try:
            if row.verdict == "new":
                service.send("POST", "repositories", body=_body(row.wanted))
                row.verdict = "added"
            else:
                body = {name: new for name, (_, new) in row.changes.items()}
                service.send("PATCH", "repositories", row.alias, body=body)
                row.verdict = "set"
        except Refused as error:
            row.verdict, row.why = "failed", str(error)
        except Unreachable as error:
            row.verdict, row.why = "failed", str(error)
            for other in rows:
                if other.verdict in {"new", "changed"}:
                    other.verdict = "not tried"
            return error
    return None


def _show(rows: list[Row], applied: bool, as_json: bool) -> None:
    counts = Counter(row.verdict for row in rows)
    if as_json:
        output.document({"applied": applied, "counts": dict(counts), "repositories": [_plain(row) for row in rows]})
        return
    output.table(
        ("ALIAS", "URL", "VERDICT", "LEVEL", "SCOPES", "DIFFERENCES"),
        ((row.alias, row.url or None, row.verdict, row.level, row.scopes, _differences(row)) for row in rows),
        "nothing to import",
    )
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    output.say("")
    output.say(f"{summary or 'nothing'}" + ("" if applied else ". Nothing was changed: add --apply to do it"))


def _plain(row: Row) -> dict[str, Any]:
    return {
        "alias": row.alias,
        "url": row.url or None,
        "verdict": row.verdict,
        "why": row.why or None,
        "level": row.level,
        "scopes": row.scopes,
        "changes": {name: {"old": old, "new": new} for name, (old, new) in row.changes.items()},
        "ignored": row.wanted.ignored if row.wanted else [],
    }


def _differences(row: Row) -> str:
    is_new = row.verdict in {"new", "added"}
    parts = [
        f"{name} {_value_text(new)}" if is_new else f"{name} {_value_text(old)} → {_value_text(new)}"
        for name, (old, new) in row.changes.items()
        if not (is_new and name in {"level", "scopes"})  # these have columns
    ]
    parts += [row.why] if row.why else []
    if row.wanted and row.wanted.ignored:
        parts.append(f"ignored: {', '.join(row.wanted.ignored)}")
    return "; ".join(parts)


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
