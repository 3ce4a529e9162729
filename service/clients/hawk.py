"""Hawk signatures are stamped with the database's time."""

import mohawk.base

from service.clock import now


def _utc_now(offset_in_seconds: float = 0.0) -> int:
    return int(now().timestamp() + offset_in_seconds)


def use_database_time() -> None:
    """Let mohawk stamp with `now`: Taskcluster's client signs by itself, and has no option for the time."""
    mohawk.base.utc_now = _utc_now
