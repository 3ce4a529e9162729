"""The doctor, with the settings of the running service: each test breaks what it is about.

variables   the environment of a healthy installation, with a database of the test's own that has the repository `try`
doctor      runs it with these
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
    mine = {
        name.removeprefix(PREFIX): value for name, value in system.stack.environment.items() if name.startswith(PREFIX)
    }
    return {**mine, "DATABASE_URL": sqlite_url}


@dataclass
class Examined:
    ran: Ran

    def __post_init__(self) -> None:
        self.findings: list[dict[str, str]] = self.ran.json["checks"]

    def status(self, system: str, check: str) -> str:
        """The status of the one finding of that name."""
        return self.the(system, check)["status"]

    def the(self, system: str, check: str) -> dict[str, str]:
        (found,) = [each for each in self.findings if (each["system"], each["check"]) == (system, check)]
        return found

    def wrong(self) -> list[tuple[str, str, str]]:
        return [(each["system"], each["check"], each["status"]) for each in self.findings if each["status"] != "ok"]


Doctor = Callable[..., Examined]


@pytest.fixture
def doctor(run: Run, variables: dict[str, str]) -> Doctor:
    """Runs it with other values of some variables (None: not set); what is wrong says what to do, and 1 is an error."""

    def examine(*arguments: str, **changed: str | None) -> Examined:
        chosen = {name: value for name, value in (variables | changed).items() if value is not None}
        made = Examined(run("doctor", "--json", *arguments, **chosen))
        statuses = {each["status"] for each in made.findings}
        assert made.ran.code == (1 if "error" in statuses else 0)
        assert made.ran.json["status"] == next(s for s in ("error", "warning", "ok") if s in statuses)
        assert all(each["remedy"] for each in made.findings if each["status"] != "ok")
        return made

    return examine
