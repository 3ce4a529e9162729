"""A pressed button is published to a broker."""

import asyncio
import json
from typing import Any

import jsonschema
import pika
import pytest

from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE, declare_job_actions
from tests.published_schemas import read_published
from tests.sandbox.treeherder.support import (
    JOBS,
    PRESS,
    RESULTSET,
    Treeherder,
    entry,
    resultset,
)
from tests.services import Amqp

MESSAGE = {"version": 1, **PRESS, "job_id": 1}


async def test_a_button_without_a_broker_says_so(th: Treeherder) -> None:
    answer = await th.post("/__control__/job-action", json=PRESS)
    assert (answer.status_code, "AMQP" in answer.json()["detail"]) == (409, True)
    assert (await th.post("/__control__/job-action", json=PRESS | {"action": "smile"})).status_code == 400


async def test_a_button_with_a_broker_that_is_away_says_so(th: Treeherder, unused_tcp_port: int) -> None:
    th.state.amqp_url = f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/"
    answer = await th.post("/__control__/job-action", json=PRESS)
    assert (answer.status_code, "press again" in answer.json()["detail"]) == (503, True)


@pytest.mark.published
def test_the_message_is_valid_by_the_published_schema() -> None:
    schema = read_published("treeherder/job-action-message.json")
    jsonschema.validate(MESSAGE, schema, jsonschema.Draft4Validator)


@pytest.mark.parametrize(("dot", "suffix"), [(False, ""), (True, ".")])
async def test_a_button_publishes_the_message(
    th: Treeherder, monkeypatch: pytest.MonkeyPatch, dot: bool, suffix: str
) -> None:
    published: list[tuple[Any, ...]] = []

    class Channel:
        def exchange_declare(self, *arguments: Any, **named: Any) -> None:
            published.append((*arguments, named))

        def confirm_delivery(self) -> None:
            published.append(("confirm",))

        def basic_publish(self, exchange: str, key: str, body: bytes, *_: Any, **named: Any) -> None:
            published.append((exchange, key, json.loads(body)))

    class Connection:
        is_open = False

        def __init__(self, parameters: Any) -> None:
            assert parameters.host == "broker.example"

        def channel(self) -> Channel:
            return Channel()

    monkeypatch.setattr(pika, "BlockingConnection", Connection)
    th.state.amqp_url = "amqp://broker.example/"
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry()])
    answer = await th.post("/__control__/job-action", json=PRESS | {"trailing_dot": dot})
    assert (answer.status_code, answer.json()["heard"]) == (200, True)
    declared, confirmed, (exchange, key, message) = published
    assert declared == (JOB_ACTIONS_EXCHANGE, {"exchange_type": "topic", "durable": True})
    assert confirmed == ("confirm",)
    assert (exchange, key) == (JOB_ACTIONS_EXCHANGE, f"taskcluster.autoland.retrigger{suffix}")
    assert message == MESSAGE


async def test_a_real_broker_hears_the_button(th: Treeherder, amqp: Amqp) -> None:
    th.state.amqp_url = amqp.url
    press = PRESS | {"project": amqp.name}  # so that nobody else's binding matches
    queue = amqp.queue()

    def listen() -> None:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(JOB_ACTIONS_EXCHANGE, passive=True)  # Pulse allows no more
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, JOB_ACTIONS_EXCHANGE, f"taskcluster.{amqp.name}.#")

    def read() -> tuple[Any, Any, bytes]:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
            return method, properties, body

    await asyncio.to_thread(declare_job_actions, amqp.url)
    unheard = await th.post("/__control__/job-action", json=press)
    assert (unheard.status_code, unheard.json()["heard"]) == (200, False)
    await asyncio.to_thread(listen)
    assert (await th.post("/__control__/job-action", json=press)).json()["heard"] is True
    method, properties, body = await asyncio.to_thread(read)
    assert (method.exchange, method.routing_key) == (JOB_ACTIONS_EXCHANGE, f"taskcluster.{amqp.name}.retrigger")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert json.loads(body) == {"version": 1, **press}
