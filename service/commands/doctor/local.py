"""What is our own: the settings, the database, the service."""

import uuid
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, func, select
from standardwebhooks import Webhook

from listeners.forward import encode_json, signed_headers
from listeners.settings import ListenerSettings
from service.api.health import get_version
from service.auth import SIGNATURE_AGE
from service.commands.doctor.finding import Examination, Report, apart, clock, drift_of, told
from service.contract.configuration import unknown
from service.settings import Settings
from service.store.database import Database, SchemaBehindError, check_schema, shown
from service.store.models import JobReport, Repository

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound to


def own_address(settings: Settings) -> str:
    """Where a service with these settings answers on this machine."""
    host = settings.host
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{_WILDCARDS.get(host, bracketed)}:{settings.port}"


def settings(report: Report, ex: Examination) -> None:
    """What is set, where nothing works without."""
    of = ex.settings
    if of.webhook_secrets:
        report.ok("webhook_secrets", f"{len(of.webhook_secrets)}; listeners sign with the first")
    else:
        remedy = (
            "set TC_TREEHERDER_WEBHOOK_SECRETS for service and listeners: a JSON list of whsec_ and base64 of 32 bytes"
        )
        report.error("webhook_secrets", "none: nothing that a listener sends is believed", remedy)
    if of.has_credentials:
        report.ok("credentials", "callers are told apart")
    else:
        remedy = "set TC_TREEHERDER_TOKENS to let others in"
        report.warning("credentials", "none: the API answers on loopback only, and whoever is there may do all", remedy)
    for variable, remedy in unknown(Settings, ListenerSettings).items():
        report.warning(variable, "no setting has this name, so it does nothing", remedy)
    if not of.environments:
        report.warning("environments", "none: pushes and jobs are shown nowhere", "name each Treeherder there")


def _not_there(file: str | None) -> bool:
    return bool(file) and file != ":memory:" and not Path(file or "").is_file()


async def database(report: Report, ex: Examination) -> None:
    """Reachable, its schema the newest; and the repositories, which other checks need."""
    url = ex.settings.database_url.get_secret_value()
    where, file = shown(url), make_url(url).database
    if ex.settings.sqlite and _not_there(file):
        # to connect would make it
        report.warning(
            "connection", f"{where} is not there yet", "`tc-treeherder serve` makes it; is it the right path?"
        )
        return
    try:
        await apart(lambda: check_schema(url))
    except SchemaBehindError as error:
        report.error("schema", str(error), "run `tc-treeherder db upgrade` with the release that is to run")
        return
    except DBAPIError as error:
        words = " ".join(str(error.orig).split())
        report.error("connection", f"{where} cannot be used: {words}", "start it, or set TC_TREEHERDER_DATABASE_URL")
        return
    report.ok("connection", where)
    report.ok("schema", "the newest")
    opened = Database(url, 1)
    try:
        async with opened.reading() as session:
            query = select(Repository).where(col(Repository.deleted_at).is_(None)).order_by(col(Repository.id))
            ex.repositories = list(await session.exec(query))
            waiting = select(func.count(), func.min(JobReport.no_push_since)).where(
                col(JobReport.no_push_since).is_not(None)
            )
            reports, since = (await session.exec(waiting)).one()
    finally:
        await opened.close()
    if reports:
        detail = f"{reports} wait for a push that their Treeherder does not know, the oldest since {since:%F %T}Z"
        remedy = (
            "`tc-treeherder reports list --waiting-for-push` shows them: is each project's push in its Treeherder, "
            "under the project's name? Who posts it there?"
        )
        report.warning("job reports", detail, remedy)
    if not ex.monitored:
        remedy = "`tc-treeherder repositories add` or `import`"
        report.warning("repositories", "none is monitored", remedy)


async def service(report: Report, ex: Examination) -> None:
    """Answers, in this version, and is well."""
    try:
        beat = await ex.http.get(f"{ex.service_url}/__heartbeat__")
        version = await ex.http.get(f"{ex.service_url}/__version__")
    except httpx.HTTPError as error:
        remedy = "start `tc-treeherder serve`, or give --url or TC_TREEHERDER_SERVICE_URL"
        report.error("answer", f"{ex.service_url}: {told(error)}", remedy)
        return
    _heartbeat(report, ex, beat)
    ours = await get_version()
    theirs = _object(version)
    told_as = f"{theirs.get('version')} {theirs.get('commit') or ''}".strip()
    if (theirs.get("version"), theirs.get("commit")) == (ours.get("version"), ours.get("commit")):
        report.ok("version", told_as)
    else:
        here = f"{ours.get('version')} {ours.get('commit') or ''}".strip()
        report.warning("version", f"{told_as} there, {here} here", "run the same release everywhere")


PROBE = "/api/v1/events/pushes"
"""Where an empty batch changes nothing."""


async def signed(report: Report, ex: Examination) -> None:
    """The service believes what the listeners sign."""
    if ex.listeners is None:
        report.warning("signature", "not tried: the listeners' settings are wrong", "mend what is said of them above")
        return
    body = encode_json({"events": []})
    secret = ex.listeners.webhook_secrets[0].get_secret_value()
    headers = signed_headers(Webhook(secret), f"msg_{uuid.uuid4().hex}", PROBE, body)
    before = clock()
    try:
        answer = await ex.http.post(
            ex.service_url + PROBE, content=body, headers={**headers, "Content-Type": "application/json"}
        )
    except httpx.HTTPError as error:
        report.warning("signature", f"not tried: {told(error)}", "start the service, or give its --url")
        return
    if answer.is_success:
        report.ok("signature", "it takes what a listener with these settings signs")
        return
    drift = drift_of(answer, before)
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        detail = f"a signed, empty batch is answered {answer.status_code}"
        report.error("signature", detail, "is --url the service's own address, with nothing in the way of POST?")
    elif drift is not None and abs(drift) > SIGNATURE_AGE:
        detail = f"what a listener signs is refused: its clock is {abs(drift):.0f} s away from the service's"
        report.error("signature", detail, "set the clocks of both machines (NTP)")
    else:
        remedy = (
            "set TC_TREEHERDER_WEBHOOK_SECRETS of the listeners so that its first secret is one of the service's, "
            "and restart both"
        )
        report.error("signature", "what a listener with these settings signs is refused: the secrets differ", remedy)


def _heartbeat(report: Report, ex: Examination, answer: httpx.Response) -> None:
    checks = _object(answer).get("checks")
    if not isinstance(checks, list):
        detail = f"{ex.service_url}/__heartbeat__ answers {answer.status_code} and no list of checks"
        report.error("answer", detail, "is that tc-treeherder's address?")
        return
    report.ok("answer", ex.service_url)
    for each in checks:
        name, detail = f"heartbeat: {each.get('name')}", str(each.get("detail") or "")
        if each.get("status") == "ok":
            report.ok(name, detail)
        elif each.get("status") == "warning":
            report.warning(name, detail, "see its log, and what the detail says")
        else:
            report.error(name, detail, "see its log, and what the detail says")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
