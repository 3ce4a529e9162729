"""A pushlog listener, or a single poll of it, between the sandbox's hgweb and a stand-in of the service."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit

from listeners.clock import boottime
from listeners.forward import Forwarder
from listeners.listing import PushlogClient
from listeners.pushlog import Poll, PushlogListener
from listeners.shift import LeasedRepository, PollResult
from sandbox.hg import Fault, MemoryPushlog
from service.contract.events import PollNews
from tests.listeners.fakes import (
    Answer,
    FakeRepository,
    FakeService,
    Request,
    quick_settings,
    serving,
    serving_hg,
)


@dataclass
class PushlogHarness:
    """A pushlog, a service, and the listeners between them; `now` is the pushlog's time."""

    pushlog: MemoryPushlog = field(init=False)
    now: float = 1_795_000_000.0
    service: FakeService = field(default_factory=FakeService)
    url: str = ""
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.pushlog = MemoryPushlog(lambda: self.now)

    @cached_property
    def served(self) -> tuple[str, Any]:
        return self.stack.enter_context(serving_hg(self.pushlog))

    @property
    def hg(self) -> str:
        return self.served[0]

    @property
    def app(self) -> Any:
        return self.served[1]

    def monitor(self, alias: str = "r", **options: Any) -> FakeRepository:
        url = options.pop("url", None) or f"{self.hg}/{alias}"
        self.service.repositories[alias] = monitored = FakeRepository(url, **options)
        return monitored

    def fault(self, repository: str, kind: Any, **options: Any) -> None:
        self.app.state.faults.add(Fault(repository=repository, kind=kind, command="json-pushes", **options))

    @contextmanager
    def listening(self, **options: Any) -> Iterator[PushlogListener]:
        listener = PushlogListener(quick_settings(self.url, **options))
        thread = threading.Thread(target=listener.run)
        thread.start()
        try:
            yield listener
        finally:
            listener.stop()
            thread.join(10)
            assert not thread.is_alive()

    def poll(self, alias: str = "r", **options: Any) -> "PollOutcome":
        """Poll once, as a listener does that has just leased the repository."""
        repository = self.service.repositories[alias]
        repository.id = 1 + list(self.service.repositories).index(alias)
        stop, settings = threading.Event(), quick_settings(self.url, **options)
        forwarder = Forwarder(settings, stop, connections=1)
        pushlogs = PushlogClient(settings.hg_timeout.total_seconds(), settings.max_listing, 1)
        leased = LeasedRepository.from_lease(
            self.service.lease(alias), boottime(), boottime() + self.service.shift_seconds, 600
        )
        try:
            return PollOutcome(Poll(leased, settings, pushlogs, forwarder, stop, lambda: 10).run(), leased)
        finally:
            forwarder.close()
            pushlogs.close()


@dataclass
class PollOutcome:
    """The result of a poll, and the state of its repository."""

    result: PollResult
    repository: LeasedRepository

    @property
    def outcome(self) -> str:
        if self.result.succeeded:
            return "listed"
        return "gone" if self.result.news is None else self.result.news.outcome

    @property
    def etag(self) -> str | None:
        return self.repository.etag if self.result.succeeded else None

    @property
    def requests(self) -> int:
        return self.result.requests

    @property
    def news(self) -> PollNews:
        assert self.result.news is not None
        return self.result.news

    @property
    def error(self) -> str:
        return self.news.error or ""


Pushes = dict[int, Any]


def push_entry(*nodes: int, **options: Any) -> dict[str, Any]:
    changesets = [{"node": f"{node:040x}", "branch": "default"} for node in nodes]
    return {"user": "u", "date": 1, "changesets": changesets, **options}


@contextmanager
def serving_pushes(
    pushes: Pushes, last: int | None = None, **headers: str
) -> Iterator[tuple[str, list[dict[str, int]]]]:
    """Run a pushlog of the given entries, and yield its URL and the queries of its requests."""
    queries: list[dict[str, int]] = []

    def answer(request: Request) -> Answer:
        query = {key: int(value[0]) for key, value in parse_qs(urlsplit(request.path).query).items()}
        queries.append(query)
        listed = {str(i): entry for i, entry in pushes.items() if query["startID"] < i <= query["endID"]}
        if "full" not in query:
            listed = {i: {"changesets": [c["node"] for c in entry["changesets"][-1:]]} for i, entry in listed.items()}
        document = {"lastpushid": max(pushes, default=0) if last is None else last, "pushes": listed}
        return Answer(200, json.dumps(document).encode(), {"ETag": 'W/"7"', **headers})

    with serving(answer) as url:
        yield url, queries


def push_ids(batch: list[Any]) -> list[int]:
    return [event["push"]["id"] for event in batch]
