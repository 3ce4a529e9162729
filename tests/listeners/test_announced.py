"""Announced pushes: which messages announce one, and that the pushlog itself is asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from structlog.testing import capture_logs

from listeners.announced import Announced, announced_url
from listeners.forward import Forwarder
from listeners.pulse import PulseListener
from sandbox.hg import MemoryPushlog
from tests.facts import fact
from tests.listeners.fakes import Answer, FakeService, Monitored, Request, problem, serving, serving_hg, short
from tests.services import Amqp

METHOD = SimpleNamespace(exchange="exchange/hgpushes/v2")


def v2(url: Any, kind: Any = "changegroup.1") -> bytes:
    """As hg.mozilla.org sends it; the pushes that it names are of no interest."""
    data = {"repo_url": url, "heads": ["a" * 40], "source": "serve", "pushlog_pushes": [{"pushid": 1_000_000}]}
    return json.dumps({"payload": {"type": kind, "data": data}}).encode()


def url_of(body: bytes) -> str:
    return announced_url("channel", METHOD, None, body)


def test_both_versions_name_the_repository() -> None:
    assert url_of(v2("https://hg.mozilla.org/try/")) == "https://hg.mozilla.org/try"
    assert url_of(json.dumps(fact("pulse/hgpushes-v1.json")).encode()) == "https://hg.mozilla.org/try"


@pytest.mark.parametrize("kind", ["newrepo.1", "obsolete.1", "changegroup.2", None, 1])
def test_other_types_announce_nothing(kind: Any) -> None:
    assert url_of(v2("https://hg.mozilla.org/try", kind)) == ""


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"[]", b"{}", b'{"payload": 1}', b'{"payload": {"data": []}}', b"[" * 100_000, v2(7), v2(None)],
)
def test_what_is_not_understood_announces_nothing(body: bytes) -> None:
    assert url_of(body) == ""


@dataclass
class World:
    pushlog: MemoryPushlog
    service: FakeService
    hg: str
    url: str
    app: Any

    def monitor(self, alias: str, push: bool = True) -> Monitored:
        """A repository that the poll would not come to for an hour."""
        self.pushlog.create(alias)
        if push:
            self.pushlog.push(alias)
        self.service.repositories[alias] = monitored = Monitored(f"{self.hg}/{alias}", due=1e12)
        return monitored

    def announce(self, *aliases: str, **options: Any) -> None:
        """Give it a batch of announcements."""
        stop = threading.Event()
        settings = short(self.url, **options)
        forwarder = Forwarder(settings, stop, connections=1)
        announced = Announced(settings, forwarder, stop, True)
        announced([f"{self.hg}/{alias}" if alias else "" for alias in aliases])
        forwarder.close()
        announced.close()


@pytest.fixture
def world() -> Iterator[World]:
    service, pushlog = FakeService(interval=3_600), MemoryPushlog()
    with ExitStack() as stack:
        hg, app = stack.enter_context(serving_hg(pushlog))
        yield World(pushlog, service, hg, stack.enter_context(serving(service.answer)), app)


def test_what_the_pushlog_lists_is_forwarded_and_the_poll_reported(world: World) -> None:
    announced, quiet = world.monitor("announced"), world.monitor("quiet")
    world.pushlog.push("announced")
    world.announce("announced", "announced", "", "unknown")
    assert list(announced.stored) == [1, 2], "from the cursor, whatever the announcement named"
    assert [result.outcome for result in announced.results] == ["listed"]
    assert not announced.leased
    assert (quiet.stored, quiet.lease) == ({}, 0)


def test_several_are_polled_one_after_the_other(world: World) -> None:
    repositories = [world.monitor(f"r{number}") for number in range(5)]
    world.announce(*(f"r{number}" for number in range(5)))
    assert [list(repository.stored) for repository in repositories] == [[1]] * 5
    assert all(len(repository.results) == 1 for repository in repositories)
    assert all(asked.max <= 1 and asked.wait == 0 for asked in world.service.leases_asked)


def test_one_that_another_listener_holds_is_due_and_left_to_others(world: World) -> None:
    held = world.monitor("held")
    held.leased = True
    world.announce("held")
    assert (held.stored, held.due) == ({}, 0.0)
    assert len(world.service.leases_asked) == 1


def test_a_poll_that_fails_is_reported_and_stops_nothing(world: World) -> None:
    world.monitor("a")
    broken = world.service.repositories["a"]
    broken.url = f"{world.hg}/nowhere"
    good = world.monitor("b")
    world.announce("nowhere", "b")
    assert [result.outcome for result in broken.results] == ["failed"]
    assert list(good.stored) == [1]


def test_a_service_that_refuses_is_left_to_the_poll(world: World) -> None:
    world.monitor("a")
    world.service.before = lambda request: problem(422, "no")
    with capture_logs() as logs:
        world.announce("a")
    assert [line["event"] for line in logs] == ["lease-rejected"]


def test_a_published_announcement_brings_the_push_at_once(world: World, amqp: Amqp) -> None:
    exchange, queue = amqp.exchange("hgpushes"), amqp.queue("pushes")
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    repository = world.monitor("integration")

    def report(request: Request) -> Answer | None:
        return Answer(200, b'{"deleted": false}') if request.path.endswith("report") else None

    world.service.before = report
    listener = PulseListener(
        short(
            world.url,
            pulse_url=amqp.url,
            pulse_user=amqp.user,
            pulse_queue=amqp.name,
            pulse_read=["pushes"],
            pulse_pushes=exchange,
            pulse_linger=timedelta(),
        )
    )
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        world.service.wait_for(lambda: listener.consumers["pushes"].connected)
        for body in (b"nonsense", v2("https://elsewhere/x"), v2(repository.url)):
            channel.basic_publish(exchange, "integration", body)
        world.service.wait_for(lambda: repository.results)
        assert list(repository.stored) == [1]
    finally:
        listener.stop()
        thread.join(10)
    assert channel.queue_declare(queue, passive=True).method.message_count == 0
    connection.close()
