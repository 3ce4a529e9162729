"""Stand-ins for what a listener calls, over real sockets: a service that judges as the real one does, and pushlogs."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from listeners.settings import ListenerSettings
from sandbox.hg import MemoryPushlog, create_app
from service.contract.events import (
    MAX_BYTES,
    MAX_EVENTS,
    AnnouncedLeases,
    HostRate,
    Lease,
    OversizedPush,
    PollNews,
    PushEvent,
    Shift,
    ShiftRequest,
    Verdict,
    Verdicts,
)

SECRET = "whsec_" + "c2VjcmV0" * 5
OTHER_SECRET = "whsec_" + "b3RoZXIh" * 5


@dataclass
class Request:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    port: int = 0  # of the client


@dataclass
class Answer:
    """The answer that the server gives."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    trickle: float = 0.0  # seconds after each byte of the body
    hang_up: bool = False  # closes the connection and answers nothing


@contextmanager
def serving(answer: Callable[[Request], Answer], port: int = 0) -> Iterator[str]:
    """Run an HTTP/1.1 server with keep-alive, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the client was stopped
                self.close_connection = True

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            body = self.rfile.read(length)
            response = answer(Request(self.command, self.path, headers, body, self.client_address[1]))
            if response.hang_up:
                self.close_connection = True
                return
            self.send_response(response.status)
            for key, value in response.headers.items():
                self.send_header(key, value)
            if response.status != 304:
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            step = 1 if response.trickle else max(len(response.body), 1)
            for start in range(0, len(response.body), step):
                self.wfile.write(response.body[start : start + step])
                time.sleep(response.trickle)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving_hg(pushlog: MemoryPushlog) -> Iterator[tuple[str, Any]]:
    """Run the sandbox's hgweb, and yield its URL and its app."""
    app = create_app(pushlog)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, date_header=False, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", app
        finally:
            server.should_exit = True
            thread.join()


HOST = "127.0.0.1"


@dataclass
class FakeRepository:
    """A monitored repository as the service knows it, and what it got from listeners."""

    url: str
    cursor: int = 0
    last_changeset: str | None = None
    generation: int = 0
    etag: str | None = None
    shift: int = 0
    holder: str | None = None
    until: float = 0.0
    due: float = 0.0
    id: int = 0
    suspected: bool = False
    polled: int = 0  # renewals that named it as polled well
    stored: dict[int, PushEvent | OversizedPush] = field(default_factory=dict)
    news: list[PollNews] = field(default_factory=list)


class FakeService:
    """A service that leases and judges as the real one does; `override` can answer in its place."""

    def __init__(self, *, interval: float = 0.02, shift_seconds: float = 10, renew: float = 0.02) -> None:
        self.interval, self.shift_seconds, self.renew = interval, shift_seconds, renew
        self.rate, self.at_a_time, self.reserve = 1_000.0, 100, 1_000
        self.repositories: dict[str, FakeRepository] = {}
        self.batches: list[list[Any]] = []
        self.dead_letters: list[Any] = []
        self.requests: list[Request] = []
        self.renewals: list[ShiftRequest] = []
        self.announcements: list[list[str]] = []
        self.override: Callable[[Request], Answer | None] = lambda request: None
        self.lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
        if (answer := self.override(request)) is not None:
            return answer
        if len(request.body) > MAX_BYTES:
            return problem(413, "too large")
        try:
            Webhook(SECRET).verify(request.body, request.headers, json_parse=False)
        except WebhookVerificationError as error:
            return problem(401, str(error))
        payload = json.loads(request.body)
        if request.path == "/api/v1/polls/lease":
            return self._renew(ShiftRequest.model_validate(payload))
        if request.path == "/api/v1/polls/announced":
            return self._announced(payload["urls"])
        assert request.path == "/api/v1/events/pushes"
        return self._pushes(payload["events"])

    def wait_for(self, condition: Callable[[], Any], seconds: float = 10) -> Any:
        """Wait until `condition` returns a true value, and return it."""
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                if value := condition():
                    return value
            assert time.monotonic() < end, "the condition was not met in time"
            time.sleep(0.002)

    def wait_for_polls(self, alias: str, count: int = 1) -> None:
        """Wait until `count` more renewals have reported a good poll of a repository."""
        repository = self.repositories[alias]
        end = repository.polled + count
        self.wait_for(lambda: repository.polled >= end)

    def wait_for_news(self, alias: str, count: int = 1) -> list[PollNews]:
        """Wait until there are `count` news of a repository, and return all of them."""
        news = self.repositories[alias].news
        self.wait_for(lambda: len(news) >= count)
        return list(news)

    def end_shift(self, alias: str) -> None:
        """End the shift of a repository, as a PATCH does."""
        with self.lock:
            repository = self.repositories[alias]
            repository.holder, repository.due = None, 0.0
            repository.shift += 1

    def _of(self, repository_id: int) -> FakeRepository:
        return next(repository for repository in self.repositories.values() if repository.id == repository_id)

    def _number_repositories(self) -> None:
        for number, repository in enumerate(self.repositories.values(), 1):
            repository.id = number

    def _renew(self, renewal: ShiftRequest) -> Answer:
        with self.lock:
            now = time.monotonic()
            self._number_repositories()
            self.renewals.append(renewal)
            for item in renewal.news:
                news = PollNews.model_validate(item)
                repository = self._of(news.repository_id)
                if (repository.holder, repository.shift) == (renewal.listener, news.shift):
                    repository.news.append(news)
                    repository.etag = news.etag
                    if news.outcome != "listed":
                        repository.holder, repository.due = None, now + self.interval
            renewed = []
            polled = {polled_repository[0]: polled_repository[1] for polled_repository in renewal.polled}
            for repository_id, number in [*polled.items(), *renewal.under_way]:
                repository = self._of(repository_id)
                if (repository.holder, repository.shift) == (renewal.listener, number):
                    repository.polled += repository_id in polled
                    repository.until = now + self.shift_seconds
                    renewed.append(repository_id)
            leases = []
            for alias, repository in self.repositories.items():
                if renewal.ends and repository.holder == renewal.listener:
                    repository.holder = None
                free = repository.holder is None or repository.until <= now
                if free and repository.due <= now and not renewal.ends:
                    repository.holder, repository.until = renewal.listener, now + self.shift_seconds
                    repository.shift += 1
                    leases.append(self.lease(alias))
            shift = Shift(
                answer=len(self.renewals),
                seconds=self.shift_seconds,
                renew=self.renew,
                full_every=600,
                hosts={HOST: HostRate(rate=self.rate, at_a_time=self.at_a_time)} if self.rate else {},
                renewed=renewed,
                leases=leases,
            )
        return Answer(200, shift.model_dump_json().encode())

    def lease(self, alias: str) -> Lease:
        repository = self.repositories[alias]
        return Lease(
            repository=alias,
            id=repository.id,
            shift=repository.shift,
            url=repository.url,
            host=HOST,
            generation=repository.generation,
            cursor=repository.cursor,
            last_changeset=repository.last_changeset,
            etag=repository.etag,
            full_in=600 if repository.etag else 0,
            first_in=0,
            interval=self.interval,
            suspected=repository.suspected,
        )

    def _announced(self, urls: list[str]) -> Answer:
        with self.lock:
            self._number_repositories()
            self.announcements.append(urls)
            aliases = [alias for alias, repository in self.repositories.items() if repository.url in urls]
            paid = aliases[: self.reserve]
            self.reserve -= len(paid)
            answer = AnnouncedLeases(
                leases=[self.lease(alias) for alias in paid], wait=0.02 if len(paid) < len(aliases) else None
            )
        return Answer(200, answer.model_dump_json().encode())

    def _pushes(self, events: list[Any]) -> Answer:
        assert len(events) <= MAX_EVENTS
        with self.lock:
            self.batches.append(events)
            verdicts = [self._judge(event) for event in events]
            for verdict in verdicts:
                if verdict.repository is not None:
                    verdict.cursor = self.repositories[verdict.repository].cursor
                    verdict.shift = self.repositories[verdict.repository].shift
        return Answer(202, Verdicts(verdicts=verdicts).model_dump_json().encode())

    def _judge(self, payload: Any) -> Verdict:
        event: PushEvent | OversizedPush
        try:
            model = OversizedPush if payload.get("oversized") else PushEvent
            event = model.model_validate(payload)
        except ValidationError:
            self.dead_letters.append(payload)
            return Verdict(verdict="rejected", reason="not understood; kept as a dead letter")
        repository = self.repositories[event.repository]
        if (event.repository_id, event.shift) != (repository.id, repository.shift):
            return Verdict(verdict="rejected", repository=event.repository, reason="list again")
        push_id = event.push_id if isinstance(event, OversizedPush) else event.push.id
        if event.since <= repository.cursor < push_id:
            repository.cursor = push_id
            changesets = [] if isinstance(event, OversizedPush) else event.push.changesets
            repository.last_changeset = changesets[-1].node if changesets else None
        verdict = "duplicate" if push_id in repository.stored else "accepted"
        repository.stored.setdefault(push_id, event)
        return Verdict.model_validate({"verdict": verdict, "repository": event.repository})


def problem(status: int, detail: str, **headers: str) -> Answer:
    """Return an answer with a problem+json."""
    body = json.dumps({"title": "A problem", "status": status, "detail": detail}).encode()
    return Answer(status, body, {"Content-Type": "application/problem+json", **headers})


def quick_settings(url: str, **options: Any) -> ListenerSettings:
    """Return settings with short pauses."""
    moment = timedelta(milliseconds=20)
    defaults: dict[str, Any] = {
        "service_url": url,
        "webhook_secrets": [SecretStr(SECRET), SecretStr(OTHER_SECRET)],
        "first_retry": moment,
        "max_retry": moment,
        "refused_retry": moment,
        "announced_wait": timedelta(seconds=2),
        "drain": timedelta(seconds=3),
    }
    return ListenerSettings(**{**defaults, **options})
