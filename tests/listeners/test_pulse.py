"""The Pulse listener, at a real RabbitMQ."""

import base64
import json
import ssl
import threading
import time
from typing import Any

import pika
import pytest

from listeners import channel as channel_module
from listeners import consumer as consumer_module
from listeners.channel import AckChannel
from listeners.forward import Forwarder
from listeners.pulse import EventSender, PulseListener, connection_parameters, encode_job_action, queue_owner
from listeners.settings import load
from service.contract.configuration import SettingsError
from service.contract.events import Verdicts
from tests.listeners.broker_harness import ACTIONS, TASKS, BrokerHarness, wait_until
from tests.listeners.fakes import SECRET, Answer, Request, problem, quick_settings
from tests.proxy import TcpProxy

# Forwarding


def test_a_pressed_button_is_forwarded_unchanged(broker_harness: BrokerHarness) -> None:
    body = '{"action": "retrigger", "job_guid": "x/0", "n": 1.10, "u": "\\udce9 ü"}'
    with broker_harness.listening():
        broker_harness.press(body, headers={"CC": ["taskcluster.other", "ü"], "x": 1})
        (event,) = wait_until(broker_harness.service.events)
    assert (event.exchange, event.routing_key) == (broker_harness.actions, "taskcluster.try.retrigger")
    assert (event.cc, event.redelivered) == (["taskcluster.other", "ü"], False)
    assert (event.body, event.encoding) == (body, "utf-8")
    assert broker_harness.count_ready() == 0


def test_only_buttons_of_taskcluster_are_read(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        broker_harness.press("1", key="buildbot.try.retrigger")
        broker_harness.press("2", key="taskcluster.try.retrigger.")
        wait_until(broker_harness.service.bodies)
    assert broker_harness.service.bodies() == ["2"]


def test_messages_that_are_not_json_are_forwarded_and_acknowledged(broker_harness: BrokerHarness) -> None:
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
    assert broker_harness.count_ready() == 0
    assert broker_harness.logged("events-rejected")[0]["first_reason"] == "not JSON; kept as a dead letter"


def test_odd_headers_are_tolerated(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        # the broker itself refuses a CC that is no list, so what it lets through is what there is to fear
        broker_harness.press("1", headers={"CC": ["taskcluster.a"] * 1_200})
        broker_harness.press("2", headers=None)
        broker_harness.press("3", headers={"BCC": ["taskcluster.b"]})
        wait_until(lambda: len(broker_harness.service.events()) == 3)
    assert [len(event.cc) for event in broker_harness.service.events()] == [1_000, 0, 0]


def test_a_repeated_post_has_the_same_keys(broker_harness: BrokerHarness) -> None:
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
    assert broker_harness.count_ready() == 0


def test_a_refused_batch_is_repeated_until_it_is_accepted(broker_harness: BrokerHarness) -> None:
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
    assert broker_harness.count_ready() == 0


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


def test_a_batch_that_is_too_large_is_split(broker_harness: BrokerHarness) -> None:
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
    assert broker_harness.count_ready() == 0
    assert len(broker_harness.service.acknowledged) == 8
    assert too_early == []


def test_a_message_that_is_too_large_is_shortened_and_becomes_a_dead_letter(
    broker_harness: BrokerHarness,
) -> None:
    broker_harness.service.override = lambda request: problem(413, "too large") if len(request.body) > 150_000 else None
    with broker_harness.listening() as listener:
        broker_harness.press("1", json.dumps("x" * 200_000), "3")
        wait_until(lambda: len(broker_harness.service.bodies()) == 3)
        wait_until(lambda: listener.consumers["job-actions"].counts["rejected"] == 1)
    assert [body[:2] for body in broker_harness.service.bodies()] == ["1", '"x', "3"]
    assert broker_harness.logged("event-too-large")
    assert broker_harness.count_ready() == 0


def test_task_events_are_read_by_the_routes_of_each_environment(broker_harness: BrokerHarness) -> None:
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


def test_without_environments_no_task_events_are_read(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(environments={}) as listener:
        assert set(listener.consumers) == {"job-actions"}


def test_an_action_does_not_wait_behind_tasks(broker_harness: BrokerHarness) -> None:
    release = threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == TASKS:
            release.wait(10)
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
        wait_until(lambda: broker_harness.count_ready(broker_harness.tasks_queue) == 2_000)
        release.set()
        wait_until(lambda: len(broker_harness.service.bodies(TASKS)) == 3_000)
    assert broker_harness.count_ready(broker_harness.tasks_queue) == 0


def test_a_batch_is_not_posted_again_after_its_channel_is_lost(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
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
        wait_until(lambda: broker_harness.count_ready() == 0 and broker_harness.service.acknowledged)
    (before,) = json.loads(posts[0].body)["events"]
    (again,) = broker_harness.service.events()
    assert before["delivery"] != again.delivery
    assert (before["redelivered"], again.redelivered) == (False, True)


def test_confirmed_deliveries_are_reported(broker_harness: BrokerHarness) -> None:
    broker_harness.declare(broker_harness.task_exchange("running"))
    with broker_harness.listening(environments=["stage"]):
        broker_harness.press("1", "2", "no json")
        broker_harness.publish(
            broker_harness.task_exchange("running"), "b", key="primary.x", headers={"CC": ["route.stage.try.abc"]}
        )
        wait_until(lambda: len(broker_harness.service.acknowledged) == 3 and broker_harness.service.bodies(TASKS))
        assert broker_harness.count_ready() == 0
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_deliveries_of_a_lost_connection_are_not_reported(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
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


def test_confirmed_deliveries_are_reported_with_the_next_batch(
    broker_harness: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (consumer_module, channel_module):
        monkeypatch.setattr(module, "CHECK_INTERVAL", 1)
    requests: list[Any] = []

    def record(request: Request) -> None:
        if request.path == ACTIONS:
            requests.append(json.loads(request.body))

    broker_harness.service.override = record
    with broker_harness.listening():
        for number in range(1_000):
            broker_harness.press(str(number))
            wait_until(lambda: len(broker_harness.service.bodies()) > number)  # noqa: B023 - called at once
            if any(request["events"] and request["acknowledged"] for request in requests):
                break
        wait_until(lambda: len(broker_harness.service.acknowledged) == len(broker_harness.service.bodies()))
    with_both = next(request for request in requests if request["events"] and request["acknowledged"])
    assert not {event["delivery"] for event in with_both["events"]} & set(with_both["acknowledged"])
    assert not requests[0]["acknowledged"]
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()]


def test_a_lost_report_of_confirmed_deliveries_is_repeated(broker_harness: BrokerHarness) -> None:
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


def test_confirmed_deliveries_are_reported_at_the_end(broker_harness: BrokerHarness) -> None:
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


def test_deliveries_of_a_lost_channel_are_never_reported(broker_harness: BrokerHarness) -> None:
    """They are reported neither while no message comes, nor with the first batch of the next channel."""
    settings, stop = broker_harness.settings(), threading.Event()
    forwarder = Forwarder(settings, stop, connections=1)
    sender = EventSender(ACTIONS, forwarder, settings, stop, lambda verdict, events: None, counts_presses=True)
    connection = pika.BlockingConnection(pika.URLParameters(broker_harness.amqp.url))
    method, properties = pika.spec.Basic.Deliver(exchange="x", routing_key="y"), pika.BasicProperties()

    def make_batch(channel: AckChannel) -> list[bytes]:
        return [encode_job_action(channel.id, method, properties, b"1")]

    class ConfirmingChannel(AckChannel):
        """A channel that confirms as long as it is open, because no thread reads here."""

        def confirm_acknowledgements(self) -> bool:
            return not self.is_lost

    for idle in (True, False):
        lost_amqp_channel, new_amqp_channel = connection.channel(), connection.channel()
        lost = ConfirmingChannel(connection, lost_amqp_channel, 1)
        new = ConfirmingChannel(connection, new_amqp_channel, 1)
        sender.send(make_batch(lost), lost)
        lost_amqp_channel.close()
        if idle:
            sender.report_confirmed()
        sender.send(make_batch(new), new)
        sender.report_confirmed()
        assert broker_harness.service.acknowledged == [
            event.delivery for event in broker_harness.service.events()[1::2]
        ]
    connection.close()
    forwarder.close()


def test_each_message_has_the_time_of_its_receipt(broker_harness: BrokerHarness) -> None:
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


def test_a_bug_stops_the_pulse_listener_and_is_raised(
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
    assert broker_harness.count_ready() == 1


# Settings


def test_pulse_settings_can_be_shared_with_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
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
    parameters = connection_parameters(settings)
    assert (parameters.host, parameters.credentials.password, parameters.heartbeat) == ("broker", "pass", 30)
    service = load_service()
    assert service.pulse.url is not None
    assert service.pulse.url.get_secret_value() == "amqp://who:pass@broker/%2F"
    monkeypatch.setenv("TC_TREEHERDER_PULSE__USER", "them")
    assert queue_owner(load()) == "them"
    monkeypatch.setenv("TC_TREEHERDER_PULSE_URL", "amqps://other:x@pulse?heartbeat=7")
    monkeypatch.setenv("TC_TREEHERDER_PULSE_USER", "us")
    parameters = connection_parameters(load())
    assert (parameters.host, parameters.port, parameters.heartbeat, queue_owner(load())) == ("pulse", 5671, 7, "us")
    context = parameters.ssl_options.context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize("url", ["http://x", "amqp://u:hunter2@x:port", "amqp://u:hunter2@x?unknown=1"])
def test_an_invalid_url_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="TC_TREEHERDER_PULSE_URL cannot be understood") as raised:
        connection_parameters(quick_settings("http://x", pulse_url=url))
    assert "hunter2" not in str(raised.value)


def test_tasks_alone_without_environments_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing would be read"):
        PulseListener(quick_settings("http://x", pulse_url="amqp://x", pulse_read=["tasks"]))
