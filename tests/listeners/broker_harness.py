"""A Pulse listener between a real RabbitMQ and a service that stores what is posted."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pika
from standardwebhooks import Webhook

from listeners.pulse import PulseListener
from listeners.settings import ListenerSettings
from service.contract.events import (
    MAX_EVENTS,
    Acknowledged,
    JobActionMessage,
    PulseMessage,
    QueueReport,
    QueueState,
    Verdict,
    Verdicts,
)
from tests.listeners.fakes import SECRET, Answer, Request, quick_settings
from tests.listeners.processes import running_listener
from tests.services import Amqp

ACTIONS, TASKS = "/api/v1/events/job-actions", "/api/v1/events/tasks"


MOMENT = timedelta(milliseconds=50)


@dataclass
class FakeEventService:
    """A service that stores what is posted, once; `override` can answer in its place."""

    batches: dict[str, list[list[Any]]] = field(default_factory=lambda: {ACTIONS: [], TASKS: []})
    stored: dict[str, JobActionMessage] = field(default_factory=dict)
    reports: list[QueueReport] = field(default_factory=list)
    state: QueueState = field(default_factory=lambda: QueueState(deleted=False))
    override: Callable[[Request], Answer | None] = lambda request: None
    acknowledged: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Answer:
        if (answer := self.override(request)) is not None:
            return answer
        Webhook(SECRET).verify(request.body, request.headers, json_parse=False)
        if request.path == "/api/v1/listeners/report":
            self.reports.append(QueueReport.model_validate_json(request.body))
            return Answer(200, self.state.model_dump_json().encode())
        acknowledged = Acknowledged.model_validate_json(request.body).acknowledged
        model = PulseMessage if request.path == TASKS else JobActionMessage
        events = [model.model_validate(event) for event in json.loads(request.body)["events"]]
        assert len(events) <= MAX_EVENTS
        with self.lock:
            if events or not acknowledged:
                self.batches[request.path].append(events)
            self.acknowledged += acknowledged
            verdicts = [self._judge(event) for event in events]
        return Answer(202, Verdicts(verdicts=verdicts).model_dump_json().encode())

    def _judge(self, event: PulseMessage) -> Verdict:
        if isinstance(event, JobActionMessage):
            if event.delivery in self.stored:
                return Verdict(verdict="duplicate")
            self.stored[event.delivery] = event
        try:
            json.loads(event.body)
        except (ValueError, RecursionError):
            return Verdict(verdict="rejected", reason="not JSON; kept as a dead letter")
        return Verdict(verdict="accepted")

    def bodies(self, path: str = ACTIONS) -> list[str]:
        """Return the bodies of all events in their order."""
        with self.lock:
            return [event.body for batch in self.batches[path] for event in batch]

    def events(self, path: str = ACTIONS) -> list[Any]:
        with self.lock:
            return [event for batch in self.batches[path] for event in batch]


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until `condition` returns a true value, and return it."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)
    return value


@dataclass
class BrokerHarness:
    """A broker with the exchanges and queues of a test, a service, and the listeners between them."""

    amqp: Amqp
    url: str
    service: FakeEventService = field(default_factory=FakeEventService)
    logs: list[Any] = field(default_factory=list)
    broker: str = ""
    """The URL of the broker for the listener, if it is not the test's own."""

    def __post_init__(self) -> None:
        self.actions = self.amqp.exchange("job-actions")
        self.queue = self.amqp.queue("job-actions")
        self.tasks_queue = self.amqp.queue("tasks")
        self.connect()

    def connect(self) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(self.amqp.url))
        self.channel = self.connection.channel()
        self.declare(self.actions)

    def declare(self, exchange: str) -> None:
        self.channel.exchange_declare(exchange, "topic", durable=True)

    def task_exchange(self, event: str) -> str:
        return self.amqp.exchange(f"task-{event}")

    def settings(self, **options: Any) -> ListenerSettings:
        defaults: dict[str, Any] = {
            "pulse_url": self.broker or self.amqp.url,
            "pulse_user": self.amqp.user,
            "pulse_queue": self.amqp.name,
            "pulse_job_actions": self.actions,
            "pulse_tasks": self.actions.removesuffix("job-actions"),
            "pulse_linger": MOMENT,
            "pulse_bind_every": MOMENT * 4,
        }
        return quick_settings(self.url, **{**defaults, **options})

    @contextmanager
    def listening(self, *, wait: bool = True, **options: Any) -> Iterator[PulseListener]:
        """Run a listener, and yield it; with `wait`, only after its queues are bound."""
        listener = PulseListener(self.settings(**options))
        thread = threading.Thread(target=listener.run)
        thread.start()
        try:
            if wait:
                wait_until(lambda: all(consumer.connected for consumer in listener.consumers.values()))
            yield listener
        finally:
            listener.stop()
            thread.join(10)
            assert not thread.is_alive()

    def press(self, *bodies: str | bytes, key: str = "taskcluster.try.retrigger", **properties: Any) -> None:
        """Publish messages of pressed buttons."""
        self.publish(self.actions, *bodies, key=key, **properties)

    def publish(self, exchange: str, *bodies: str | bytes, key: str, **properties: Any) -> None:
        for body in bodies:
            raw = body if isinstance(body, bytes) else body.encode()
            self.channel.basic_publish(exchange, key, raw, pika.BasicProperties(delivery_mode=2, **properties))

    def count_ready(self, queue: str = "") -> int:
        """Return the number of messages at the broker that no consumer holds."""
        return int(self.channel.queue_declare(queue or self.queue, passive=True).method.message_count)

    def logged(self, event: str) -> list[Any]:
        """Return the log lines of an event."""
        return [line for line in self.logs if line["event"] == event]


def press_until_forwarded(broker_harness: BrokerHarness) -> None:
    """Press buttons until one is forwarded."""

    def is_forwarded() -> bool:
        broker_harness.press("1")
        return bool(broker_harness.service.bodies())

    wait_until(is_forwarded)


def running_pulse_listener(
    broker_harness: BrokerHarness, **settings: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run `tc-treeherder listen pulse` between the broker and the service of the harness."""
    options = {
        "pulse_url": broker_harness.amqp.url,
        "pulse_queue": broker_harness.amqp.name,
        "pulse_job_actions": broker_harness.actions,
    }
    return running_listener("pulse", broker_harness.url, **{**options, **settings})
