"""The hosts of monitored repositories."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

from service.auth import loopback
from service.commands.doctor.finding import MAX_DRIFT, Examination, Report, ask, judge_clock, some, told
from service.flow.pushes.urls import canonical_url


def check(host: str) -> Callable[[Report, Examination], Awaitable[None]]:
    """The check that the host resolves and answers."""

    async def checked(report: Report, ex: Examination) -> None:
        try:
            answer, drift = await ask(ex, f"{_scheme(ex, host)}://{host}/")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = told(error) if isinstance(error, httpx.HTTPError) else "it is no host name"
            report.error(host, words, "check allowed_hosts, name resolution, and what is between here and there")
            return
        if answer.is_server_error:
            report.error(
                host, f"it answers {answer.status_code}", "its own operators must look; pushes are taken later"
            )
        else:
            report.ok(host, f"it answers {answer.status_code}")
        if drift is not None and abs(drift) > MAX_DRIFT:  # the others are judged where signatures depend on them
            judge_clock(report, f"clock of {host}", drift)

    return checked


def _scheme(ex: Examination, host: str) -> str:
    """As its repositories have it; only a host on loopback may be asked without TLS."""
    known = {urlsplit(repository.url).scheme for repository in ex.repositories or [] if repository.host == host}
    if known:
        return known.pop()
    return "http" if loopback(host) else "https"


async def repositories(report: Report, ex: Examination) -> None:
    """On hosts that may be asked, and spelled in the one way that we would store today."""
    stray: dict[str, list[str]] = defaultdict(list)
    for repository in ex.monitored:
        if repository.host not in ex.settings.allowed_hosts:
            stray[repository.host].append(repository.alias)
    for host, aliases in stray.items():
        detail = f"{host} is not among allowed_hosts: {some(aliases)} cannot be polled"
        report.error("allowed_hosts", detail, f"add {host} to allowed_hosts, or remove these repositories")
    for repository in ex.monitored:
        try:
            canonical = canonical_url(repository.url)[0]
        except ValueError as error:
            canonical = f"none: it {error}"
        if canonical != repository.url:
            detail = f"{repository.alias} has the url {repository.url}, whose canonical spelling is {canonical}"
            report.error("urls", detail, f"tc-treeherder repositories remove {repository.alias}, and add it anew")


async def polls(report: Report, ex: Examination) -> None:
    """The last poll of each repository went well."""
    failing = [repository for repository in ex.monitored if repository.poll_error]
    for repository in failing:
        detail = f"{repository.alias}: {repository.poll_error} ({repository.poll_failures} polls in a row)"
        remedy = f"mend what is said there; `tc-treeherder repositories show {repository.alias}` has the poll's times"
        report.warning("polls", detail, remedy)
    if ex.monitored and not failing:
        report.ok("polls", f"the last polls of all {len(ex.monitored)} repositories went well")
