"""Publish the queue's messages to RabbitMQ, as the real queue does to Pulse.

One thread owns the connection, because pika's connections are not thread-safe. Messages are sent in batches. A round
trip after a batch proves that the broker has received it; a batch without that proof is sent again: at least once, in
order.
"""

import contextlib
import json
import queue
import threading

import pika
from pika.adapters.blocking_connection import BlockingChannel

from sandbox.taskcluster.tasks import EXCHANGES, Message
from service.contract.broker import BROKER_ERRORS

TASK_EXCHANGES = tuple(
    f"{EXCHANGES}{name}"
    for name in (
        "task-defined",
        "task-pending",
        "task-running",
        "task-completed",
        "task-failed",
        "task-exception",
        "task-group-resolved",
        "task-group-sealed",
        "task-priority-changed",
        "task-group-priority-changed",
    )
)
_BATCH = 500


class Publisher:
    """A publisher thread: `publish` returns at once, `stop` waits up to `patience` seconds for the rest to be sent.

    `prefix` is put before the exchanges' names, so that tests can have their own.
    """

    def __init__(self, url: str, prefix: str = "", *, patience: float = 10.0) -> None:
        self._parameters = pika.URLParameters(url)
        self._prefix = prefix
        self._patience = patience
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._batch: list[Message] = []
        self._stopping = threading.Event()
        self._give_up = threading.Event()
        self._thread: threading.Thread | None = None

    def exchange(self, name: str) -> str:
        """Return the exchange's name at the broker."""
        return self._prefix + name

    def start(self) -> None:
        """Connect and declare the exchanges, and return once they exist. Raises `TimeoutError`."""
        for event in (self._ready, self._stopping, self._give_up):
            event.clear()
        self._thread = threading.Thread(target=self._run, name="pulse-publisher", daemon=True)
        self._thread.start()
        if not self._ready.wait(self._patience):
            self._give_up.set()
            raise TimeoutError(
                f"No RabbitMQ answers at {self._parameters.host}:{self._parameters.port} within {self._patience} s. "
                "Start one, or leave out --amqp-url."
            )

    def publish(self, message: Message) -> None:
        """Enqueue one message; it is sent as soon as the broker accepts it."""
        self._waiting.put(message)

    def stop(self) -> None:
        """Send the waiting messages, and close. Raises `TimeoutError` if messages are left after `patience` seconds."""
        if self._thread is None:
            return
        self._stopping.set()
        self._waiting.put(None)
        self._thread.join(self._patience)
        self._give_up.set()
        self._thread.join()
        left = len(self._batch)
        while not self._waiting.empty():
            left += self._waiting.get() is not None
        if left:
            raise TimeoutError(f"RabbitMQ at {self._parameters.host} has not accepted {left} messages")

    def delete_exchanges(self) -> None:
        """Delete the exchanges, for tests that made their own by a prefix."""
        connection = pika.BlockingConnection(self._parameters)
        channel = connection.channel()
        for name in TASK_EXCHANGES:
            channel.exchange_delete(self.exchange(name))
        connection.close()

    def _run(self) -> None:
        """Publish until stopped; reconnect after the connection is lost."""
        while not self._give_up.is_set():
            try:
                with pika.BlockingConnection(self._parameters) as connection:
                    channel = connection.channel()
                    self._declare(channel)
                    self._ready.set()
                    while not self._give_up.is_set():
                        self._collect()
                        self._send(channel, self._batch)
                        self._batch.clear()
                        connection.process_data_events(0)
                        if self._stopping.is_set() and self._waiting.empty():
                            return
            except BROKER_ERRORS:
                self._give_up.wait(0.2)

    def _collect(self) -> None:
        """Fill the batch with waiting messages, after a short wait for the first; `stop` ends the wait with None."""
        with contextlib.suppress(queue.Empty):
            while len(self._batch) < _BATCH:
                message = self._waiting.get(timeout=0 if self._batch else 0.5)
                if message is None:
                    return
                self._batch.append(message)

    def _declare(self, channel: BlockingChannel) -> None:
        for name in TASK_EXCHANGES:
            channel.exchange_declare(self.exchange(name), exchange_type="topic", durable=True)

    def _send(self, channel: BlockingChannel, batch: list[Message]) -> None:
        for message in batch:
            properties = pika.BasicProperties(
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                headers={"CC": list(message.cc)},
            )
            body = json.dumps(message.payload).encode()
            channel.basic_publish(self.exchange(message.exchange), message.routing_key, body, properties)
        if batch:
            channel.exchange_declare(self.exchange(TASK_EXCHANGES[0]), passive=True)
