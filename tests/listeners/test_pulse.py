"""The Pulse listener, at a real RabbitMQ."""

import base64
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pika
import psutil
import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from listeners import channel as channel_module
from listeners import consumer as module
from listeners.forward import Forwarder
from listeners.pulse import EventSender, PulseListener, connection_parameters, encode_job_action, queue_owner
from listeners.settings import ListenerSettings, load
from sandbox.stack import free_port
from service.contract.configuration import SettingsError
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
from tests.listeners.fakes import SECRET, Answer, Request, problem, quick_settings, serving
from tests.listeners.processes import running_listener, terminate
from tests.private_servers import MissingServiceError, PrivateBroker
from tests.proxy import TcpProxy, TlsProxy, make_certificate
from tests.services import Amqp

ROOT = Path(__file__).parents[2]
ACTIONS, TASKS = "/api/v1/events/job-actions", "/api/v1/events/tasks"
MOMENT = timedelta(milliseconds=50)


@dataclass
class FakeEventService:
    """Stores what is posted, once; `override` can answer in its stead, by path."""

    batches: dict[str, list[list[Any]]] = field(default_factory=lambda: {ACTIONS: [], TASKS: []})
    stored: dict[str, JobActionMessage] = field(default_factory=dict)
    reports: list[QueueReport] = field(default_factory=list)
    state: QueueState = field(default_factory=lambda: QueueState(deleted=False))
    override: Callable[[Request], Answer | None] = lambda request: None
    acknowledged: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Answer:
        if (given := self.override(request)) is not None:
            return given
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
        """All that came, in order."""
        with self.lock:
            return [event.body for batch in self.batches[path] for event in batch]

    def events(self, path: str = ACTIONS) -> list[Any]:
        with self.lock:
            return [event for batch in self.batches[path] for event in batch]


def wait_until(what: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (told := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return told


@dataclass
class BrokerHarness:
    amqp: Amqp
    url: str
    service: FakeEventService = field(default_factory=FakeEventService)
    logs: list[Any] = field(default_factory=list)
    broker: str = ""
    """The broker's URL that the listener gets, when it is another than the test's own."""

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
        """A listener that runs; with `wait`, its queues are bound."""
        listener = PulseListener(self.settings(**options))
        thread = threading.Thread(target=listener.run)
        thread.start()
        try:
            if wait:
                wait_until(lambda: all(each.connected for each in listener.consumers.values()))
            yield listener
        finally:
            listener.stop()
            thread.join(10)
            assert not thread.is_alive()

    def press(self, *bodies: str | bytes, key: str = "taskcluster.try.retrigger", **properties: Any) -> None:
        self.publish(self.actions, *bodies, key=key, **properties)

    def publish(self, exchange: str, *bodies: str | bytes, key: str, **properties: Any) -> None:
        for body in bodies:
            raw = body if isinstance(body, bytes) else body.encode()
            self.channel.basic_publish(exchange, key, raw, pika.BasicProperties(delivery_mode=2, **properties))

    def waiting(self, queue: str = "") -> int:
        """Messages at the broker that nobody holds."""
        return int(self.channel.queue_declare(queue or self.queue, passive=True).method.message_count)

    def logged(self, event: str) -> list[Any]:
        return [line for line in self.logs if line["event"] == event]


@pytest.fixture
def broker_harness(amqp: Amqp) -> Iterator[BrokerHarness]:
    service = FakeEventService()
    with ExitStack() as stack:
        broker_harness = BrokerHarness(amqp, stack.enter_context(serving(service.answer)), service)
        broker_harness.logs = stack.enter_context(capture_logs())
        yield broker_harness
        broker_harness.connection.close()


@pytest.fixture
def proxy(broker_harness: BrokerHarness) -> Iterator[TcpProxy]:
    """Between the listener and the broker, which answers heartbeats every second."""
    parts = urlsplit(broker_harness.amqp.url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        broker_harness.broker = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}", query="heartbeat=1"))
        yield proxy


@pytest.fixture(autouse=True)
def check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a listener ends soon after it was told to."""
    for place in (module, channel_module):
        monkeypatch.setattr(place, "CHECK_INTERVAL", 0.02)


def press_until_forwarded(broker_harness: BrokerHarness) -> None:
    def heard() -> bool:
        broker_harness.press("1")
        return bool(broker_harness.service.bodies())

    wait_until(heard)


# What is forwarded


def test_a_pressed_button_is_forwarded_as_it_came(broker_harness: BrokerHarness) -> None:
    body = '{"action": "retrigger", "job_guid": "x/0", "n": 1.10, "u": "\\udce9 ü"}'
    with broker_harness.listening():
        broker_harness.press(body, headers={"CC": ["taskcluster.other", "ü"], "x": 1})
        (event,) = wait_until(broker_harness.service.events)
    assert (event.exchange, event.routing_key) == (broker_harness.actions, "taskcluster.try.retrigger")
    assert (event.cc, event.redelivered) == (["taskcluster.other", "ü"], False)
    assert (event.body, event.encoding) == (body, "utf-8")
    assert broker_harness.waiting() == 0


def test_of_the_buttons_only_those_of_taskcluster_are_heard(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        broker_harness.press("1", key="buildbot.try.retrigger")
        broker_harness.press("2", key="taskcluster.try.retrigger.")
        wait_until(broker_harness.service.bodies)
    assert broker_harness.service.bodies() == ["2"]


def test_what_is_no_json_is_forwarded_all_the_same_and_acknowledged(broker_harness: BrokerHarness) -> None:
    odd = [b"no json", b"\xff\xfe\x00", b"", b"[" * 100_000, b"\x00"]
    with broker_harness.listening() as listener:
        broker_harness.press(*odd)
        events = wait_until(
            lambda: len(broker_harness.service.events()) == len(odd) and broker_harness.service.events()
        )
        wait_until(lambda: listener.consumers["job-actions"].counts["rejected"] == len(odd))
    assert [
        base64.b64decode(event.body) if event.encoding == "base64" else event.body.encode() for event in events
    ] == odd
    assert broker_harness.waiting() == 0
    assert broker_harness.logged("events-rejected")[0]["first_reason"] == "not JSON; kept as a dead letter"


def test_headers_that_are_no_list_of_keys_do_no_harm(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        # the broker itself refuses a CC that is no list, so what it lets through is what there is to fear
        broker_harness.press("1", headers={"CC": ["taskcluster.a"] * 1_200})
        broker_harness.press("2", headers=None)
        broker_harness.press("3", headers={"BCC": ["taskcluster.b"]})
        wait_until(lambda: len(broker_harness.service.events()) == 3)
    assert [len(event.cc) for event in broker_harness.service.events()] == [1_000, 0, 0]


def test_a_message_that_comes_alone_goes_on_at_once_and_a_flood_in_batches(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(pulse_linger=timedelta(seconds=3), pulse_batch=500):
        broker_harness.press("0")
        began = time.monotonic()
        wait_until(broker_harness.service.events)
        alone = time.monotonic() - began
        broker_harness.press(*(str(number) for number in range(1, 1_201)))
        wait_until(lambda: len(broker_harness.service.events()) == 1_201)
    assert alone < 3
    assert broker_harness.service.bodies() == [str(number) for number in range(1_201)]
    sizes = [len(batch) for batch in broker_harness.service.batches[ACTIONS]]
    assert max(sizes) == 500
    assert len(sizes) <= 5, sizes
    assert len({event.delivery for event in broker_harness.service.events()}) == 1_201
    assert len({event.channel for event in broker_harness.service.events()}) == 1
    assert broker_harness.waiting() == 0


# Acknowledged only when stored


def test_nothing_is_acknowledged_before_the_service_has_it(broker_harness: BrokerHarness) -> None:
    asked, hold = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            asked.set()
            hold.wait(10)
            return Answer(hang_up=True)
        return None

    broker_harness.service.override = wait
    with broker_harness.listening(drain=MOMENT) as abandoned:
        broker_harness.press("1")
        assert asked.wait(10)
        assert broker_harness.waiting() == 0  # the listener holds it
    wait_until(lambda: broker_harness.waiting() == 1)
    hold.set()
    wait_until(lambda: not any(thread.name == "job-actions handler" for thread in threading.enumerate()))
    abandoned._forwarder.close()  # as the end of a process does
    broker_harness.service.override = lambda request: None
    with broker_harness.listening():
        (event,) = wait_until(broker_harness.service.events)
    assert event.redelivered
    assert broker_harness.waiting() == 0


def test_a_repeated_post_carries_the_same_keys(broker_harness: BrokerHarness) -> None:
    posts: list[Request] = []

    def break_thrice(request: Request) -> Answer | None:
        if request.path != ACTIONS:
            return None
        posts.append(request)
        if len(posts) == 1:
            return problem(503, "away")
        if len(posts) == 2:
            return Answer(hang_up=True)
        if len(posts) == 3:  # it is stored, and the answer is lost
            broker_harness.service.override = lambda request: None
            broker_harness.service.answer(request)
            return Answer(hang_up=True)
        return None

    broker_harness.service.override = break_thrice
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: len(broker_harness.service.bodies()) == 2)
        wait_until(lambda: broker_harness.logged("service-back"))
    first, second = posts[0], posts[2]
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert len(broker_harness.service.stored) == 1
    assert broker_harness.waiting() == 0


def test_while_the_service_is_away_it_stops_reading_and_keeps_the_connection(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening(pulse_batch=5, pulse_prefetch=10) as listener:
        broker_harness.press(*map(str, range(50)))
        wait_until(lambda: broker_harness.waiting() == 40)
        time.sleep(3.5)  # more heartbeats than may be missed
        assert broker_harness.waiting() == 40
        assert proxy.connections == 1
        assert listener.consumers["job-actions"].counts["connections lost"] == 0
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.bodies()) == 50)
    assert broker_harness.service.bodies() == list(map(str, range(50)))
    assert not any(event.redelivered for event in broker_harness.service.events())
    assert broker_harness.waiting() == 0
    assert len(broker_harness.logged("service-away")) == 1
    assert len(broker_harness.logged("service-back")) == 1


def test_a_refused_batch_stays_until_a_person_has_mended_it(broker_harness: BrokerHarness) -> None:
    refused = threading.Event()

    def refuse(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            refused.set()
            return problem(404, "no such path")
        return None

    broker_harness.service.override = refuse
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.logged("batch-refused"))
        broker_harness.service.override = lambda request: None
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "no such path" in broker_harness.logged("batch-refused")[0]["error"]
    assert broker_harness.waiting() == 0


def test_an_answer_with_too_few_verdicts_acknowledges_nothing(broker_harness: BrokerHarness) -> None:
    def lose_one(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            return Answer(202, Verdicts(verdicts=[]).model_dump_json().encode())
        return None

    broker_harness.service.override = lose_one
    with broker_harness.listening():
        broker_harness.press("1")
        (line, *_) = wait_until(lambda: broker_harness.logged("batch-refused"))
        broker_harness.service.override = lambda request: None
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "0 verdicts for 1 events" in line["error"]


def test_what_a_proxy_finds_too_large_is_sent_in_pieces(broker_harness: BrokerHarness) -> None:
    sizes: list[int] = []
    too_early: list[str] = []

    def limit(request: Request) -> Answer | None:
        sizes.append(len(request.body))
        if request.path == ACTIONS and listener:
            # a batch is acknowledged when its last piece is given
            reported = {*broker_harness.service.acknowledged, *json.loads(request.body)["acknowledged"]}
            if len(reported) > listener[0].consumers["job-actions"].counts["forwarded"]:
                too_early.extend(reported)
        return problem(413, "too large") if len(request.body) > 150_000 else None

    listener: list[PulseListener] = []
    broker_harness.service.override = limit
    with broker_harness.listening() as running:
        listener.append(running)
        broker_harness.press(*(json.dumps(f"{number}" * 50_000) for number in range(8)))
        wait_until(lambda: len(broker_harness.service.bodies()) == 8)
    assert [body[1] for body in broker_harness.service.bodies()] == list("01234567")
    assert max(sizes) > 150_000
    assert broker_harness.waiting() == 0
    assert len(broker_harness.service.acknowledged) == 8
    assert too_early == []


def test_of_a_message_that_is_always_too_large_the_beginning_becomes_a_dead_letter(
    broker_harness: BrokerHarness,
) -> None:
    broker_harness.service.override = lambda request: problem(413, "too large") if len(request.body) > 150_000 else None
    with broker_harness.listening() as listener:
        broker_harness.press("1", json.dumps("x" * 200_000), "3")
        wait_until(lambda: len(broker_harness.service.bodies()) == 3)
        wait_until(lambda: listener.consumers["job-actions"].counts["rejected"] == 1)
    assert [body[:2] for body in broker_harness.service.bodies()] == ["1", '"x', "3"]
    assert broker_harness.logged("event-too-large")
    assert broker_harness.waiting() == 0


# What it hears


def test_a_missing_exchange_is_looked_for_again_and_stops_nothing_else(broker_harness: BrokerHarness) -> None:
    broker_harness.declare(broker_harness.task_exchange("running"))
    with broker_harness.listening(environments=["stage"]) as listener:
        broker_harness.press("a")
        broker_harness.publish(
            broker_harness.task_exchange("running"), "b", key="primary.x", headers={"CC": ["route.stage.try.abc"]}
        )
        wait_until(lambda: broker_harness.service.bodies(TASKS) == ["b"] and broker_harness.service.bodies() == ["a"])
        missing = listener.consumers["tasks"].missing_exchanges
        assert missing == [
            broker_harness.task_exchange(e) for e in ("defined", "pending", "completed", "failed", "exception")
        ]
        assert {line["exchange"] for line in broker_harness.logged("exchange-missing")} == set(missing)
        assert listener.state()["status"] == "warning"
        for event in ("defined", "pending", "completed", "failed", "exception"):
            broker_harness.declare(broker_harness.task_exchange(event))
        wait_until(lambda: not listener.consumers["tasks"].missing_exchanges)
        broker_harness.publish(
            broker_harness.task_exchange("failed"), "c", key="primary.x", headers={"CC": ["route.stage.try.abc"]}
        )
        wait_until(lambda: broker_harness.service.bodies(TASKS) == ["b", "c"])
        assert listener.state()["status"] == "ok"
    assert len(broker_harness.logged("exchange-bound")) == 5


def test_an_exchange_that_is_made_anew_is_bound_again(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        broker_harness.channel.exchange_delete(broker_harness.actions)
        broker_harness.declare(broker_harness.actions)
        press_until_forwarded(broker_harness)


def test_no_exchange_is_ever_made(broker_harness: BrokerHarness) -> None:
    nowhere = broker_harness.amqp.exchange("nowhere")
    with broker_harness.listening(pulse_job_actions=nowhere):
        wait_until(lambda: broker_harness.logged("exchange-missing"))
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            broker_harness.connection.channel().exchange_declare(nowhere, passive=True)


def test_tasks_are_heard_by_the_routes_of_each_environment(broker_harness: BrokerHarness) -> None:
    for event in ("defined", "pending", "running", "completed", "failed", "exception"):
        broker_harness.declare(broker_harness.task_exchange(event))
    with broker_harness.listening(environments=["tc-treeherder", "stage"]) as listener:
        for number, route in enumerate(("tc-treeherder.try.abc", "stage.v2.try.abc.1", "stage-2.try", "index.stage")):
            broker_harness.publish(
                broker_harness.task_exchange("failed"), str(number), key="primary.x", headers={"CC": [f"route.{route}"]}
            )
        both = ["route.stage.try.1", "route.tc-treeherder.try.1"]
        broker_harness.publish(broker_harness.task_exchange("defined"), "once", key="primary.x", headers={"CC": both})
        wait_until(lambda: "once" in broker_harness.service.bodies(TASKS))
        assert set(listener.consumers) == {"job-actions", "tasks"}
    assert broker_harness.service.bodies(TASKS) == ["0", "1", "once"]
    assert broker_harness.service.events(TASKS)[-1].cc == both


def test_without_environments_no_tasks_are_read(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(environments={}) as listener:
        assert set(listener.consumers) == {"job-actions"}


def test_an_action_does_not_wait_behind_tasks(broker_harness: BrokerHarness) -> None:
    hold = threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == TASKS:
            hold.wait(10)
        return None

    broker_harness.service.override = wait
    broker_harness.declare(broker_harness.task_exchange("failed"))
    with broker_harness.listening(environments=["stage"]):
        for number in range(3_000):
            broker_harness.publish(
                broker_harness.task_exchange("failed"), str(number), key="x", headers={"CC": ["route.stage.a"]}
            )
        broker_harness.press("press")
        wait_until(lambda: broker_harness.service.bodies() == ["press"])
        assert broker_harness.service.bodies(TASKS) == []
        wait_until(lambda: broker_harness.waiting(broker_harness.tasks_queue) == 2_000)
        hold.set()
        wait_until(lambda: len(broker_harness.service.bodies(TASKS)) == 3_000)
    assert broker_harness.waiting(broker_harness.tasks_queue) == 0


# The broker


def test_a_lost_connection_is_made_anew_and_what_was_read_is_left_to_its_redelivery(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening(pulse_batch=2, pulse_prefetch=6) as listener:
        broker_harness.press(*map(str, range(6)))
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: consumer.counts["received"] == 6)
        for lost in (1, 2):
            proxy.cut()
            wait_until(lambda: consumer.counts["connections lost"] >= lost and consumer.connected)  # noqa: B023 - called at once
            wait_until(lambda: consumer.counts["received"] == 6 * (lost + 1))  # noqa: B023 - called at once
        assert len(consumer.inbox) <= 6  # what is held does not grow with each connection
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.bodies()) == 6)
    events = broker_harness.service.events()
    assert [event.body for event in events] == list("012345")
    assert all(event.redelivered for event in events)
    assert len({event.channel for event in events}) == 1
    assert broker_harness.waiting() == 0
    assert broker_harness.logged("connection-lost")[0]["error"]
    assert broker_harness.logged("dropped")


def test_what_was_not_taken_is_not_posted_again_once_its_channel_is_gone(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    posts: list[Request] = []

    def away(request: Request) -> Answer | None:
        if request.path != ACTIONS:
            return None
        posts.append(request)
        return problem(503, "away")

    broker_harness.service.override = away
    with broker_harness.listening() as listener:
        broker_harness.press("1")
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: posts)
        proxy.cut()
        wait_until(lambda: consumer.counts["connections lost"] and consumer.connected)
        broker_harness.service.override = lambda request: None
        wait_until(lambda: broker_harness.waiting() == 0 and broker_harness.service.acknowledged)
    (before,) = json.loads(posts[0].body)["events"]
    (again,) = broker_harness.service.events()
    assert before["delivery"] != again.delivery
    assert (before["redelivered"], again.redelivered) == (False, True)


def test_the_service_is_told_what_the_broker_has_taken(broker_harness: BrokerHarness) -> None:
    broker_harness.declare(broker_harness.task_exchange("running"))
    with broker_harness.listening(environments=["stage"]):
        broker_harness.press("1", "2", "no json")
        broker_harness.publish(
            broker_harness.task_exchange("running"), "b", key="primary.x", headers={"CC": ["route.stage.try.abc"]}
        )
        wait_until(lambda: len(broker_harness.service.acknowledged) == 3 and broker_harness.service.bodies(TASKS))
        assert broker_harness.waiting() == 0
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_the_service_is_not_told_what_nobody_knows(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
    def cut(request: Request) -> Answer | None:
        if request.path == ACTIONS and not broker_harness.logged("connection-lost"):
            proxy.cut()
            wait_until(lambda: broker_harness.logged("connection-lost"))
        return None

    broker_harness.service.override = cut
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.acknowledged)
    first, again = broker_harness.service.events()
    assert broker_harness.service.acknowledged == [again.delivery]
    assert first.delivery != again.delivery


def test_what_the_broker_has_taken_is_told_with_the_next_batch(
    broker_harness: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (module, channel_module):
        monkeypatch.setattr(place, "CHECK_INTERVAL", 1)
    posted: list[Any] = []

    def note(request: Request) -> None:
        if request.path == ACTIONS:
            posted.append(json.loads(request.body))

    broker_harness.service.override = note
    with broker_harness.listening():
        for number in range(1_000):
            broker_harness.press(str(number))
            wait_until(lambda: len(broker_harness.service.bodies()) > number)  # noqa: B023 - called at once
            if any(each["events"] and each["acknowledged"] for each in posted):
                break
        wait_until(lambda: len(broker_harness.service.acknowledged) == len(broker_harness.service.bodies()))
    told = next(each for each in posted if each["events"] and each["acknowledged"])
    assert not {event["delivery"] for event in told["events"]} & set(told["acknowledged"])
    assert not posted[0]["acknowledged"]
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_a_report_that_does_not_arrive_is_repeated(broker_harness: BrokerHarness) -> None:
    refused: list[Any] = []

    def refuse(request: Request) -> Answer | None:
        if request.path != ACTIONS or len(refused) > 2 or not json.loads(request.body)["acknowledged"]:
            return None
        refused.append(json.loads(request.body))
        return problem(503, "away")

    broker_harness.service.override = refuse
    with broker_harness.listening():
        broker_harness.press("1", "2")
        wait_until(lambda: len(broker_harness.service.acknowledged) == 2)
    assert len(refused) == 3
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_at_the_end_it_tells_what_the_broker_has_taken(broker_harness: BrokerHarness) -> None:
    posted = threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS and not posted.is_set():
            posted.set()
            time.sleep(0.2)
        return None

    broker_harness.service.override = wait
    with broker_harness.listening():
        broker_harness.press("1")
        assert posted.wait(10)
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_what_a_broken_channel_brought_is_not_posted(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
    """A listener that was suspended reads what the broker has given to somebody else long since."""
    with broker_harness.listening(pulse_timeout=timedelta(seconds=1)) as listener:
        session = channel_module.AckChannel
        held = threading.Event()
        confirmed = session.confirm_acknowledgements

        def cut_off(self: channel_module.AckChannel) -> bool:
            if not held.is_set():
                held.set()
                proxy.hold()  # nobody notices anything: it has to ask
            return confirmed(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "confirm_acknowledgements", cut_off)
            broker_harness.press("1")
            assert held.wait(10)
            time.sleep(0.2)
            assert broker_harness.service.bodies() == [], "nothing is posted before the broker has answered"
            proxy.cut()
            proxy.release()
            wait_until(lambda: broker_harness.service.acknowledged)
        assert listener.consumers["job-actions"].counts["accepted"] == 1
    assert [event.redelivered for event in broker_harness.service.events()] == [True]
    assert broker_harness.logged("dropped")


def test_what_a_lost_channel_may_have_acknowledged_is_never_told(broker_harness: BrokerHarness) -> None:
    """Neither while nothing comes, nor with the next channel's first batch."""
    settings, stop = broker_harness.settings(), threading.Event()
    forwarder = Forwarder(settings, stop, connections=1)
    sender = EventSender(ACTIONS, forwarder, settings, stop, lambda verdict, events: None, counts_presses=True)
    connection = pika.BlockingConnection(pika.URLParameters(broker_harness.amqp.url))
    method, properties = pika.spec.Basic.Deliver(exchange="x", routing_key="y"), pika.BasicProperties()

    def batch(session: channel_module.AckChannel) -> list[bytes]:
        return [encode_job_action(session.id, method, properties, b"1")]

    class Asked(channel_module.AckChannel):
        """A channel that answers as long as it is open: here no thread reads."""

        def confirm_acknowledgements(self) -> bool:
            return not self.is_lost

    for idle in (True, False):
        lost, new = (Asked(connection, connection.channel(), 1) for _ in range(2))
        sender.send(batch(lost), lost)
        lost._channel.close()
        if idle:
            sender.report_confirmed()
        sender.send(batch(new), new)
        sender.report_confirmed()
        assert broker_harness.service.acknowledged == [
            event.delivery for event in broker_harness.service.events()[1::2]
        ]
    connection.close()
    forwarder.close()


def test_each_message_says_when_it_was_read(broker_harness: BrokerHarness) -> None:
    before = time.time()
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening() as listener:
        broker_harness.press("1")
        wait_until(lambda: listener.consumers["job-actions"].counts["received"])
        read = time.time()
        time.sleep(0.1)
        broker_harness.service.override = lambda request: None
        (event,) = wait_until(broker_harness.service.events)
    assert before <= event.stamp <= read


def test_while_the_broker_is_away_it_asks_again_with_growing_pauses(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    limit = timedelta(seconds=0.3)
    with broker_harness.listening(
        unhealthy_after=limit, first_retry=MOMENT / 10, max_retry=timedelta(seconds=0.3)
    ) as listener:
        assert listener.state()["status"] == "ok"
        proxy.refuse()
        wait_until(lambda: listener.state()["status"] == "warning")
        wait_until(lambda: listener.state()["status"] == "error")
        wait_until(lambda: len(broker_harness.logged("broker-away")) > 6)
        proxy.accept()
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        assert listener.state()["status"] == "ok"
    away = broker_harness.logged("broker-away")
    assert "ConnectionRefusedError" in away[0]["error"]
    assert away[0]["again_in"] < away[-1]["again_in"] <= 0.3


def test_a_broker_that_says_nothing_any_more_is_given_up(
    broker_harness: BrokerHarness, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pika looks after a heartbeat and 5 s
    often = property(lambda self: 1.5, lambda self, seconds: None)
    monkeypatch.setattr(pika.heartbeat.HeartbeatChecker, "_check_interval", often, raising=False)
    with broker_harness.listening(pulse_timeout=timedelta(seconds=1)) as listener:
        proxy.hold()
        wait_until(lambda: broker_harness.logged("connection-lost"))
        proxy.cut()
        proxy.release()
        wait_until(lambda: listener.consumers["job-actions"].connected)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "Heartbeat" in broker_harness.logged("connection-lost")[0]["error"]


def test_a_broker_that_takes_the_connection_and_says_nothing_is_asked_again(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    proxy.hold()
    with broker_harness.listening(wait=False, pulse_timeout=timedelta(seconds=0.2)) as listener:
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
        proxy.release()
        wait_until(lambda: listener.consumers["job-actions"].connected)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "Timeout" in line["error"]


def test_a_channel_that_the_broker_closes_is_made_anew(
    broker_harness: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class RecordedChannel(channel_module.AckChannel):
        def __init__(self, connection: Any, channel: Any, prefetch: int) -> None:
            super().__init__(connection, channel, prefetch)
            made.append((connection, channel))

    monkeypatch.setattr(module, "AckChannel", RecordedChannel)
    with broker_harness.listening():
        ((connection, channel),) = made
        connection.add_callback_threadsafe(lambda: channel.basic_ack(4711))  # RabbitMQ: unknown delivery tag
        wait_until(lambda: len(made) == 2)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "PRECONDITION_FAILED" in broker_harness.logged("connection-lost")[0]["error"]


def test_a_deleted_queue_is_declared_anew_and_told_of_loudly(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening() as listener:
        wait_until(lambda: broker_harness.service.reports)
        broker_harness.channel.queue_delete(broker_harness.queue)
        wait_until(lambda: broker_harness.logged("queue-deleted"))
        wait_until(lambda: listener.consumers["job-actions"].connected)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        wait_until(lambda: [report.found for report in broker_harness.service.reports][-1] == "deleted")
        state = listener.state()
        assert (state["status"], state["queues"][broker_harness.queue]["deleted"]) == ("warning", 1)
    assert [report.found for report in broker_harness.service.reports] == ["new", "deleted"]
    assert {report.events for report in broker_harness.service.reports} == {"job-actions"}
    assert "cancelled the consumer" in broker_harness.logged("connection-lost")[0]["error"]
    assert broker_harness.logged("queue-deleted")[0]["log_level"] == "error"


def test_what_a_deleted_queue_had_brought_is_given_all_the_same(broker_harness: BrokerHarness) -> None:
    """Nobody brings it again. Queues are deleted when nothing takes from them, so when the service is away."""
    broker_harness.service.override = lambda request: problem(503, "away") if request.path == ACTIONS else None
    with broker_harness.listening(pulse_batch=2, pulse_prefetch=6) as listener:
        broker_harness.press(*map(str, range(6)))
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: consumer.counts["received"] == 6)
        for deleted in (1, 2):
            broker_harness.channel.queue_delete(broker_harness.queue)
            wait_until(lambda: consumer.counts["connections lost"] == deleted and consumer.connected)  # noqa: B023 - called at once
        broker_harness.press(*map(str, range(6, 12)))
        assert len(consumer.inbox) == 6  # what is held does not grow with each queue
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.acknowledged) == 6)
    assert broker_harness.service.bodies() == list(map(str, range(12)))
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()[6:]]
    assert broker_harness.waiting() == 0
    assert not broker_harness.logged("dropped")


def test_a_queue_that_was_deleted_while_nobody_listened_is_known_to_the_service(broker_harness: BrokerHarness) -> None:
    broker_harness.service.state = QueueState(deleted=True, messages_lost_since="2024-01-01")
    with broker_harness.listening() as listener:
        (line,) = wait_until(lambda: broker_harness.logged("queue-deleted"))
        assert listener.state()["queues"][broker_harness.queue]["deleted"] == 1
    assert "2024-01-01" in line["problem"]
    with broker_harness.listening():  # it is there now
        wait_until(lambda: len(broker_harness.service.reports) == 2)
    assert [report.found for report in broker_harness.service.reports] == ["new", "there"]
    assert len(broker_harness.logged("queue-deleted")) == 1


def test_a_report_that_fails_holds_nothing_up_and_is_not_forgotten(broker_harness: BrokerHarness) -> None:
    broker_harness.service.override = lambda request: problem(500, "no") if request.path.endswith("report") else None
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        assert broker_harness.logged("report-failed")
        broker_harness.service.override = lambda request: None
        wait_until(lambda: [report.found for report in broker_harness.service.reports] == ["new"])


def test_the_service_is_told_again_and_again_that_a_queue_is_read(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(pulse_report_every=MOMENT):
        wait_until(lambda: len(broker_harness.service.reports) > 3)
    assert {report.found for report in broker_harness.service.reports[1:]} == {"there"}


def test_a_queue_that_others_have_to_themselves_is_no_reason_to_end(broker_harness: BrokerHarness) -> None:
    other = pika.BlockingConnection(pika.URLParameters(broker_harness.amqp.url))
    other.channel().queue_declare(broker_harness.queue, durable=True, exclusive=True)
    with broker_harness.listening(wait=False):
        wait_until(lambda: len(broker_harness.logged("broker-away")) > 1)
        other.close()
        press_until_forwarded(broker_harness)
    assert "RESOURCE_LOCKED" in broker_harness.logged("broker-away")[0]["error"]


@pytest.fixture(scope="module")
def private_broker() -> Iterator[PrivateBroker]:
    try:
        broker = PrivateBroker()
        broker.start()
    except MissingServiceError as why:
        pytest.skip(str(why))
    yield broker
    broker.close()


@pytest.fixture
def private_harness(private_broker: PrivateBroker) -> Iterator[BrokerHarness]:
    """A world with a broker that a test may break."""
    service = FakeEventService()
    private_broker.start()
    with serving(service.answer) as url, capture_logs() as logs:
        broker_harness = BrokerHarness(Amqp(private_broker.url), url, service, logs)
        yield broker_harness
        broker_harness.connection.close()


def test_an_exchange_that_may_not_be_read_is_told_as_that(
    private_harness: BrokerHarness, private_broker: PrivateBroker
) -> None:
    private_broker.ctl("set_permissions", "guest", ".*", ".*", "^queue/.*")
    try:
        with private_harness.listening():
            (line, *_) = wait_until(lambda: private_harness.logged("exchange-missing"))
            assert "this user may not read it" in line["remedy"]
            assert "ACCESS_REFUSED" in line["error"]
    finally:
        private_broker.ctl("set_permissions", "guest", ".*", ".*", ".*")


def test_a_broker_that_is_restarted_delivers_what_was_not_acknowledged(
    private_harness: BrokerHarness, private_broker: PrivateBroker
) -> None:
    broker_harness, away = private_harness, threading.Event()
    away.set()
    broker_harness.service.override = lambda request: problem(503, "away") if away.is_set() else None
    with broker_harness.listening(pulse_batch=2, pulse_prefetch=4) as listener:
        broker_harness.press(*map(str, range(10)))
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: consumer.counts["received"] == 4)
        wait_until(lambda: broker_harness.waiting() == 6)
        broker_harness.connection.close()
        private_broker.restart()
        broker_harness.connect()
        away.clear()
        wait_until(lambda: len(broker_harness.service.bodies()) == 10, 30)
        broker_harness.press("after")
        wait_until(lambda: broker_harness.service.bodies()[-1] == "after")
        assert consumer.counts["deleted"] == 0
    events = broker_harness.service.events()[:-1]
    assert sorted(event.body for event in events) == list("0123456789")
    assert {event.body for event in events if event.redelivered} == set("0123")
    assert broker_harness.waiting() == 0
    assert broker_harness.logged("broker-away")


def test_a_connection_that_stays_blocked_is_given_up(
    private_harness: BrokerHarness, private_broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker_harness, made = private_harness, []

    class RecordedChannel(channel_module.AckChannel):
        def __init__(self, connection: Any, channel: Any, prefetch: int) -> None:
            super().__init__(connection, channel, prefetch)
            made.append((connection, channel))

    monkeypatch.setattr(module, "AckChannel", RecordedChannel)
    # not shorter: where both come at once, pika gives the connection up without telling that it was blocked
    with broker_harness.listening(pulse_blocked=timedelta(seconds=4)):
        private_broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            ((connection, channel),) = made
            # RabbitMQ blocks connections that publish; ours never does, so it is made to
            connection.add_callback_threadsafe(lambda: channel.basic_publish("", "nowhere", b""))
            wait_until(lambda: broker_harness.logged("connection-blocked"))
            wait_until(lambda: len(made) == 2)
        finally:  # a broker that stays blocked would hold up the tests that follow
            private_broker.ctl("set_vm_memory_high_watermark", "0.8")
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "Blocked" in broker_harness.logged("connection-lost")[0]["error"]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def tls(broker_harness: BrokerHarness, certificate: Path) -> Iterator[TlsProxy]:
    parts = urlsplit(broker_harness.amqp.url)
    with TlsProxy(parts.hostname or "127.0.0.1", parts.port or 5672, certificate) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        broker_harness.broker = urlunsplit(parts._replace(scheme="amqps", netloc=f"{user}@127.0.0.1:{proxy.port}"))
        yield proxy


def test_amqps_speaks_tls_with_a_broker_that_it_trusts(
    broker_harness: BrokerHarness, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])


def test_a_broker_whose_certificate_is_not_trusted_gets_nothing(broker_harness: BrokerHarness, tls: TlsProxy) -> None:
    with broker_harness.listening(wait=False) as listener:
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
        assert not listener.consumers["job-actions"].connected
    assert "CERTIFICATE_VERIFY_FAILED" in line["error"]
    assert "SSL_CERT_FILE" in line["remedy"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("amqps://", "amqp://"), "whether the URL must begin with amqps://"),
        ((":TLS/", ":PLAIN/"), "The port does not speak TLS"),
        (("/VHOST", "/nowhere"), "check the virtual host"),
        (("PASSWORD@", "wrong@"), "check user and password"),
    ],
)
def test_a_slip_in_the_url_is_told_with_its_remedy(
    broker_harness: BrokerHarness,
    tls: TlsProxy,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    plain = urlsplit(broker_harness.amqp.url)
    assert plain.password is not None
    url = f"amqps://{plain.username}:PASSWORD@127.0.0.1:TLS/VHOST".replace(*changed)
    for name, value in {
        "PASSWORD": plain.password, "TLS": tls.port, "PLAIN": plain.port or 5672, "VHOST": plain.path[1:]
    }.items():  # fmt: skip
        url = url.replace(name, str(value))
    broker_harness.broker = url
    with broker_harness.listening(wait=False):
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
    assert words in line["remedy"]


def test_a_certificate_of_another_host_is_refused(
    broker_harness: BrokerHarness, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    broker_harness.broker = broker_harness.broker.replace("@127.0.0.1", "@localhost")
    with broker_harness.listening(wait=False):
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
    assert "Hostname mismatch" in line["error"]


# The end


def test_the_end_gives_all_that_was_read(broker_harness: BrokerHarness) -> None:
    asked, hold = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            asked.set()
            hold.wait(10)
        return None

    broker_harness.service.override = wait
    with broker_harness.listening(pulse_batch=5, pulse_prefetch=20) as listener:
        broker_harness.press(*map(str, range(30)))
        assert asked.wait(10)
        wait_until(lambda: broker_harness.waiting() == 10)
        listener.stop()
        threading.Timer(0.1, hold.set).start()
    assert broker_harness.service.bodies() == list(map(str, range(20)))
    assert broker_harness.waiting() == 10
    with broker_harness.listening():
        wait_until(lambda: len(broker_harness.service.bodies()) == 30)
    assert not any(event.redelivered for event in broker_harness.service.events())


def test_an_end_while_the_service_is_away_comes_soon_and_loses_nothing(broker_harness: BrokerHarness) -> None:
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening(max_retry=timedelta(seconds=30), first_retry=timedelta(seconds=30)) as listener:
        broker_harness.press("1", "2")
        wait_until(lambda: listener.consumers["job-actions"].counts["received"] == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert broker_harness.logged("not-given")
    assert broker_harness.waiting() == 2


def test_a_bug_ends_the_listener_with_its_traceback(
    broker_harness: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bytes:
        raise LookupError("a bug")

    monkeypatch.setattr("listeners.pulse.encode_job_action", broken)
    listener = PulseListener(broker_harness.settings())
    broker_harness.channel.queue_declare(broker_harness.queue, durable=True)
    broker_harness.channel.queue_bind(broker_harness.queue, broker_harness.actions, "taskcluster.#")
    broker_harness.press("1")
    with pytest.raises(LookupError, match="a bug"):
        listener.run()
    assert broker_harness.waiting() == 1


# The process


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


def test_a_probe_that_cannot_listen_is_told(broker_harness: BrokerHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_pulse_listener(broker_harness, probe_port=str(port)) as running:
            output, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert f"probe_port: 127.0.0.1:{port} cannot be opened" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(broker_harness: BrokerHarness, number: signal.Signals) -> None:
    port = free_port()
    with running_pulse_listener(broker_harness, probe_port=str(port)) as running:
        wait_until(lambda: broker_harness.service.reports, 60)
        told = httpx.get(f"http://127.0.0.1:{port}/__heartbeat__").json()
        assert (told["status"], told["queues"][broker_harness.queue]["connected"]) == ("ok", True)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        # 55 MB when this was written; a leak or a heavy import would show
        assert psutil.Process(running.pid).memory_info().rss < 60e6
        output = terminate(running, number, 3)
    assert '"stopped"' in output
    assert broker_harness.waiting() == 0


def test_sigterm_ends_it_within_5_seconds_though_service_and_broker_say_nothing(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    silent = threading.Event()

    def hang(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            silent.wait(20)
        return None

    broker_harness.service.override = hang
    with running_pulse_listener(broker_harness, pulse_url=broker_harness.broker) as running:
        wait_until(lambda: broker_harness.service.reports, 60)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.waiting() == 0)
        proxy.hold()
        output = terminate(running, signal.SIGTERM, 5)
        silent.set()
    assert "abandoned" in output


def test_killed_at_any_moment_it_loses_nothing(broker_harness: BrokerHarness) -> None:
    """Some kill -9 while messages come in: each of them arrives."""
    broker_harness.channel.queue_declare(broker_harness.queue, durable=True)
    broker_harness.channel.queue_bind(broker_harness.queue, broker_harness.actions, "taskcluster.#")
    broker_harness.press(*map(str, range(400)))

    def slowly(request: Request) -> Answer | None:
        time.sleep(0.005)
        return None

    def all_arrived() -> bool:
        return len(set(broker_harness.service.bodies())) == 400

    def have_arrived(count: int) -> bool:
        return len(broker_harness.service.events()) >= count or all_arrived()

    broker_harness.service.override = slowly
    kills = 0
    while not all_arrived():
        kill_at = len(broker_harness.service.events()) + 1 + kills % 5 * 40
        with running_pulse_listener(broker_harness, pulse_batch="25", pulse_linger="0") as running:
            wait_until(partial(have_arrived, kill_at), 60)
            running.kill()
        kills += 1
    assert kills > 2
    assert set(broker_harness.service.bodies()) == set(map(str, range(400)))


def test_without_a_url_it_says_what_to_do(broker_harness: BrokerHarness) -> None:
    with running_pulse_listener(broker_harness, pulse_url="") as running:
        output, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "TC_TREEHERDER_PULSE_URL" in output
    assert "amqps://user:password@pulse.mozilla.org:5671/%2F" in output


# Settings


def test_one_environment_serves_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.settings import load as load_service

    for name, value in {
        "WEBHOOK_SECRETS": f'["{SECRET}"]',
        "PULSE__URL": "amqp://who:pass@broker/%2F",
        "PULSE_QUEUE": "mine",
        "ENVIRONMENTS": '{"stage": {"url": "https://th", "client_id": "c", "secret": "s"}, "b": {"url": "https://b", '
        '"pushes": "off"}}',
    }.items():
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", value)
    settings = load()
    assert settings.environments == ["stage", "b"]
    assert queue_owner(settings) == "who"
    made = connection_parameters(settings)
    assert (made.host, made.credentials.password, made.heartbeat) == ("broker", "pass", 30)
    service = load_service()
    assert service.pulse.url is not None
    assert service.pulse.url.get_secret_value() == "amqp://who:pass@broker/%2F"
    monkeypatch.setenv("TC_TREEHERDER_PULSE__USER", "them")
    assert queue_owner(load()) == "them"
    monkeypatch.setenv("TC_TREEHERDER_PULSE_URL", "amqps://other:x@pulse?heartbeat=7")
    monkeypatch.setenv("TC_TREEHERDER_PULSE_USER", "us")
    made = connection_parameters(load())
    assert (made.host, made.port, made.heartbeat, queue_owner(load())) == ("pulse", 5671, 7, "us")
    context = made.ssl_options.context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_an_environment_whose_jobs_are_off_is_not_listened_for() -> None:
    assert quick_settings(
        "http://x", environments={"a": {"jobs": "off"}, "b": {"jobs": "rest"}, "c": {}}
    ).environments == [
        "b",
        "c",
    ]


@pytest.mark.parametrize("url", ["http://x", "amqp://u:hunter2@x:port", "amqp://u:hunter2@x?unknown=1"])
def test_a_url_that_cannot_be_understood_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="pulse_url cannot be understood") as raised:
        connection_parameters(quick_settings("http://x", pulse_url=url))
    assert "hunter2" not in str(raised.value)


def test_tasks_alone_without_environments_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing would be read"):
        PulseListener(quick_settings("http://x", pulse_url="amqp://x", pulse_read=["tasks"]))


def test_a_prefetch_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="pulse_prefetch must be at least pulse_batch"):
        quick_settings("http://x", pulse_prefetch=10)
