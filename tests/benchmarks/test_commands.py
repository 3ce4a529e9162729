"""Each `bin/measure-*` starts its benchmark."""

import subprocess
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parents[2] / "bin"
COMMANDS = sorted(path.name for path in BIN.glob("measure-*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_options(command: str) -> None:
    run = subprocess.run([BIN / command, "--help"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert f"python -m benchmarks.{command.removeprefix('measure-')} [OPTIONS]" in run.stdout


def test_there_are_commands() -> None:
    assert COMMANDS
