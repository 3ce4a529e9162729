"""Announced pushes: which messages announce one, and how the pushlog is polled then."""

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

from listeners.announced import AnnouncedPoller, parse_announcement
from listeners.forward import Forwarder
from listeners.pulse import PulseListener
from sandbox.hg import MemoryPushlog
from tests.listeners.fakes import (
    Answer,
    FakeRepository,
    FakeService,
    Request,
    problem,
    quick_settings,
    serving,
    serving_hg,
)
from tests.published_schemas import read_published
from tests.services import Amqp

METHOD = SimpleNamespace(exchange="exchange/hgpushes/v2")


def make_announcement(url: Any, kind: Any = "changegroup.1") -> bytes:
    """Return a message as hg.mozilla.org sends it; the pushes that it names do not matter."""
    data = {"repo_url": url, "heads": ["a" * 40], "source": "serve", "pushlog_pushes": [{"pushid": 1_000_000}]}
    return json.dumps({"payload": {"type": kind, "data": data}}).encode()


def parse_url(body: bytes) -> str:
    return parse_announcement("channel", METHOD, None, body)


@pytest.mark.published
def test_v1_and_v2_messages_name_the_repository() -> None:
    assert parse_url(make_announcement("https://hg.mozilla.org/try/")) == "https://hg.mozilla.org/try"
    payload = {
        "repo_url": "https://hg.mozilla.org/try",
        "heads": ["5e" * 20],
        "pushlog_pushes": [{"pushid": 450_002, "time": 1_469_000_000, "user": " rosa@example.org"}],
        "_meta": {"exchange": "exchange/hgpushes/v1", "routing_key": "try", "sent": "2016-07-20T07:33:20.123456"},
    }
    assert parse_url(json.dumps({"payload": payload}).encode()) == "https://hg.mozilla.org/try"


@pytest.mark.published
def test_a_recorded_v1_message_names_the_repository() -> None:
    assert parse_url(json.dumps(read_published("pulse/hgpushes-v1.json")).encode()) == "https://hg.mozilla.org/try"


@pytest.mark.parametrize("kind", ["newrepo.1", "obsolete.1", "changegroup.2", None, 1])
def test_other_message_types_are_ignored(kind: Any) -> None:
    assert parse_url(make_announcement("https://hg.mozilla.org/try", kind)) == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"payload": 1}',
        b'{"payload": {"data": []}}',
        b"[" * 100_000,
        make_announcement(7),
        make_announcement(None),
    ],
)
def test_malformed_announcements_are_ignored(body: bytes) -> None:
    assert parse_url(body) == ""


@dataclass
class AnnouncementHarness:
    """A pushlog, a service, and announcements of pushes."""

    pushlog: MemoryPushlog
    service: FakeService
    hg: str
    url: str
    app: Any

    def monitor(self, alias: str, push: bool = True) -> FakeRepository:
        """Monitor a repository whose regular poll is not due for an hour."""
        self.pushlog.create(alias)
        if push:
            self.pushlog.push(alias)
        self.service.repositories[alias] = monitored = FakeRepository(f"{self.hg}/{alias}", due=1e12, shift=4)
        return monitored

    def announce(self, *aliases: str, **options: Any) -> None:
        """Handle a batch of announcements."""
        stop = threading.Event()
        settings = quick_settings(self.url, **options)
        forwarder = Forwarder(settings, stop, connections=1)
        announced = AnnouncedPoller(settings, forwarder, stop, True)
        announced.poll_announced([f"{self.hg}/{alias}" if alias else "" for alias in aliases])
        forwarder.close()
        announced.close()


@pytest.fixture
def harness() -> Iterator[AnnouncementHarness]:
    service, pushlog = FakeService(interval=3_600), MemoryPushlog()
    with ExitStack() as stack:
        hg, app = stack.enter_context(serving_hg(pushlog))
        yield AnnouncementHarness(pushlog, service, hg, stack.enter_context(serving(service.answer)), app)


def count_polls(harness: AnnouncementHarness) -> int:
    return int(harness.app.state.requests.report()["kinds"].get("json-pushes", {}).get("requests", 0))


def test_announced_pushes_are_forwarded_with_the_current_shift(harness: AnnouncementHarness) -> None:
    """Another listener has leased the repository, and keeps it."""
    announced, quiet = harness.monitor("announced"), harness.monitor("quiet")
    announced.holder = "another"
    harness.pushlog.push("announced")
    harness.announce("announced", "announced", "", "unknown")
    assert list(announced.stored) == [1, 2], "from the cursor, whatever the announcement named"
    assert {event.shift for event in announced.stored.values()} == {4}
    assert (announced.holder, announced.shift) == ("another", 4)
    assert quiet.stored == {}
    assert (harness.service.renewals, count_polls(harness)) == ([], 1)


def test_announced_repositories_are_polled_one_after_the_other(harness: AnnouncementHarness) -> None:
    repositories = [harness.monitor(f"r{number}") for number in range(5)]
    harness.announce(*(f"r{number}" for number in range(5)))
    assert [list(repository.stored) for repository in repositories] == [[1]] * 5
    assert len(harness.service.announcements) == 1
    assert harness.app.state.requests.report()["max_concurrent"] == 1


def test_repositories_wait_for_the_reserve(harness: AnnouncementHarness) -> None:
    repositories = [harness.monitor(f"r{number}") for number in range(3)]
    harness.service.reserve = 1

    def refill(request: Request) -> None:
        harness.service.reserve = 1

    harness.service.override = refill
    harness.announce(*(f"r{number}" for number in range(3)))
    assert [list(repository.stored) for repository in repositories] == [[1]] * 3
    assert [len(urls) for urls in harness.service.announcements] == [3, 2, 1]


def test_repositories_are_left_to_the_shifts_when_the_wait_is_over(harness: AnnouncementHarness) -> None:
    repository = harness.monitor("late")
    harness.service.reserve = 0
    harness.announce("late", announced_wait=0.1)
    assert (repository.stored, count_polls(harness)) == ({}, 0)
    assert 2 <= len(harness.service.announcements) <= 6


def test_each_poll_sends_only_the_paid_request(harness: AnnouncementHarness) -> None:
    repository = harness.monitor("backlog")
    for _ in range(4):
        harness.pushlog.push("backlog")
    harness.service.reserve = 2
    harness.announce("backlog", poll_window=2, announced_wait=0.1)
    assert list(repository.stored) == [1, 2, 3, 4]
    assert count_polls(harness) == 2


def test_a_shift_that_began_meanwhile_is_fetched(harness: AnnouncementHarness) -> None:
    repository = harness.monitor("r")

    def begin(request: Request) -> None:
        if "events" in request.path and repository.shift == 4:
            harness.service.end_shift("r")

    harness.service.override = begin
    harness.announce("r")
    assert list(repository.stored) == [1]
    assert repository.stored[1].shift == 5


def test_a_failed_poll_does_not_stop_the_others(harness: AnnouncementHarness) -> None:
    harness.monitor("a")
    harness.service.repositories["a"].url = f"{harness.hg}/nowhere"
    good = harness.monitor("b")
    harness.announce("nowhere", "b")
    assert list(good.stored) == [1]
    assert len(harness.service.announcements) == 1


def test_a_rejected_announcement_is_logged_and_left_to_the_regular_polls(harness: AnnouncementHarness) -> None:
    harness.monitor("a")
    harness.service.override = lambda request: problem(422, "no")
    with capture_logs() as logs:
        harness.announce("a")
    assert [line["event"] for line in logs] == ["announcement-rejected"]


def test_a_published_announcement_triggers_a_poll(harness: AnnouncementHarness, amqp: Amqp) -> None:
    exchange, queue = amqp.exchange("hgpushes"), amqp.queue("pushes")
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    repository = harness.monitor("integration")

    def report(request: Request) -> Answer | None:
        return Answer(200, b'{"deleted": false}') if request.path.endswith("report") else None

    harness.service.override = report
    listener = PulseListener(
        quick_settings(
            harness.url,
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
        harness.service.wait_for(lambda: listener.consumers["pushes"].connected)
        for body in (b"nonsense", make_announcement("https://elsewhere/x"), make_announcement(repository.url)):
            channel.basic_publish(exchange, "integration", body)
        harness.service.wait_for(lambda: repository.stored)
        assert list(repository.stored) == [1]
    finally:
        listener.stop()
        thread.join(10)
    assert channel.queue_declare(queue, passive=True).method.message_count == 0
    connection.close()
