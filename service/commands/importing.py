"""`repositories import`: what a source wants, what the service has, the differences, and doing them.

new        is not monitored yet                     changed   some fields differ: they are set
there      nothing to do                            known     its url is monitored under another alias
alias taken, host not allowed, refused              left as they are: `why` says what stands in the way
left out   not an active Mercurial repository, or not monitored there
needs a level   it is new, its source knows no level, and --level was not given
added, set, failed, not tried                       with --apply
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
    """One repository of the source, and what is to be done about it, or was."""

    alias: str
    url: str
    verdict: str
    why: str = ""
    level: str | None = None  # what it has, or would have; so are its scopes
    scopes: list[str] | None = None
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # field: (old, new)
    wanted: Wanted | None = None


def run(
    treeherder: Annotated[
        str | None, typer.Option("--from-treeherder", metavar="URL", help="the active hg repositories of a Treeherder")
    ] = None,
    projects: Annotated[
        Path | None, typer.Option("--from-projects", metavar="FILE", help="a projects.yml, as in fxci-config")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="of what is new and has no level in the source; there is no default")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without this the differences are only shown.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Monitor what a Treeherder or a projects.yml lists. A dry run, unless --apply."""
    if (treeherder is None) == (projects is None):
        raise Failed("give either --from-treeherder URL or --from-projects FILE", USAGE)
    source = from_projects(projects) if projects else from_treeherder(treeherder or "")
    with Service(url) as service:
        rows = compare(service, source, level)
        gone = carry_out(service, rows) if apply else None
    _show(rows, apply, as_json)
    if gone is not None:
        raise gone
    if failed := sum(row.verdict in {"failed", "refused", "needs a level"} for row in rows) if apply else 0:
        raise Failed(f"{failed} of {len(rows)} failed: mend what stands there, and import again")


def compare(service: Service, source: Source, level: str | None) -> list[Row]:
    """Return what is to be done; `level` is for new repositories without one. Changes nothing. Raises Failed."""
    known = list(service.pages("repositories"))
    by_alias = {repository["alias"]: repository for repository in known}
    alias_of = {normal(repository["url"]): repository["alias"] for repository in known}
    rows = [Row(each.alias, "", "left out", each.why) for each in source.left_out]
    for wanted in output.progress(source.wanted, "comparing"):
        there = by_alias.get(wanted.alias)
        if wanted.url in alias_of and alias_of[wanted.url] != wanted.alias:
            rows.append(Row(wanted.alias, wanted.url, "known", f"as {alias_of[wanted.url]}"))
        elif there is None and wanted.fields.setdefault("level", level) is None:
            why = "nothing says its level: import it with --level, after those with another one"
            rows.append(Row(wanted.alias, wanted.url, "needs a level", why))
        elif there is None:
            rows.append(_new(service, wanted))
            alias_of[wanted.url] = wanted.alias
        elif normal(there["url"]) != wanted.url:
            rows.append(Row(wanted.alias, wanted.url, "alias taken", f"by {there['url']}"))
        else:
            changes = {name: (there[name], value) for name, value in _stated(wanted).items() if there[name] != value}
            there |= {name: new for name, (_, new) in changes.items()}
            row = Row(wanted.alias, wanted.url, "changed" if changes else "there", "", there["level"], there["scopes"])
            row.changes, row.wanted = changes, wanted
            rows.append(row)
    return rows


def _new(service: Service, wanted: Wanted) -> Row:
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
    """The fields that the source says something about; no scopes are the default ones, which it does not know."""
    return {name: value for name, value in wanted.fields.items() if name != "scopes" or value is not None}


def _body(wanted: Wanted) -> dict[str, Any]:
    return {"alias": wanted.alias, "url": wanted.url, **wanted.fields}


def carry_out(service: Service, rows: list[Row]) -> Unreachable | None:
    """Do what the rows say, and note in them how it went. Goes on after a failure, unless the service has gone."""
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
    output.say(f"{summary or 'nothing'}" + ("" if applied else ". Nothing was changed: --apply does it"))


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
    fresh = row.verdict in {"new", "added"}
    said = [
        f"{name} {_told(new)}" if fresh else f"{name} {_told(old)} → {_told(new)}"
        for name, (old, new) in row.changes.items()
        if not (fresh and name in {"level", "scopes"})  # they have columns
    ]
    said += [row.why] if row.why else []
    if row.wanted and row.wanted.ignored:
        said.append(f"ignored: {', '.join(row.wanted.ignored)}")
    return "; ".join(said)


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
