"""How a queue is read, at a real RabbitMQ that goes away, hangs, or loses the queue."""

import threading
import time
from datetime import timedelta
from typing import Any

import pika
import pytest

from listeners import channel as channel_module
from listeners import consumer as module
from service.contract.events import (
    QueueState,
)
from tests.listeners.broker_harness import (
    ACTIONS,
    MOMENT,
    TASKS,
    BrokerHarness,
    press_until_forwarded,
    wait_until,
)
from tests.listeners.fakes import Answer, Request, problem
from tests.private_servers import PrivateBroker
from tests.proxy import TcpProxy


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
