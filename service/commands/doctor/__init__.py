"""Implement `tc-treeherder doctor`, which checks every system that this machine's settings name.

    examine.py       runs all checks                               finding.py      findings, and tools for checks
    local.py         settings, database, the service itself        hosts.py        hosts of repositories
    taskcluster.py   credentials and scopes                        treeherder.py   credentials and projects
    pulse.py         user, exchanges, queues                       in_tree.py      hooks of in-tree actions

The checks change nothing, except that they send an empty request to the service and to each Treeherder, declare the
publisher's exchanges, and declare a queue that is deleted with its connection.
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
        typer.Option(
            "--url",
            envvar="TC_TREEHERDER_SERVICE_URL",
            help="URL of the service. Default: host and port of the settings.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time limit of one check, in seconds.")] = 10,
    problems: Annotated[bool, typer.Option("--problems", help="Show only warnings and errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every configured system and credential, and print remedies. The exit code is 1 if there is an error."""
    # imported here, because `tc-treeherder --help` does not need these large modules
    from service.commands.doctor.examine import examine  # noqa: PLC0415
    from service.contract.configuration import SettingsError  # noqa: PLC0415
    from service.settings import load  # noqa: PLC0415

    try:
        settings = load()
    except SettingsError as error:
        raise Failed(str(error), USAGE) from None
    with output.waiting("checking"):
        findings = asyncio.run(examine(settings, url, seconds))
    shown = [finding for finding in findings if not (problems and finding.status == "ok")]
    counts = Counter(finding.status for finding in findings)
    worst = next(status for status in ("error", "warning", "ok") if counts[status] or status == "ok")
    if as_json:
        output.document({"status": worst, "checks": [asdict(finding) for finding in shown]})
    else:
        output.table(
            ("STATUS", "SYSTEM", "CHECK", "FOUND", "WHAT TO DO"),
            ((finding.status, finding.system, finding.check, finding.detail, finding.remedy) for finding in shown),
            f"all {len(findings)} checks are good",
        )
    if counts["error"]:
        raise Failed(f"{counts['error']} of {len(findings)} checks failed")
