"""The files of `deploy/`: valid settings, compose and units that start what there is, and confined units."""

import configparser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from listeners.settings import ListenerSettings
from listeners.settings import load as load_listener
from service.cli import app
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

MAX_EXPOSURE = 2.0
"""Of 10, as `systemd-analyze security` counts; what remains is the network, which the programs are for."""


def env_file(name: str) -> dict[str, str]:
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in [name for name in os.environ if name.startswith("TC_TREEHERDER_")]:
        monkeypatch.delenv(variable)
    return monkeypatch


def check_settings() -> tuple[int, str]:
    done = CliRunner().invoke(app, ["settings", "check"])
    return done.exit_code, done.output


def test_the_example_configuration_is_good_and_fits_its_schema(clean: pytest.MonkeyPatch) -> None:
    path = DEPLOY / "tc-treeherder.yml"
    clean.setenv("TC_TREEHERDER_CONFIG", str(path))
    assert check_settings() == (0, "the settings are good\n")
    schema = json.loads((DEPLOY / "settings.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    contents = yaml.safe_load(path.read_text())
    assert list(Draft202012Validator(schema).iter_errors(contents)) == []
    for wrong in ({"database_uri": "x"}, {"poll": {"interval": -1}}, {"listeners": {"port": 1}}, {"tokens": "x"}):
        assert list(Draft202012Validator(schema).iter_errors({**contents, **wrong})), wrong


def test_the_schema_is_that_of_the_settings() -> None:
    printed = CliRunner().invoke(app, ["settings", "--schema"]).output
    assert printed == (DEPLOY / "settings.schema.json").read_text(), (
        ".venv/bin/tc-treeherder settings --schema > deploy/settings.schema.json"
    )


@pytest.mark.parametrize("name", ["env.example", "env.sandbox"])
def test_the_settings_of_compose_are_good(clean: pytest.MonkeyPatch, name: str) -> None:
    variables = env_file(name) | COMPOSE["x-service"]["environment"]
    for variable, value in variables.items():
        clean.setenv(variable, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
    assert check_settings() == (0, "the settings are good\n")


def test_a_wrong_setting_is_named_with_its_remedy(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text("database_uri: x\nhost: 0.0.0.0\n")
    clean.setenv("TC_TREEHERDER_CONFIG", str(path))
    clean.setenv("TC_TREEHERDER_POL__INTERVAL", "1")
    code, told = check_settings()
    assert code == 2
    assert "there is no setting database_uri; did you mean database_url?" in told
    assert "there is no setting TC_TREEHERDER_POL__INTERVAL; did you mean TC_TREEHERDER_POLL?" in told
    assert "listeners: invalid settings" in told


def test_compose_starts_the_commands_and_images_that_there_are() -> None:
    targets = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.M)
    commands = {}
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (DEPLOY / service["build"]["context"] / "Dockerfile").is_file()
        if service["image"] == "tc-treeherder":
            commands[name] = service["command"]
    for command in commands.values():
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, command
    assert commands.keys() == {"migrate", "service", "pushlog", "pulse"}
    assert COMPOSE["services"]["sandbox"]["profiles"] == ["sandbox"]
    for service in COMPOSE["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "nothing is open to the network unless somebody says so"


def test_processes_of_one_machine_listen_on_ports_of_their_own(clean: pytest.MonkeyPatch) -> None:
    assigned = r"^Environment=TC_TREEHERDER_PROBE_PORT=(\d+)$"
    of_units = [int(port) for unit in UNITS for port in re.findall(assigned, unit.read_text(), re.M)]
    environments = [COMPOSE["services"][name]["environment"] for name in ("pulse", "pushlog")]
    of_containers = [int(environment["TC_TREEHERDER_PROBE_PORT"]) for environment in environments]
    port = Settings.model_fields["port"].default
    assert sorted([port, *of_units]) == sorted([port, *of_containers]) == [8080, 8081, 8082]
    assert "127.0.0.1:8080-8082:8080-8082" in COMPOSE["services"]["service"]["ports"], "they share its network"
    for environment in environments:
        for variable, value in (env_file("env.example") | environment).items():
            clean.setenv(variable, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
        assert load_listener().probe_host == "0.0.0.0", "a container's loopback is nobody's"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_start_what_there_is(unit: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of directives have capitals
    parser.read(unit)
    program, *command = parser["Service"]["ExecStart"].split()
    assert Path(program).name == "tc-treeherder"
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
    assert parser["Service"]["User"] != "root"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_are_confined(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE, done.stdout


def test_service_and_listeners_are_described_by_one_file() -> None:
    properties = json.loads((DEPLOY / "settings.schema.json").read_text())["properties"]
    assert properties.keys() == Settings.model_fields.keys() | {"listeners"}
    only = ListenerSettings.model_fields.keys() - Settings.model_fields.keys()
    assert properties["listeners"]["properties"].keys() == only
