"""`tc-treeherder doctor`: reads the settings here, as `serve` and `listen` do, and checks every system that they name.

    local.py          settings, database, the service itself        hosts.py        where repositories are
    taskcluster.py   credentials and scopes                        treeherder.py   credentials and projects
    pulse.py         user, exchanges, queues                       finding.py      what is found, and how it is shown

Nothing is changed but what is named there: one empty request to the service and to each Treeherder, and a queue that
goes with its connection.
"""

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from service.commands import USAGE, Failed, output
from service.commands.output import AsJson

app = typer.Typer()


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Option("--url", envvar="TC_TREEHERDER_SERVICE_URL", help="the service; default: host and port of here"),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="how long one check may take")] = 10,
    as_json: AsJson = False,
) -> None:
    """Check every configured system and credential, and say what to do. Exit code 1 on any error."""
    # what they import is large, and `tc-treeherder --help` has no use for it
    from service.commands.doctor.examine import examine  # noqa: PLC0415
    from service.contract.configuration import SettingsError  # noqa: PLC0415
    from service.settings import load  # noqa: PLC0415

    try:
        settings = load()
    except SettingsError as error:
        raise Failed(str(error), USAGE) from None
    with output.waiting("checking"):
        findings = asyncio.run(examine(settings, url, seconds))
    counts = Counter(finding.status for finding in findings)
    worst = next(status for status in ("error", "warning", "ok") if counts[status] or status == "ok")
    if as_json:
        output.document({"status": worst, "checks": [asdict(finding) for finding in findings]})
    else:
        output.table(
            ("STATUS", "SYSTEM", "CHECK", "FOUND", "WHAT TO DO"),
            ((each.status, each.system, each.check, each.detail, each.remedy) for each in findings),
            "nothing was checked",
        )
    if counts["error"]:
        raise Failed(f"{counts['error']} of {len(findings)} checks failed")
