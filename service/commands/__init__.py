"""Commands of `tc-treeherder` for operators, with a module for each noun, which is imported when its command is used.

    repositories pushes tasks actions reports pulse_queues dead_letters audit render
                               use the API of a running service (client.py)
    doctor                     reads the settings of this machine, and checks every system that they name
    client.py                  the HTTP client, and its errors
    output.py text.py          tables, JSON and progress; escaping for terminals
    importing.py sources.py    `repositories import`, and the sources that it imports from

The service does not import these modules.
"""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from service.commands.text import escape_control
from service.contract.validation import closest

FAILED = 1
"""Exit code: the service refused, or something failed."""

USAGE = 2
"""Exit code: wrong usage or settings."""

UNREACHABLE = 3
"""Exit code: no service answers at the URL."""

NOT_FOUND = 4
"""Exit code: the named object does not exist."""


# 5 is a port that `serve` or a listener cannot listen on: service.contract.ports


class Failed(Exception):
    """A command failed. The message is for people, and `code` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


_MODULES = {
    "repositories": "service.commands.repositories",
    "pushes": "service.commands.pushes",
    "tasks": "service.commands.tasks",
    "actions": "service.commands.actions",
    "reports": "service.commands.reports",
    "pulse-queues": "service.commands.pulse_queues",
    "dead-letters": "service.commands.dead_letters",
    "audit": "service.commands.audit",
    "render": "service.commands.render",
    "doctor": "service.commands.doctor",
}


class Commands(TyperGroup):
    """A command group that adds these commands, and turns `Failed` into a message and an exit code.

    A module is imported only when its command is used, so that a listener loads none of them.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_MODULES]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(importlib.import_module(_MODULES[cmd_name]).app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            meant = closest(args[0], self.list_commands(ctx))  # typer itself does not suggest those of `_MODULES`
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {meant!r}?" if meant else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failed as error:
            typer.secho(escape_control(str(error), lines=True), err=True, fg="red")
            raise typer.Exit(error.code) from None
