"""Publishing to a real RabbitMQ: confirmed messages are on the broker, even if connections are lost meanwhile."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest
from sqlalchemy import make_url

from service.clients.publisher import PulsePublisher
from service.clients.pulse import HGPUSHES
from service.errors import Unavailable
from service.settings import PulseSettings
from tests.proxy import TcpProxy
from tests.services import Amqp

NAME = HGPUSHES
KEY = "integration/\u00e4utoland"


@pytest.fixture
def user(amqp: Amqp) -> str:
    """Return a Pulse user of this test only, so that no other test has its exchanges."""
    name = f"{amqp.user}/{amqp.name}"
    amqp.exchanges.add(f"exchange/{name}/{NAME}")
    return name


@pytest.fixture
def proxy(amqp: Amqp) -> Iterator[TcpProxy]:
    services = urlsplit(amqp.url)
    with TcpProxy(services.hostname or "127.0.0.1", services.port or 5672) as opened:
        yield opened


def through(amqp: Amqp, proxy: TcpProxy) -> str:
    services = urlsplit(amqp.url)
    login = f"{services.netloc.rpartition('@')[0]}@" if "@" in services.netloc else ""
    return urlunsplit(services._replace(netloc=f"{login}127.0.0.1:{proxy.port}"))


@asynccontextmanager
async def publisher_at(
    url: str, user: str, seconds: float = 10, names: Iterable[str] = ()
) -> AsyncIterator[PulsePublisher]:
    publisher = PulsePublisher(PulseSettings(url=url, user=user, timeout=seconds, retry=0.05), names)
    try:
        yield publisher
    finally:
        await publisher.close()


class Listener:
    """A queue bound to the exchange, which it declares as the publisher does."""

    def __init__(self, amqp: Amqp, user: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
        self._channel = self._connection.channel()
        self.exchange = f"exchange/{user}/{NAME}"
        self._queue = amqp.queue()
        self._channel.exchange_declare(self.exchange, "topic", durable=True)
        self._channel.queue_declare(self._queue)
        self._channel.queue_bind(self._queue, self.exchange, "#")

    def heard(self) -> list[tuple[str, Any, Any]]:
        """Return routing key, properties and body of the messages that have arrived."""
        messages: list[tuple[str, Any, Any]] = []
        while True:
            method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                return messages
            messages.append((method.routing_key, properties, json.loads(body)))

    def delete_exchange(self) -> None:
        self._channel.exchange_delete(self.exchange)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def listener(amqp: Amqp, user: str) -> Iterator[Listener]:
    opened = Listener(amqp, user)
    yield opened
    opened.close()


async def test_what_is_confirmed_is_there(amqp: Amqp, user: str, listener: Listener) -> None:
    async with publisher_at(amqp.url, user) as publisher:
        await publisher.publish(NAME, KEY, {"payload": {"n": 1, "\u00e4": None}})
    ((key, properties, message),) = listener.heard()
    assert key == KEY
    assert message == {"payload": {"n": 1, "\u00e4": None}}
    assert properties.content_type == "application/json"
    assert properties.delivery_mode == 2


async def test_its_exchange_is_durable_and_made_when_it_is_missing(amqp: Amqp, user: str) -> None:
    async with publisher_at(amqp.url, user) as publisher:
        await publisher.publish(NAME, KEY, {})
    listener = Listener(amqp, user)  # it would be refused if the exchange were another
    listener.close()


async def test_many_at_once_all_come_and_in_order(amqp: Amqp, user: str, listener: Listener) -> None:
    async with publisher_at(amqp.url, user) as publisher:
        await asyncio.gather(*(publisher.publish(NAME, KEY, {"n": n}) for n in range(50)))
    assert [message["n"] for _, _, message in listener.heard()] == list(range(50))


async def test_a_connection_that_was_cut_costs_one_attempt_at_most(
    amqp: Amqp, user: str, listener: Listener, proxy: TcpProxy
) -> None:
    async with publisher_at(through(amqp, proxy), user) as publisher:
        await publisher.publish(NAME, KEY, {"n": 1})
        proxy.cut()
        try:
            await publisher.publish(NAME, KEY, {"n": 2})
        except Unavailable:
            await publisher.publish(NAME, KEY, {"n": 2})
        assert proxy.connections == 1
    assert [message["n"] for _, _, message in listener.heard()] == [1, 2]


async def test_a_connection_that_was_cut_while_idle_costs_nothing(
    amqp: Amqp, user: str, listener: Listener, proxy: TcpProxy
) -> None:
    async with publisher_at(through(amqp, proxy), user) as publisher:
        await publisher.publish(NAME, KEY, {"n": 1})
        proxy.cut()
        await asyncio.sleep(1.2)  # it looks each second
        await publisher.publish(NAME, KEY, {"n": 2})
    assert [message["n"] for _, _, message in listener.heard()] == [1, 2]


async def test_a_broker_that_is_away_and_comes_back(amqp: Amqp, user: str, listener: Listener, proxy: TcpProxy) -> None:
    proxy.refuse()
    url = through(amqp, proxy)
    async with publisher_at(url, user) as publisher:
        for _ in range(2):
            with pytest.raises(Unavailable, match=f"exchange/{user}/{NAME}: ") as refused:
                await publisher.publish(NAME, KEY, {"n": 0})
            assert f":{urlsplit(url).password}@" not in str(refused.value)
        proxy.accept()
        await publisher.publish(NAME, KEY, {"n": 1})
    assert [message["n"] for _, _, message in listener.heard()] == [1]


async def test_what_nobody_waits_for_any_more_is_not_published(
    amqp: Amqp, user: str, listener: Listener, proxy: TcpProxy
) -> None:
    """Each attempt of an outage would come out when it is over."""
    async with publisher_at(through(amqp, proxy), user, 1) as publisher:
        await publisher.publish(NAME, KEY, {"n": 0})
        proxy.hold()
        for number in (1, 2, 3):
            with pytest.raises(Unavailable, match="sent no confirm"):
                await asyncio.wait_for(publisher.publish(NAME, KEY, {"n": number}), 5)
        proxy.release()
        await publisher.publish(NAME, KEY, {"n": 4})
    heard = [message["n"] for _, _, message in listener.heard()]
    assert heard in ([0, 4], [0, 1, 4])  # the first was on its way: at least once


async def test_an_exchange_that_was_deleted_is_made_again(amqp: Amqp, user: str, listener: Listener) -> None:
    async with publisher_at(amqp.url, user) as publisher:
        await publisher.publish(NAME, KEY, {})
        listener.delete_exchange()
        try:
            await publisher.publish(NAME, KEY, {})
        except Unavailable:
            await publisher.publish(NAME, KEY, {})


async def test_an_error_that_nobody_foresaw_ends_nothing(amqp: Amqp, user: str, listener: Listener) -> None:
    async with publisher_at(amqp.url, user) as publisher:
        bad: Any = 5
        with pytest.raises(Unavailable):
            await publisher.publish(NAME, bad, {})
        with pytest.raises(Unavailable):
            await publisher.publish(NAME, "x" * 300, {})  # routing keys have 255 bytes at most
        await publisher.publish(NAME, KEY, {"n": 1})
    assert [message["n"] for _, _, message in listener.heard()] == [1]


async def test_a_wrong_password_is_told_with_the_variable_that_has_it(amqp: Amqp, user: str) -> None:
    wrong = make_url(amqp.url).set(password="a-wrong-password").render_as_string(hide_password=False)
    async with publisher_at(wrong, user) as publisher:
        with pytest.raises(Unavailable, match=r"check user and password in TC_TREEHERDER_PULSE__URL") as refused:
            await publisher.publish(NAME, KEY, {})
    assert "a-wrong-password" not in str(refused.value)


async def test_an_exchange_of_another_kind_is_told(amqp: Amqp, user: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    connection.channel().exchange_declare(f"exchange/{user}/{NAME}", "fanout")
    connection.close()
    async with publisher_at(amqp.url, user) as publisher:
        with pytest.raises(Unavailable, match="PRECONDITION_FAILED"):
            await publisher.publish(NAME, KEY, {})


def is_there(amqp: Amqp, exchange: str) -> bool:
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        try:
            connection.channel().exchange_declare(exchange, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


async def until_there(amqp: Amqp, exchange: str) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(is_there, amqp, exchange):  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.02)


async def test_exchanges_are_declared_before_their_first_message(amqp: Amqp) -> None:
    names = [amqp.exchange("hgpushes/v1"), amqp.exchange("v1/pushes")]
    async with publisher_at(amqp.url, amqp.user, names=names):
        for name in names:
            await until_there(amqp, name)


async def test_exchanges_are_declared_as_soon_as_a_broker_that_was_away_at_start_is_back(
    amqp: Amqp, proxy: TcpProxy
) -> None:
    name = amqp.exchange("hgpushes/v1")
    proxy.refuse()
    async with publisher_at(through(amqp, proxy), amqp.user, names=[name]):
        await asyncio.sleep(0.2)
        assert not await asyncio.to_thread(is_there, amqp, name)
        proxy.accept()
        await until_there(amqp, name)


async def test_an_exchange_that_is_refused_keeps_no_other_from_being_declared(amqp: Amqp) -> None:
    bad, good = amqp.exchange("a"), amqp.exchange("b")
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        connection.channel().exchange_declare(bad, "fanout")
    async with publisher_at(amqp.url, amqp.user, names=[bad, good]) as publisher:
        await until_there(amqp, good)
        await publisher.publish(good, KEY, {})


async def test_what_has_to_be_read_and_no_queue_took_is_not_published(amqp: Amqp, proxy: TcpProxy, user: str) -> None:
    async with publisher_at(through(amqp, proxy), user) as publisher:
        await publisher.publish(NAME, KEY, {"n": 0})
        with pytest.raises(Unavailable, match=f"no queue is bound to exchange/{user}/{NAME} for '{KEY}'"):
            await publisher.publish(NAME, KEY, {"n": 1}, mandatory=True)
        listener = Listener(amqp, user)
        await publisher.publish(NAME, KEY, {"n": 2}, mandatory=True)
        assert proxy.connections == 1, "a message that came back costs no connection"
    assert [message["n"] for _, _, message in listener.heard()] == [2]
    listener.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pulse-publisher"]


async def test_close_leaves_nothing(amqp: Amqp, user: str, proxy: TcpProxy) -> None:
    before = threads()
    async with publisher_at(through(amqp, proxy), user) as publisher:
        await publisher.publish(NAME, KEY, {})
        assert len(threads()) == len(before) + 1
        assert proxy.connections == 1
    assert threads() == before
    for _ in range(100):
        if not proxy.connections:
            break
        await asyncio.sleep(0.01)
    assert proxy.connections == 0


async def test_close_needs_no_connection(user: str, amqp: Amqp) -> None:
    async with publisher_at("amqp://127.0.0.1:9/%2F", user):
        pass
    assert threads() == []


async def test_close_does_not_wait_for_a_silent_broker(amqp: Amqp, user: str, proxy: TcpProxy) -> None:
    publisher = PulsePublisher(PulseSettings(url=through(amqp, proxy), user=user, timeout=0.5))
    await publisher.publish(NAME, KEY, {})
    proxy.hold()
    with pytest.raises(Unavailable):
        await publisher.publish(NAME, KEY, {})
    began = time.monotonic()
    await publisher.close()
    assert time.monotonic() - began < 2
    proxy.release()
    proxy.cut()
    await asyncio.to_thread(publisher._thread.join, 5)
    assert threads() == []


async def test_the_event_loop_goes_on_meanwhile(amqp: Amqp, user: str, proxy: TcpProxy) -> None:
    proxy.delay = 0.1
    async with publisher_at(through(amqp, proxy), user) as publisher:
        publishing = asyncio.create_task(publisher.publish(NAME, KEY, {}))
        longest, last = 0.0, time.monotonic()
        while not publishing.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await publishing
    assert longest < 0.3
