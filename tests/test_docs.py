"""Check the documents against the code."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from service.cli import app

ROOT = Path(__file__).resolve().parents[1]

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]


def test_docs_settings_is_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "service", "settings"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    again = "run `tc-treeherder settings > docs/settings.md`"
    assert (ROOT / "docs" / "settings.md").read_text() == printed, again


def test_every_setting_says_what_it_means() -> None:
    rows = [row for row in (ROOT / "docs" / "settings.md").read_text().splitlines() if row.startswith("| `")]
    assert len(rows) > 40
    assert not [row for row in rows if row.endswith("|  |")]


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_commands_that_documents_and_messages_name_exist() -> None:
    program: Any = get_command(app)
    context = program.make_context("tc-treeherder", ["settings"])
    commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
    groups = {name: set(command.commands) for name, command in commands.items() if hasattr(command, "commands")}
    code = [*(ROOT / "service").rglob("*.py"), *(ROOT / "listeners").rglob("*.py")]
    named = {
        (path.name, group, command)
        for path in [*PAGES, *code]
        for group, command in re.findall(r"tc-treeherder ([a-z-]+) ([a-z][a-z-]*)", path.read_text())
        if group in groups
    }
    assert len(named) > 20
    assert not [command for command in sorted(named) if command[2] not in groups[command[1]]]


def test_the_tests_that_the_promises_name_exist() -> None:
    named = re.findall(r"`((?:system|service|listeners|sandbox)/\S+?\.py)`", (ROOT / "docs/promises.md").read_text())
    tests = {name for name in named if "/test_" in name}
    assert tests
    assert not [name for name in tests if not (ROOT / "tests" / name).exists()]
    code = set(named) - tests
    assert not [name for name in code if not (ROOT / name).exists()]


FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|yml|yaml|toml|json)|(?:[\w.-]+/)+[\w-]*)`")
"""A file or a folder of ours, with its path from the top, as documents for maintainers name it."""

TO_BE_MADE = {"0017_short_name.py", "dist/"}
"""Files that a reader is told to make."""

MAINTAINERS = ["docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md"]
RECORDS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))


@pytest.mark.parametrize("name", [*MAINTAINERS, *(f"docs/adr/{path.name}" for path in RECORDS)])
def test_the_files_that_documents_for_maintainers_name_exist(name: str) -> None:
    named = set(FILE.findall((ROOT / name).read_text())) - TO_BE_MADE
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


@pytest.mark.parametrize(("name", "least"), [("docs/architecture.md", 60), ("CONTRIBUTING.md", 20)])
def test_files_are_found_in_the_documents_that_name_most(name: str, least: int) -> None:
    assert len(set(FILE.findall((ROOT / name).read_text()))) >= least


def test_the_index_of_decisions_has_each_record_once() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d+)\]\((\S+)\) \| (.+) \|$", index, re.M)
    assert [(int(number), name) for number, name, _ in rows] == list(enumerate((path.name for path in RECORDS), 1))
    for number, name, title in rows:
        text = (ROOT / "docs" / "adr" / name).read_text()
        assert name.startswith(f"{int(number):04d}-")
        assert text.startswith(f"# {number}. {title}\n"), name
        assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Decision", "Considered", "Consequences"], name


def test_the_readme_links_what_a_maintainer_needs() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()))
    assert {
        "SECURITY.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/adr/README.md",
        "docs/promises.md",
    } <= linked


def test_pre_commit_runs_the_linter() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["language"], hook["entry"]) == ("local", "system", "bin/lint")
    assert os.access(ROOT / hook["entry"], os.X_OK)
