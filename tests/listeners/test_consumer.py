"""Read a queue at a real RabbitMQ that goes away, hangs, or loses the queue."""

import threading
import time
from datetime import timedelta
from typing import Any

import pika
import pytest

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


def test_an_outage_of_the_service_stops_reading_and_keeps_the_connection(
    broker_harness: BrokerHarness, proxy: TcpProxy
) -> None:
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening(pulse_batch=5, pulse_prefetch=10) as listener:
        broker_harness.press(*map(str, range(50)))
        wait_until(lambda: broker_harness.count_ready() == 40)
        time.sleep(3.5)  # more heartbeats than may be missed
        assert broker_harness.count_ready() == 40
        assert proxy.connections == 1
        assert listener.consumers["job-actions"].counts["connections lost"] == 0
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.bodies()) == 50)
    assert broker_harness.service.bodies() == list(map(str, range(50)))
    assert not any(event.redelivered for event in broker_harness.service.events())
    assert broker_harness.count_ready() == 0
    assert len(broker_harness.logged("service-away")) == 1
    assert len(broker_harness.logged("service-back")) == 1


def test_a_missing_exchange_is_retried_and_does_not_affect_the_others(broker_harness: BrokerHarness) -> None:
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


def test_a_recreated_exchange_is_bound_again(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening():
        broker_harness.channel.exchange_delete(broker_harness.actions)
        broker_harness.declare(broker_harness.actions)
        press_until_forwarded(broker_harness)


def test_exchanges_are_never_declared(broker_harness: BrokerHarness) -> None:
    nowhere = broker_harness.amqp.exchange("nowhere")
    with broker_harness.listening(pulse_job_actions=nowhere):
        wait_until(lambda: broker_harness.logged("exchange-missing"))
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            broker_harness.connection.channel().exchange_declare(nowhere, passive=True)


def test_a_lost_connection_is_reopened_and_its_messages_are_redelivered(
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
        assert len(consumer.inbox) <= 6  # it does not grow with each connection
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.bodies()) == 6)
    events = broker_harness.service.events()
    assert [event.body for event in events] == list("012345")
    assert all(event.redelivered for event in events)
    assert len({event.channel for event in events}) == 1
    assert broker_harness.count_ready() == 0
    assert broker_harness.logged("connection-lost")[0]["error"]
    assert broker_harness.logged("dropped")


def test_the_listener_reconnects_with_growing_pauses(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
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


def test_a_connection_without_heartbeats_is_closed(
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


def test_a_broker_that_does_not_answer_is_retried(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
    proxy.hold()
    with broker_harness.listening(wait=False, pulse_timeout=timedelta(seconds=0.2)) as listener:
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
        proxy.release()
        wait_until(lambda: listener.consumers["job-actions"].connected)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "Timeout" in line["error"]


def test_a_deleted_queue_is_declared_again_and_logged_as_an_error(broker_harness: BrokerHarness) -> None:
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


def test_messages_of_a_deleted_queue_are_still_forwarded(broker_harness: BrokerHarness) -> None:
    """Nobody delivers them again. Queues are deleted when nobody reads them, for instance when the service is away."""
    broker_harness.service.override = lambda request: problem(503, "away") if request.path == ACTIONS else None
    with broker_harness.listening(pulse_batch=2, pulse_prefetch=6) as listener:
        broker_harness.press(*map(str, range(6)))
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: consumer.counts["received"] == 6)
        for deleted in (1, 2):
            broker_harness.channel.queue_delete(broker_harness.queue)
            wait_until(lambda: consumer.counts["connections lost"] == deleted and consumer.connected)  # noqa: B023 - called at once
        broker_harness.press(*map(str, range(6, 12)))
        assert len(consumer.inbox) == 6  # it does not grow with each queue
        broker_harness.service.override = lambda request: None
        wait_until(lambda: len(broker_harness.service.acknowledged) == 6)
    assert broker_harness.service.bodies() == list(map(str, range(12)))
    assert broker_harness.service.acknowledged == [event.delivery for event in broker_harness.service.events()[6:]]
    assert broker_harness.count_ready() == 0
    assert not broker_harness.logged("dropped")


def test_a_queue_deleted_between_two_runs_is_logged(broker_harness: BrokerHarness) -> None:
    broker_harness.service.state = QueueState(deleted=True, messages_lost_since="2024-01-01")
    with broker_harness.listening() as listener:
        (line,) = wait_until(lambda: broker_harness.logged("queue-deleted"))
        assert listener.state()["queues"][broker_harness.queue]["deleted"] == 1
    assert "2024-01-01" in line["problem"]
    with broker_harness.listening():  # it is there now
        wait_until(lambda: len(broker_harness.service.reports) == 2)
    assert [report.found for report in broker_harness.service.reports] == ["new", "there"]
    assert len(broker_harness.logged("queue-deleted")) == 1


def test_a_failed_queue_report_is_repeated_and_delays_no_message(broker_harness: BrokerHarness) -> None:
    broker_harness.service.override = lambda request: problem(500, "no") if request.path.endswith("report") else None
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
        assert broker_harness.logged("report-failed")
        broker_harness.service.override = lambda request: None
        wait_until(lambda: [report.found for report in broker_harness.service.reports] == ["new"])


def test_queues_are_reported_periodically(broker_harness: BrokerHarness) -> None:
    with broker_harness.listening(pulse_report_every=MOMENT):
        wait_until(lambda: len(broker_harness.service.reports) > 3)
    assert {report.found for report in broker_harness.service.reports[1:]} == {"there"}


def test_an_exclusive_queue_of_another_connection_is_retried(broker_harness: BrokerHarness) -> None:
    other = pika.BlockingConnection(pika.URLParameters(broker_harness.amqp.url))
    other.channel().queue_declare(broker_harness.queue, durable=True, exclusive=True)
    with broker_harness.listening(wait=False):
        wait_until(lambda: len(broker_harness.logged("broker-away")) > 1)
        other.close()
        press_until_forwarded(broker_harness)
    assert "RESOURCE_LOCKED" in broker_harness.logged("broker-away")[0]["error"]


def test_an_exchange_without_permission_is_logged_as_such(
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


def test_a_restarted_broker_redelivers_unacknowledged_messages(
    private_harness: BrokerHarness, private_broker: PrivateBroker
) -> None:
    away = threading.Event()
    away.set()
    private_harness.service.override = lambda request: problem(503, "away") if away.is_set() else None
    with private_harness.listening(pulse_batch=2, pulse_prefetch=4) as listener:
        private_harness.press(*map(str, range(10)))
        consumer = listener.consumers["job-actions"]
        wait_until(lambda: consumer.counts["received"] == 4)
        wait_until(lambda: private_harness.count_ready() == 6)
        private_harness.connection.close()
        private_broker.restart()
        private_harness.connect()
        away.clear()
        wait_until(lambda: len(private_harness.service.bodies()) == 10, 30)
        private_harness.press("after")
        wait_until(lambda: private_harness.service.bodies()[-1] == "after")
        assert consumer.counts["deleted"] == 0
    events = private_harness.service.events()[:-1]
    assert sorted(event.body for event in events) == list("0123456789")
    assert {event.body for event in events if event.redelivered} == set("0123")
    assert private_harness.count_ready() == 0
    assert private_harness.logged("broker-away")


def test_a_connection_that_stays_blocked_is_replaced(
    private_harness: BrokerHarness, private_broker: PrivateBroker, opened_channels: list[tuple[Any, Any]]
) -> None:
    # not shorter than heartbeats: if both expire at once, pika does not say that the connection was blocked
    with private_harness.listening(pulse_blocked=timedelta(seconds=4)):
        private_broker.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            ((connection, channel),) = opened_channels

            def is_blocked() -> bool:
                # RabbitMQ blocks only connections that publish after it has noticed, which takes it a moment
                connection.add_callback_threadsafe(lambda: channel.basic_publish("", "nowhere", b""))
                return bool(private_harness.logged("connection-blocked"))

            wait_until(is_blocked)
            wait_until(lambda: len(opened_channels) == 2)
        finally:  # otherwise the broker would block the following tests
            private_broker.ctl("set_vm_memory_high_watermark", "0.8")
        private_harness.press("1")
        wait_until(lambda: private_harness.service.bodies() == ["1"])
    assert "Blocked" in private_harness.logged("connection-lost")[0]["error"]


def test_a_stop_forwards_everything_that_was_read(broker_harness: BrokerHarness) -> None:
    requested, release = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            requested.set()
            release.wait(10)
        return None

    broker_harness.service.override = wait
    with broker_harness.listening(pulse_batch=5, pulse_prefetch=20) as listener:
        broker_harness.press(*map(str, range(30)))
        assert requested.wait(10)
        wait_until(lambda: broker_harness.count_ready() == 10)
        listener.stop()
        threading.Timer(0.1, release.set).start()
    assert broker_harness.service.bodies() == list(map(str, range(20)))
    assert broker_harness.count_ready() == 10
    with broker_harness.listening():
        wait_until(lambda: len(broker_harness.service.bodies()) == 30)
    assert not any(event.redelivered for event in broker_harness.service.events())


def test_a_stop_while_the_service_is_away_is_quick_and_loses_nothing(broker_harness: BrokerHarness) -> None:
    broker_harness.service.override = lambda request: problem(503, "away")
    with broker_harness.listening(max_retry=timedelta(seconds=30), first_retry=timedelta(seconds=30)) as listener:
        broker_harness.press("1", "2")
        wait_until(lambda: listener.consumers["job-actions"].counts["received"] == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert broker_harness.logged("not-given")
    assert broker_harness.count_ready() == 2
