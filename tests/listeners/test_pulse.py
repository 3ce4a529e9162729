"""The Pulse listener, at a real RabbitMQ."""

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
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
from tests.listeners.fakes import SECRET, Answer, Request, problem, serving, short
from tests.private_servers import MissingServiceError, PrivateBroker
from tests.proxy import TcpProxy, TlsProxy, make_certificate
from tests.services import Amqp

ROOT = Path(__file__).parents[2]
ACTIONS, TASKS = "/api/v1/events/job-actions", "/api/v1/events/tasks"
MOMENT = timedelta(milliseconds=50)


@dataclass
class Service:
    """Stores what is posted, once; `before` can answer in its stead, by path."""

    batches: dict[str, list[list[Any]]] = field(default_factory=lambda: {ACTIONS: [], TASKS: []})
    stored: dict[str, JobActionMessage] = field(default_factory=dict)
    reports: list[QueueReport] = field(default_factory=list)
    state: QueueState = field(default_factory=lambda: QueueState(deleted=False))
    before: Callable[[Request], Answer | None] = lambda request: None
    acknowledged: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> Answer:
        if (given := self.before(request)) is not None:
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


def eventually(what: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (told := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return told


@dataclass
class World:
    amqp: Amqp
    url: str
    service: Service = field(default_factory=Service)
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
        return short(self.url, **{**defaults, **options})

    @contextmanager
    def listening(self, *, wait: bool = True, **options: Any) -> Iterator[PulseListener]:
        """A listener that runs; with `wait`, its queues are bound."""
        listener = PulseListener(self.settings(**options))
        thread = threading.Thread(target=listener.run)
        thread.start()
        try:
            if wait:
                eventually(lambda: all(each.connected for each in listener.consumers.values()))
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

    def told(self, event: str) -> list[Any]:
        return [line for line in self.logs if line["event"] == event]


@pytest.fixture
def world(amqp: Amqp) -> Iterator[World]:
    service = Service()
    with ExitStack() as stack:
        world = World(amqp, stack.enter_context(serving(service.answer)), service)
        world.logs = stack.enter_context(capture_logs())
        yield world
        world.connection.close()


@pytest.fixture
def proxy(world: World) -> Iterator[TcpProxy]:
    """Between the listener and the broker, which answers heartbeats every second."""
    parts = urlsplit(world.amqp.url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        world.broker = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}", query="heartbeat=1"))
        yield proxy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a listener ends soon after it was told to."""
    for place in (module, channel_module):
        monkeypatch.setattr(place, "CHECK_INTERVAL", 0.02)


def press_until_heard(world: World) -> None:
    def heard() -> bool:
        world.press("1")
        return bool(world.service.bodies())

    eventually(heard)


# What is forwarded


def test_a_pressed_button_is_forwarded_as_it_came(world: World) -> None:
    body = '{"action": "retrigger", "job_guid": "x/0", "n": 1.10, "u": "\\udce9 ü"}'
    with world.listening():
        world.press(body, headers={"CC": ["taskcluster.other", "ü"], "x": 1})
        (event,) = eventually(world.service.events)
    assert (event.exchange, event.routing_key) == (world.actions, "taskcluster.try.retrigger")
    assert (event.cc, event.redelivered) == (["taskcluster.other", "ü"], False)
    assert (event.body, event.encoding) == (body, "utf-8")
    assert world.waiting() == 0


def test_of_the_buttons_only_those_of_taskcluster_are_heard(world: World) -> None:
    with world.listening():
        world.press("1", key="buildbot.try.retrigger")
        world.press("2", key="taskcluster.try.retrigger.")
        eventually(world.service.bodies)
    assert world.service.bodies() == ["2"]


def test_what_is_no_json_is_forwarded_all_the_same_and_acknowledged(world: World) -> None:
    odd = [b"no json", b"\xff\xfe\x00", b"", b"[" * 100_000, b"\x00"]
    with world.listening() as listener:
        world.press(*odd)
        events = eventually(lambda: len(world.service.events()) == len(odd) and world.service.events())
        eventually(lambda: listener.consumers["job-actions"].counts["rejected"] == len(odd))
    assert [
        base64.b64decode(event.body) if event.encoding == "base64" else event.body.encode() for event in events
    ] == odd
    assert world.waiting() == 0
    assert world.told("events-rejected")[0]["first_reason"] == "not JSON; kept as a dead letter"


def test_headers_that_are_no_list_of_keys_do_no_harm(world: World) -> None:
    with world.listening():
        # the broker itself refuses a CC that is no list, so what it lets through is what there is to fear
        world.press("1", headers={"CC": ["taskcluster.a"] * 1_200})
        world.press("2", headers=None)
        world.press("3", headers={"BCC": ["taskcluster.b"]})
        eventually(lambda: len(world.service.events()) == 3)
    assert [len(event.cc) for event in world.service.events()] == [1_000, 0, 0]


def test_a_message_that_comes_alone_goes_on_at_once_and_a_flood_in_batches(world: World) -> None:
    with world.listening(pulse_linger=timedelta(seconds=3), pulse_batch=500):
        world.press("0")
        began = time.monotonic()
        eventually(world.service.events)
        alone = time.monotonic() - began
        world.press(*(str(number) for number in range(1, 1_201)))
        eventually(lambda: len(world.service.events()) == 1_201)
    assert alone < 3
    assert world.service.bodies() == [str(number) for number in range(1_201)]
    sizes = [len(batch) for batch in world.service.batches[ACTIONS]]
    assert max(sizes) == 500
    assert len(sizes) <= 5, sizes
    assert len({event.delivery for event in world.service.events()}) == 1_201
    assert len({event.channel for event in world.service.events()}) == 1
    assert world.waiting() == 0


# Acknowledged only when stored


def test_nothing_is_acknowledged_before_the_service_has_it(world: World) -> None:
    asked, hold = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            asked.set()
            hold.wait(10)
            return Answer(hang_up=True)
        return None

    world.service.before = wait
    with world.listening(drain=MOMENT) as abandoned:
        world.press("1")
        assert asked.wait(10)
        assert world.waiting() == 0  # the listener holds it
    eventually(lambda: world.waiting() == 1)
    hold.set()
    eventually(lambda: not any(thread.name == "job-actions handler" for thread in threading.enumerate()))
    abandoned._forwarder.close()  # as the end of a process does
    world.service.before = lambda request: None
    with world.listening():
        (event,) = eventually(world.service.events)
    assert event.redelivered
    assert world.waiting() == 0


def test_a_repeated_post_carries_the_same_keys(world: World) -> None:
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
            world.service.before = lambda request: None
            world.service.answer(request)
            return Answer(hang_up=True)
        return None

    world.service.before = break_thrice
    with world.listening():
        world.press("1")
        eventually(lambda: len(world.service.bodies()) == 2)
        eventually(lambda: world.told("service-back"))
    first, second = posts[0], posts[2]
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert len(world.service.stored) == 1
    assert world.waiting() == 0


def test_while_the_service_is_away_it_stops_reading_and_keeps_the_connection(world: World, proxy: TcpProxy) -> None:
    world.service.before = lambda request: problem(503, "away")
    with world.listening(pulse_batch=5, pulse_prefetch=10) as listener:
        world.press(*map(str, range(50)))
        eventually(lambda: world.waiting() == 40)
        time.sleep(3.5)  # more heartbeats than may be missed
        assert world.waiting() == 40
        assert proxy.connections == 1
        assert listener.consumers["job-actions"].counts["connections lost"] == 0
        world.service.before = lambda request: None
        eventually(lambda: len(world.service.bodies()) == 50)
    assert world.service.bodies() == list(map(str, range(50)))
    assert not any(event.redelivered for event in world.service.events())
    assert world.waiting() == 0
    assert len(world.told("service-away")) == 1
    assert len(world.told("service-back")) == 1


def test_a_refused_batch_stays_until_a_person_has_mended_it(world: World) -> None:
    refused = threading.Event()

    def refuse(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            refused.set()
            return problem(404, "no such path")
        return None

    world.service.before = refuse
    with world.listening():
        world.press("1")
        eventually(lambda: world.told("batch-refused"))
        world.service.before = lambda request: None
        eventually(lambda: world.service.bodies() == ["1"])
    assert "no such path" in world.told("batch-refused")[0]["error"]
    assert world.waiting() == 0


def test_an_answer_with_too_few_verdicts_acknowledges_nothing(world: World) -> None:
    def lose_one(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            return Answer(202, Verdicts(verdicts=[]).model_dump_json().encode())
        return None

    world.service.before = lose_one
    with world.listening():
        world.press("1")
        (line, *_) = eventually(lambda: world.told("batch-refused"))
        world.service.before = lambda request: None
        eventually(lambda: world.service.bodies() == ["1"])
    assert "0 verdicts for 1 events" in line["error"]


def test_what_a_proxy_finds_too_large_is_sent_in_pieces(world: World) -> None:
    sizes: list[int] = []
    too_early: list[str] = []

    def limit(request: Request) -> Answer | None:
        sizes.append(len(request.body))
        if request.path == ACTIONS and listener:
            # a batch is acknowledged when its last piece is given
            reported = {*world.service.acknowledged, *json.loads(request.body)["acknowledged"]}
            if len(reported) > listener[0].consumers["job-actions"].counts["forwarded"]:
                too_early.extend(reported)
        return problem(413, "too large") if len(request.body) > 150_000 else None

    listener: list[PulseListener] = []
    world.service.before = limit
    with world.listening() as running:
        listener.append(running)
        world.press(*(json.dumps(f"{number}" * 50_000) for number in range(8)))
        eventually(lambda: len(world.service.bodies()) == 8)
    assert [body[1] for body in world.service.bodies()] == list("01234567")
    assert max(sizes) > 150_000
    assert world.waiting() == 0
    assert len(world.service.acknowledged) == 8
    assert too_early == []


def test_of_a_message_that_is_always_too_large_the_beginning_becomes_a_dead_letter(world: World) -> None:
    world.service.before = lambda request: problem(413, "too large") if len(request.body) > 150_000 else None
    with world.listening() as listener:
        world.press("1", json.dumps("x" * 200_000), "3")
        eventually(lambda: len(world.service.bodies()) == 3)
        eventually(lambda: listener.consumers["job-actions"].counts["rejected"] == 1)
    assert [body[:2] for body in world.service.bodies()] == ["1", '"x', "3"]
    assert world.told("event-too-large")
    assert world.waiting() == 0


# What it hears


def test_a_missing_exchange_is_looked_for_again_and_stops_nothing_else(world: World) -> None:
    world.declare(world.task_exchange("running"))
    with world.listening(environments=["stage"]) as listener:
        world.press("a")
        world.publish(world.task_exchange("running"), "b", key="primary.x", headers={"CC": ["route.stage.try.abc"]})
        eventually(lambda: world.service.bodies(TASKS) == ["b"] and world.service.bodies() == ["a"])
        missing = listener.consumers["tasks"].missing_exchanges
        assert missing == [world.task_exchange(e) for e in ("defined", "pending", "completed", "failed", "exception")]
        assert {line["exchange"] for line in world.told("exchange-missing")} == set(missing)
        assert listener.state()["status"] == "warning"
        for event in ("defined", "pending", "completed", "failed", "exception"):
            world.declare(world.task_exchange(event))
        eventually(lambda: not listener.consumers["tasks"].missing_exchanges)
        world.publish(world.task_exchange("failed"), "c", key="primary.x", headers={"CC": ["route.stage.try.abc"]})
        eventually(lambda: world.service.bodies(TASKS) == ["b", "c"])
        assert listener.state()["status"] == "ok"
    assert len(world.told("exchange-bound")) == 5


def test_an_exchange_that_is_made_anew_is_bound_again(world: World) -> None:
    with world.listening():
        world.channel.exchange_delete(world.actions)
        world.declare(world.actions)
        press_until_heard(world)


def test_no_exchange_is_ever_made(world: World) -> None:
    nowhere = world.amqp.exchange("nowhere")
    with world.listening(pulse_job_actions=nowhere):
        eventually(lambda: world.told("exchange-missing"))
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            world.connection.channel().exchange_declare(nowhere, passive=True)


def test_tasks_are_heard_by_the_routes_of_each_environment(world: World) -> None:
    for event in ("defined", "pending", "running", "completed", "failed", "exception"):
        world.declare(world.task_exchange(event))
    with world.listening(environments=["tc-treeherder", "stage"]) as listener:
        for number, route in enumerate(("tc-treeherder.try.abc", "stage.v2.try.abc.1", "stage-2.try", "index.stage")):
            world.publish(
                world.task_exchange("failed"), str(number), key="primary.x", headers={"CC": [f"route.{route}"]}
            )
        both = ["route.stage.try.1", "route.tc-treeherder.try.1"]
        world.publish(world.task_exchange("defined"), "once", key="primary.x", headers={"CC": both})
        eventually(lambda: "once" in world.service.bodies(TASKS))
        assert set(listener.consumers) == {"job-actions", "tasks"}
    assert world.service.bodies(TASKS) == ["0", "1", "once"]
    assert world.service.events(TASKS)[-1].cc == both


def test_without_environments_no_tasks_are_read(world: World) -> None:
    with world.listening(environments={}) as listener:
        assert set(listener.consumers) == {"job-actions"}


def test_an_action_does_not_wait_behind_tasks(world: World) -> None:
    hold = threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == TASKS:
            hold.wait(10)
        return None

    world.service.before = wait
    world.declare(world.task_exchange("failed"))
    with world.listening(environments=["stage"]):
        for number in range(3_000):
            world.publish(world.task_exchange("failed"), str(number), key="x", headers={"CC": ["route.stage.a"]})
        world.press("press")
        eventually(lambda: world.service.bodies() == ["press"])
        assert world.service.bodies(TASKS) == []
        eventually(lambda: world.waiting(world.tasks_queue) == 2_000)
        hold.set()
        eventually(lambda: len(world.service.bodies(TASKS)) == 3_000)
    assert world.waiting(world.tasks_queue) == 0


# The broker


def test_a_lost_connection_is_made_anew_and_what_was_read_is_left_to_its_redelivery(
    world: World, proxy: TcpProxy
) -> None:
    world.service.before = lambda request: problem(503, "away")
    with world.listening(pulse_batch=2, pulse_prefetch=6) as listener:
        world.press(*map(str, range(6)))
        consumer = listener.consumers["job-actions"]
        eventually(lambda: consumer.counts["received"] == 6)
        for lost in (1, 2):
            proxy.cut()
            eventually(lambda: consumer.counts["connections lost"] >= lost and consumer.connected)  # noqa: B023 - called at once
            eventually(lambda: consumer.counts["received"] == 6 * (lost + 1))  # noqa: B023 - called at once
        assert len(consumer.inbox) <= 6  # what is held does not grow with each connection
        world.service.before = lambda request: None
        eventually(lambda: len(world.service.bodies()) == 6)
    events = world.service.events()
    assert [event.body for event in events] == list("012345")
    assert all(event.redelivered for event in events)
    assert len({event.channel for event in events}) == 1
    assert world.waiting() == 0
    assert world.told("connection-lost")[0]["error"]
    assert world.told("dropped")


def test_what_was_not_taken_is_not_posted_again_once_its_channel_is_gone(world: World, proxy: TcpProxy) -> None:
    posts: list[Request] = []

    def away(request: Request) -> Answer | None:
        if request.path != ACTIONS:
            return None
        posts.append(request)
        return problem(503, "away")

    world.service.before = away
    with world.listening() as listener:
        world.press("1")
        consumer = listener.consumers["job-actions"]
        eventually(lambda: posts)
        proxy.cut()
        eventually(lambda: consumer.counts["connections lost"] and consumer.connected)
        world.service.before = lambda request: None
        eventually(lambda: world.waiting() == 0 and world.service.acknowledged)
    (before,) = json.loads(posts[0].body)["events"]
    (again,) = world.service.events()
    assert before["delivery"] != again.delivery
    assert (before["redelivered"], again.redelivered) == (False, True)


def test_the_service_is_told_what_the_broker_has_taken(world: World) -> None:
    world.declare(world.task_exchange("running"))
    with world.listening(environments=["stage"]):
        world.press("1", "2", "no json")
        world.publish(world.task_exchange("running"), "b", key="primary.x", headers={"CC": ["route.stage.try.abc"]})
        eventually(lambda: len(world.service.acknowledged) == 3 and world.service.bodies(TASKS))
        assert world.waiting() == 0
    assert world.service.acknowledged == [event.delivery for event in world.service.events()]


def test_the_service_is_not_told_what_nobody_knows(world: World, proxy: TcpProxy) -> None:
    def cut(request: Request) -> Answer | None:
        if request.path == ACTIONS and not world.told("connection-lost"):
            proxy.cut()
            eventually(lambda: world.told("connection-lost"))
        return None

    world.service.before = cut
    with world.listening():
        world.press("1")
        eventually(lambda: world.service.acknowledged)
    first, again = world.service.events()
    assert world.service.acknowledged == [again.delivery]
    assert first.delivery != again.delivery


def test_what_the_broker_has_taken_is_told_with_the_next_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, channel_module):
        monkeypatch.setattr(place, "CHECK_INTERVAL", 1)
    posted: list[Any] = []

    def note(request: Request) -> None:
        if request.path == ACTIONS:
            posted.append(json.loads(request.body))

    world.service.before = note
    with world.listening():
        for number in range(1_000):
            world.press(str(number))
            eventually(lambda: len(world.service.bodies()) > number)  # noqa: B023 - called at once
            if any(each["events"] and each["acknowledged"] for each in posted):
                break
        eventually(lambda: len(world.service.acknowledged) == len(world.service.bodies()))
    told = next(each for each in posted if each["events"] and each["acknowledged"])
    assert not {event["delivery"] for event in told["events"]} & set(told["acknowledged"])
    assert not posted[0]["acknowledged"]
    assert world.service.acknowledged == [event.delivery for event in world.service.events()]


def test_a_report_that_does_not_arrive_is_repeated(world: World) -> None:
    refused: list[Any] = []

    def refuse(request: Request) -> Answer | None:
        if request.path != ACTIONS or len(refused) > 2 or not json.loads(request.body)["acknowledged"]:
            return None
        refused.append(json.loads(request.body))
        return problem(503, "away")

    world.service.before = refuse
    with world.listening():
        world.press("1", "2")
        eventually(lambda: len(world.service.acknowledged) == 2)
    assert len(refused) == 3
    assert world.service.acknowledged == [event.delivery for event in world.service.events()]


def test_at_the_end_it_tells_what_the_broker_has_taken(world: World) -> None:
    posted = threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS and not posted.is_set():
            posted.set()
            time.sleep(0.2)
        return None

    world.service.before = wait
    with world.listening():
        world.press("1")
        assert posted.wait(10)
    assert world.service.acknowledged == [event.delivery for event in world.service.events()]


def test_what_a_broken_channel_brought_is_not_posted(world: World, proxy: TcpProxy) -> None:
    """A listener that was suspended reads what the broker has given to somebody else long since."""
    with world.listening(pulse_timeout=timedelta(seconds=1)) as listener:
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
            world.press("1")
            assert held.wait(10)
            time.sleep(0.2)
            assert world.service.bodies() == [], "nothing is posted before the broker has answered"
            proxy.cut()
            proxy.release()
            eventually(lambda: world.service.acknowledged)
        assert listener.consumers["job-actions"].counts["accepted"] == 1
    assert [event.redelivered for event in world.service.events()] == [True]
    assert world.told("dropped")


def test_what_a_lost_channel_may_have_acknowledged_is_never_told(world: World) -> None:
    """Neither while nothing comes, nor with the next channel's first batch."""
    settings, stop = world.settings(), threading.Event()
    forwarder = Forwarder(settings, stop, connections=1)
    sender = EventSender(ACTIONS, forwarder, settings, stop, lambda verdict, events: None, counts_presses=True)
    connection = pika.BlockingConnection(pika.URLParameters(world.amqp.url))
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
        assert world.service.acknowledged == [event.delivery for event in world.service.events()[1::2]]
    connection.close()
    forwarder.close()


def test_each_message_says_when_it_was_read(world: World) -> None:
    before = time.time()
    world.service.before = lambda request: problem(503, "away")
    with world.listening() as listener:
        world.press("1")
        eventually(lambda: listener.consumers["job-actions"].counts["received"])
        read = time.time()
        time.sleep(0.1)
        world.service.before = lambda request: None
        (event,) = eventually(world.service.events)
    assert before <= event.stamp <= read


def test_while_the_broker_is_away_it_asks_again_with_growing_pauses(world: World, proxy: TcpProxy) -> None:
    limit = timedelta(seconds=0.3)
    with world.listening(unhealthy_after=limit, first_retry=MOMENT / 10, max_retry=timedelta(seconds=0.3)) as listener:
        assert listener.state()["status"] == "ok"
        proxy.refuse()
        eventually(lambda: listener.state()["status"] == "warning")
        eventually(lambda: listener.state()["status"] == "error")
        eventually(lambda: len(world.told("broker-away")) > 6)
        proxy.accept()
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
        assert listener.state()["status"] == "ok"
    away = world.told("broker-away")
    assert "ConnectionRefusedError" in away[0]["error"]
    assert away[0]["again_in"] < away[-1]["again_in"] <= 0.3


def test_a_broker_that_says_nothing_any_more_is_given_up(
    world: World, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pika looks after a heartbeat and 5 s
    often = property(lambda self: 1.5, lambda self, seconds: None)
    monkeypatch.setattr(pika.heartbeat.HeartbeatChecker, "_check_interval", often, raising=False)
    with world.listening(pulse_timeout=timedelta(seconds=1)) as listener:
        proxy.hold()
        eventually(lambda: world.told("connection-lost"))
        proxy.cut()
        proxy.release()
        eventually(lambda: listener.consumers["job-actions"].connected)
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
    assert "Heartbeat" in world.told("connection-lost")[0]["error"]


def test_a_broker_that_takes_the_connection_and_says_nothing_is_asked_again(world: World, proxy: TcpProxy) -> None:
    proxy.hold()
    with world.listening(wait=False, pulse_timeout=timedelta(seconds=0.2)) as listener:
        (line, *_) = eventually(lambda: world.told("broker-away"))
        proxy.release()
        eventually(lambda: listener.consumers["job-actions"].connected)
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
    assert "Timeout" in line["error"]


def test_a_channel_that_the_broker_closes_is_made_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class RecordedChannel(channel_module.AckChannel):
        def __init__(self, connection: Any, channel: Any, prefetch: int) -> None:
            super().__init__(connection, channel, prefetch)
            made.append((connection, channel))

    monkeypatch.setattr(module, "AckChannel", RecordedChannel)
    with world.listening():
        ((connection, channel),) = made
        connection.add_callback_threadsafe(lambda: channel.basic_ack(4711))  # RabbitMQ: unknown delivery tag
        eventually(lambda: len(made) == 2)
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
    assert "PRECONDITION_FAILED" in world.told("connection-lost")[0]["error"]


def test_a_deleted_queue_is_declared_anew_and_told_of_loudly(world: World) -> None:
    with world.listening() as listener:
        eventually(lambda: world.service.reports)
        world.channel.queue_delete(world.queue)
        eventually(lambda: world.told("queue-deleted"))
        eventually(lambda: listener.consumers["job-actions"].connected)
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
        eventually(lambda: [report.found for report in world.service.reports][-1] == "deleted")
        state = listener.state()
        assert (state["status"], state["queues"][world.queue]["deleted"]) == ("warning", 1)
    assert [report.found for report in world.service.reports] == ["new", "deleted"]
    assert {report.events for report in world.service.reports} == {"job-actions"}
    assert "cancelled the consumer" in world.told("connection-lost")[0]["error"]
    assert world.told("queue-deleted")[0]["log_level"] == "error"


def test_what_a_deleted_queue_had_brought_is_given_all_the_same(world: World) -> None:
    """Nobody brings it again. Queues are deleted when nothing takes from them, so when the service is away."""
    world.service.before = lambda request: problem(503, "away") if request.path == ACTIONS else None
    with world.listening(pulse_batch=2, pulse_prefetch=6) as listener:
        world.press(*map(str, range(6)))
        consumer = listener.consumers["job-actions"]
        eventually(lambda: consumer.counts["received"] == 6)
        for deleted in (1, 2):
            world.channel.queue_delete(world.queue)
            eventually(lambda: consumer.counts["connections lost"] == deleted and consumer.connected)  # noqa: B023 - called at once
        world.press(*map(str, range(6, 12)))
        assert len(consumer.inbox) == 6  # what is held does not grow with each queue
        world.service.before = lambda request: None
        eventually(lambda: len(world.service.acknowledged) == 6)
    assert world.service.bodies() == list(map(str, range(12)))
    assert world.service.acknowledged == [event.delivery for event in world.service.events()[6:]]
    assert world.waiting() == 0
    assert not world.told("dropped")


def test_a_queue_that_was_deleted_while_nobody_listened_is_known_to_the_service(world: World) -> None:
    world.service.state = QueueState(deleted=True, messages_lost_since="2024-01-01")
    with world.listening() as listener:
        (line,) = eventually(lambda: world.told("queue-deleted"))
        assert listener.state()["queues"][world.queue]["deleted"] == 1
    assert "2024-01-01" in line["problem"]
    with world.listening():  # it is there now
        eventually(lambda: len(world.service.reports) == 2)
    assert [report.found for report in world.service.reports] == ["new", "there"]
    assert len(world.told("queue-deleted")) == 1


def test_a_report_that_fails_holds_nothing_up_and_is_not_forgotten(world: World) -> None:
    world.service.before = lambda request: problem(500, "no") if request.path.endswith("report") else None
    with world.listening():
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
        assert world.told("report-failed")
        world.service.before = lambda request: None
        eventually(lambda: [report.found for report in world.service.reports] == ["new"])


def test_the_service_is_told_again_and_again_that_a_queue_is_read(world: World) -> None:
    with world.listening(pulse_report_every=MOMENT):
        eventually(lambda: len(world.service.reports) > 3)
    assert {report.found for report in world.service.reports[1:]} == {"there"}


def test_a_queue_that_others_have_to_themselves_is_no_reason_to_end(world: World) -> None:
    other = pika.BlockingConnection(pika.URLParameters(world.amqp.url))
    other.channel().queue_declare(world.queue, durable=True, exclusive=True)
    with world.listening(wait=False):
        eventually(lambda: len(world.told("broker-away")) > 1)
        other.close()
        press_until_heard(world)
    assert "RESOURCE_LOCKED" in world.told("broker-away")[0]["error"]


@pytest.fixture(scope="module")
def own_broker() -> Iterator[PrivateBroker]:
    try:
        broker = PrivateBroker()
        broker.start()
    except MissingServiceError as why:
        pytest.skip(str(why))
    yield broker
    broker.close()


@pytest.fixture
def own_world(own_broker: PrivateBroker) -> Iterator[World]:
    """A world with a broker that a test may break."""
    service = Service()
    own_broker.start()
    with serving(service.answer) as url, capture_logs() as logs:
        world = World(Amqp(own_broker.url), url, service, logs)
        yield world
        world.connection.close()


def test_an_exchange_that_may_not_be_read_is_told_as_that(own_world: World, own_broker: PrivateBroker) -> None:
    own_broker.ctl("set_permissions", "guest", ".*", ".*", "^queue/.*")
    try:
        with own_world.listening():
            (line, *_) = eventually(lambda: own_world.told("exchange-missing"))
            assert "this user may not read it" in line["remedy"]
            assert "ACCESS_REFUSED" in line["error"]
    finally:
        own_broker.ctl("set_permissions", "guest", ".*", ".*", ".*")


def test_a_broker_that_is_restarted_delivers_what_was_not_acknowledged(
    own_world: World, own_broker: PrivateBroker
) -> None:
    world, away = own_world, threading.Event()
    away.set()
    world.service.before = lambda request: problem(503, "away") if away.is_set() else None
    with world.listening(pulse_batch=2, pulse_prefetch=4) as listener:
        world.press(*map(str, range(10)))
        consumer = listener.consumers["job-actions"]
        eventually(lambda: consumer.counts["received"] == 4)
        eventually(lambda: world.waiting() == 6)
        world.connection.close()
        own_broker.restart()
        world.connect()
        away.clear()
        eventually(lambda: len(world.service.bodies()) == 10, 30)
        world.press("after")
        eventually(lambda: world.service.bodies()[-1] == "after")
        assert consumer.counts["deleted"] == 0
    events = world.service.events()[:-1]
    assert sorted(event.body for event in events) == list("0123456789")
    assert {event.body for event in events if event.redelivered} == set("0123")
    assert world.waiting() == 0
    assert world.told("broker-away")


def test_a_connection_that_stays_blocked_is_given_up(
    own_world: World, own_broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = own_world, []

    class RecordedChannel(channel_module.AckChannel):
        def __init__(self, connection: Any, channel: Any, prefetch: int) -> None:
            super().__init__(connection, channel, prefetch)
            made.append((connection, channel))

    monkeypatch.setattr(module, "AckChannel", RecordedChannel)
    # not shorter: where both come at once, pika gives the connection up without telling that it was blocked
    with world.listening(pulse_blocked=timedelta(seconds=4)):
        own_broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            ((connection, channel),) = made
            # RabbitMQ blocks connections that publish; ours never does, so it is made to
            connection.add_callback_threadsafe(lambda: channel.basic_publish("", "nowhere", b""))
            eventually(lambda: world.told("connection-blocked"))
            eventually(lambda: len(made) == 2)
        finally:  # a broker that stays blocked would hold up the tests that follow
            own_broker.ctl("set_vm_memory_high_watermark", "0.8")
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
    assert "Blocked" in world.told("connection-lost")[0]["error"]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def tls(world: World, certificate: Path) -> Iterator[TlsProxy]:
    parts = urlsplit(world.amqp.url)
    with TlsProxy(parts.hostname or "127.0.0.1", parts.port or 5672, certificate) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        world.broker = urlunsplit(parts._replace(scheme="amqps", netloc=f"{user}@127.0.0.1:{proxy.port}"))
        yield proxy


def test_amqps_speaks_tls_with_a_broker_that_it_trusts(
    world: World, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with world.listening():
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])


def test_a_broker_whose_certificate_is_not_trusted_gets_nothing(world: World, tls: TlsProxy) -> None:
    with world.listening(wait=False) as listener:
        (line, *_) = eventually(lambda: world.told("broker-away"))
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
    world: World,
    tls: TlsProxy,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    plain = urlsplit(world.amqp.url)
    assert plain.password is not None
    url = f"amqps://{plain.username}:PASSWORD@127.0.0.1:TLS/VHOST".replace(*changed)
    for name, value in {
        "PASSWORD": plain.password, "TLS": tls.port, "PLAIN": plain.port or 5672, "VHOST": plain.path[1:]
    }.items():  # fmt: skip
        url = url.replace(name, str(value))
    world.broker = url
    with world.listening(wait=False):
        (line, *_) = eventually(lambda: world.told("broker-away"))
    assert words in line["remedy"]


def test_a_certificate_of_another_host_is_refused(
    world: World, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    world.broker = world.broker.replace("@127.0.0.1", "@localhost")
    with world.listening(wait=False):
        (line, *_) = eventually(lambda: world.told("broker-away"))
    assert "Hostname mismatch" in line["error"]


# The end


def test_the_end_gives_all_that_was_read(world: World) -> None:
    asked, hold = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            asked.set()
            hold.wait(10)
        return None

    world.service.before = wait
    with world.listening(pulse_batch=5, pulse_prefetch=20) as listener:
        world.press(*map(str, range(30)))
        assert asked.wait(10)
        eventually(lambda: world.waiting() == 10)
        listener.stop()
        threading.Timer(0.1, hold.set).start()
    assert world.service.bodies() == list(map(str, range(20)))
    assert world.waiting() == 10
    with world.listening():
        eventually(lambda: len(world.service.bodies()) == 30)
    assert not any(event.redelivered for event in world.service.events())


def test_an_end_while_the_service_is_away_comes_soon_and_loses_nothing(world: World) -> None:
    world.service.before = lambda request: problem(503, "away")
    with world.listening(max_retry=timedelta(seconds=30), first_retry=timedelta(seconds=30)) as listener:
        world.press("1", "2")
        eventually(lambda: listener.consumers["job-actions"].counts["received"] == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert world.told("not-given")
    assert world.waiting() == 2


def test_a_bug_ends_the_listener_with_its_traceback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> bytes:
        raise LookupError("a bug")

    monkeypatch.setattr("listeners.pulse.encode_job_action", broken)
    listener = PulseListener(world.settings())
    world.channel.queue_declare(world.queue, durable=True)
    world.channel.queue_bind(world.queue, world.actions, "taskcluster.#")
    world.press("1")
    with pytest.raises(LookupError, match="a bug"):
        listener.run()
    assert world.waiting() == 1


# The process


@contextmanager
def process(world: World, **environment: str) -> Iterator[subprocess.Popen[str]]:
    settings = {
        "TC_TREEHERDER_SERVICE_URL": world.url,
        "TC_TREEHERDER_WEBHOOK_SECRETS": f'["{SECRET}"]',
        "TC_TREEHERDER_PULSE_URL": world.amqp.url,
        "TC_TREEHERDER_PULSE_QUEUE": world.amqp.name,
        "TC_TREEHERDER_PULSE_JOB_ACTIONS": world.actions,
        **environment,
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TC_TREEHERDER_")}
    running = subprocess.Popen(
        [sys.executable, "-m", "service", "listen", "pulse"],
        cwd=ROOT, env={**clean, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def ends(running: subprocess.Popen[str], number: signal.Signals, seconds: float) -> str:
    """Send the signal, and give what the process printed; it must end well and in time."""
    running.send_signal(number)
    began = time.monotonic()
    output, _ = running.communicate(timeout=30)
    assert time.monotonic() - began < seconds, output
    assert running.returncode == 0, output
    assert "Traceback" not in output
    return output


def test_a_probe_that_cannot_listen_is_told(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(world, TC_TREEHERDER_PROBE_PORT=str(port)) as running:
            output, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert f"probe_port: 127.0.0.1:{port} cannot be opened" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(world: World, number: signal.Signals) -> None:
    port = free_port()
    with process(world, TC_TREEHERDER_PROBE_PORT=str(port)) as running:
        eventually(lambda: world.service.reports, 60)
        told = httpx.get(f"http://127.0.0.1:{port}/__heartbeat__").json()
        assert (told["status"], told["queues"][world.queue]["connected"]) == ("ok", True)
        world.press("1")
        eventually(lambda: world.service.bodies() == ["1"])
        # 55 MB when this was written; a leak or a heavy import would show
        assert psutil.Process(running.pid).memory_info().rss < 60e6
        output = ends(running, number, 3)
    assert '"stopped"' in output
    assert world.waiting() == 0


def test_sigterm_ends_it_within_5_seconds_though_service_and_broker_say_nothing(world: World, proxy: TcpProxy) -> None:
    silent = threading.Event()

    def hang(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            silent.wait(20)
        return None

    world.service.before = hang
    with process(world, TC_TREEHERDER_PULSE_URL=world.broker) as running:
        eventually(lambda: world.service.reports, 60)
        world.press("1")
        eventually(lambda: world.waiting() == 0)
        proxy.hold()
        output = ends(running, signal.SIGTERM, 5)
        silent.set()
    assert "abandoned" in output


def test_killed_at_any_moment_it_loses_nothing(world: World) -> None:
    """Some kill -9 while messages come in: each of them arrives."""
    world.channel.queue_declare(world.queue, durable=True)
    world.channel.queue_bind(world.queue, world.actions, "taskcluster.#")
    world.press(*map(str, range(400)))

    def slowly(request: Request) -> Answer | None:
        time.sleep(0.005)
        return None

    world.service.before = slowly
    kills = 0
    while len(set(world.service.bodies())) < 400:
        enough = len(world.service.events()) + 1 + kills % 5 * 40
        with process(world, TC_TREEHERDER_PULSE_BATCH="25", TC_TREEHERDER_PULSE_LINGER="0") as running:
            eventually(lambda: len(world.service.events()) >= enough or len(set(world.service.bodies())) == 400, 60)  # noqa: B023 - called at once
            running.kill()
        kills += 1
    assert kills > 2
    assert set(world.service.bodies()) == set(map(str, range(400)))


def test_without_a_url_it_says_what_to_do(world: World) -> None:
    with process(world, TC_TREEHERDER_PULSE_URL="") as running:
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
    assert short("http://x", environments={"a": {"jobs": "off"}, "b": {"jobs": "rest"}, "c": {}}).environments == [
        "b",
        "c",
    ]


@pytest.mark.parametrize("url", ["http://x", "amqp://u:hunter2@x:port", "amqp://u:hunter2@x?unknown=1"])
def test_a_url_that_cannot_be_understood_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="pulse_url cannot be understood") as raised:
        connection_parameters(short("http://x", pulse_url=url))
    assert "hunter2" not in str(raised.value)


def test_tasks_alone_without_environments_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing would be read"):
        PulseListener(short("http://x", pulse_url="amqp://x", pulse_read=["tasks"]))


def test_a_prefetch_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="pulse_prefetch must be at least pulse_batch"):
        short("http://x", pulse_prefetch=10)
