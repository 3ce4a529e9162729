"""Messages at a real RabbitMQ."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from taskcluster import slugId

from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.pulse import TASK_EXCHANGES, Publisher
from sandbox.taskcluster.tasks import EXCHANGES, Message
from tests.listeners.broker_harness import wait_until
from tests.sandbox.taskcluster.support import ROOT, Api, validate_message

NOWHERE = "amqp://guest:guest@127.0.0.1:1/%2F?connection_attempts=1"


@pytest.fixture
def prefix() -> str:
    return f"test-{slugId()}/"


@pytest.fixture
def publisher(amqp_url: str, prefix: str) -> Iterator[Publisher]:
    """Yield a publisher with exchanges of its own, which are deleted afterwards."""
    publisher = Publisher(amqp_url, prefix)
    publisher.start()
    yield publisher
    publisher.stop()
    publisher.delete_exchanges()


@pytest.fixture
def channel(amqp_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    connection.close()


def bind(channel: Any, publisher: Publisher, exchange: str, key: str) -> str:
    """Return a queue that ends with the connection, bound to one of the exchanges."""
    queue = str(channel.queue_declare("", exclusive=True).method.queue)
    channel.queue_bind(queue, publisher.exchange(EXCHANGES + exchange), key)
    return queue


def read(channel: Any, queue: str, count: int) -> list[tuple[Any, Any, Any]]:
    """Return so many messages; fail if there are fewer after some seconds."""
    messages: list[tuple[Any, Any, Any]] = []
    until = time.monotonic() + 10
    while len(messages) < count:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            messages.append((method, properties, json.loads(body)))
        elif time.monotonic() > until:
            raise AssertionError(f"{len(messages)} messages instead of {count}")
        else:
            time.sleep(0.01)
    return messages


def message(number: int = 0, exchange: str = "task-defined", cc: tuple[str, ...] = ()) -> Message:
    return Message(EXCHANGES + exchange, f"primary.x.{number}", cc, {"number": number})


def test_a_message_goes_to_those_who_bound_its_key_and_its_routes_once_each(publisher: Publisher, channel: Any) -> None:
    everything = bind(channel, publisher, "task-defined", "#")
    our_queue = bind(channel, publisher, "task-defined", "route.tc-treeherder.#")
    other_queue = bind(channel, publisher, "task-defined", "route.other.#")
    publisher.publish(message(1, cc=("route.tc-treeherder.try.abc", "route.index.x")))
    ((method, properties, payload),) = read(channel, everything, 1)
    assert (method.exchange, method.routing_key) == (publisher.exchange(EXCHANGES + "task-defined"), "primary.x.1")
    assert payload == {"number": 1}
    assert properties.content_type == "application/json"
    assert properties.content_encoding == "utf-8"
    assert properties.delivery_mode == 2
    assert properties.headers == {"CC": ["route.tc-treeherder.try.abc", "route.index.x"]}
    assert len(read(channel, our_queue, 1)) == 1
    assert channel.basic_get(other_queue)[0] is None
    assert channel.basic_get(our_queue)[0] is None


def test_messages_keep_their_order_over_many_batches(publisher: Publisher, channel: Any) -> None:
    queue = bind(channel, publisher, "task-pending", "#")
    for number in range(1_200):
        publisher.publish(message(number, "task-pending"))
    assert [payload["number"] for _, _, payload in read(channel, queue, 1_200)] == list(range(1_200))


def test_the_exchanges_are_durable_topics(publisher: Publisher, channel: Any) -> None:
    for name in TASK_EXCHANGES:
        channel.exchange_declare(publisher.exchange(name), exchange_type="topic", durable=True)


def test_what_was_not_taken_before_the_connection_broke_is_sent_after_it(
    publisher: Publisher, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = bind(channel, publisher, "task-defined", "#")
    sent = Publisher._send
    broken: list[int] = []

    def break_once(self: Publisher, channel: Any, batch: list[Message]) -> None:
        if batch and not broken:
            broken.append(len(batch))
            raise pika.exceptions.ConnectionClosed(320, "CONNECTION_FORCED")
        sent(self, channel, batch)

    monkeypatch.setattr(Publisher, "_send", break_once)
    publisher.publish(message(7))
    assert [payload["number"] for _, _, payload in read(channel, queue, 1)] == [7]
    assert broken == [1]


def test_a_batch_that_the_broker_refused_is_noticed_and_sent_again(publisher: Publisher, channel: Any) -> None:
    exchange = publisher.exchange(EXCHANGES + "task-defined")
    channel.exchange_delete(exchange)
    publisher.publish(message())  # the broker closes the channel for it, later, and pika does not tell
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            channel.exchange_declare(exchange, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            channel = channel.connection.channel()
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the publisher did not begin anew")


def test_stopping_sends_what_waits(amqp_url: str, prefix: str, channel: Any) -> None:
    publisher = Publisher(amqp_url, prefix)
    publisher.start()
    queue = bind(channel, publisher, "task-defined", "#")
    for number in range(700):
        publisher.publish(message(number))
    publisher.stop()
    # the broker hands messages over to a queue after it has answered their channel
    wait_until(lambda: channel.queue_declare(queue, passive=True).method.message_count == 700)
    publisher.delete_exchanges()


def test_without_a_broker_it_says_what_to_do() -> None:
    publisher = Publisher(NOWHERE, patience=0.3)
    with pytest.raises(TimeoutError, match=r"No RabbitMQ answers at 127\.0\.0\.1:1 .* leave out --amqp-url"):
        publisher.start()
    publisher.stop()
    with pytest.raises(TimeoutError):
        publisher.start()
    publisher.publish(message())
    with pytest.raises(TimeoutError, match="has not accepted 1 messages"):
        publisher.stop()


def test_a_publisher_that_was_never_started_stops(amqp_url: str) -> None:
    Publisher(amqp_url).stop()


async def test_the_queues_messages_arrive_as_the_published_ones(amqp_url: str, prefix: str, channel: Any) -> None:
    tc = Taskcluster([ROOT], amqp_url=amqp_url, exchange_prefix=prefix, worker=True, worker_seconds=0)
    assert tc.publisher is not None
    api = Api(tc)
    task_id = slugId()
    async with tc.running():
        queues = {
            name: bind(channel, tc.publisher, name, f"primary.{task_id}.#")
            for name in ("task-defined", "task-pending", "task-running", "task-failed", "task-group-resolved")
        }
        await api("createTask", task_id, body=api.define(routes=["a.b"], payload={"sandbox": {"result": "failed"}}))
        for name, queue in queues.items():
            ((method, properties, payload),) = await asyncio.to_thread(read, channel, queue, 1)
            assert method.exchange == f"{prefix}exchange/taskcluster-queue/v1/{name}"
            validate_message(Message(EXCHANGES + name, method.routing_key, (), payload))
            if name != "task-group-resolved":
                assert properties.headers["CC"] == ["route.a.b"]
                run = {"task-defined": "_._._", "task-pending": "0._._"}.get(name, "0.sandbox.toy-worker")
                assert method.routing_key == f"primary.{task_id}.{run}.prov.w.sched.{task_id}._"
    tc.publisher.delete_exchanges()
