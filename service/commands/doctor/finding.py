"""What a check finds, what all checks know, and how each is kept to its time and its secrets."""

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
from service.settings import Settings
from service.store.models import Repository

T = TypeVar("T")

Status = Literal["ok", "warning", "error"]

MAX_DRIFT, NOTED_DRIFT = 30.0, 10.0
"""Seconds that two clocks may differ: Hawk refuses a signature that is a minute off, and an answer is old already."""

NAMED = 10
"""Names in one line; of more their number is told."""


@dataclass(frozen=True)
class Finding:
    system: str
    check: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass
class Report:
    """The findings of one system, in their order."""

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
    """What all checks know. `repositories` is None when the database could not tell."""

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
    """Do a check within its time; what it found before stays."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        report.error(check, f"no answer within {seconds:g} s", "is it up, and does the network let us through to it?")
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others find
        # not its message: nobody knows what is in it
        report.error(check, f"the check broke: {type(error).__name__}", "report this as a bug of tc-treeherder")


async def apart(call: Callable[[], T]) -> T:
    """What a blocking `call` returns. Its thread is left behind when the time is over: it holds up no exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(give: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            give(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (future.set_result, call())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            outcome = (future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def ask(ex: Examination, url: str, **headers: str) -> tuple[httpx.Response, float | None]:
    """The answer to a GET, and by how many seconds its clock is ahead of ours, None when it does not tell."""
    before = clock()
    answer = await ex.http.get(url, headers=headers)
    return answer, drift_of(answer, before)


def drift_of(answer: httpx.Response, before: float) -> float | None:
    """Return by how many seconds its clock is ahead of ours, None if it does not tell; it was asked at `before`."""
    ours = (before + clock()) / 2
    try:
        # the header has whole seconds, cut off: on average it is half a second later
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5
    except (KeyError, ValueError):
        return None
    return theirs - ours


def clock() -> float:
    """Our clock, in seconds since 1970."""
    return time.time()


def judge_clock(report: Report, check: str, drift: float | None) -> None:
    """Say how far our clock is from theirs."""
    if drift is None:
        report.warning(check, "its answers have no date, so the clocks cannot be compared", "look at your own clock")
        return
    off = f"our clock is {abs(drift):.0f} s {'behind' if drift > 0 else 'ahead of'} its clock"
    remedy = "set the clock of this machine (NTP): signatures that are a minute off are refused"
    if abs(drift) > MAX_DRIFT:
        report.error(check, off, remedy)
    elif abs(drift) > NOTED_DRIFT:
        report.warning(check, off, remedy)
    else:
        report.ok(check, "it agrees with ours")


def told(error: httpx.HTTPError) -> str:
    """Return why a request got no answer."""
    words = f"{type(error).__name__} {error}".strip()
    if isinstance(error, httpx.TimeoutException):
        return f"it does not answer in time ({words})"
    return f"it cannot be reached ({words})" if isinstance(error, httpx.ConnectError | httpx.ProxyError) else words


def some(names: Iterable[str]) -> str:
    """The names, or the first of them and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While inside, nothing is logged: what goes wrong is a finding, and standard output is the document's alone."""
    before, pika = structlog.get_config(), logging.getLogger("pika")
    level = pika.level
    pika.setLevel(logging.CRITICAL + 1)  # it tells every failure several times, and with a traceback
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        pika.setLevel(level)
        structlog.configure(**before)


# --- secrets -----------------------------------------------------------------------------------------------------


LEAST_SECRET = 6
"""Characters; what is shorter is no secret, and hiding it would hide words of ours."""


def secrets_of(*settings: BaseModel | None) -> list[str]:
    """Everything secret in the settings, of a URL its password, the longest first."""
    found: set[str] = set()
    for value in _values(settings):
        password = ""
        if "://" in value:
            with contextlib.suppress(ValueError):
                parts = urlsplit(value)
                password = parts.password or ""
                if not password and not parts.query:
                    continue  # a URL without any secret, such as SQLite's
        found |= {value, password, unquote(password)}
    return sorted((secret for secret in found if len(secret) >= LEAST_SECRET), key=len, reverse=True)


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from _values([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, dict):
        yield from _values(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _values(each)


def without(secrets: Iterable[str], finding: Finding) -> Finding:
    """The finding as it may be shown. No check puts a secret there; what others answer is not in our hands."""
    detail, remedy = finding.detail, finding.remedy
    for secret in secrets:
        detail, remedy = detail.replace(secret, "***"), remedy.replace(secret, "***")
    return Finding(finding.system, finding.check, finding.status, detail, remedy)
