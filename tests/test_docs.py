"""Check the documents against the code."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from sandbox.cli import app as sandbox_app
from sandbox.demo import main
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


CODE_BLOCK = re.compile(r"^( *)```(?:sh|console)\b[^\n]*\n(.*?)^ *```", re.M | re.S)
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(tc-treeherder|bin/sandbox|bin/demo)(?= |$)(.*)$")


def words_of(lines: list[str]) -> list[list[str]]:
    """Return the words of each line that is a command of ours, up to a redirection."""
    found = []
    for line in lines:
        if (match := COMMAND.match(line.strip())) and "…" not in line:
            words = shlex.split(match[2], comments=True)
            ends = [number for number, word in enumerate(words) if word in {">", "|", "&&", "&"}]
            found.append([match[1], *words[: ends[0] if ends else None]])
    return found


def commands_of(page: str) -> list[list[str]]:
    """Return the words of each of our commands in a page's blocks of code."""
    return words_of([line for _, block in CODE_BLOCK.findall(page) for line in block.splitlines()])


def mentions_of(page: str) -> list[list[str]]:
    """Return the words of each of our commands within a page's sentences, where arguments may be left out."""
    return words_of([code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", CODE_BLOCK.sub("", page))])


def misuse(words: list[str]) -> str:
    """Return what the command line itself says against a command, without running it."""
    program, *arguments = words
    if program == "bin/demo":
        demo = typer.Typer(add_completion=False)
        demo.command()(main)
        command: Any = get_command(demo)
    else:
        command = get_command(app if program == "tc-treeherder" else sandbox_app)
    while arguments and hasattr(command, "get_command"):  # commands of a group may be loaded when they are asked for
        part = command.get_command(typer.Context(command), arguments[0])
        if part is None:
            break
        command, arguments = part, arguments[1:]
    if hasattr(command, "get_command"):
        if not arguments:
            return ""  # a group is named
        if not arguments[0].startswith("-"):
            return f"there is no command {arguments[0]}"
    if "--install-completion" in arguments:
        return "the test would change the shell's own files: name the option alone"
    try:
        command.make_context(program, ["7" if argument == "ID" else argument for argument in arguments])
    except typer.Exit as end:
        return "" if end.exit_code == 0 else "it is refused"  # --version ends with 0
    except Exception as error:  # noqa: BLE001 - typer's errors of usage are those of a click of its own
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize(("commands_in", "least"), [(commands_of, 60), (mentions_of, 60)])
def test_each_command_in_a_page_is_one_that_the_program_takes(
    commands_in: Callable[[str], list[list[str]]], least: int
) -> None:
    commands = [(page.name, words) for page in PAGES for words in commands_in(page.read_text())]
    wrong = [(name, " ".join(words), why) for name, words in commands if (why := misuse(words))]
    if commands_in is mentions_of:
        wrong = [entry for entry in wrong if not re.match("Missing|Option .* requires an argument", entry[2])]
    assert len(commands) > least
    assert not wrong


@pytest.mark.parametrize(
    "command",
    [
        "tc-treeherder pushes shew try 1",
        "tc-treeherder pushes show try",
        "tc-treeherder pushes show try one",
        "tc-treeherder pushes list --repositroy try",
        "tc-treeherder actions run cancel --wait --task",
        "bin/sandbox jobs",
        "bin/demo --twice",
    ],
)
def test_a_command_that_the_program_does_not_take_is_noticed(command: str) -> None:
    (words,) = commands_of(f"```sh\n{command}\n```\n")
    assert misuse(words)


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
