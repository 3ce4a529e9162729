"""Findings of checks, and tools for checks: time limits, requests, clocks, and removal of secrets."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import httpx
import structlog
from pydantic import BaseModel, SecretStr

from listeners.settings import ListenerSettings
from service.commands.text import without_errno
from service.settings import Settings
from service.store.models import Repository

T = TypeVar("T")

Status = Literal["ok", "warning", "error"]

MAX_DRIFT, WARNING_DRIFT = 30.0, 10.0
"""Seconds of difference between two clocks that are an error and a warning: Hawk refuses a difference of a minute."""

MAX_NAMES = 10
"""Largest number of names in one line; of further names, only their number is shown."""


@dataclass(frozen=True)
class Finding:
    """A result of a check."""

    system: str
    check: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass
class Report:
    """Findings about one system, in their order."""

    system: str
    findings: list[Finding] = field(default_factory=list)

    def ok(self, check: str, detail: str) -> None:
        self.findings.append(Finding(self.system, check, "ok", detail))

    def warning(self, check: str, detail: str, remedy: str) -> None:
        self.findings.append(Finding(self.system, check, "warning", detail, remedy))

    def error(self, check: str, detail: str, remedy: str) -> None:
        self.findings.append(Finding(self.system, check, "error", detail, remedy))


@dataclass
class Examination:
    """Data for all checks. `repositories` is None if the database could not be read."""

    settings: Settings
    listeners: ListenerSettings | None
    service_url: str
    seconds: float
    http: httpx.AsyncClient
    repositories: list[Repository] | None = None

    @property
    def monitored(self) -> list[Repository]:
        return [repository for repository in self.repositories or [] if repository.enabled]


async def limited(report: Report, check: str, seconds: float, work: Awaitable[None]) -> None:
    """Run a check with a time limit. Earlier findings of a check that exceeds it are kept."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        report.error(check, f"no answer within {seconds:g} s", "check that it is running, and the network on the way")
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide the findings of the others
        # without its message, which may contain a secret
        report.error(check, f"the check failed: {type(error).__name__}", "report this as a bug of tc-treeherder")


async def run_in_thread(call: Callable[[], T]) -> T:
    """Return the result of a blocking `call`, which runs in a daemon thread.

    After a time limit the thread is abandoned, and does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_outcome(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (future.set_result, call())
        except Exception as error:  # noqa: BLE001 - raised to the caller
            outcome = (future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nothing waits for the result
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def get_with_drift(examination: Examination, url: str, **headers: str) -> tuple[httpx.Response, float | None]:
    """Send a GET. Return the answer, and the seconds by which its clock is ahead of ours (see `drift_of`)."""
    sent_at = wall_clock()
    answer = await examination.http.get(url, headers=headers)
    return answer, drift_of(answer, sent_at)


def drift_of(answer: httpx.Response, sent_at: float) -> float | None:
    """Return the seconds by which the server's clock is ahead of ours, or None if the answer has no date.

    `sent_at` is our time when the request was sent.
    """
    ours = (sent_at + wall_clock()) / 2
    try:
        # the header has whole seconds, rounded down: the real time is half a second later on average
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5
    except (KeyError, ValueError):
        return None
    return theirs - ours


def wall_clock() -> float:
    """Return this machine's time, in seconds since 1970."""
    return time.time()


def judge_clock(report: Report, check: str, drift: float | None) -> None:
    """Report the difference between the server's clock and ours."""
    if drift is None:
        report.warning(check, "its answers have no date, so the clocks cannot be compared", "check your own clock")
        return
    detail = f"our clock is {abs(drift):.0f} s {'behind' if drift > 0 else 'ahead of'} its clock"
    remedy = "set the clock of this machine (NTP): signatures that are a minute off are refused"
    if abs(drift) > MAX_DRIFT:
        report.error(check, detail, remedy)
    elif abs(drift) > WARNING_DRIFT:
        report.warning(check, detail, remedy)
    else:
        report.ok(check, "it agrees with ours")


def error_text(error: httpx.HTTPError) -> str:
    """Return the reason why a request was not answered."""
    text = f"{type(error).__name__} {without_errno(error)}".strip()
    if isinstance(error, httpx.TimeoutException):
        return f"it does not answer in time ({text})"
    return f"it cannot be reached ({text})" if isinstance(error, httpx.ConnectError | httpx.ProxyError) else text


def summarize_names(names: Iterable[str]) -> str:
    """Return up to `MAX_NAMES` names, and the number of further ones."""
    all_names = list(names)
    more = f" and {len(all_names) - MAX_NAMES} more" if len(all_names) > MAX_NAMES else ""
    return ", ".join(all_names[:MAX_NAMES]) + more


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Disable logging within the block: failures are findings, and standard output may be a JSON document."""
    before, pika = structlog.get_config(), logging.getLogger("pika")
    level = pika.level
    pika.setLevel(logging.CRITICAL + 1)  # it logs every failure several times, with a traceback
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        pika.setLevel(level)
        structlog.configure(**before)


# --- secrets -----------------------------------------------------------------------------------------------------


MIN_SECRET_LENGTH = 6
"""Characters of the shortest text that is treated as a secret: hiding shorter ones would hide ordinary words."""


def secrets_of(*settings: BaseModel | None) -> list[str]:
    """Return all secrets in the settings, and the passwords of URLs, the longest first."""
    secrets: set[str] = set()
    for value in _values(settings):
        password = ""
        if "://" in value:
            with contextlib.suppress(ValueError):
                parts = urlsplit(value)
                password = parts.password or ""
                if not password and not parts.query:
                    continue  # a URL without a secret, such as SQLite's
        secrets |= {value, password, unquote(password)}
    return sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True)


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from _values([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, dict):
        yield from _values(list(value.values()))
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _values(element)


def without(secrets: Iterable[str], finding: Finding) -> Finding:
    """Return the finding with secrets replaced. Checks add none, but answers of other systems may."""
    detail, remedy = finding.detail, finding.remedy
    for secret in secrets:
        detail, remedy = detail.replace(secret, "***"), remedy.replace(secret, "***")
    return Finding(finding.system, finding.check, finding.status, detail, remedy)
