"""Libraries that long-running processes do not load."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import service.cli, service.lean
if {listener}: service.lean.load_httpx()  # as the command does
import {module}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


OF_TRACES = ("google", "wrapt")
"""What OpenTelemetry loads to send traces; FastAPI loads OpenTelemetry's API in any case."""


def loaded(module: str) -> set[str]:
    """Return the libraries that a process has loaded after running this code."""
    command = [sys.executable, "-c", PROGRAM.format(module=module, listener=module.startswith("listeners"))]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


@pytest.mark.parametrize("listener", ["pushlog", "pulse"])
def test_a_listener_has_nothing_of_the_service_s_nor_of_the_commands(listener: str) -> None:
    libraries = loaded(f"listeners.{listener}")
    assert {"httpx", "structlog", "pydantic"} <= libraries
    assert not libraries & {
        "rich",
        "pygments",
        "click",
        "greenlet",
        "sqlalchemy",
        "fastapi",
        "aiohttp",
        "psycopg",
        "jsone",
    }
    assert not libraries & {"opentelemetry", *OF_TRACES}, "no endpoint is configured"


def test_the_service_has_nothing_of_the_commands_nor_the_driver_of_a_database_that_it_does_not_use() -> None:
    libraries = loaded("service.app")
    assert {"fastapi", "sqlalchemy", "taskcluster"} <= libraries
    of_others = {"sqlite3", "aiosqlite", "psycopg", "pika", "requests", "urllib3"}
    assert not libraries & {"rich", "pygments", "httpx", "alembic", "jsone", *of_others, *OF_TRACES}


def test_the_service_has_nothing_of_pydantic_s_first_version_and_describes_its_api() -> None:
    program = """
import sys, service.app
from service.settings import Settings
print(len(service.app.create_app(Settings.model_construct()).openapi()["paths"]) > 10)
print(*(name for name, module in sys.modules.items() if name.startswith("pydantic.v1") and module is not None))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n\n", done.stderr


def test_what_needs_requests_says_so_and_requests_itself_can_be_imported() -> None:
    program = """
import service.clients, taskcluster, requests
print(requests.codes.ok)
try:
    taskcluster.createSession()
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [
        "200",
        "requests was left out by service.lean, which expects that nobody uses it",
    ], done.stderr


def test_tables_and_tracebacks_for_people_work_all_the_same() -> None:
    program = "import service.cli as cli, rich.table, structlog; cli.lean.load_httpx(); print(rich.table.Table())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
