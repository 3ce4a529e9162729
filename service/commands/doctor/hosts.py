"""Check the hosts of monitored repositories."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

from service.auth import loopback
from service.commands.doctor.finding import (
    MAX_DRIFT,
    Examination,
    Report,
    error_text,
    get_with_drift,
    judge_clock,
    summarize_names,
)
from service.flow.pushes.urls import canonical_url


def check(host: str) -> Callable[[Report, Examination], Awaitable[None]]:
    """Return the check that the host resolves and answers."""

    async def check_host(report: Report, examination: Examination) -> None:
        try:
            answer, drift = await get_with_drift(examination, f"{_scheme(examination, host)}://{host}/")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            detail = error_text(error) if isinstance(error, httpx.HTTPError) else "it is not a host name"
            report.error(host, detail, "check allowed_hosts, name resolution, and the network on the way")
            return
        if answer.is_server_error:
            remedy = "ask the operators of the host; pushes are processed later"
            report.error(host, f"it answers {answer.status_code}", remedy)
        else:
            report.ok(host, f"it answers {answer.status_code}")
        if drift is not None and abs(drift) > MAX_DRIFT:  # reported only if large, because no signature depends on it
            judge_clock(report, f"clock of {host}", drift)

    return check_host


def _scheme(examination: Examination, host: str) -> str:
    """Return the scheme of the host's repositories; without any, https, except on loopback."""
    schemes = {
        urlsplit(repository.url).scheme for repository in examination.repositories or [] if repository.host == host
    }
    if schemes:
        return schemes.pop()
    return "http" if loopback(host) else "https"


async def repositories(report: Report, examination: Examination) -> None:
    """Check that repositories are on allowed hosts, and that their URLs have the canonical spelling."""
    not_allowed: dict[str, list[str]] = defaultdict(list)
    for repository in examination.monitored:
        if repository.host not in examination.settings.allowed_hosts:
            not_allowed[repository.host].append(repository.alias)
    for host, aliases in not_allowed.items():
        detail = f"{host} is not among allowed_hosts: {summarize_names(aliases)} cannot be polled"
        report.error("allowed_hosts", detail, f"add {host} to allowed_hosts, or remove these repositories")
    for repository in examination.monitored:
        try:
            canonical = canonical_url(repository.url)[0]
        except ValueError as error:
            canonical = f"none: it {error}"
        if canonical != repository.url:
            detail = f"{repository.alias} has the url {repository.url}, whose canonical spelling is {canonical}"
            report.error("urls", detail, f"`tc-treeherder repositories remove {repository.alias}`, and add it again")


async def polls(report: Report, examination: Examination) -> None:
    """Check that the last poll of each repository succeeded."""
    failing = [repository for repository in examination.monitored if repository.poll_error]
    for repository in failing:
        detail = f"{repository.alias}: {repository.poll_error} ({repository.poll_failures} polls in a row)"
        remedy = f"fix this problem; `tc-treeherder repositories show {repository.alias}` has the times of the polls"
        report.warning("polls", detail, remedy)
    if examination.monitored and not failing:
        report.ok("polls", f"the last polls of all {len(examination.monitored)} repositories succeeded")
