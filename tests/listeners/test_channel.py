"""What is acknowledged when, and what becomes of a channel that is lost."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from listeners import channel as channel_module
from listeners import consumer as module
from tests.listeners.broker_harness import ACTIONS, MOMENT, BrokerHarness, wait_until
from tests.listeners.fakes import Answer, Request
from tests.proxy import TcpProxy


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
