"""Check a Treeherder: it answers, the clocks agree, it accepts our credentials, and has each project."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from service.clients.http import Http
from service.clients.treeherder import RestTreeherder
from service.commands.doctor.finding import (
    Examination,
    Report,
    error_text,
    get_with_drift,
    judge_clock,
    summarize_names,
)
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import Environment


def check(prefix: str) -> Callable[[Report, Examination], Awaitable[None]]:
    """Return the check of the Treeherder with that route prefix."""

    async def check_treeherder(report: Report, examination: Examination) -> None:
        environment = examination.settings.environments[prefix]
        projects = await _projects(report, examination, prefix, environment)
        if projects is None:
            return
        wanted = [
            repository.alias
            for repository in examination.monitored
            if repository.environments is None or prefix in repository.environments
        ]
        if unknown := [alias for alias in wanted if alias not in projects]:
            remedy = f"add them to this Treeherder, or remove {prefix} from their environments"
            report.error("projects", f"it does not have {summarize_names(unknown)}", remedy)
        elif wanted:
            report.ok("projects", f"it has all {len(wanted)}")
        if "rest" in {environment.pushes, environment.jobs}:
            candidates = [alias for alias in wanted if alias in projects] or sorted(projects)
            await _credentials(report, examination, prefix, environment, candidates)

    return check_treeherder


async def _projects(report: Report, examination: Examination, prefix: str, environment: Environment) -> set[str] | None:
    url = f"{str(environment.url).rstrip('/')}/api/repository/"
    remedy = f"check environments.{prefix}.url, and the network on the way"
    try:
        answer, drift = await get_with_drift(examination, url, Accept="application/json; version=1.0")
    except httpx.HTTPError as error:
        report.error("answer", f"{url}: {error_text(error)}", remedy)
        return None
    projects = _names(answer) if answer.status_code == httpx.codes.OK else None
    if projects is None:
        target = f" to {answer.headers.get('location')}" if answer.is_redirect else ""
        report.error("answer", f"{url} answers {answer.status_code}{target}, without a list of repositories", remedy)
        return None
    report.ok("answer", str(environment.url))
    judge_clock(report, "clock", drift)
    return projects


def _names(answer: httpx.Response) -> set[str] | None:
    try:
        listing: Any = answer.json()
        listing = listing["results"] if isinstance(listing, dict) else listing
        return {str(repository["name"]) for repository in listing}
    except (ValueError, LookupError, TypeError):
        return None


async def _credentials(
    report: Report, examination: Examination, prefix: str, environment: Environment, projects: list[str]
) -> None:
    name = f"client {environment.client_id}"
    if not projects:
        remedy = "add your repositories to this Treeherder"
        report.warning("credentials", f"{name} cannot be checked: this Treeherder has no project", remedy)
        return
    by_pulse = f'set environments.{prefix}.pushes to pulse and jobs to "off", see docs/treeherders.md'
    try:
        async with Http("treeherder") as http:
            await RestTreeherder(environment, http).post_nothing(projects[0])
    except Unavailable as error:
        if error.status == httpx.codes.TOO_MANY_REQUESTS:
            report.warning("credentials", str(error), "it has too many requests: try again in a minute")
            return
        if error.status == httpx.codes.NOT_FOUND:  # for an existing project
            report.error("credentials", f"it accepts no submissions by REST: {error}", by_pulse)
            return
        remedy = f"check that environments.{prefix}.secret is that of {name}, and that the client is approved there"
        report.error("credentials", str(error), remedy)
    except PermanentUpstreamError as error:
        report.error("credentials", str(error), f"if it accepts no submissions by REST, {by_pulse}")
    else:
        report.ok("credentials", f"{name} is accepted")
