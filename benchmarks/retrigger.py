"""Measure how fast retriggers are, what they cost, and how that grows: `bin/measure-retrigger`."""

import asyncio
import base64
import contextlib
import json
import random
import statistics
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import pika
import psutil
import taskcluster.aio
import typer
from sqlalchemy import create_engine, text

from benchmarks.figures import DatabaseUrl, prepare, ratio
from sandbox import broker
from sandbox.stack import Process, Stack, wait_for
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from service.flow.tasks.definition import format_date
from service.flow.tasks.ids import slugid
from service.store.database import sync_url

PROJECT = "try"
BATCH = 1_000
CONNECTIONS = 10
SETTINGS = {"TC_TREEHERDER_LOG_LEVEL": "WARNING", "TC_TREEHERDER_TASKCLUSTER__CONNECTIONS": str(CONNECTIONS)}

FIRST = {"decision": "completed", "failed": "failed"}
"""Ends of the first runs of tasks with these names; all others hang."""

Json = dict[str, Any]


def task_id(name: str) -> str:
    """Return the id of the task with this name."""
    return slugid(b"measure", name)


def definition(name: str, group: str, dependencies: list[str]) -> Json:
    """Return a definition of about 3 kB that mentions the tasks that it depends on, as real ones do."""
    at = datetime.now(UTC)
    urls = {f"GECKO_{n}": f"https://queue/v1/task/{d}/artifacts/public/build" for n, d in enumerate(dependencies[:5])}
    return {
        "taskQueueId": "sandbox/measure",
        "schedulerId": "sandbox-level-3",
        "taskGroupId": group,
        "dependencies": [group, *dependencies] if group != task_id(name) else [],
        "created": format_date(at),
        "deadline": format_date(at + timedelta(days=1)),
        "expires": format_date(at + timedelta(days=365)),
        "routes": [f"tc-treeherder.v2.{PROJECT}.{'ab' * 20}.7"],
        "payload": {
            # the first run of a name ends as `once` says; copies hang, so that nothing runs while it is measured
            "sandbox": {"seconds": 0, "result": "hang", "once": FIRST.get(name, "hang")},
            "image": {"type": "task-image", "taskId": group, "path": "public/image.tar.zst"},
            "env": {"SUITE": name, "WORK": "/builds/worker/workspace", **urls}
            | {f"SETTING_{number}": "some value of a variable, as there are many" for number in range(15)},
            "command": ["/builds/worker/bin/run-task", "--", "/builds/worker/bin/test.sh", f"--suite={name}"],
            "artifacts": {
                f"public/logs/{number}": {
                    "type": "directory",
                    "path": "/x",
                    "expires": format_date(at + timedelta(days=365)),
                }
                for number in range(3)
            },
            "maxRunTime": 5400,
        },
        "metadata": {"name": name, "description": "d " * 80, "owner": "d@example.com", "source": "https://example.com"},
        "extra": {"parent": group, "treeherder": {"symbol": "t", "machine": {"platform": "linux64"}}},
    }


def graph(kind: str, size: int) -> list[tuple[str, Json]]:
    """Return a decision task, a task that fails, and `size` - 1 dependents: of it, in a chain, or at random."""
    group = task_id("decision")
    failed = task_id("failed")
    tasks = [(group, definition("decision", group, [])), (failed, definition("failed", group, []))]
    chance = random.Random(kind)
    names = [failed]
    for number in range(size - 1):
        name = f"t{number}"
        needed = {"fan": [failed], "chain": names[-1:]}.get(kind) or chance.sample(names, min(len(names), 3))
        tasks.append((task_id(name), definition(name, group, needed)))
        names.append(task_id(name))
    return tasks


@dataclass
class Cost:
    """Seconds until all was done and until the first createTask; CPU seconds of the service; calls; peak of memory."""

    seconds: float
    first: float
    cpu: float
    plan_cpu: float
    calls: dict[str, int]
    growth: float
    """MB that the service's resident memory grew by, at most."""


class Measured:
    """A running stack, and the CPU and memory of its service."""

    def __init__(self, stack: Stack, service: Process, database: str) -> None:
        self.api, self.taskcluster = stack.api(), stack.control("taskcluster")
        self._process = psutil.Process(service.pid)
        self.database = "SQLite" if database.startswith("sqlite") else "PostgreSQL"
        self._engine = create_engine(sync_url(database), isolation_level="AUTOCOMMIT")
        url = stack.sandbox["repositories"][PROJECT]
        self.api.post(
            "/repositories", json={"alias": PROJECT, "url": url, "level": "3", "last_push_id": 0}
        ).raise_for_status()

    def load(self, tasks: list[tuple[str, Json]]) -> None:
        """Create tasks in an empty Taskcluster, and wait until the failing one has failed."""
        self.taskcluster.post("/latency", json={"seconds": 0}).raise_for_status()
        self.taskcluster.post("/clear").raise_for_status()
        for start in range(0, len(tasks), BATCH):
            batch = [{"taskId": name, "task": task} for name, task in tasks[start : start + BATCH]]
            self.taskcluster.post("/tasks", json={"tasks": batch}, timeout=120).raise_for_status()
        wait_for(lambda: self._state(task_id("failed")) == "failed", 60)
        self.taskcluster.delete("/calls").raise_for_status()

    def _state(self, wanted_id: str) -> str:
        (task,) = self.taskcluster.get("/tasks", params={"taskId": wanted_id}).json()["tasks"]
        return str(task["status"]["state"])

    def retrigger(self, failed_id: str, latency: float) -> Cost:
        """Retrigger a task and wait until the action is done; return its cost."""
        self.taskcluster.post("/latency", json={"seconds": latency}).raise_for_status()
        with self._memory() as peak:
            cpu, began = self.cpu(), time.perf_counter()
            body = {"action": "retrigger", "project": PROJECT, "task_id": failed_id}
            action_id = self.api.post("/actions", json=body).raise_for_status().json()["id"]
            while not self._calls().get("createTask"):
                time.sleep(0.005)
            first, plan_cpu = time.perf_counter() - began, self.cpu() - cpu
            while (state := self._action(action_id)) == "pending":
                time.sleep(0.005)
            seconds, spent = time.perf_counter() - began, self.cpu() - cpu
        if state != "done":
            raise typer.BadParameter(f"the retrigger is {state}: {self.api.get(f'/actions/{action_id}').json()}")
        return Cost(seconds, first, spent, plan_cpu, self._calls(), peak[0])

    def hold_up(self, failed_id: str, copies: int) -> None:
        """Retrigger a task, and hold up all creations until the whole plan is stored."""
        self.taskcluster.post("/faults", json={"kind": "hang", "method": "createTask"}).raise_for_status()
        body = {"action": "retrigger", "project": PROJECT, "task_id": failed_id}
        self.api.post("/actions", json=body).raise_for_status()
        wait_for(lambda: self._definitions() == copies, 60)
        self.taskcluster.delete("/faults").raise_for_status()

    def created(self, tasks: int) -> tuple[float, float]:
        """Wait until so many copies are created; return the times of the first and the last (epoch seconds)."""
        while len(creations := self._creations()) < tasks:
            time.sleep(0.1)
        first, *_, last = [creation["time"] for creation in creations if creation["status"] == 200]
        return datetime.fromisoformat(first).timestamp(), datetime.fromisoformat(last).timestamp()

    def wait_until_done(self, action_id: int) -> None:
        """Wait until the action has ended."""
        wait_for(lambda: self._action(action_id) != "pending", 60)

    def _definitions(self) -> int:
        """Return the number of copies of the newest action whose definitions are stored."""
        newest = "action_id = (SELECT max(id) FROM action)"
        return int(self._query(f"SELECT count(definition) FROM planned_task WHERE {newest}"))

    def pressed(self, channel: Any, exchange: str, body: bytes) -> tuple[float, float]:
        """Publish a press; return the seconds until the action was stored and until its first task was created."""
        time.sleep(0.25)  # so that presses arrive one at a time
        before = self.api.get("/actions", params={"limit": 1}).json()["items"]
        created = len(self._creations())
        published = time.time()
        while True:  # until the listener has bound its queue
            try:
                channel.basic_publish(exchange, f"taskcluster.{PROJECT}.retrigger", body, mandatory=True)
                break
            except pika.exceptions.UnroutableError:
                time.sleep(0.1)
                published = time.time()
        while len(creations := self._creations()) == created:
            time.sleep(0.02)
        (action,) = self.api.get("/actions", params={"limit": 1}).json()["items"]
        if [action["id"]] == [earlier["id"] for earlier in before]:
            raise typer.BadParameter("a task was created, but no action is there")
        return _since(published, action["received_at"]), _since(published, creations[created]["time"])

    def _creations(self) -> list[Json]:
        creations: list[Json] = self.taskcluster.get("/calls").json()["creations"]
        return creations

    def _calls(self) -> dict[str, int]:
        calls: dict[str, int] = self.taskcluster.get("/calls").json()["calls"]
        return calls

    def _action(self, action_id: int) -> str:
        """Return the state of an action from the database, because the service's CPU is measured."""
        return str(self._query(f"SELECT state FROM action WHERE id = {action_id:d}"))

    def _query(self, statement: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(statement)).scalar_one()

    def close(self) -> None:
        self._engine.dispose()
        self.api.close()
        self.taskcluster.close()

    def cpu(self) -> float:
        """Return the seconds of CPU that the service has used."""
        times = self._process.cpu_times()
        return times.user + times.system

    @contextlib.contextmanager
    def _memory(self) -> Iterator[list[float]]:
        """Yield the growth of resident memory in MB, updated every few milliseconds."""
        before = self._process.memory_info().rss
        grown, stop = [0.0], threading.Event()

        def look() -> None:
            while not stop.wait(0.005):
                grown[0] = max(grown[0], (self._process.memory_info().rss - before) / 1e6)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield grown
        finally:
            stop.set()
            thread.join()


def _since(then: float, moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp() - then


@contextlib.contextmanager
def measured(folder: Path) -> Iterator[Measured]:
    """Yield a running stack on SQLite."""
    with (
        Stack(folder, settings=SETTINGS) as stack,
        contextlib.closing(Measured(stack, stack.service(), sqlite_in(folder))) as one,
    ):
        yield one


def sqlite_in(folder: Path) -> str:
    """Return the URL of the database that a stack creates in its folder."""
    return f"sqlite+aiosqlite:///{folder / 'tc-treeherder.sqlite'}"


async def bare(stack: Stack, tasks: list[tuple[str, Json]], connections: int = CONNECTIONS) -> float:
    """Create the same definitions by a plain loop over the same client, as many at a time; return seconds.

    Each task is created as soon as its dependencies exist.
    """
    host = stack.sandbox["repositories"][PROJECT].removeprefix("http://")
    async with aiohttp.ClientSession() as session:
        queue = taskcluster.aio.Queue(
            {
                "rootUrl": stack.sandbox["taskcluster"],
                "credentials": dict(stack.sandbox["credentials"]["taskcluster"]),
                "authorizedScopes": [f"assume:repo:{host}:branch:default", "queue:route:notify.*"],
                "maxRetries": 0,
            },
            session=session,
        )
        (group, decision), *others = tasks
        await queue.createTask(group, decision)
        waits = {current: len(task["dependencies"]) - 1 for current, task in others}
        needed_by: dict[str, list[tuple[str, Json]]] = defaultdict(list)
        for current, task in others:
            for needed in task["dependencies"]:
                needed_by[needed].append((current, task))
        ready: asyncio.Queue[tuple[str, Json]] = asyncio.Queue()
        ready.put_nowait(others[0])

        async def work() -> None:
            while True:
                current, task = await ready.get()
                await queue.createTask(current, task)
                for following in needed_by[current]:
                    waits[following[0]] -= 1
                    if not waits[following[0]]:
                        ready.put_nowait(following)
                ready.task_done()

        began = time.perf_counter()
        workers = [asyncio.create_task(work()) for _ in range(connections)]
        await ready.join()
        seconds = time.perf_counter() - began
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return seconds


def against(folder: Path, kinds: list[str], size: int, database_url: str | None, rounds: int, connections: int) -> None:
    """Time copies of graphs by turns with a bare loop: from a stored plan, and from the press on.

    The service has one connection more than the loop, because no requester may hold the last one.
    """
    settings = {**SETTINGS, "TC_TREEHERDER_TASKCLUSTER__CONNECTIONS": str(connections + 1)}
    with Stack(folder, settings=settings, database_url=database_url) as stack:
        prepare(stack, database_url)
        with contextlib.closing(Measured(stack, stack.service(), database_url or sqlite_in(folder))) as one:
            for kind in kinds:
                typer.echo(f"against: {kind} of {size}, 20 ms a call, {connections} connections, {one.database}")
                turns = [_turn(one, stack, graph(kind, size), connections) for _ in range(rounds)]
                stored, pressed, first, cpu = (statistics.median(which) for which in zip(*turns, strict=True))
                typer.echo(
                    f"  median: {stored:.2f} and {pressed:.2f} times, first createTask {first:.2f} s, "
                    f"CPU {cpu:.2f} times"
                )


def _turn(
    one: Measured, stack: Stack, tasks: list[tuple[str, Json]], connections: int
) -> tuple[float, float, float, float]:
    """Time a stored plan, a press and the bare loop.

    Return the ratios of plan and press to the loop, the seconds until the first createTask, and the ratio of CPU.
    """
    size = len(tasks) - 1
    one.load(tasks)
    one.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    one.hold_up(task_id("failed"), size)
    cpu = one.cpu()
    first, last = one.created(size)
    stored, service_cpu = last - first, one.cpu() - cpu

    one.load(tasks)
    one.taskcluster.post("/latency", json={"seconds": 0.02}).raise_for_status()
    began = time.time()
    body = {"action": "retrigger", "project": PROJECT, "task_id": task_id("failed")}
    action_id = one.api.post("/actions", json=body).raise_for_status().json()["id"]
    first, last = one.created(size)
    one.wait_until_done(action_id)
    pressed, first = last - began, first - began

    one.taskcluster.post("/clear").raise_for_status()
    cpu = time.process_time()
    bare_seconds = asyncio.run(bare(stack, tasks, connections))
    bare_cpu = time.process_time() - cpu
    typer.echo(
        f"  stored plan {stored:.2f} s, CPU {service_cpu:.2f} s; from the press on {pressed:.2f} s, first createTask "
        f"{first:.2f} s; bare loop {bare_seconds:.2f} s, CPU {bare_cpu:.2f} s"
    )
    return stored / bare_seconds, pressed / bare_seconds, first, ratio(service_cpu, bare_cpu)


def growth(folder: Path, kind: str, sizes: list[int], latencies: list[float]) -> None:
    """Time retriggers of growing graphs."""
    typer.echo(f"{kind}: tasks, ms a call: seconds (first createTask), CPU (planning), calls, memory")
    with measured(folder) as stack:
        for latency in latencies:
            for size in sizes:
                stack.load(graph(kind, size))
                cost = stack.retrigger(task_id("failed"), latency)
                others = {name: count for name, count in cost.calls.items() if name != "createTask"}
                limit = size + (size + 1) / 1_000 + 30
                typer.echo(
                    f"  {size:5}, {latency * 1000:2.0f} ms: {cost.seconds:6.2f} s ({cost.first:.2f} s), "
                    f"CPU {cost.cpu:5.2f} s ({cost.plan_cpu:.2f} s), {sum(cost.calls.values())} calls "
                    f"(limit {limit:.0f}; {', '.join(f'{n} {c}' for n, c in sorted(others.items()))}), "
                    f"+{cost.growth:.0f} MB"
                )


def rate(folder: Path, size: int, rounds: int) -> None:
    """Compare the rate of created tasks with that of a bare loop over the same client, by turns."""
    typer.echo(f"rate: {size} tasks, {CONNECTIONS} connections, 0 ms a call")
    tasks = graph("fan", size)
    with (
        Stack(folder, settings=SETTINGS) as stack,
        contextlib.closing(Measured(stack, stack.service(), sqlite_in(folder))) as one,
    ):
        for _ in range(rounds):
            one.load(tasks)
            cost = one.retrigger(task_id("failed"), 0)
            service_rate, spent = ratio(size, cost.seconds - cost.first), (cost.cpu - cost.plan_cpu) / size
            one.taskcluster.post("/clear").raise_for_status()
            cpu = time.process_time()
            bare_rate = (size - 1) / asyncio.run(bare(stack, tasks))
            cpu = (time.process_time() - cpu) / size
            typer.echo(
                f"  service {service_rate:.0f} a second, {spent * 1000:.2f} ms of CPU each; bare loop {bare_rate:.0f}, "
                f"{cpu * 1000:.2f} ms: {service_rate / bare_rate:.0%} of its rate, {ratio(cpu, spent):.0%} by CPU"
            )


def leaf(folder: Path, size: int) -> None:
    """Time the retrigger of one failed leaf in a large group."""
    group = task_id("decision")
    tasks = graph("fan", 1) + [
        (task_id(f"other{number}"), definition(f"other{number}", group, [])) for number in range(size - 2)
    ]
    with measured(folder) as stack:
        stack.load(tasks)
        for latency in (0.0, 0.02):
            stack.taskcluster.delete("/calls").raise_for_status()
            cost = stack.retrigger(task_id("failed"), latency)
            typer.echo(
                f"leaf in a group of {size}, {latency * 1000:.0f} ms a call: {cost.seconds:.2f} s, "
                f"CPU {cost.cpu:.2f} s, {sum(cost.calls.values())} calls, +{cost.growth:.0f} MB"
            )


def press(folder: Path, amqp_url: str, presses: int) -> None:
    """Time presses one after the other, from the broker's confirmation to the first createTask's answer."""
    broker.check(amqp_url)
    guid = str(uuid.UUID(bytes=base64.urlsafe_b64decode(task_id("failed") + "==")))
    pressed = {"version": 1, "project": PROJECT, "job_guid": f"{guid}/0", "action": "retrigger", "requester": "me"}
    with (
        Stack(folder, settings=SETTINGS, amqp_url=amqp_url) as stack,
        contextlib.closing(Measured(stack, stack.service(), sqlite_in(folder))) as one,
    ):
        stack.listener("pulse", "pulse")
        exchange = broker.exchange_prefix(stack.pulse_user) + JOB_ACTIONS_EXCHANGE
        with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for latency in (0.0, 0.02):
                one.load(graph("fan", 1))
                one.taskcluster.post("/latency", json={"seconds": latency}).raise_for_status()
                times = [one.pressed(channel, exchange, json.dumps(pressed).encode()) for _ in range(presses)]
                stored, created = (sorted(which) for which in zip(*times, strict=True))
                typer.echo(
                    f"press, {latency * 1000:.0f} ms a call: stored after {_spread(stored)}, "
                    f"first createTask after {_spread(created)}"
                )


def _spread(seconds: list[float]) -> str:
    """Format the median and the 95th percentile of sorted times."""
    median, p95 = statistics.median(seconds), seconds[int(0.95 * (len(seconds) - 1))]
    return f"{median * 1000:.0f} ms (95 % within {p95 * 1000:.0f} ms)"


def main(
    what: Annotated[
        list[str] | None, typer.Argument(help="fan, chain, against, rate, leaf, press; default: all")
    ] = None,
    database_url: DatabaseUrl = None,
    rounds: Annotated[int, typer.Option(help="of against and of rate, by turns")] = 5,
    connections: Annotated[int, typer.Option(help="of the bare loop, and of the requester, for against")] = CONNECTIONS,
    kinds: Annotated[str, typer.Option(help="graphs of against")] = "fan,chain,random",
    size: Annotated[int, typer.Option(help="tasks of each graph of against")] = 1_000,
    sizes: Annotated[str, typer.Option(help="tasks of each graph")] = "10,100,1000,5000",
    group: Annotated[int, typer.Option(help="tasks of the leaf's group")] = 20_000,
    presses: Annotated[int, typer.Option(help="of the button, one after the other")] = 50,
    amqp_url: Annotated[str, typer.Option(help="a RabbitMQ, for press", envvar="SANDBOX_AMQP_URL")] = broker.LOCAL,
) -> None:
    """Measure retriggers on this machine: the service and Taskcluster's stand-in, each a process.

    All benchmarks except `against` run on SQLite.
    """
    numbers = [int(number) for number in sizes.split(",")]
    for benchmark in what or ["fan", "chain", "against", "rate", "leaf", "press"]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            if benchmark in {"fan", "chain"}:
                growth(path, benchmark, [n for n in numbers if benchmark == "fan" or n <= 1_000], [0, 0.02])
            elif benchmark == "against":
                against(path, kinds.split(","), size, database_url, rounds, connections)
            elif benchmark == "rate":
                rate(path, max(numbers), rounds)
            elif benchmark == "leaf":
                leaf(path, group)
            elif benchmark == "press":
                press(path, amqp_url, presses)
            else:
                raise typer.BadParameter(f"{benchmark!r} is none of fan, chain, against, rate, leaf, press")


if __name__ == "__main__":
    typer.run(main)
