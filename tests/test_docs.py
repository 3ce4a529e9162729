"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from service.cli import app

ROOT = Path(__file__).resolve().parents[1]


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
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_commands_that_documents_and_messages_name_exist() -> None:
    program: Any = get_command(app)
    context = program.make_context("tc-treeherder", ["settings"])
    commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
    groups = {name: set(command.commands) for name, command in commands.items() if hasattr(command, "commands")}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    code = [*(ROOT / "service").rglob("*.py"), *(ROOT / "listeners").rglob("*.py")]
    named = {
        (path.name, group, command)
        for path in [*pages, *code]
        for group, command in re.findall(r"tc-treeherder ([a-z-]+) ([a-z][a-z-]*)", path.read_text())
        if group in groups
    }
    assert len(named) > 20
    assert not [each for each in sorted(named) if each[2] not in groups[each[1]]]


def test_the_tests_that_the_promises_name_exist() -> None:
    named = re.findall(r"`((?:system|service|listeners|sandbox)/\S+?\.py)`", (ROOT / "docs/promises.md").read_text())
    tests = {name for name in named if "/test_" in name}
    assert tests
    assert not [name for name in tests if not (ROOT / "tests" / name).exists()]
    code = set(named) - tests
    assert not [name for name in code if not (ROOT / name).exists()]
