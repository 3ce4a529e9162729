"""Comparisons with published files run where the files are, and are left out elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.published_schemas import VARIABLE, has_published_schemas, read_published

COMPARED = """
import pytest

@pytest.mark.published
def test_compared():
    pass

def test_by_itself():
    pass
"""


def test_the_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing"))
    assert not has_published_schemas()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "x.json").write_text("[1]")
    assert has_published_schemas()
    assert read_published("x.json") == [1]


def test_without_the_folder_a_line_says_how_many_are_left_out(tmp_path: Path) -> None:
    test, missing, root = tmp_path / "test_x.py", tmp_path / "missing", Path(__file__).parents[1]
    test.write_text(COMPARED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--rootdir={tmp_path}"]
    command += ["-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider", str(test)]
    environment = {**os.environ, VARIABLE: str(missing)}
    output = subprocess.run(
        command, check=True, cwd=root, env=environment, capture_output=True, text=True, timeout=60
    ).stdout
    assert "1 passed, 1 deselected" in output
    (line,) = [line for line in output.splitlines() if "LEFT OUT" in line]
    assert line.startswith("LEFT OUT 1 ")
    assert str(missing) in line
    assert VARIABLE in line
