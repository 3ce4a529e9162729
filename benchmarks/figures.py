"""Read the CPU and memory of processes, and format figures."""

import math
from typing import Annotated

import psutil
import typer

from sandbox.stack import Process, Stack


def memory(stack: Stack) -> str:
    """Return the resident memory of each process and of its children, in MB."""
    parts = []
    for name, process in stack.processes.items():
        if name != "sandbox" and process.running():
            own = psutil.Process(process.pid)
            children = sum(child.memory_info().rss for child in own.children(recursive=True))
            parts.append(
                f"{name} {own.memory_info().rss / 1e6:.0f} MB"
                + (f" (+ {children / 1e6:.0f} MB in render children)" if children else "")
            )
    return ", ".join(parts)


def cpu_seconds(process: Process) -> float:
    """Return the seconds of CPU that a process has used, without its children."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def prepare(stack: Stack, database_url: str | None) -> None:
    """Create the schema in a process of its own, so that the service does not load alembic."""
    stack.upgrade()


def database_name(database_url: str | None) -> str:
    """Return the name of the database's kind."""
    return "SQLite" if database_url is None else "PostgreSQL"


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{seconds * 1000:.1f} ms"


def ratio(measured: float, reference: float) -> float:
    """Return the ratio; NaN if the reference is too small to be measured."""
    return measured / reference if reference else math.nan


def p95(values: list[float]) -> float:
    """Return the value that 95 % of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * 0.95) - 1]


DatabaseUrl = Annotated[str | None, typer.Option(help="an empty PostgreSQL database; default: SQLite")]


def cpu_seconds_by_name(processes: dict[str, Process]) -> dict[str, float]:
    """Return the seconds of CPU that each running process has used."""
    spent = {}
    for name, process in processes.items():
        if process.running():
            times = psutil.Process(process.pid).cpu_times()
            spent[name] = float(times.user + times.system)
    return spent
