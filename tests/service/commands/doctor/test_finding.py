"""Findings: texts, clocks, time limits, and secrets that are removed."""

import asyncio

from service.commands.doctor.finding import (
    Report,
    limited,
    secrets_of,
    summarize_names,
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
