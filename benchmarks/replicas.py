"""Measure how several services share the work on one PostgreSQL: `bin/measure-growth replicas`."""

import time
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, make_url, text

from benchmarks.figures import cpu_seconds_by_name
from benchmarks.pushes import FAST, YML, Clients
from sandbox.stack import Stack, free_port, wait_for
from service.store.database import downgrade, sync_url, upgrade

REPOSITORIES = 8
BUSY = 0.85
"""Share of the machine's CPU from which on it is what bounds the throughput."""


def replicas(folder: Path, database_url: str, pushes: int, upstream: float, counts: list[int]) -> None:
    """Let each of these counts of services process the same backlog, in a new schema each time."""
    print(f"{pushes} pushes in {REPOSITORIES} repositories, {upstream * 1000:g} ms a call upstream, PostgreSQL:")
    for services in counts:
        downgrade(database_url, "base")
        upgrade(database_url)
        print("  " + _round(folder / str(services), database_url, services, pushes, upstream), flush=True)


def _round(folder: Path, database_url: str, services: int, pushes: int, upstream: float) -> str:
    with Stack(folder, database_url=database_url, settings=FAST) as stack:
        stack.service("service 1", TC_TREEHERDER_REPLICA="1")
        for number in range(2, services + 1):
            stack.service(f"service {number}", port=free_port(), TC_TREEHERDER_REPLICA=str(number))
        clients = Clients(stack)
        names = [f"repository{number}" for number in range(REPOSITORIES)]
        for name in names:
            clients.hg.post("/repositories", json={"repository": name}).raise_for_status()
            clients.treeherder.post("/repositories", json={"name": name, "url": ""}).raise_for_status()
        files = [{"message": "Bug 1 - a change", "files": {".taskcluster.yml": YML}}]
        for number in range(pushes):
            push = {"repository": names[number % len(names)], "user": f"dev{number % 20}@example.com"}
            clients.hg.post("/push", json={**push, "changesets": files}).raise_for_status()
        clients.taskcluster.post("/latency", json={"seconds": upstream}).raise_for_status()
        clients.treeherder.patch("/behaviour", json={"delay": upstream}).raise_for_status()
        for name in names:
            slow = {"repository": name, "kind": "delay", "seconds": upstream}
            clients.hg.post("/faults", json=slow).raise_for_status()
            clients.add(name, f"{stack.sandbox['hg']}/{name}")
        before, spent, deadlocks = psutil.cpu_times(), _cpu(stack, database_url), _deadlocks(database_url)
        began = time.perf_counter()
        stack.listener()
        wait_for(lambda: _done(database_url) == pushes, 600)
        seconds = time.perf_counter() - began
        after = psutil.cpu_times()
        used = {name: seconds - spent.get(name, 0) for name, seconds in _cpu(stack, database_url).items()}
        deadlocks = _deadlocks(database_url) - deadlocks
        rate = f"{services} services: {pushes / seconds:5.1f} pushes a second, {deadlocks} deadlocks"
        cpu_per_push = sum(seconds for name, seconds in used.items() if name.startswith("service")) * 1000 / pushes
        return f"{rate}, {cpu_per_push:.1f} ms of the services' CPU a push; {_bound(before, after, used, seconds)}"


def _cpu(stack: Stack, database_url: str) -> dict[str, float]:
    """Return the seconds of CPU of the stack's processes, and of PostgreSQL's processes for this database."""
    spent, name = cpu_seconds_by_name(stack.processes), make_url(database_url).database or ""
    spent["postgres"] = 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        if (words := " ".join(process.info["cmdline"] or [])).startswith("postgres: ") and f" {name} " in words:
            spent["postgres"] += process.info["cpu_times"].user + process.info["cpu_times"].system
    return spent


def _done(database_url: str) -> int:
    """Return the number of pushes whose graph and resultsets are all done."""
    engine = create_engine(sync_url(database_url))
    with engine.connect() as connection:
        time.sleep(0.2)  # constant polling would measure itself
        pushes = (
            "SELECT count(*) FROM (SELECT push_id FROM push_step GROUP BY push_id HAVING bool_and(state = 'done')) AS p"
        )
        number: int = connection.execute(text(pushes)).scalar_one()
    engine.dispose()
    return number


def _deadlocks(database_url: str) -> int:
    engine = create_engine(sync_url(database_url))
    with engine.connect() as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        number: int = connection.execute(text(query)).scalar_one()
    engine.dispose()
    return number


def _bound(before: Any, after: Any, used: dict[str, float], elapsed: float) -> str:
    """Describe the use of the machine's CPU, and whether the CPU bounds the throughput."""
    all_ = elapsed * (psutil.cpu_count() or 1)
    busy = (sum(after) - sum(before) - (after.idle - before.idle) - (after.iowait - before.iowait)) / all_
    shares = {"services": 0.0, "PostgreSQL": used.pop("postgres") / all_, "stand-ins and listener": 0.0}
    for name, seconds in used.items():
        shares["services" if name.startswith("service") else "stand-ins and listener"] += seconds / all_
    shares["others"] = busy - sum(shares.values())
    bound = "its CPU" if busy > BUSY else "what the services wait for: upstreams, locks, slots"
    usage = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"the machine is {busy:.0%} busy ({usage}), so the bound is {bound}"
