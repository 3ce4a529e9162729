"""A broker is judged before it is used, and nothing is left on it."""

import time
from typing import get_args
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest

from listeners.settings import ListenerSettings
from sandbox import broker
from service.clients import pulse
from tests.private_servers import PrivateBroker
from tests.sandbox.support import Behaves, existing, listening, newer_amqp, silent, web_server


def test_a_broker_that_can_be_used_is_left_as_it_was(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = broker.new_user()
    monkeypatch.setattr(broker, "new_user", lambda: user)
    broker.check(amqp_url, 5)
    assert existing(amqp_url, [f"exchange/{user}/check"], [f"queue/{user}/check"]) == set()


@pytest.mark.parametrize("behaves", [silent, web_server, newer_amqp])
def test_what_is_no_rabbitmq_is_told_in_time(
    behaves: Behaves,
) -> None:
    with listening(behaves) as url:
        began = time.monotonic()
        with pytest.raises(broker.BrokerError, match="does not speak RabbitMQ's protocol") as raised:
            broker.check(url, 0.8)
        assert time.monotonic() - began < 0.8 + 1  # for a busy machine
        assert str(raised.value).startswith(f"The broker at {broker.address(url)} cannot be used (")


def test_where_nothing_listens_that_is_told_in_time(unused_tcp_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(
        broker.BrokerError, match=f"^The broker at 127.0.0.1:{unused_tcp_port} cannot be used .*refused"
    ):
        broker.check(f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/", 0.8)
    assert time.monotonic() - began < 0.8 + 1  # for a busy machine


def test_a_broker_that_does_not_let_us_in_is_told_without_the_password(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    stranger = urlunsplit(parts._replace(netloc=f"nobody:5ecret@{parts.hostname}:{parts.port or 5672}"))
    with pytest.raises(broker.BrokerError, match="rejects this user and password") as raised:
        broker.check(stranger, 5)
    assert "5ecret" not in str(raised.value)
    with pytest.raises(broker.BrokerError, match="vhost nowhere-at-all not found"):
        broker.check(urlunsplit(parts._replace(path="/nowhere-at-all")), 5)


@pytest.mark.parametrize("url", ["nonsense", "amqp://guest:5ec/ret@127.0.0.1/", "amqp://guest:5ecret@h/?colour=red"])
def test_a_url_that_cannot_be_understood_is_told_without_the_password(url: str) -> None:
    with pytest.raises(broker.BrokerError, match="URL cannot be parsed") as raised:
        broker.check(url)
    assert "5ec" not in str(raised.value)


def test_a_broker_that_is_too_full_to_take_messages_is_not_used(private_broker: PrivateBroker) -> None:
    broker.check(private_broker.url)
    private_broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        with pytest.raises(broker.BrokerError, match="Blocked"):
            broker.check(private_broker.url, 0.8)
    finally:  # otherwise the broker would block the following tests
        private_broker.ctl("set_vm_memory_high_watermark", "0.8")


def test_the_names_are_all_that_the_service_and_the_listener_make() -> None:
    published = (pulse.HGPUSHES, pulse.ANNOUNCEMENTS, pulse.RETRIGGERS, pulse.JOBS)
    assert {f"exchange/u/{name}" for name in published} < set(broker.exchanges("u"))
    fields = ListenerSettings.model_fields
    (kinds,) = get_args(fields["pulse_read"].annotation)
    assert broker.queues("u") == [f"queue/u/{fields['pulse_queue'].default}/{kind}" for kind in get_args(kinds)]


def test_only_what_is_the_users_own_is_removed(amqp_url: str) -> None:
    one, other = broker.new_user(), broker.new_user()
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        for user in (one, other):
            for exchange in broker.exchanges(user):
                channel.exchange_declare(exchange, "topic", durable=True)
            for queue in broker.queues(user):
                channel.queue_declare(queue, durable=True)
    broker.remove(amqp_url, one)
    assert existing(amqp_url, broker.exchanges(one), broker.queues(one)) == set()
    names = broker.exchanges(other), broker.queues(other)
    assert existing(amqp_url, *names) == {*names[0], *names[1]}
    broker.remove(amqp_url, other)
    assert existing(amqp_url, *names) == set()
