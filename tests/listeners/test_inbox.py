"""Gather deliveries into batches."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from listeners.channel import AckChannel
from listeners.inbox import Delivery, Inbox
from tests.listeners.broker_harness import ACTIONS, BrokerHarness, wait_until


def make_channel() -> AckChannel:
    return AckChannel(SimpleNamespace(), SimpleNamespace(is_open=False), prefetch=10)


CHANNEL = make_channel()


def fill(inbox: Inbox[str], *items: str, channel: AckChannel = CHANNEL) -> None:
    for tag, item in enumerate(items, 1):
        inbox.put(Delivery(item, channel, tag))


def take(inbox: Inbox[str], timeout: float = 5) -> list[str] | None:
    batch = inbox.next_batch(timeout)
    return None if batch is None else [delivery.item for delivery in batch]


def test_a_full_batch_has_at_most_max_items() -> None:
    inbox: Inbox[str] = Inbox(max_items=2, max_bytes=100, linger=3_600)
    fill(inbox, "a", "b", "c", "d", "e")
    assert [take(inbox), take(inbox)] == [["a", "b"], ["c", "d"]]
    assert (inbox.waiting, len(inbox)) == (1, 3)


def test_a_full_batch_has_at_most_max_bytes_but_always_one_item() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=4, linger=0)
    fill(inbox, "aa", "bb", "c", "too long", "d")
    assert [take(inbox) for _ in range(4)] == [["aa", "bb"], ["c"], ["too long"], ["d"]]


def test_the_first_item_is_ready_at_once_and_the_next_after_linger() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=100, linger=0.2)
    fill(inbox, "a")
    assert take(inbox) == ["a"]
    taken_at = time.monotonic()
    fill(inbox, "b", "c")
    assert take(inbox) == ["b", "c"]
    assert time.monotonic() - taken_at >= 0.19


def test_without_items_the_batch_is_empty_after_the_timeout() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=100, linger=0)
    assert take(inbox, timeout=0.01) == []


def test_an_item_wakes_the_thread_that_waits() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=100, linger=0)
    threading.Timer(0.05, fill, args=(inbox, "a")).start()
    assert take(inbox, timeout=60) == ["a"]


def test_the_first_batch_does_not_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)  # the machine has just been started
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=100, linger=3_600)
    fill(inbox, "a")
    assert take(inbox) == ["a"]


def test_a_closed_inbox_gives_what_waits_at_once_and_then_none() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=100, linger=3_600)
    fill(inbox, "a")
    assert take(inbox) == ["a"]
    fill(inbox, "b")
    inbox.close()
    assert [take(inbox), take(inbox)] == [["b"], None]


def test_the_current_batch_counts_until_the_next_one_is_taken() -> None:
    inbox: Inbox[str] = Inbox(max_items=1, max_bytes=100, linger=0)
    fill(inbox, "a")
    assert take(inbox) == ["a"]
    assert (inbox.waiting, len(inbox)) == (0, 1)
    assert take(inbox, timeout=0.01) == []
    assert len(inbox) == 0


def test_redelivered_items_are_dropped_but_not_those_of_a_deleted_queue() -> None:
    inbox: Inbox[str] = Inbox(max_items=10, max_bytes=4, linger=0)
    deleted = make_channel()
    deleted.consumer_cancelled = True
    fill(inbox, "lost")
    fill(inbox, "k", "ept", channel=deleted)
    inbox.drop_redelivered()
    assert take(inbox) == ["k", "ept"]


def test_a_single_message_is_forwarded_at_once_and_a_flood_in_batches(broker_harness: BrokerHarness) -> None:
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
    assert broker_harness.count_ready() == 0
