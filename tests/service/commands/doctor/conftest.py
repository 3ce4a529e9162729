"""Fixtures that run the doctor with the settings of the running service, of which each test breaks one thing.

variables   the environment of a healthy installation, with a database of the test's own that has the repository `try`
doctor      runs the doctor with these variables
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlmodel import SQLModel

from sandbox.credentials import LEVEL, TRUST_DOMAIN
from service.store.database import Database
from service.store.models import Repository
from tests.service.commands.conftest import Ran, Run
from tests.system.conftest import System

PREFIX = "TC_TREEHERDER_"

TREEHERDER = "treeherder tc-treeherder"
"""Name of the system in findings about the Treeherder of the sandbox."""

PLANTED = "planted-secret-0123456789abcdefghijklmnopqrstuv"
"""A secret that no output may contain."""


def store(database_url: str, *rows: SQLModel) -> None:
    async def run() -> None:
        database = Database(database_url)
        async with database.writing() as session:
            session.add_all(rows)
        await database.close()

    asyncio.run(run())


def repository(url: str, alias: str, **more: Any) -> Repository:
    host = url.partition("//")[2].partition("/")[0]
    scopes = [f"assume:repo:{url.partition('//')[2]}:branch:default"]
    return Repository(
        **{"alias": alias, "url": url, "host": host, "scopes": scopes, "level": LEVEL, "last_push_id": 0, **more}
    )


@pytest.fixture
def variables(system: System, sqlite_url: str) -> dict[str, str]:
    store(sqlite_url, repository(system.stack.sandbox["repositories"]["try"], "try", trust_domain=TRUST_DOMAIN))
    environment = {
        name.removeprefix(PREFIX): value for name, value in system.stack.environment.items() if name.startswith(PREFIX)
    }
    return {**environment, "DATABASE_URL": sqlite_url}


@dataclass
class DoctorReport:
    """Output of `doctor --json`."""

    ran: Ran

    def __post_init__(self) -> None:
        self.findings: list[dict[str, str]] = self.ran.json["checks"]

    def status(self, system: str, check: str) -> str:
        """Return the status of the only finding of that check."""
        return self.finding(system, check)["status"]

    def finding(self, system: str, check: str) -> dict[str, str]:
        (only,) = [finding for finding in self.findings if (finding["system"], finding["check"]) == (system, check)]
        return only

    def problems(self) -> list[tuple[str, str, str]]:
        return [
            (finding["system"], finding["check"], finding["status"])
            for finding in self.findings
            if finding["status"] != "ok"
        ]


Doctor = Callable[..., DoctorReport]


@pytest.fixture
def doctor(run: Run, variables: dict[str, str]) -> Doctor:
    """Return a function that runs the doctor with changed variables (None: unset).

    It checks that each problem has a remedy, and that the exit code is 1 if there is an error.
    """

    def examine(*arguments: str, **changed: str | None) -> DoctorReport:
        environment = {name: value for name, value in (variables | changed).items() if value is not None}
        report = DoctorReport(run("doctor", "--json", *arguments, **environment))
        statuses = {finding["status"] for finding in report.findings}
        assert report.ran.code == (1 if "error" in statuses else 0)
        assert report.ran.json["status"] == next(s for s in ("error", "warning", "ok") if s in statuses)
        assert all(finding["remedy"] for finding in report.findings if finding["status"] != "ok")
        return report

    return examine
