"""Acknowledge in time, and survive the loss of a channel."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pika
import pytest
from structlog.testing import capture_logs

from listeners.channel import AckChannel
from tests.listeners.broker_harness import ACTIONS, MOMENT, BrokerHarness, wait_until
from tests.listeners.fakes import Answer, Request
from tests.proxy import TcpProxy
from tests.services import Amqp


@pytest.fixture
def connection(amqp: Amqp) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    yield connection
    if connection.is_open:
        connection.close()


def read_messages(connection: Any, queue: str, count: int) -> tuple[AckChannel, Any]:
    """Publish so many messages to the queue, and read them on a channel without acknowledging them."""
    amqp_channel = connection.channel()
    amqp_channel.queue_declare(queue)
    for _ in range(count):
        amqp_channel.basic_publish("", queue, b"x")
    wait_until(lambda: count_ready(connection, queue) == count)
    for _ in range(count):
        amqp_channel.basic_get(queue)
    return AckChannel(connection, amqp_channel, prefetch=10), amqp_channel


def count_ready(connection: Any, queue: str) -> int:
    with connection.channel() as amqp_channel:
        return int(amqp_channel.queue_declare(queue, passive=True).method.message_count)


def confirm(channel: AckChannel, connection: Any) -> bool:
    """Confirm on another thread, as the one that handles batches does."""
    with ThreadPoolExecutor() as threads:
        future = threads.submit(channel.confirm_acknowledgements)
        while not future.done():
            connection.process_data_events(0.01)
        return future.result()


def test_deliveries_are_acknowledged_up_to_the_tag(connection: Any, amqp: Amqp) -> None:
    channel, amqp_channel = read_messages(connection, amqp.queue(), 3)
    channel.acknowledge_up_to(2)
    connection.process_data_events(0)
    amqp_channel.close()
    wait_until(lambda: count_ready(connection, amqp.queue()) == 1)


def test_each_acknowledged_message_is_counted_once(connection: Any, amqp: Amqp) -> None:
    counted: list[int] = []
    _, amqp_channel = read_messages(connection, amqp.queue(), 5)
    channel = AckChannel(connection, amqp_channel, 10, counted.append)
    for tag in (2, 5):
        channel.acknowledge_up_to(tag)
        connection.process_data_events(0)
    assert counted == [2, 3]


def test_an_open_channel_confirms_what_was_acknowledged(connection: Any, amqp: Amqp) -> None:
    channel, amqp_channel = read_messages(connection, amqp.queue(), 2)
    channel.acknowledge_up_to(2)
    assert confirm(channel, connection)
    assert not channel.is_lost
    amqp_channel.close()
    assert count_ready(connection, amqp.queue()) == 0


def test_a_closed_channel_confirms_nothing_and_acknowledges_nothing(connection: Any, amqp: Amqp) -> None:
    channel, amqp_channel = read_messages(connection, amqp.queue(), 1)
    amqp_channel.close()
    channel.acknowledge_up_to(1)
    connection.process_data_events(0)
    assert channel.is_lost
    wait_until(lambda: count_ready(connection, amqp.queue()) == 1)


def test_a_closed_connection_confirms_nothing_and_is_logged(connection: Any, amqp: Amqp) -> None:
    channel, _ = read_messages(connection, amqp.queue(), 1)
    connection.close()
    with capture_logs() as logs:
        channel.acknowledge_up_to(1)
    assert [(line["event"], line["channel"]) for line in logs] == [("not-acknowledged", channel.id)]
    assert not channel.confirm_acknowledgements()


def test_the_channel_of_a_deleted_queue_is_not_lost(connection: Any, amqp: Amqp) -> None:
    channel, _ = read_messages(connection, amqp.queue(), 1)
    channel.consumer_cancelled = True
    connection.close()
    with capture_logs() as logs:
        channel.acknowledge_up_to(1)
    assert not channel.is_lost
    assert logs == []


def test_messages_are_acknowledged_after_the_service_has_stored_them(broker_harness: BrokerHarness) -> None:
    requested, release = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.path == ACTIONS:
            requested.set()
            release.wait(10)
            return Answer(hang_up=True)
        return None

    broker_harness.service.override = wait
    with broker_harness.listening(drain=MOMENT) as listener:
        broker_harness.press("1")
        assert requested.wait(10)
        assert broker_harness.count_ready() == 0  # the listener has it
    wait_until(lambda: broker_harness.count_ready() == 1)
    release.set()
    wait_until(lambda: not any(thread.name == "job-actions handler" for thread in threading.enumerate()))
    listener._forwarder.close()  # as the end of the process would
    broker_harness.service.override = lambda request: None
    with broker_harness.listening():
        (event,) = wait_until(broker_harness.service.events)
    assert event.redelivered
    assert broker_harness.count_ready() == 0


def test_messages_of_a_lost_channel_are_not_posted(broker_harness: BrokerHarness, proxy: TcpProxy) -> None:
    """A listener that was suspended reads messages that the broker has delivered to another one meanwhile."""
    with broker_harness.listening(pulse_timeout=timedelta(seconds=1)) as listener:
        is_cut_off = threading.Event()
        confirm = AckChannel.confirm_acknowledgements

        def cut_off(self: AckChannel) -> bool:
            if not is_cut_off.is_set():
                is_cut_off.set()
                proxy.hold()  # the connection seems to hold, so the channel has to ask
            return confirm(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AckChannel, "confirm_acknowledgements", cut_off)
            broker_harness.press("1")
            assert is_cut_off.wait(10)
            time.sleep(0.2)
            assert broker_harness.service.bodies() == [], "nothing is posted before the broker has answered"
            proxy.cut()
            proxy.release()
            wait_until(lambda: broker_harness.service.acknowledged)
        assert listener.consumers["job-actions"].counts["accepted"] == 1
    assert [event.redelivered for event in broker_harness.service.events()] == [True]
    assert broker_harness.logged("dropped")


def test_a_channel_that_the_broker_closes_is_reopened(
    broker_harness: BrokerHarness, opened_channels: list[tuple[Any, Any]]
) -> None:
    with broker_harness.listening():
        ((connection, channel),) = opened_channels
        connection.add_callback_threadsafe(lambda: channel.basic_ack(4711))  # RabbitMQ: unknown delivery tag
        wait_until(lambda: len(opened_channels) == 2)
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])
    assert "PRECONDITION_FAILED" in broker_harness.logged("connection-lost")[0]["error"]
