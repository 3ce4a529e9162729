"""Commands as a group: modules that are loaded only when used, help, and exit codes of failures."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from service.commands import FAILED, NOT_FOUND, UNREACHABLE, USAGE, Commands, Failed
from tests.service.commands.conftest import Run


def test_other_processes_load_no_command(run: Run) -> None:
    """Otherwise listeners would need more memory."""
    large = ("rich", "httpx", "sqlalchemy", "service.commands.client")
    code = f"import sys, service.cli; print([m for m in sys.modules if m.startswith({large})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_names_every_command(run: Run) -> None:
    output = run("--help").out
    assert all(noun in output for noun in ("serve", "repositories", "pushes", "actions", "dead-letters", "doctor"))
    assert run("no-such-command").code == 2
    assert run("pushes", "--no-such-option").code == 2


def test_a_mistyped_command_is_told_which_one_is_meant(run: Run) -> None:
    for typed, meant in (("lissten", "listen"), ("push", "pushes"), ("dead-leters", "dead-letters")):
        ran = run(typed, "list")
        assert (ran.code, f"Did you mean '{meant}'?" in ran.err) == (2, True), ran.err


def test_each_command_describes_itself(run: Run) -> None:
    for noun in ("repositories", "pushes", "tasks", "actions", "reports", "dead-letters", "audit", "render", "doctor"):
        ran = run(noun, "--help")
        assert ran.code == 0
        assert f"tc-treeherder {noun}" in ran.out or f"root {noun}" in ran.out


@pytest.mark.parametrize("code", [FAILED, USAGE, UNREACHABLE, NOT_FOUND])
def test_a_failure_is_a_message_and_an_exit_code(code: int) -> None:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise Failed("it failed:\n\x1b[2J", code)

    @app.command()
    def succeed() -> None:
        typer.echo("done")

    result = CliRunner().invoke(app, ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "it failed:\n\\x1b[2J\n")
    assert CliRunner().invoke(app, ["succeed"]).exit_code == 0
