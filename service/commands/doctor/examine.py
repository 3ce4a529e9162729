"""All checks: those that need nothing of each other side by side, each within its time."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from listeners.settings import load as load_listeners
from service.commands.client import checked
from service.commands.doctor import hosts, local, pulse, taskcluster, treeherder
from service.commands.doctor.finding import Examination, Finding, Report, limited, quiet, secrets_of, without
from service.contract.configuration import SettingsError
from service.settings import Settings

Part = tuple[Report, str, Callable[[Report, Examination], Awaitable[None]]]


async def examine(settings: Settings, url: str | None, seconds: float) -> list[Finding]:
    """Every finding, system by system. Raises Failed when `url` is none."""
    reports = [Report("settings"), Report("database")]
    try:
        listeners = load_listeners()
    except SettingsError as error:
        listeners = None
        reports[0].error("listeners", f"they would not start: {error}", "set what is named there, for listeners too")
    service_url = checked(url or local.own_address(settings))
    async with httpx.AsyncClient(
        headers={"User-Agent": "tc-treeherder"}, timeout=seconds, follow_redirects=False
    ) as http:
        ex = Examination(settings, listeners, service_url, seconds, http)
        local.settings(reports[0], ex)
        await limited(reports[1], "connection", seconds, local.database(reports[1], ex))
        parts: list[Part] = [
            (Report("service"), "answer", local.service),
            (Report("service"), "signature", local.signed),
        ]
        parts += [(Report("hg"), host, hosts.check(host)) for host in settings.allowed_hosts]
        parts += [(Report("hg"), "repositories", hosts.repositories), (Report("hg"), "polls", hosts.polls)]
        parts += [
            (Report("taskcluster"), "ping", taskcluster.ping),
            (Report("taskcluster"), "scopes", taskcluster.scopes),
            (Report("taskcluster"), "error tasks", taskcluster.error_tasks),
        ]
        parts += [
            (Report(f"treeherder {prefix}"), "answer", treeherder.check(prefix)) for prefix in settings.environments
        ]
        parts += [
            (Report("pulse publisher"), "connection", pulse.publisher),
            (Report("pulse listener"), "connection", pulse.listener),
        ]
        with quiet():
            await asyncio.gather(*(limited(report, what, seconds, check(report, ex)) for report, what, check in parts))
    reports += [report for report, _, _ in parts]
    secrets = secrets_of(settings, listeners)
    return [without(secrets, finding) for report in reports for finding in report.findings]
