"""Waiting at a restart, and wall clocks that are wrong, with real processes."""

import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.stack import Process
from tests.system.conftest import System
from tests.system.test_push import Systems

LONG: dict[str, Any] = {"TC_TREEHERDER_WORK__LEASE": "600"}
"""A lease that no test can wait for."""


def test_a_restarted_service_waits_for_no_lease_of_its_own(systems: Systems, database_url: str) -> None:
    system = systems(database_url)
    service = system.stack.service(**LONG)
    system.stack.listener()
    system.add_repository()
    system.taskcluster.post("/latency", json={"seconds": 0.05}).raise_for_status()
    system.push(tasks=60)
    system.wait(lambda: system.creations() >= 5)
    service.kill()
    assert system.creations() < 60
    system.stack.service(**LONG)
    system.expect_exactly_once(pushes=1, tasks=60)


def test_a_second_service_on_a_sqlite_file_is_refused_with_the_reason(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    service = system.stack.service()
    for command in (["serve"], ["serve", "--no-worker"], ["work"]):
        done = subprocess.run(
            [sys.executable, "-m", "service", *command],
            env={**system.stack.environment, "TC_TREEHERDER_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        if command == ["serve"]:
            assert f"process {service.pid} on" in done.stderr
            assert "runs `tc-treeherder serve` on" in done.stderr
        assert "PostgreSQL" in done.stderr
    service.kill()
    system.stack.service()


# Wall clocks that are wrong


class Wrong:
    """A service whose wall clock the test sets; everything else runs on the real one."""

    def __init__(self, system: System, library: Path, folder: Path) -> None:
        self.system = system
        self._file = folder / "faketime"
        self.set(0)
        self._environment: dict[str, Any] = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds
            "NO_FAKE_STAT": "1",  # of files, which takes seconds while modules are imported
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "TC_TREEHERDER_WORK__IDLE": "0.5",  # clocks are compared with each look
        }

    def set(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}")
        new.replace(self._file)

    def step(self, seconds: int) -> None:
        """Set the clock, and wait until the service reads it: its answers have a date."""
        self.set(seconds)
        self.system.wait(lambda: abs(self._date() - time.time() - seconds) < 30)

    def _date(self) -> float:
        answer = httpx.get(f"{self.system.stack.service_url}/__lbheartbeat__", timeout=10)
        return parsedate_to_datetime(answer.headers["date"]).timestamp()

    def start(self) -> Process:
        return self.system.stack.service(**self._environment)

    def clock(self) -> Any:
        checks = httpx.get(f"{self.system.stack.service_url}/__heartbeat__", timeout=10).json()["checks"]
        return next(check for check in checks if check["name"] == "clock")


@pytest.fixture
def wrong(systems: Systems, database_url: str, faketime: Path, tmp_path: Path) -> Wrong:
    # processes of their own: a library is preloaded into what is executed, not into what is forked
    return Wrong(systems(database_url, process=Process), faketime, tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True
)  # the wall clock plays no part in the other's leases
def test_a_wall_clock_that_steps(wrong: Wrong, database_url: str) -> None:
    """PostgreSQL does not use it. SQLite does, and the step is noticed: intake continues, work waits."""
    system = wrong.system
    sqlite = database_url.startswith("sqlite")
    if not sqlite:
        wrong.set(3600)  # ahead from its first moment
    service = wrong.start()
    assert "faketime" in Path(f"/proc/{service.pid}/maps").read_text()
    system.stack.listener()
    system.add_repository()
    system.push()
    system.expect_exactly_once(pushes=1, tasks=2)

    wrong.step(172_800 if not sqlite else 600)
    push_id = system.push()
    system.wait(lambda: system.push_stored(push_id))
    if sqlite:
        system.wait(lambda: wrong.clock()["status"] == "error")
        assert "+600 s" in wrong.clock()["detail"]
        time.sleep(1)
        assert not system.settled(2), "no work is taken"
        wrong.set(0)
        system.wait(lambda: wrong.clock()["status"] == "ok")
    system.expect_exactly_once(pushes=2, tasks=2)
    assert wrong.clock()["status"] == "ok"
    assert system.api.get("/dead-letters").json()["items"] == []
