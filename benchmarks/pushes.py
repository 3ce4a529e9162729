"""Measure how fast pushes are processed, and what that costs: `bin/measure-pushes`."""

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from pydantic import SecretStr

from benchmarks.figures import DatabaseUrl, cpu_seconds, database_name, memory, ms, p95, prepare, ratio
from sandbox.stack import Stack, wait_for
from service.clients.http import Http
from service.clients.taskcluster import TaskclusterQueue
from service.clients.treeherder import RestTreeherder
from service.flow.tasks.definition import format_date
from service.flow.tasks.ids import slugid
from service.log import configure
from service.settings import Environment, TaskclusterSettings

PATH = "try"
YML = """\
version: 1
tasks:
  - taskId: {$eval: ownTaskId}
    taskQueueId: sandbox/measure
    schedulerId: sandbox-level-3
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    payload: {sandbox: {seconds: 0}}
    metadata: {name: decision, description: d, owner: "${push.owner}", source: "${repository.url}"}
"""

REST = 0.4
"""Seconds before each push and each bare sequence: from a standstill, everything takes longer than in a loop."""

FAST = {
    "TC_TREEHERDER_POLL__INTERVAL": "0.2",
    "TC_TREEHERDER_POLL__MAX_REQUESTS_PER_HOST": "1000",
    "TC_TREEHERDER_LOG_LEVEL": "WARNING",
}


class Clients:
    """Clients of a running stack's parts."""

    def __init__(self, stack: Stack) -> None:
        self.api = stack.api()
        self.hg, self.taskcluster, self.treeherder = (stack.control(p) for p in ("hg", "taskcluster", "treeherder"))
        self.url = stack.sandbox["repositories"][PATH]

    def push(self) -> dict[str, Any]:
        changesets = [{"message": "Bug 1 - a change", "files": {".taskcluster.yml": YML}}]
        answer = self.hg.post("/push", json={"repository": PATH, "user": "dev@example.com", "changesets": changesets})
        pushed: dict[str, Any] = answer.raise_for_status().json()
        return pushed

    def add(self, alias: str = PATH, url: str | None = None) -> None:
        body = {"alias": alias, "url": url or self.url, "level": "3", "last_push_id": 0}
        self.api.post("/repositories", json=body).raise_for_status()

    def unfinished(self) -> int:
        return len(self.api.get("/pushes", params={"state": "pending", "limit": 1}).json()["items"])


# --- notice to graph -----------------------------------------------------------------------------------------------


class BareStore:
    """A database of the bare sequence: plain sqlite3 with the service's pragmas, or plain psycopg."""

    def __init__(self, folder: Path, database_url: str | None) -> None:
        self._connection: Any
        if database_url is None:
            self._connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
            self._mark, self._begin = "?", "BEGIN IMMEDIATE"
            setup = ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL"]
        else:
            self._connection = psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True)
            self._mark, self._begin = "%s", "BEGIN"
            setup = ["CREATE SCHEMA bare", "SET search_path TO bare"]
        setup += [
            "CREATE TABLE push (id INTEGER PRIMARY KEY, changeset TEXT, task TEXT)",
            "CREATE TABLE task (id TEXT PRIMARY KEY, definition TEXT)",
        ]
        for statement in setup:
            self._connection.execute(statement)

    def commit(self, statement: str, *values: Any) -> None:
        """Execute a statement, with `?` for each value, in a transaction."""
        self._connection.execute(self._begin)
        self._connection.execute(statement.replace("?", self._mark), values)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


async def bare(stack: Stack, pushed: dict[str, Any], http: Http, queue: TaskclusterQueue, store: BareStore) -> float:
    """Make the same four calls one after the other, as a script that knows what to send and commits three times.

    Return seconds.
    """
    url = stack.sandbox["repositories"][PATH]
    hawk = stack.sandbox["credentials"]["treeherder"]
    environment = Environment.model_validate(
        {"url": stack.sandbox["treeherder"], "client_id": hawk["id"], "secret": SecretStr(hawk["key"])}
    )
    treeherder = RestTreeherder(environment, http)
    began = time.perf_counter()
    entry = f"{url}/json-pushes?version=2&full=1&startID={pushed['id'] - 1}&endID={pushed['id']}"
    listing = await http.send("GET", entry, seconds=30, limit=1_000_000)
    (changeset,) = json.loads(listing.body)["pushes"][str(pushed["id"])]["changesets"]
    store.commit("INSERT INTO push VALUES (?, ?, NULL)", pushed["id"], json.dumps(changeset))
    await treeherder.post_resultset(
        PATH,
        {
            "revision": changeset["node"],
            "revision_hash": _hash(changeset),
            "push_timestamp": pushed["date"],
            "author": pushed["user"],
            "type": "push",
            "active_status": "active",
            "revisions": [
                {
                    "revision": changeset["node"],
                    "author": changeset["author"],
                    "comment": changeset["desc"],
                    "files": changeset["files"],
                    "branch": changeset["branch"],
                    "repository": PATH,
                }
            ],
        },
    )
    await http.send("GET", f"{url}/raw-file/{changeset['node']}/.taskcluster.yml", seconds=30, limit=1_000_000)
    now = datetime.now(UTC)
    definition = {
        "taskQueueId": "sandbox/measure",
        "schedulerId": "sandbox-level-3",
        "created": format_date(now),
        "deadline": format_date(now + timedelta(days=1)),
        "payload": {"sandbox": {"seconds": 0}},
        "metadata": {"name": "decision", "description": "d", "owner": "dev@example.com", "source": url},
    }
    host = url.removeprefix("http://")
    task_id = slugid(b"bare", str(pushed["id"]))
    store.commit("INSERT INTO task VALUES (?, ?)", task_id, json.dumps(definition))
    await queue.create_task(task_id, definition, [f"assume:repo:{host}:branch:default"])
    store.commit("UPDATE push SET task = ? WHERE id = ?", task_id, pushed["id"])
    return time.perf_counter() - began


def _hash(changeset: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha1((changeset["node"] + changeset["branch"]).encode(), usedforsecurity=False).hexdigest()


def latency(folder: Path, database_url: str | None, pushes: int, warm_up: int, upstream: float) -> None:
    """Time pushes from notice to graph, by turns with the bare sequence.

    Each upstream call takes at least `upstream` seconds.
    """
    with Stack(folder, database_url=database_url, settings=FAST) as stack:
        prepare(stack, database_url)
        service = stack.service()
        stack.listener()
        clients = Clients(stack)
        clients.add()
        clients.taskcluster.post("/latency", json={"seconds": upstream}).raise_for_status()
        clients.treeherder.patch("/behaviour", json={"delay": upstream}).raise_for_status()
        if upstream:
            slow = {"repository": PATH, "kind": "delay", "seconds": upstream}
            clients.hg.post("/faults", json=slow).raise_for_status()
        credentials = stack.sandbox["credentials"]["taskcluster"]
        settings = TaskclusterSettings.model_validate(
            {
                "root_url": stack.sandbox["taskcluster"],
                "client_id": credentials["clientId"],
                "access_token": SecretStr(credentials["accessToken"]),
            }
        )
        before = cpu_seconds(service)
        service_times, bare_times = asyncio.run(_by_turns(stack, clients, settings, database_url, pushes, warm_up))
        spent = (cpu_seconds(service) - before) / (pushes + warm_up)
        print(
            f"notice to graph, {pushes} pushes, {upstream * 1000:g} ms a call upstream, {database_name(database_url)}:"
        )
        print(f"  tc-treeherder   median {ms(statistics.median(service_times))}, p95 {ms(p95(service_times))}")
        print(f"  bare sequence   median {ms(statistics.median(bare_times))}, p95 {ms(p95(bare_times))}")
        print(f"  ratio           {statistics.median(service_times) / statistics.median(bare_times):.2f} (aim: 2)")
        print(f"  service         {ms(spent)} of CPU a push, polls and these looks with it")
        print(f"  memory          {memory(stack)}")


async def _by_turns(
    stack: Stack,
    clients: Clients,
    settings: TaskclusterSettings,
    database_url: str | None,
    pushes: int,
    warm_up: int,
) -> tuple[list[float], list[float]]:
    service_times, bare_times = [], []
    queue = TaskclusterQueue(settings)
    with closing(BareStore(stack.folder, database_url)) as store:
        async with Http("treeherder") as http:
            for number in range(pushes + warm_up):
                pushed = clients.push()
                await asyncio.sleep(REST)  # constant polling would measure itself
                wait_for(lambda pushed=pushed: _graph_at(clients, pushed) is not None, 20)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
                listed_at = clients.hg.get("/requests").json()["listed"][f"{PATH} {pushed['id']}"]
                done_at = _graph_at(clients, pushed)
                assert done_at is not None
                await asyncio.sleep(REST)  # from a standstill, as the service
                bare_seconds = await bare(stack, pushed, http, queue, store)
                if number >= warm_up:
                    service_times.append(done_at - listed_at)
                    bare_times.append(bare_seconds)
    await queue.close()
    return service_times, bare_times


def _graph_at(clients: Clients, pushed: dict[str, Any]) -> float | None:
    """Return the time (epoch seconds) at which resultset and graph of a push both existed, or None."""
    answer = clients.api.get(f"/pushes/{PATH}/{pushed['id']}")
    if answer.status_code != 200:
        return None
    push = answer.json()
    ends = [push["graph"]["at"], *(resultset["at"] for resultset in push["resultsets"])]
    if None in ends:
        return None
    return max(datetime.fromisoformat(end).timestamp() for end in ends)


# --- backlog ---------------------------------------------------------------------------------------------------------


def backlog(folder: Path, database_url: str | None, pushes: int) -> None:
    """Time the processing of pushes that wait when the repository is added."""
    with Stack(folder, database_url=database_url, settings=FAST) as stack:
        prepare(stack, database_url)
        service = stack.service()
        clients = Clients(stack)
        for _ in range(pushes):
            clients.push()
        stack.listener()
        clients.hg.delete("/requests")
        began, before = time.perf_counter(), cpu_seconds(service)
        clients.add()
        wait_for(lambda: clients.api.get(f"/repositories/{PATH}").json()["last_push_id"] == pushes, 120)
        stored = time.perf_counter() - began
        while clients.unfinished():
            time.sleep(1)
        through, spent = time.perf_counter() - began, cpu_seconds(service) - before
        calls = clients.taskcluster.get("/calls").json()["calls"]
        kinds = clients.hg.get("/requests").json()["kinds"]
        posts = sum(r["posts"] for r in clients.treeherder.get("/state").json()["resultsets"])
        requests = {kind: counts["requests"] for kind, counts in kinds.items()}
        total = sum(calls.values()) + requests.get("raw-file", 0) + posts + requests.get("json-pushes", 0)
        print(f"{pushes} pushes waiting, {database_name(database_url)}:")
        print(f"  noticed and stored   {pushes / stored:.0f} a second (aim: 200)")
        print(f"  through              {pushes / through:.0f} a second (aim: 80)")
        print(f"  service              {ms(spent / pushes)} of CPU a push (aim: 10 ms)")
        print(f"  upstream calls       {total / pushes:.2f} a push (aim: 4): {calls}, {requests}, resultsets {posts}")
        print(f"  memory               {memory(stack)}")


# --- idle ------------------------------------------------------------------------------------------------------------


RATE = 10
"""Requests a second to Mercurial that the listener may make, and the bare loop makes."""


def idle(
    folder: Path, database_url: str | None, repositories: int, seconds: float, rounds: int, warm: float, tag_age: float
) -> None:
    """Measure polls of unchanged repositories, by turns with the bare loop, and the service without a listener."""
    settings = {
        "TC_TREEHERDER_LOG_LEVEL": "WARNING",
        "TC_TREEHERDER_POLL__MAX_REQUESTS_PER_HOST": str(RATE),
        "TC_TREEHERDER_POLL__ANNOUNCED_SHARE": "0",
    }
    with Stack(folder, database_url=database_url, settings=settings) as stack:
        prepare(stack, database_url)
        clients = Clients(stack)
        service = stack.service()
        for number in range(repositories):
            clients.hg.post("/repositories", json={"repository": f"r{number}"}).raise_for_status()
            clients.hg.post("/push", json={"repository": f"r{number}", "date": 1_000_000_000}).raise_for_status()
        time.sleep(tag_age)  # tags are relied upon once they are older than the change by some seconds
        for number in range(repositories):
            body = {"alias": f"r{number}", "url": f"{stack.sandbox['hg']}/r{number}", "level": "3", "last_push_id": 1}
            clients.api.post("/repositories", json=body).raise_for_status()
        listener = stack.listener()
        time.sleep(repositories / RATE + warm)  # one round without tags
        listener.stop()
        polls_made = conditional = bare_polls = 0
        spent: defaultdict[str, float] = defaultdict(float)
        for _ in range(rounds):
            listener = stack.listener()
            time.sleep(warm)
            clients.hg.delete("/requests")
            before = cpu_seconds(service), cpu_seconds(listener)
            time.sleep(seconds / rounds)
            after = cpu_seconds(service), cpu_seconds(listener)
            spent["service"] += after[0] - before[0]
            spent["listener"] += after[1] - before[1]
            polls = clients.hg.get("/requests").json()["kinds"].get("json-pushes", {"requests": 0, "conditional": 0})
            polls_made, conditional = polls_made + polls["requests"], conditional + polls["conditional"]
            memory_used = memory(stack)
            listener.stop()
            before_bare = cpu_seconds(service)
            began = time.monotonic()
            requests, used = _run_bare_loop(stack.sandbox["hg"], repositories, seconds / rounds)
            idle_seconds = time.monotonic() - began
            spent["idle"] += (cpu_seconds(service) - before_bare) * seconds / rounds / idle_seconds
            bare_polls += requests
            spent["bare"] += used
        a_poll = {name: ratio(spent[name] * 1000, polls_made) for name in ("service", "listener", "idle")}
        bare = ratio(spent["bare"] * 1000, bare_polls)
        polling = a_poll["service"] - a_poll["idle"]
        print(f"{repositories} idle repositories, {seconds} s in {rounds} rounds, {database_name(database_url)}:")
        print(f"  requests    {polls_made * 60 / seconds:.0f} a minute, {conditional} of {polls_made} conditional")
        print(f"  bare loop   {bare:.2f} ms of CPU a poll, at the same pace")
        print(f"  listener    {a_poll['listener']:.2f} ms of CPU a poll")
        print(f"  service     {polling:.2f} ms of CPU a poll (aim: 0.2), beside what it takes without listeners:")
        print(f"              {a_poll['idle']:.2f} ms in the time of a poll, {spent['idle'] / seconds:.2%} of a core")
        print(f"  ratio       {ratio(polling + a_poll['listener'], bare):.2f} (aim: 1.5)")
        whole = ratio(a_poll["service"] + a_poll["listener"], bare)
        print(f"              {whole:.2f} with what the service takes anyway")
        print(f"  memory      {memory_used}")


def _run_bare_loop(hg: str, repositories: int, seconds: float) -> tuple[int, float]:
    """Run the bare loop in a process of its own; return its requests and the seconds of CPU that they took."""
    command = [sys.executable, "-m", "benchmarks.bare_polls", hg, str(repositories), str(RATE), str(seconds)]
    requests, used = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(requests), float(used)


# ---------------------------------------------------------------------------------------------------------------------


def main(
    what: Annotated[list[str] | None, typer.Argument(help="latency, backlog, idle; default: all")] = None,
    database_url: DatabaseUrl = None,
    pushes: int = 50,
    waiting: int = 1000,
    repositories: int = 200,
    seconds: float = 60,
    rounds: int = 3,
    warm_up: Annotated[int, typer.Option(help="pushes that are not counted, for latency")] = 5,
    warm: Annotated[float, typer.Option(help="seconds in which a started listener comes to its pace, for idle")] = 12,
    tag_age: Annotated[float, typer.Option(help="seconds until a tag is relied upon, for idle")] = 4,
    upstream: Annotated[float, typer.Option(help="seconds that each upstream call takes at least, for latency")] = 0,
) -> None:
    """Measure the push path."""
    configure("WARNING", as_json=None)
    measures = {
        "latency": lambda folder: latency(folder, database_url, pushes, warm_up, upstream),
        "backlog": lambda folder: backlog(folder, database_url, waiting),
        "idle": lambda folder: idle(folder, database_url, repositories, seconds, rounds, warm, tag_age),
    }
    for name in what or list(measures):
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder))


if __name__ == "__main__":
    typer.run(main)
