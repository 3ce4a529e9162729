"""Measure how fast task events become jobs, and what that costs: `bin/measure-reports`.

The tasks are created in a queue in this process, which serves their definitions. Their messages are published to a
real RabbitMQ (or, for `store`, sent to the service as the listener does). A run has about four events, as in
production: defined, pending, running, completed.
"""

import asyncio
import contextlib
import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pika
import typer
import uvicorn
from standardwebhooks import Webhook

from benchmarks.figures import DatabaseUrl, cpu_seconds_by_name, database_name, memory, ratio
from sandbox import credentials, taskcluster
from sandbox.stack import ENVIRONMENT, Process, Stack, free_port, wait_for
from sandbox.taskcluster.tasks import Message
from sandbox.treeherder.store import revision_hash
from service.log import configure

PROJECTS = ("autoland", "try", "central")
TIP = {project: project.encode().hex().ljust(40, "0")[:40] for project in PROJECTS}
WORKER = {"workerGroup": "wg", "workerId": "w1"}
APART = 1_000
"""Runs between an event of a run and its next: so that few are made one before they are posted."""

QUIET = {"TC_TREEHERDER_LOG_LEVEL": "WARNING"}


class Load:
    """Tasks in a queue of this process, and their messages."""

    def __init__(self, projects: int = len(PROJECTS)) -> None:
        self._projects = PROJECTS[:projects]
        self.tc = taskcluster.Taskcluster([credentials.SERVICE], credentials.ROLES)
        self._messages: list[Message] = []
        self.tc.queue.listeners.append(self._hear)
        self._serial = 0

    def _hear(self, message: Message) -> None:
        if not message.exchange.endswith("task-group-resolved"):
            self._messages.append(message)

    def events(self, runs: int, apart: int = APART) -> Iterator[Message]:
        """Yield the messages of so many runs; the messages of one run are apart from each other."""
        ids: list[str] = []
        for number in range(runs + 2 * apart):
            if number < runs:
                ids.append(self._create(number))
            if 0 <= number - apart < runs:
                self.tc.queue.claim_task(ids[number - apart], 0, WORKER)
            if 0 <= number - 2 * apart < runs:
                for name in ("public/logs/live_backing.log", "public/test_info/x_errorsummary.log"):
                    self.tc.artifacts.store(ids[number - 2 * apart], 0, name, b"x")
                self.tc.queue.report_completed(ids[number - 2 * apart], 0)
            yield from self._messages
            self._messages.clear()

    def _create(self, number: int) -> str:
        task_id = taskcluster_id()
        at = datetime.now(UTC)
        project = self._projects[number % len(self._projects)]
        self.tc.queue.create_task(
            task_id,
            {
                "taskQueueId": "measure/linux",
                "schedulerId": "sandbox-level-3",
                "created": _iso(at),
                "deadline": _iso(at + timedelta(days=1)),
                "routes": [f"{ENVIRONMENT}.v2.{project}.{TIP[project]}.{1}"],
                "payload": {"maxRunTime": 3600, "command": ["bash", "-c", "x" * 500]},
                "tags": {"kind": "test", "os": "linux", "label": f"test-linux64/opt-mochitest-{number}"},
                "metadata": {
                    "name": f"test-linux64/opt-mochitest-{number}",
                    "description": "Mochitest run",
                    "owner": "dev@example.com",
                    "source": "https://hg.example/x",
                },
                "extra": {
                    "treeherder": {
                        "symbol": "bc",
                        "groupSymbol": "M",
                        "groupName": "Mochitests",
                        "machine": {"platform": "linux64"},
                        "collection": {"opt": True},
                        "tier": 1,
                    }
                },
            },
        )
        return task_id

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Serve the queue's API on a thread of its own; yield its URL."""
        port = free_port()
        config = uvicorn.Config(
            taskcluster.create_app(self.tc), port=port, lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        wait_for(lambda: server.started, 10)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def taskcluster_id() -> str:
    """Return a new task id that does not begin with a dash."""
    import base64

    drawn = bytearray(uuid.uuid4().bytes)
    drawn[0] &= 0x7F  # a "nice" slugid does not begin with a dash
    return base64.urlsafe_b64encode(bytes(drawn)).decode().rstrip("=")


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


@contextlib.contextmanager
def system(
    folder: Path, load: Load, database_url: str | None, limit: int, amqp_url: str | None = None, **more: str
) -> Iterator[tuple[Stack, dict[str, Any]]]:
    """Run a sandbox's Treeherder with a push for each project; yield the stack, and settings for its processes."""
    with load.serving() as taskcluster_url, Stack(folder, database_url=database_url, settings=QUIET) as stack:
        if database_url is not None:
            stack.upgrade()
        hawk = stack.sandbox["credentials"]["treeherder"]
        environment = {
            "url": stack.sandbox["treeherder"],
            "client_id": hawk["id"],
            "secret": hawk["key"],
            "jobs_per_minute": limit,
        }
        settings: dict[str, Any] = {
            "TC_TREEHERDER_TASKCLUSTER__ROOT_URL": taskcluster_url,
            "TC_TREEHERDER_ENVIRONMENTS": json.dumps({ENVIRONMENT: environment}),
            **more,
        }
        if amqp_url is not None:
            settings["TC_TREEHERDER_PULSE_URL"] = amqp_url
            settings["TC_TREEHERDER_PULSE_TASKS"] = f"exchange/{_user(amqp_url)}/measure-{folder.name}/"
            settings["TC_TREEHERDER_PULSE_QUEUE"] = f"measure-{folder.name}"
            settings["TC_TREEHERDER_PULSE_READ"] = '["tasks"]'
        with stack.control("treeherder") as treeherder:
            for project in PROJECTS:
                treeherder.post("/repositories", json={"name": project, "url": ""}).raise_for_status()
        asyncio.run(_push(stack))
        yield stack, settings


async def _push(stack: Stack) -> None:
    from service.clients.http import Http
    from service.clients.treeherder import RestTreeherder
    from service.settings import Environment

    hawk = stack.sandbox["credentials"]["treeherder"]
    environment = Environment.model_validate(
        {"url": stack.sandbox["treeherder"], "client_id": hawk["id"], "secret": hawk["key"]}
    )
    async with Http("treeherder") as http:
        for project in PROJECTS:
            revision = {"revision": TIP[project], "author": "dev", "comment": "c", "files": [], "branch": "default"}
            revisions = [{**revision, "repository": project}]
            resultset = {
                "revision": TIP[project],
                "revision_hash": revision_hash(revisions),
                "push_timestamp": 1_700_000_000,
                "author": "dev",
                "type": "push",
                "active_status": "active",
                "revisions": revisions,
            }
            await RestTreeherder(environment, http).post_resultset(project, resultset)


def _user(amqp_url: str) -> str:
    return str(pika.URLParameters(amqp_url).credentials.username)


class Broker:
    """A connection that publishes messages to exchanges of this benchmark's own."""

    def __init__(self, amqp_url: str, prefix: str) -> None:
        self._prefix = prefix
        self._connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        self._channel = self._connection.channel()
        self._exchanges = [
            f"{prefix}task-{event}" for event in ("defined", "pending", "running", "completed", "failed", "exception")
        ]
        for exchange in self._exchanges:
            self._channel.exchange_declare(exchange, "topic", durable=True)

    def publish(self, message: Message) -> None:
        properties = pika.BasicProperties(content_type="application/json", headers={"CC": list(message.cc)})
        exchange = self._prefix + message.exchange.rsplit("/", 1)[-1]
        self._channel.basic_publish(exchange, message.routing_key, json.dumps(message.payload).encode(), properties)

    def waiting(self, queue: str) -> int:
        """Return the number of messages that wait in the queue, or -1 if it does not exist."""
        try:
            return int(self._channel.queue_declare(queue, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker:
            self._channel = self._connection.channel()
            return -1

    def close(self, queue: str) -> None:
        self._channel.queue_delete(queue)
        for exchange in self._exchanges:
            self._channel.exchange_delete(exchange)
        self._connection.close()


@contextlib.contextmanager
def broker(amqp_url: str, settings: dict[str, str]) -> Iterator[tuple[Broker, str]]:
    """Yield the broker, and the queue's name."""
    connection = Broker(amqp_url, settings["TC_TREEHERDER_PULSE_TASKS"])
    queue = f"queue/{_user(amqp_url)}/{settings['TC_TREEHERDER_PULSE_QUEUE']}/tasks"
    try:
        yield connection, queue
    finally:
        connection.close(queue)


ONE = 1
"""A request a minute: on SQLite the reporter is in the service, and looks, but has hardly anything to send."""


def silent_service(stack: Stack, database_url: str | None, settings: dict[str, Any]) -> Process:
    """Start a service that reports nothing: without its worker if the database allows it."""
    return stack.service("service", *([] if database_url is None else ["--no-worker"]), **settings)


# --- into the store alone --------------------------------------------------------------------------------------------


def store(folder: Path, database_url: str | None, events: int) -> None:
    """Send batches of 500 signed events, one after the other, to a service that reports nothing meanwhile."""
    load = Load()
    with system(folder, load, database_url, ONE) as (stack, settings):
        service = silent_service(stack, database_url, settings)
        secret = json.loads(stack.environment["TC_TREEHERDER_WEBHOOK_SECRETS"])[0]
        bodies = list(_bodies(load, events))
        with httpx.Client(base_url=stack.service_url, timeout=60) as client:
            before, began = cpu_seconds_by_name({"service": service}), time.perf_counter()
            for body in bodies:
                headers = _signed(secret, body)
                answer = client.post(_PATH, content=body, headers=headers)
                assert answer.status_code == 202, answer.text
                assert b'"rejected"' not in answer.content, answer.text
            elapsed = time.perf_counter() - began
        spent = cpu_seconds_by_name({"service": service})["service"] - before["service"]
        print(f"{events} events into the store alone, {database_name(database_url)}:")
        print(f"  {events / elapsed:.0f} events a second (aim: 3,000), {spent * 1e6 / events:.0f} µs of CPU an event")


def _bodies(load: Load, events: int) -> Iterator[bytes]:
    batch: list[dict[str, Any]] = []
    for message in load.events(events // 4):
        batch.append(
            {
                "exchange": message.exchange,
                "routing_key": message.routing_key,
                "cc": list(message.cc),
                "body": json.dumps(message.payload),
                "encoding": "utf-8",
            }
        )
        if len(batch) == 500:
            yield json.dumps({"events": batch}).encode()
            batch = []
    if batch:
        yield json.dumps({"events": batch}).encode()


_PATH = "/api/v1/events/tasks"


def _signed(secret: str, body: bytes) -> dict[str, str]:
    at = datetime.now(UTC)
    return {
        "webhook-id": "m",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("m", at, body.decode()),
        "webhook-route-signature": Webhook(secret).sign("m", at, f"POST {_PATH}"),
        "content-type": "application/json",
    }


# --- from RabbitMQ into the store ------------------------------------------------------------------------------------


def fill_queue(
    stack: Stack, settings: dict[str, Any], rabbit: Broker, queue: str, messages: Iterable[Message], events: int
) -> None:
    """Let all events wait in the queue, which a listener has declared and bound."""
    listener = stack.listener("listener", "pulse", **settings)
    wait_for(lambda: rabbit.waiting(queue) >= 0, 20, listener)
    time.sleep(1)  # the listener binds after it has declared
    listener.stop()
    for message in messages:
        rabbit.publish(message)
    wait_for(lambda: rabbit.waiting(queue) == events, 60)


def intake(folder: Path, database_url: str | None, amqp_url: str, events: int) -> None:
    """Time the way of events from the queue into the store; nothing is reported meanwhile.

    The measurement starts after a tenth of the events, when the listener is running.
    """
    load = Load()
    with system(folder, load, database_url, ONE, amqp_url) as (stack, settings):
        service = silent_service(stack, database_url, settings)
        with broker(amqp_url, settings) as (rabbit, queue):
            fill_queue(stack, settings, rabbit, queue, load.events(events // 4), events)
            listener = stack.listener("listener", "pulse", **settings)
            measured = {"service": service, "listener": listener}
            wait_for(lambda: rabbit.waiting(queue) < events * 9 // 10, 60, listener)
            before, left, began = cpu_seconds_by_name(measured), rabbit.waiting(queue), time.perf_counter()
            wait_for(lambda: rabbit.waiting(queue) == 0, 300, listener)
            elapsed = time.perf_counter() - began
            time.sleep(0.5)  # the listener still has the last events
            spent = cpu_seconds_by_name(measured)
            print(f"{events} events from RabbitMQ into the store, {database_name(database_url)}:")
            print(f"  {ratio(left, elapsed):.0f} events a second (aim: 8,000)")
            for name, seconds in spent.items():
                print(f"  {name:<9} {ratio((seconds - before[name]) * 1e6, left):.0f} µs of CPU an event")


# --- from RabbitMQ to Treeherder -------------------------------------------------------------------------------------


def through(folder: Path, database_url: str | None, amqp_url: str, events: int, limit: int, quiet: float) -> None:
    """Time the way of events from the queue to the last job in Treeherder; the listener starts with a full queue."""
    load = Load()
    with system(folder, load, database_url, limit, amqp_url) as (stack, settings):
        stack.service("service", **settings)
        with broker(amqp_url, settings) as (rabbit, queue):
            fill_queue(stack, settings, rabbit, queue, load.events(events // 4), events)
            before, began = cpu_seconds_by_name(stack.processes), time.perf_counter()
            stack.listener("listener", "pulse", **settings)
            emptied, elapsed, counters = _wait_for_jobs(stack, rabbit, queue, events // 4, began, quiet)
            spent = cpu_seconds_by_name(stack.processes)
            print(f"{events} events from RabbitMQ to Treeherder, {database_name(database_url)}:")
            print(f"  {events / elapsed:.0f} events a second (aim: 1,000); the queue was empty after {emptied:.1f} s")
            received = counters["requests"].get("jobs received", 0)
            requests = counters["requests"].get("POST jobs 200", 0)
            print(f"  {received} jobs were posted in {requests} requests")
            print(f"  {_linked(stack)} of {events // 4} jobs link to what their runs uploaded")
            for name, seconds in spent.items():
                used = seconds - before.get(name, 0)
                print(f"  {name:<9} {used * 1e6 / events:.0f} µs of CPU an event")
            print(f"  memory    {memory(stack)}")


def _wait_for_jobs(
    stack: Stack, rabbit: Broker, queue: str, runs: int, began: float, quiet: float
) -> tuple[float, float, Any]:
    """Wait for all jobs; return when the queue was empty, when the last job was posted, and the counters.

    Times are seconds after `began`.
    """
    emptied = 0.0
    previous, counters, changed = -1, {}, began
    with stack.control("treeherder") as treeherder:
        while time.perf_counter() - changed < quiet or not emptied:
            if not emptied and rabbit.waiting(queue) == 0:
                emptied = time.perf_counter() - began
            counters = treeherder.get("/counters").json()
            received = counters["requests"].get("jobs received", 0)
            if received != previous:
                previous, changed = received, time.perf_counter()
            time.sleep(0.2)
        ended = [job["job"]["state"] for job in treeherder.get("/state").json()["jobs"]]
    assert ended == ["completed"] * runs, f"{len(ended)} jobs, {ended.count('completed')} of them completed"
    return emptied, changed - began, counters


def _linked(stack: Stack) -> int:
    """Return the number of jobs that link to more than their task."""
    with stack.control("treeherder") as treeherder:
        jobs = treeherder.get("/state").json()["jobs"]
    blobs = [artifact["blob"] for job in jobs for artifact in job["artifacts"]]
    return sum(len(json.loads(blob)["job_details"]) > 1 for blob in blobs)


# --- latency -------------------------------------------------------------------------------------------------------


def latency(
    folder: Path, database_url: str | None, amqp_url: str, rate: int, seconds: int, projects: int, quiet: float
) -> None:
    """Publish events at a steady rate over some projects, within Treeherder's limit, and time their jobs."""
    load = Load(projects)
    with system(folder, load, database_url, 220, amqp_url) as (stack, settings):
        with stack.control("treeherder") as treeherder:
            treeherder.patch("/behaviour", json={"throttle": True}).raise_for_status()
        stack.service("service", **settings)
        with broker(amqp_url, settings) as (rabbit, queue):
            listener = stack.listener("listener", "pulse", **settings)
            wait_for(lambda: rabbit.waiting(queue) >= 0, 20, listener)
            time.sleep(1)
            published: list[tuple[str, str, float]] = []
            began = time.perf_counter()
            for number, message in enumerate(load.events(rate * seconds // 4, apart=rate)):
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                rabbit.publish(message)
                published.append((message.payload["status"]["taskId"], message.exchange, time.time()))
            time.sleep(quiet)
            with stack.control("treeherder") as treeherder:
                state = treeherder.get("/state").json()
            waits = sorted(_waits(published, state["jobs"]))
            print(f"{rate} events a second over {projects} projects, {seconds} s, {database_name(database_url)}:")
            median, p95 = waits[len(waits) // 2], waits[len(waits) * 95 // 100]
            print(f"  message to posted job: median {median:.2f} s, p95 {p95:.2f} s")
            # a project gets a request every `projects` * 60 / 220 s, and events in between wait for it
            limit = 0.95 * projects * 60 / 220
            print(f"  (by the limit of requests alone: p95 {limit:.2f} s); the longest {waits[-1]:.2f} s")
            print(f"  429 answers: {state['requests'].get('POST jobs 429', 0)}")


_REACHED = {"pending": 1, "running": 2, "completed": 3}


def _waits(published: list[tuple[str, str, float]], jobs: list[dict[str, Any]]) -> Iterator[float]:
    """Yield the seconds from each message until Treeherder had its state, or a later one."""
    from service.flow.jobs.run import job_guid

    histories = {job["job"]["job_guid"]: job["history"] for job in jobs}
    for task_id, exchange, at in published:
        stage = _REACHED.get(exchange.rsplit("-", 1)[-1], 1)
        reached_at = [entry["at"] for entry in histories[job_guid(task_id, 0)] if _REACHED[entry["state"]] >= stage]
        yield max(0.0, min(reached_at) - at)


# --- memory ----------------------------------------------------------------------------------------------------------


def flat(folder: Path, database_url: str | None, amqp_url: str, events: int, rate: int, quiet: float) -> None:
    """Print the memory of each process while many events are processed."""
    load = Load()
    with system(folder, load, database_url, 0, amqp_url) as (stack, settings):
        stack.service("service", **settings)
        with broker(amqp_url, settings) as (rabbit, queue):
            listener = stack.listener("listener", "pulse", **settings)
            wait_for(lambda: rabbit.waiting(queue) >= 0, 20, listener)
            time.sleep(1)
            print(f"memory over {events} events at {rate} a second at most, {database_name(database_url)}:")
            began = time.perf_counter()
            for number, message in enumerate(load.events(events // 4)):
                rabbit.publish(message)
                if number % 100 == 0:
                    time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                if number % 1_000 == 0:
                    while rabbit.waiting(queue) > 5_000:
                        time.sleep(0.2)
                if number % (events // 10) == 0:
                    print(f"  after {number:>7}: {memory(stack)}", flush=True)
            while rabbit.waiting(queue):
                time.sleep(0.2)
            time.sleep(quiet)
            elapsed = time.perf_counter() - began
            print(f"  at the end   : {memory(stack)} ({events / elapsed:.0f} events a second)")


# ---------------------------------------------------------------------------------------------------------------------


def main(
    what: Annotated[
        list[str] | None, typer.Argument(help="store, intake, through, latency, memory; default: all")
    ] = None,
    database_url: DatabaseUrl = None,
    amqp_url: Annotated[str, typer.Option(help="a RabbitMQ")] = "amqp://guest:guest@127.0.0.1:5672/%2F",
    events: int = 40_000,
    many: Annotated[int, typer.Option(help="events, for memory")] = 200_000,
    limit: Annotated[int, typer.Option(help="requests a minute that Treeherder takes, for through; 0: any")] = 0,
    rate: Annotated[int, typer.Option(help="events a second, for latency")] = 50,
    seconds: Annotated[int, typer.Option(help="for latency")] = 60,
    projects: Annotated[int, typer.Option(help="that the events are of, for latency", min=1, max=3)] = 3,
    pace: Annotated[int, typer.Option(help="events a second, for memory")] = 1_000,
    quiet: Annotated[float, typer.Option(help="seconds without a further job after which all are through")] = 5,
) -> None:
    """Measure how task events become jobs."""
    configure("WARNING", as_json=None)
    logging.getLogger("pika").setLevel(logging.ERROR)  # it warns of each query for a queue that is not declared yet
    measures = {
        "store": lambda folder: store(folder, database_url, events),
        "intake": lambda folder: intake(folder, database_url, amqp_url, events),
        "through": lambda folder: through(folder, database_url, amqp_url, events, limit, quiet),
        "latency": lambda folder: latency(folder, database_url, amqp_url, rate, seconds, projects, quiet),
        "memory": lambda folder: flat(folder, database_url, amqp_url, many, pace, quiet),
    }
    for name in what or list(measures):
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder))


if __name__ == "__main__":
    typer.run(main)
