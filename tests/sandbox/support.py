"""List what exists at a broker, and start other listeners where a broker is expected."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pika
import pika.exceptions

NOT_FOUND = 404

Behaves = Callable[[socket.socket, threading.Event], None]
"""Serves one connection, until the event at the latest."""


def existing(url: str, exchanges: list[str], queues: list[str]) -> set[str]:
    """Return the exchanges and queues that exist at the broker."""
    names = set()
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        for name in (*exchanges, *queues):
            channel = connection.channel()
            declare = channel.queue_declare if name in queues else channel.exchange_declare
            try:
                declare(name, passive=True)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
            else:
                channel.close()
                names.add(name)
    return names


def silent(accepted: socket.socket, end: threading.Event) -> None:
    end.wait()
    accepted.close()


def web_server(accepted: socket.socket, end: threading.Event) -> None:
    accepted.recv(100)
    accepted.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    silent(accepted, end)


def newer_amqp(accepted: socket.socket, _: threading.Event) -> None:
    accepted.recv(8)
    accepted.sendall(b"AMQP\x03\x01\x00\x00")
    accepted.close()


@contextlib.contextmanager
def listening(behaves: Behaves) -> Iterator[str]:
    """Yield the URL of a listener that is not RabbitMQ."""
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                behaves(server.accept()[0], end)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/%2F"
        finally:
            end.set()
            thread.join()
