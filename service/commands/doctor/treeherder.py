"""A Treeherder: it answers, our clocks agree, it takes our credentials, and knows each project."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from service.clients.http import Http
from service.clients.treeherder import RestTreeherder
from service.commands.doctor.finding import Examination, Report, ask, judge_clock, some, told
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import Environment


def check(prefix: str) -> Callable[[Report, Examination], Awaitable[None]]:
    """The checks of the Treeherder with that route prefix."""

    async def checked(report: Report, ex: Examination) -> None:
        environment = ex.settings.environments[prefix]
        projects = await _projects(report, ex, prefix, environment)
        if projects is None:
            return
        wanted = [
            repository.alias
            for repository in ex.monitored
            if repository.environments is None or prefix in repository.environments
        ]
        if unknown := [alias for alias in wanted if alias not in projects]:
            remedy = f"add them to this Treeherder, or leave {prefix} out of their environments"
            report.error("projects", f"it does not know {some(unknown)}", remedy)
        elif wanted:
            report.ok("projects", f"it knows all {len(wanted)}")
        if "rest" in {environment.pushes, environment.jobs}:
            known = [alias for alias in wanted if alias in projects] or sorted(projects)
            await _credentials(report, ex, prefix, environment, known)

    return checked


async def _projects(report: Report, ex: Examination, prefix: str, environment: Environment) -> set[str] | None:
    url = f"{str(environment.url).rstrip('/')}/api/repository/"
    remedy = f"check environments.{prefix}.url, and the way there"
    try:
        answer, drift = await ask(ex, url, Accept="application/json; version=1.0")
    except httpx.HTTPError as error:
        report.error("answer", f"{url}: {told(error)}", remedy)
        return None
    projects = _names(answer) if answer.status_code == httpx.codes.OK else None
    if projects is None:
        where = f" to {answer.headers.get('location')}" if answer.is_redirect else ""
        report.error("answer", f"{url} answers {answer.status_code}{where}, and no list of repositories", remedy)
        return None
    report.ok("answer", str(environment.url))
    judge_clock(report, "clock", drift)
    return projects


def _names(answer: httpx.Response) -> set[str] | None:
    try:
        listing: Any = answer.json()
        listing = listing["results"] if isinstance(listing, dict) else listing
        return {str(each["name"]) for each in listing}
    except (ValueError, LookupError, TypeError):
        return None


async def _credentials(
    report: Report, ex: Examination, prefix: str, environment: Environment, known: list[str]
) -> None:
    name = f"client {environment.client_id}"
    if not known:
        remedy = "add your repositories to this Treeherder"
        report.warning("credentials", f"{name} cannot be tried: it knows no project", remedy)
        return
    try:
        async with Http("treeherder") as http:
            await RestTreeherder(environment, http).post_nothing(known[0])
    except Unavailable as error:
        if error.status == httpx.codes.TOO_MANY_REQUESTS:
            report.warning("credentials", str(error), "it is asked too much just now: try again in a minute")
            return
        if error.status == httpx.codes.NOT_FOUND:  # of a project that it knows
            remedy = f'set environments.{prefix}.pushes to pulse and jobs to "off", see docs/treeherders.md'
            report.error("credentials", f"it takes no submissions by REST: {error}", remedy)
            return
        remedy = f"is environments.{prefix}.secret that of {name}, and is the client approved there?"
        report.error("credentials", str(error), remedy)
    except PermanentUpstreamError as error:
        report.error("credentials", str(error), "does this Treeherder take submissions by REST? Else pushes: pulse")
    else:
        report.ok("credentials", f"{name} is taken")
