"""Run all checks. Independent checks run concurrently, each with a time limit."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from listeners.settings import load as load_listeners
from service.commands.client import checked
from service.commands.doctor import hosts, in_tree, local, pulse, taskcluster, treeherder
from service.commands.doctor.finding import Examination, Finding, Report, limited, quiet, secrets_of, without
from service.contract.configuration import SettingsError
from service.settings import Settings

Check = tuple[Report, str, Callable[[Report, Examination], Awaitable[None]]]


async def examine(settings: Settings, url: str | None, seconds: float) -> list[Finding]:
    """Return all findings, system by system. Raises Failed if `url` is not a valid URL."""
    reports = [Report("settings"), Report("database")]
    try:
        listeners = load_listeners()
    except SettingsError as error:
        listeners = None
        remedy = "correct the settings that are named there, for the listeners too"
        reports[0].error("listeners", f"listeners would not start: {error}", remedy)
    service_url = checked(url or local.own_address(settings))
    async with httpx.AsyncClient(
        headers={"User-Agent": "tc-treeherder"}, timeout=seconds, follow_redirects=False
    ) as http:
        examination = Examination(settings, listeners, service_url, seconds, http)
        local.settings(reports[0], examination)
        await limited(reports[1], "connection", seconds, local.database(reports[1], examination))
        checks: list[Check] = [
            (Report("service"), "answer", local.service),
            (Report("service"), "signature", local.signed),
        ]
        checks += [(Report("hg"), host, hosts.check(host)) for host in settings.allowed_hosts]
        checks += [(Report("hg"), "repositories", hosts.repositories), (Report("hg"), "polls", hosts.polls)]
        checks += [
            (Report("taskcluster"), "ping", taskcluster.ping),
            (Report("taskcluster"), "scopes", taskcluster.scopes),
            (Report("taskcluster"), "error tasks", taskcluster.error_tasks),
            (Report("taskcluster"), "in-tree actions", in_tree.hooks),
        ]
        checks += [
            (Report(f"treeherder {prefix}"), "answer", treeherder.check(prefix)) for prefix in settings.environments
        ]
        checks += [
            (Report("pulse publisher"), "connection", pulse.publisher),
            (Report("pulse listener"), "connection", pulse.listener),
        ]
        with quiet():
            await asyncio.gather(
                *(limited(report, name, seconds, check(report, examination)) for report, name, check in checks)
            )
    reports += [report for report, _, _ in checks]
    secrets = secrets_of(settings, listeners)
    return [without(secrets, finding) for report in reports for finding in report.findings]
