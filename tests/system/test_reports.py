"""Task events from a real RabbitMQ to two Treeherders, with real processes that are killed and systems that are away.

REPORTS_RUNS and REPORTS_KILLS make the long ones longer: 5000 and 20 are what the project promises.
"""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pika
import pytest
import uvicorn
from sqlalchemy import create_engine, text

from sandbox import taskcluster
from sandbox.stack import Process, Stack, free_port, wait_for
from service.clients.http import Http
from service.clients.treeherder import RestTreeherder
from service.flow.jobs.run import job_guid
from service.flow.tasks.ids import slugid
from service.settings import Environment
from tests.service.flow.report_harness import PREFIX, PROJECTS, STAGE, definition, expected_jobs, resultset
from tests.service.harness import ROOT
from tests.services import Amqp
from tests.system.conftest import SHORT, mostly_postgresql
from tests.system.warm import WarmProcess

RUNS = int(os.environ.get("REPORTS_RUNS", "150"))
KILLS = int(os.environ.get("REPORTS_KILLS", "4"))

T = TypeVar("T")


class ReportHarness:
    """A Taskcluster in this process, which publishes to RabbitMQ; two Treeherders, service and listener beside it."""

    def __init__(
        self, stack: Stack, second: Stack, amqp: Amqp, taskcluster_url: str, tc: taskcluster.Taskcluster
    ) -> None:
        self.stack, self.amqp, self.tc = stack, amqp, tc
        self.treeherders = {PREFIX: stack.control("treeherder"), STAGE: second.control("treeherder")}
        hawk = stack.sandbox["credentials"]["treeherder"]
        environments = {
            prefix: {
                "url": environment.sandbox["treeherder"],
                "client_id": hawk["id"],
                "secret": hawk["key"],
                "jobs_per_minute": 0,
            }
            for prefix, environment in ((PREFIX, stack), (STAGE, second))
        }
        self.settings: dict[str, Any] = {
            "TC_TREEHERDER_TASKCLUSTER__ROOT_URL": taskcluster_url,
            "TC_TREEHERDER_TASKCLUSTER__CLIENT_ID": ROOT.client_id,
            "TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN": ROOT.access_token,
            "TC_TREEHERDER_ENVIRONMENTS": json.dumps(environments),
            "TC_TREEHERDER_PULSE_URL": amqp.url,
            "TC_TREEHERDER_PULSE_QUEUE": amqp.name,
            "TC_TREEHERDER_PULSE_READ": '["tasks"]',
            "TC_TREEHERDER_PULSE_TASKS": f"{amqp.exchange('')}exchange/taskcluster-queue/v1/",
            "TC_TREEHERDER_REPORTS__MAX_PAUSE": "0.5",
            "TC_TREEHERDER_REPORTS__QUIET": "2",
        }
        self.queue = f"queue/{amqp.user}/{amqp.name}/tasks"
        amqp.queues.add(self.queue)
        self._serial = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    def start_service(self) -> Process:
        return self.stack.service("service", **self.settings)

    def start_listener(self) -> Process:
        listener = self.stack.listener("pulse", "pulse", **self.settings)
        wait_for(lambda: "connected" in listener.log.read_text(), 20, listener)
        return listener

    def on_queue(self, what: Callable[[], T]) -> T:
        """Do something with the queue, on the thread that it lives on."""
        assert self.loop is not None

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def create(self, **changes: Any) -> str:
        self._serial += 1
        task_id = slugid(b"system", f"{self.amqp.name} {self._serial}")
        task = {"taskQueueId": "sandbox/linux", **changes}
        self.on_queue(lambda: self.tc.queue.create_task(task_id, definition(**task)))
        return task_id

    def waiting(self) -> int:
        """Return the number of messages that wait in the queue."""
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp.url))
        count = connection.channel().queue_declare(self.queue, passive=True).method.message_count
        connection.close()
        return int(count)

    def delete_queue(self) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp.url))
        connection.channel().queue_delete(self.queue)
        connection.close()

    def rows(self, database_url: str) -> int:
        """Return the number of reports in the database."""
        engine = create_engine(database_url.replace("+aiosqlite", ""))
        with engine.connect() as connection:
            count = connection.execute(text("SELECT count(*) FROM job_report")).scalar_one()
        engine.dispose()
        return int(count)

    def ended(self) -> bool:
        """Return True if every task has reached an end that it does not leave by itself."""
        return self.on_queue(lambda: all(t.resolved or not t.runs for t in self.tc.queue.tasks.values()))

    def implied(self) -> dict[str, tuple[str, str]]:
        """Return the jobs that the queue's own state implies."""
        return self.on_queue(
            lambda: {
                job_guid(task_id, run_id): job
                for task_id, task in self.tc.queue.tasks.items()
                for run_id, job in expected_jobs(task).items()
            }
        )

    def jobs(self, prefix: str) -> dict[str, tuple[str, str]]:
        state = self.treeherders[prefix].get("/state").json()
        return {job["job"]["job_guid"]: (job["job"]["state"], job["job"]["result"]) for job in state["jobs"]}

    def settled(self) -> bool:
        return self.ended() and all(not differing(self.jobs(prefix), self.implied()) for prefix in (PREFIX, STAGE))

    def wait_until_settled(self, seconds: float = 40) -> None:
        try:
            wait_for(self.settled, seconds, self.stack.processes["sandbox"])
        except Exception as error:
            differences = {prefix: differing(self.jobs(prefix), self.implied()) for prefix in (PREFIX, STAGE)}
            raise AssertionError(f"not settled: {differences}\n{self.stack.processes['service'].tail()}") from error


def differing(jobs: dict[str, tuple[str, str]], expected: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the differences from the expected jobs; a run that was reported as ended before its rerun stays so."""
    differences: dict[str, Any] = {}
    for guid in jobs.keys() | expected.keys():
        reported, implied = jobs.get(guid), expected.get(guid)
        before_a_rerun = implied == ("completed", "retry") and reported is not None and reported[0] == "completed"
        if reported != implied and not before_a_rerun:
            differences[guid] = (reported, implied)
    return differences


@contextmanager
def serving(tc: taskcluster.Taskcluster) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Serve the queue on a thread of its own."""
    port, loop = free_port(), asyncio.new_event_loop()
    config = uvicorn.Config(taskcluster.create_app(tc), port=port, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()))
    thread.start()
    try:
        wait_for(lambda: server.started, 20)
        yield f"http://127.0.0.1:{port}", loop
    finally:
        server.should_exit = True
        thread.join()
        loop.close()


@pytest.fixture
def newsrooms(tmp_path: Path, amqp: Amqp) -> Iterator[Callable[[str], ReportHarness]]:
    """Yield a factory; stop everything at the end."""
    with ExitStack() as exits:

        def make(database_url: str) -> ReportHarness:
            prefix = amqp.exchange("")
            tc = taskcluster.Taskcluster(
                [ROOT], amqp_url=amqp.url, exchange_prefix=prefix, worker=True, worker_seconds=0.02, claim_wait=0
            )
            exits.callback(lambda: tc.publisher.delete_exchanges() if tc.publisher else None)
            url, loop = exits.enter_context(serving(tc))
            stack, second = (
                exits.enter_context(
                    Stack(tmp_path / name, database_url=database_url, settings=SHORT, process=WarmProcess)
                )
                for name in ("stack", "second")
            )
            room = ReportHarness(stack, second, amqp, url, tc)
            room.loop = loop
            for prefix_, control in room.treeherders.items():
                exits.callback(control.close)
                for project in PROJECTS:
                    control.post("/repositories", json={"name": project, "url": ""}).raise_for_status()
                asyncio.run(_post_pushes(room, prefix_))
            return room

        yield make


async def _post_pushes(room: ReportHarness, prefix: str) -> None:
    values = json.loads(room.settings["TC_TREEHERDER_ENVIRONMENTS"])[prefix]
    async with Http("treeherder") as client:
        for project in PROJECTS:
            await RestTreeherder(Environment.model_validate(values), client).post_resultset(project, resultset(project))


Newsrooms = Callable[[str], ReportHarness]

RESULTS = [
    "completed",
    "failed",
    "exception:malformed-payload",
    "exception:worker-shutdown",
    "exception:internal-error",
]


def life(number: int) -> dict[str, Any]:
    """Return the course of the task of that number."""
    result = RESULTS[number % len(RESULTS)]
    return {"payload": {"sandbox": {"result": result, "seconds": 0}}, "retries": number % 3}


def test_what_runs_fails_is_rerun_and_cancelled_stands_on_both_treeherders(
    newsrooms: Newsrooms, database_url: str
) -> None:
    room = newsrooms(database_url)
    service, listener = room.start_service(), room.start_listener()
    ids = [room.create(**life(number)) for number in range(20)]
    hanging = room.create(payload={"sandbox": {"result": "hang"}})
    waiting = room.create(dependencies=[hanging])
    wait_for(lambda: room.on_queue(lambda: all(room.tc.queue.tasks[task_id].resolved for task_id in ids)), 20)
    for task_id in ids[1::5]:
        room.on_queue(lambda task_id=task_id: room.tc.queue.rerun_task(task_id))  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
    room.on_queue(lambda: room.tc.queue.cancel_task(waiting))
    room.on_queue(lambda: room.tc.queue.cancel_task(hanging))
    room.wait_until_settled()
    results = {result for _, result in room.jobs(STAGE).values()}
    assert results >= {"success", "testfailed", "exception", "retry", "usercancel"}
    assert service.stop(20) == 0
    assert listener.stop(5) == 0


def test_treeherder_is_away_while_events_come_in(newsrooms: Newsrooms, database_url: str) -> None:
    room = newsrooms(database_url)
    room.start_service()
    room.start_listener()
    for control in room.treeherders.values():
        control.patch("/behaviour", json={"down": -1}).raise_for_status()
    for number in range(RUNS):
        room.create(**life(number))
    wait_for(room.ended, 60 + RUNS / 50)
    wait_for(lambda: room.waiting() == 0, 30)  # Pulse never backs up
    assert room.jobs(PREFIX) == {}
    assert room.rows(database_url) <= 2 * len(room.implied())  # bounded by the runs, not by the messages
    for control in room.treeherders.values():
        control.delete("/behaviour").raise_for_status()
    room.wait_until_settled(60 + RUNS / 50)


@pytest.mark.timeout(600)
@mostly_postgresql
def test_killed_again_and_again(newsrooms: Newsrooms, database_url: str) -> None:
    room = newsrooms(database_url)
    service, listener = room.start_service(), room.start_listener()
    chance = random.Random(4)
    for kill in range(KILLS):
        for number in range(RUNS // KILLS):
            room.create(**life(kill + number))
        time.sleep(chance.uniform(0, 0.5))
        if kill % 2:
            service.kill()
            service = room.start_service()
        else:
            listener.kill()
            listener = room.start_listener()
    room.wait_until_settled(60 + RUNS / 50)
    with room.stack.api() as api:
        assert api.get("/dead-letters").json()["items"] == []


@mostly_postgresql
def test_messages_that_were_lost_heal(newsrooms: Newsrooms, database_url: str) -> None:
    room = newsrooms(database_url)
    room.start_service()
    listener = room.start_listener()
    first = room.create(payload={"sandbox": {"result": "hang"}})
    room.create(dependencies=[first], taskGroupId=first)
    wait_for(lambda: len(room.jobs(PREFIX)) == 2, 20)
    os.kill(listener.pid, signal.SIGSTOP)
    room.delete_queue()  # as Pulse does with one that grows
    room.create(taskGroupId=first, payload={"sandbox": {"result": "failed", "seconds": 0}})
    room.on_queue(lambda: room.tc.queue.cancel_task(first))
    wait_for(room.ended, 20)
    os.kill(listener.pid, signal.SIGCONT)
    room.wait_until_settled()
    assert len(room.jobs(STAGE)) == 3
    assert "queue-deleted" in listener.log.read_text()
