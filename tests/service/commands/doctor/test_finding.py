"""Findings: texts, clocks, time limits, and secrets that are removed."""

import asyncio
import logging
import threading
from email.utils import formatdate

import httpx
import pytest
import structlog

from service.commands.doctor import finding
from service.commands.doctor.finding import (
    Finding,
    Report,
    drift_of,
    error_text,
    judge_clock,
    limited,
    quiet,
    run_in_thread,
    secrets_of,
    summarize_names,
    without,
)
from service.settings import Settings
from tests.service.commands.doctor.conftest import PLANTED


def test_many_names_are_counted() -> None:
    assert summarize_names(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_every_secret_is_known_and_no_word_of_ours_is_one() -> None:
    settings = Settings.model_validate(
        {
            "database_url": "postgresql+psycopg://me:pass%2Fword@host/name",
            "tokens": [{"name": "n", "value": "scheme:token-0123456789"}],
            "pulse": {"url": "amqp://guest:guest@127.0.0.1/%2F"},
            "taskcluster": {"client_id": "c", "access_token": "access", "certificate": "{}"},
        }
    )
    secrets = secrets_of(settings, None)
    assert set(secrets) >= {"pass/word", "pass%2Fword", "scheme:token-0123456789", "access"}
    assert not {"guest", "", "{}"} & set(secrets)
    assert secrets_of(Settings(database_url="sqlite+aiosqlite:////data/x.sqlite")) == []


async def test_a_check_that_breaks_or_hangs_keeps_what_was_found_before() -> None:
    report = Report("x")

    async def broken() -> None:
        report.ok("first", "well")
        raise RuntimeError(PLANTED)

    await limited(report, "all", 5, broken())
    await limited(report, "all", 0.01, asyncio.sleep(5))
    first, second, third = report.findings
    assert (first.check, first.status) == ("first", "ok")
    assert (second.check, second.status, second.detail) == ("all", "error", "the check failed: RuntimeError")
    assert (third.status, third.detail) == ("error", "no answer within 0.01 s")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (httpx.ReadTimeout("late"), "it does not answer in time (ReadTimeout late)"),
        (httpx.ConnectTimeout(""), "it does not answer in time (ConnectTimeout)"),
        (httpx.ConnectError("refused"), "it cannot be reached (ConnectError refused)"),
        (httpx.ProxyError("403"), "it cannot be reached (ProxyError 403)"),
        (httpx.ReadError("reset"), "ReadError reset"),
    ],
)
def test_errors_say_whether_a_server_is_slow_or_not_there(error: httpx.HTTPError, text: str) -> None:
    assert error_text(error) == text


def test_the_drift_is_measured_against_the_middle_of_the_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "wall_clock", lambda: 1_000_010.0)
    answer = httpx.Response(200, headers={"Date": formatdate(1_000_065, usegmt=True)})
    assert drift_of(answer, sent_at=1_000_000.0) == 60.5
    assert drift_of(httpx.Response(200), 0) is None
    assert drift_of(httpx.Response(200, headers={"Date": "tomorrow"}), 0) is None


@pytest.mark.parametrize(
    ("drift", "status", "words"),
    [
        (10.0, "ok", "agrees"),
        (-10.1, "warning", "10 s ahead of"),
        (30.1, "error", "30 s behind"),
        (None, "warning", "no date"),
    ],
)
def test_a_clock_is_judged_by_its_drift(drift: float | None, status: str, words: str) -> None:
    report = Report("x")
    judge_clock(report, "clock", drift)
    (result,) = report.findings
    assert (result.system, result.check, result.status) == ("x", "clock", status)
    assert words in result.detail
    assert bool(result.remedy) == (status != "ok")


async def test_a_blocking_call_runs_in_a_thread_that_does_not_keep_the_process_alive() -> None:
    def call() -> bool:
        return threading.current_thread().daemon

    def fail() -> None:
        raise KeyError("x")

    assert await run_in_thread(call)
    with pytest.raises(KeyError):
        await run_in_thread(fail)


async def test_an_abandoned_thread_does_no_harm() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run_in_thread(release.wait)
    release.set()
    assert await run_in_thread(lambda: 1) == 1


def test_secrets_are_removed_from_detail_and_remedy() -> None:
    shown = without([PLANTED, "other-secret"], Finding("x", "y", "error", f"a {PLANTED} b", f"{PLANTED} other-secret"))
    assert shown == Finding("x", "y", "error", "a *** b", "*** ***")


def test_nothing_is_logged_while_checks_run() -> None:
    pika = logging.getLogger("pika")
    before = pika.level
    with quiet():
        assert not pika.isEnabledFor(logging.CRITICAL)
        assert structlog.get_config()["wrapper_class"] is structlog.make_filtering_bound_logger(logging.CRITICAL)
    assert pika.level == before
