"""Libraries that long-running processes do not load."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import service.lean
{load}  # as the command does
import {module}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


OF_TRACES = ("google", "wrapt")
"""What OpenTelemetry loads to send traces; FastAPI loads OpenTelemetry's API in any case."""


def loaded(module: str) -> set[str]:
    """Return the libraries that a process has loaded after running this code."""
    load = {
        "listeners.pushlog": "import service.__main__; service.lean.load_for_listener()",
        "listeners.pulse": "import service.__main__; service.lean.load_for_listener('pika')",
        "service.app": "import service.cli; service.lean.load_uvicorn(); import uvicorn",
    }[module]
    command = [sys.executable, "-c", PROGRAM.format(module=module, load=load)]
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
        "asyncio",
        "typer",
    }
    assert not libraries & {"opentelemetry", *OF_TRACES}, "no endpoint is configured"


def test_the_service_has_nothing_of_the_commands_nor_the_driver_of_a_database_that_it_does_not_use() -> None:
    libraries = loaded("service.app")
    assert {"fastapi", "sqlalchemy", "taskcluster", "uvicorn"} <= libraries
    of_others = {"sqlite3", "aiosqlite", "psycopg", "pika", "requests", "urllib3"}
    assert not libraries & {
        "rich",
        "pygments",
        "click",
        "multiprocessing",
        "httpx",
        "alembic",
        "jsone",
        *of_others,
        *OF_TRACES,
    }


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
    program = (
        "import service.cli as cli, rich.table, structlog; cli.lean.load_for_listener(); print(rich.table.Table())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def run(program: str) -> str:
    """Return what a process prints that runs this program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("url", "other"), [("sqlite+aiosqlite:///x", "postgresql"), ("postgresql+psycopg://x@y/z", "sqlite")]
)
def test_a_dialect_that_is_not_used_is_not_loaded(url: str, other: str) -> None:
    program = f"""
import sys, service.app
from service.settings import Settings
service.app.create_app(Settings.model_validate({{"database_url": {url!r}}}))
print("sqlalchemy.dialects.{other}" in sys.modules)
"""
    assert run(program) == "False\n"


def test_uvicorn_without_its_command_can_serve_and_the_command_can_still_be_imported() -> None:
    program = """
from service import lean
lean.load_uvicorn()
import uvicorn
print(uvicorn.Server is uvicorn.server.Server, hasattr(uvicorn, "run"))
import uvicorn.main
print(callable(uvicorn.main.run))
"""
    assert run(program) == "True False\nTrue\n"


def test_certificates_are_read_for_connections_that_verify_and_no_others() -> None:
    program = """
import service.clients, ssl
from aiohttp import connector
print(len(connector._SSL_CONTEXT_UNVERIFIED.get_ca_certs()), len(connector._SSL_CONTEXT_VERIFIED.get_ca_certs()) > 0)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_default_verify_paths()
print(len(context.get_ca_certs()) > 0)
"""
    assert run(program) == "0 True\nTrue\n"


def test_a_library_that_needs_asyncio_at_once_gets_it(tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text("import asyncio\nclass Adapter(asyncio.Protocol): pass\n")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import service.lean
service.lean.load_for_listener("newer")
import asyncio
print(issubclass(sys.modules["newer"].Adapter, asyncio.Protocol))
"""
    assert run(program) == "True\n"
