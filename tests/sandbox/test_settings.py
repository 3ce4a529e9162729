"""Configuration that the sandbox writes: the service and the listeners take it."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sandbox import broker
from sandbox.settings import configuration, is_foreign
from tests.sandbox.support import existing
from tests.sandbox.test_run import Sandbox, start, terminate

__all__ = ["start"]  # a fixture

READY = {
    "hg": "http://127.0.0.1:1",
    "taskcluster": "http://127.0.0.1:2",
    "treeherder": "http://127.0.0.1:3",
    "credentials": {
        "taskcluster": {"clientId": "sandbox/tc-treeherder", "accessToken": "x"},
        "treeherder": {"id": "tc-treeherder", "key": "y"},
    },
}


def checked(path: Path) -> str:
    """Return what `tc-treeherder settings check` says of a file."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TC_TREEHERDER_")}
    command = [sys.executable, "-m", "service", "settings", "check"]
    environment = clean | {"TC_TREEHERDER_CONFIG": str(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("amqp_url", [None, "amqp://guest:guest@127.0.0.1:4/%2F"])
def test_service_and_listeners_take_it(tmp_path: Path, amqp_url: str | None) -> None:
    path = tmp_path / "settings.yml"
    path.write_text(configuration(READY, tmp_path, 8080, amqp_url, "sandbox-1"))
    assert checked(path) == "the settings are good\n"
    settings = yaml.safe_load(path.read_text())
    assert settings["taskcluster"]["root_url"] == READY["taskcluster"]
    assert settings["allowed_hosts"] == ["127.0.0.1:1"]
    assert ("pulse" in settings) == (amqp_url is not None)


def test_secrets_are_new_each_time(tmp_path: Path) -> None:
    one, other = (yaml.safe_load(configuration(READY, tmp_path, 8080, None, "x")) for _ in range(2))
    assert one["tokens"][0]["value"] != other["tokens"][0]["value"]
    assert one["webhook_secrets"] != other["webhook_secrets"]


def test_files_of_others_are_told_from_its_own(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    assert not is_foreign(path)
    path.write_text(configuration(READY, tmp_path, 8080, None, "x"))
    assert not is_foreign(path)
    path.write_text("database_url: postgresql+psycopg://production\n")
    assert is_foreign(path)


async def test_a_sandbox_writes_it_for_its_owner_alone(start: Callable[..., Sandbox], tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "settings.yml"
    sandbox = start("--no-mercurial", "--settings", str(path), "--service-port", "4711")
    ready = await asyncio.to_thread(sandbox.wait_until_ready)
    settings = yaml.safe_load(path.read_text())
    output = await asyncio.to_thread(sandbox.stop, terminate)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert checked(path) == "the settings are good\n"
    assert settings["environments"]["tc-treeherder"]["url"] == ready["treeherder"]
    assert (settings["port"], settings["listeners"]["service_url"]) == (4711, "http://127.0.0.1:4711")
    assert f"export TC_TREEHERDER_CONFIG='{path}'" in output
    assert settings["tokens"][0]["value"] not in output


async def test_a_sandbox_prints_it_instead(start: Callable[..., Sandbox]) -> None:
    sandbox = start("--no-mercurial", "--settings", "-")
    ready = await asyncio.to_thread(sandbox.wait_until_ready)
    output = await asyncio.to_thread(sandbox.stop, terminate)
    settings = yaml.safe_load(output[output.index("# Written by bin/sandbox") :])
    assert settings["taskcluster"]["root_url"] == ready["taskcluster"]


def test_a_file_of_somebody_is_left_alone(start: Callable[..., Sandbox], tmp_path: Path) -> None:
    path = tmp_path / "production.yml"
    path.write_text("port: 8080\n")
    errors = start("--no-mercurial", "--settings", str(path)).fail()
    assert errors == (f"sandbox: The file {path} is none that a sandbox wrote. Name a new one: --settings PATH.\n")
    assert path.read_text() == "port: 8080\n"


async def test_its_exchanges_are_its_own_and_are_removed(
    start: Callable[..., Sandbox], tmp_path: Path, amqp_url: str
) -> None:
    path = tmp_path / "settings.yml"
    sandbox = start("--no-mercurial", "--settings", str(path), "--amqp-url", amqp_url)
    await asyncio.to_thread(sandbox.wait_until_ready)
    settings = yaml.safe_load(path.read_text())
    user = settings["pulse"]["user"]
    names = broker.exchanges(user), broker.queues(user)
    during = existing(amqp_url, *names)
    await asyncio.to_thread(sandbox.stop, terminate)
    assert settings["pulse"]["url"] == amqp_url
    assert settings["listeners"]["pulse_job_actions"] in during
    assert any(name.startswith(settings["listeners"]["pulse_tasks"]) for name in during)
    assert existing(amqp_url, *names) == set()
