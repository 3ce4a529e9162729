"""The command of a service that has the action."""

from service.cli import app

__all__ = ["app"]
