"""The operators' commands of `tc-treeherder`: a module a noun, loaded only when it is asked for.

    repositories pushes tasks actions dead_letters render
                                                over the API of a running service, from anywhere (client.py)
    doctor                                      reads the settings here, and checks every system that they name
    client.py output.py text.py                 the HTTP client with its errors; tables, JSON, progress; terminals
    importing.py sources.py                     `repositories import`, and where it imports from

Like `cli.py` these stand above service and listeners: nothing of the service imports them.
"""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from service.commands.text import visible

FAILED = 1
"""The service refused, or something failed."""

USAGE = 2
"""Wrong usage or settings."""

UNREACHABLE = 3
"""No service answers there."""

NOT_FOUND = 4
"""There is no such thing."""


class Failed(Exception):
    """A command cannot go on; the text is for people, `code` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


_MODULES = {
    "repositories": "service.commands.repositories",
    "pushes": "service.commands.pushes",
    "tasks": "service.commands.tasks",
    "actions": "service.commands.actions",
    "reports": "service.commands.reports",
    "dead-letters": "service.commands.dead_letters",
    "render": "service.commands.render",
    "doctor": "service.commands.doctor",
}


class Commands(TyperGroup):
    """The group that has these commands beside its own, and turns `Failed` into a message and an exit code.

    A module is imported when its command is named: listeners, which are to stay small, never load one.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_MODULES]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(importlib.import_module(_MODULES[cmd_name]).app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failed as error:
            typer.secho(visible(str(error), lines=True), err=True, fg="red")
            raise typer.Exit(error.code) from None
