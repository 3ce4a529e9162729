"""Check the settings, the database, and the service itself."""

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
from service.commands.doctor.finding import Examination, Report, drift_of, error_text, run_in_thread, wall_clock
from service.contract.configuration import unknown
from service.settings import Settings
from service.store.database import Database, SchemaBehindError, check_schema, shown
from service.store.models import JobReport, Repository

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound to


def own_address(settings: Settings) -> str:
    """Return the URL at which a service with these settings answers on this machine."""
    host = settings.host
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{_WILDCARDS.get(host, bracketed)}:{settings.port}"


def settings(report: Report, examination: Examination) -> None:
    """Check the settings that everything depends on."""
    settings = examination.settings
    if settings.webhook_secrets:
        report.ok("webhook_secrets", f"{len(settings.webhook_secrets)}; listeners sign with the first")
    else:
        remedy = (
            "set TC_TREEHERDER_WEBHOOK_SECRETS for service and listeners: a JSON list of whsec_ and base64 of 32 bytes"
        )
        report.error("webhook_secrets", "none: the service refuses everything that a listener sends", remedy)
    if settings.has_credentials:
        report.ok("credentials", "callers need credentials")
    else:
        remedy = "set TC_TREEHERDER_TOKENS to allow other callers"
        report.warning("credentials", "none: the API answers on loopback only, and allows everything there", remedy)
    for variable, remedy in unknown(Settings, ListenerSettings).items():
        report.warning(variable, "no setting has this name, so it has no effect", remedy)
    if not settings.environments:
        report.warning("environments", "none: pushes and jobs are not shown anywhere", "add each Treeherder there")


def _is_missing(file: str | None) -> bool:
    return bool(file) and file != ":memory:" and not Path(file or "").is_file()


async def database(report: Report, examination: Examination) -> None:
    """Check the database and its schema, and read the repositories for other checks."""
    url = examination.settings.database_url.get_secret_value()
    address, file = shown(url), make_url(url).database
    if examination.settings.sqlite and _is_missing(file):
        # connecting would create it
        remedy = "check the path; `tc-treeherder serve` creates it"
        report.warning("connection", f"{address} does not exist yet", remedy)
        return
    try:
        await run_in_thread(lambda: check_schema(url))
    except SchemaBehindError as error:
        report.error("schema", str(error), "run `tc-treeherder db upgrade` of the new release")
        return
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        report.error("connection", f"{address} cannot be used: {reason}", "start it, or set TC_TREEHERDER_DATABASE_URL")
        return
    report.ok("connection", address)
    report.ok("schema", "the newest")
    database = Database(url, 1)
    try:
        async with database.reading() as session:
            query = select(Repository).where(col(Repository.deleted_at).is_(None)).order_by(col(Repository.id))
            examination.repositories = list(await session.exec(query))
            waiting = select(func.count(), func.min(JobReport.no_push_since)).where(
                col(JobReport.no_push_since).is_not(None)
            )
            waiting_reports, since = (await session.exec(waiting)).one()
    finally:
        await database.close()
    if waiting_reports:
        detail = (
            f"{waiting_reports} wait for a push that their Treeherder does not have, the oldest since {since:%F %T}Z"
        )
        remedy = (
            "list them with `tc-treeherder reports list --waiting-for-push`, and check that something posts each "
            "project's pushes to its Treeherder, under the project's name"
        )
        report.warning("job reports", detail, remedy)
    if not examination.monitored:
        remedy = "run `tc-treeherder repositories add` or `tc-treeherder repositories import`"
        report.warning("repositories", "none is monitored", remedy)


async def service(report: Report, examination: Examination) -> None:
    """Check that the service answers, is healthy, and has the version of this command."""
    try:
        beat = await examination.http.get(f"{examination.service_url}/__heartbeat__")
        version = await examination.http.get(f"{examination.service_url}/__version__")
    except httpx.HTTPError as error:
        remedy = "start `tc-treeherder serve`, or give --url or TC_TREEHERDER_SERVICE_URL"
        report.error("answer", f"{examination.service_url}: {error_text(error)}", remedy)
        return
    _heartbeat(report, examination, beat)
    own, remote = await get_version(), _json_object(version)
    remote_text = f"{remote.get('version')} {remote.get('commit') or ''}".strip()
    if (remote.get("version"), remote.get("commit")) == (own.get("version"), own.get("commit")):
        report.ok("version", remote_text)
    else:
        own_text = f"{own.get('version')} {own.get('commit') or ''}".strip()
        detail = f"the service has {remote_text}, and this command {own_text}"
        report.warning("version", detail, "run the same release everywhere")


PROBE = "/api/v1/events/pushes"
"""A path to which an empty batch can be posted without changing anything."""


async def signed(report: Report, examination: Examination) -> None:
    """Check that the service accepts the signatures of listeners with these settings."""
    if examination.listeners is None:
        remedy = "correct the settings that the finding on listeners names"
        report.warning("signature", "not checked: the listeners' settings are invalid", remedy)
        return
    body = encode_json({"events": []})
    secret = examination.listeners.webhook_secrets[0].get_secret_value()
    headers = signed_headers(Webhook(secret), f"msg_{uuid.uuid4().hex}", PROBE, body)
    sent_at = wall_clock()
    try:
        answer = await examination.http.post(
            examination.service_url + PROBE, content=body, headers={**headers, "Content-Type": "application/json"}
        )
    except httpx.HTTPError as error:
        report.warning("signature", f"not checked: {error_text(error)}", "start the service, or give its --url")
        return
    if answer.is_success:
        report.ok("signature", "the service accepts signatures of listeners with these settings")
        return
    drift = drift_of(answer, sent_at)
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        detail = f"the service answers {answer.status_code} to a signed, empty batch"
        report.error("signature", detail, "check --url, and that nothing before the service blocks POST")
    elif drift is not None and abs(drift) > SIGNATURE_AGE:
        detail = f"the service refuses listeners' signatures: our clock is {abs(drift):.0f} s away from the service's"
        report.error("signature", detail, "set the clocks of both machines (NTP)")
    else:
        remedy = (
            "set TC_TREEHERDER_WEBHOOK_SECRETS of the listeners so that its first secret is one of the service's, "
            "and restart both"
        )
        detail = "the service refuses signatures of listeners with these settings: the secrets differ"
        report.error("signature", detail, remedy)


def _heartbeat(report: Report, examination: Examination, answer: httpx.Response) -> None:
    checks = _json_object(answer).get("checks")
    if not isinstance(checks, list):
        detail = f"{examination.service_url}/__heartbeat__ answers {answer.status_code} without a list of checks"
        report.error("answer", detail, "check --url: the server there is not tc-treeherder")
        return
    report.ok("answer", examination.service_url)
    for check in checks:
        name, detail = f"heartbeat: {check.get('name')}", str(check.get("detail") or "")
        if check.get("status") == "ok":
            report.ok(name, detail)
        elif check.get("status") == "warning":
            report.warning(name, detail, "see the detail, and the service's log")
        else:
            report.error(name, detail, "see the detail, and the service's log")


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
