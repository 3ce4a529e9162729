"""What a listener talks to, over real sockets: a service that judges as the real one does, and pushlogs."""

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

from events import MAX_BYTES, MAX_EVENTS, LeaseRequest, Leases, OversizedPush, PollResult, PushEvent, Verdict, Verdicts
from listeners.settings import ListenerSettings
from sandbox.hg import MemoryPushlog, create_app

SECRET = "whsec_" + "c2VjcmV0" * 5
OTHER_SECRET = "whsec_" + "b3RoZXIh" * 5


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    trickle: float = 0.0  # seconds after each byte of the body
    hang_up: bool = False  # closes the connection and answers nothing


@contextmanager
def serving(answer: Callable[[Request], Answer], port: int = 0) -> Iterator[str]:
    """The address of an HTTP/1.1 server with keep-alive."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the client was stopped
                self.close_connection = True

        def _any(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            given = answer(Request(self.command, self.path, headers, self.rfile.read(length)))
            if given.hang_up:
                self.close_connection = True
                return
            self.send_response(given.status)
            for key, value in given.headers.items():
                self.send_header(key, value)
            if given.status != 304:
                self.send_header("Content-Length", str(len(given.body)))
            self.end_headers()
            step = 1 if given.trickle else max(len(given.body), 1)
            for at in range(0, len(given.body), step):
                self.wfile.write(given.body[at : at + step])
                time.sleep(given.trickle)

        do_GET = do_POST = _any  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

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
    """The address of the sandbox's hgweb, and its app."""
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


@dataclass
class Monitored:
    url: str
    cursor: int = 0
    last_changeset: str | None = None
    generation: int = 0
    etag: str | None = None
    lease: int = 0
    leased: bool = False
    due: float = 0.0
    stored: dict[int, PushEvent | OversizedPush] = field(default_factory=dict)
    results: list[PollResult] = field(default_factory=list)


class FakeService:
    """Leases and judges as the service does; `before` can answer in its stead."""

    def __init__(self, *, interval: float = 0.02, lease_seconds: float = 10) -> None:
        self.interval, self.lease_seconds = interval, lease_seconds
        self.repositories: dict[str, Monitored] = {}
        self.batches: list[list[Any]] = []
        self.dead_letters: list[Any] = []
        self.requests: list[Request] = []
        self.leases_asked: list[LeaseRequest] = []
        self.before: Callable[[Request], Answer | None] = lambda request: None
        self.lock = threading.Lock()

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
        if (given := self.before(request)) is not None:
            return given
        if len(request.body) > MAX_BYTES:
            return problem(413, "too large")
        try:
            Webhook(SECRET).verify(request.body, request.headers, json_parse=False)
        except WebhookVerificationError as error:
            return problem(401, str(error))
        said = json.loads(request.body)
        if request.path == "/api/v1/polls/lease":
            return self._lease(LeaseRequest.model_validate(said))
        assert request.path == "/api/v1/events/pushes"
        return self._pushes(said["events"])

    def wait_for(self, happened: Callable[[], Any], seconds: float = 10) -> Any:
        """What `happened` gives once it is true."""
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                if told := happened():
                    return told
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.002)

    def results(self, alias: str, count: int = 1) -> list[PollResult]:
        """The results of a repository's polls, once there are so many."""
        results = self.repositories[alias].results
        self.wait_for(lambda: len(results) >= count)
        return list(results)

    def _lease(self, asked: LeaseRequest) -> Answer:
        end = time.monotonic() + asked.wait
        with self.lock:
            self.leases_asked.append(asked)
            for repository in self.repositories.values():
                repository.due = 0.0 if repository.url in asked.urls else repository.due
            for told in asked.results:
                result = PollResult.model_validate(told)
                repository = self.repositories[result.repository]
                if result.lease != repository.lease:
                    continue
                repository.results.append(result)
                repository.leased = False
                repository.due = time.monotonic() + (0 if result.more else self.interval)
                if result.outcome == "listed":
                    repository.etag = reliable(result)
            while not (leases := self._leases(asked.max, asked.urls)) and (left := end - time.monotonic()) > 0:
                self.lock.release()
                time.sleep(min(left, 0.005))
                self.lock.acquire()
        return Answer(200, Leases.model_validate({"leases": leases}).model_dump_json().encode())

    def _leases(self, limit: int, urls: list[str]) -> list[dict[str, Any]]:
        leases: list[dict[str, Any]] = []
        for alias, repository in self.repositories.items():
            if urls and repository.url not in urls:
                continue
            if len(leases) < limit and not repository.leased and repository.due <= time.monotonic():
                repository.leased = True
                repository.lease += 1
                leases.append(
                    {
                        "repository": alias,
                        "host": "127.0.0.1",
                        "seconds": self.lease_seconds,
                        **{
                            key: getattr(repository, key)
                            for key in ("lease", "url", "generation", "cursor", "last_changeset", "etag")
                        },
                    }
                )
        return leases

    def _pushes(self, events: list[Any]) -> Answer:
        assert len(events) <= MAX_EVENTS
        with self.lock:
            self.batches.append(events)
            verdicts = [self._judge(event) for event in events]
            for verdict in verdicts:
                if verdict.repository is not None:
                    verdict.cursor = self.repositories[verdict.repository].cursor
                    verdict.generation = self.repositories[verdict.repository].generation
        return Answer(202, Verdicts(verdicts=verdicts).model_dump_json().encode())

    def _judge(self, told: Any) -> Verdict:
        event: PushEvent | OversizedPush
        try:
            oversized = told.get("oversized")
            event = OversizedPush.model_validate(told) if oversized else PushEvent.model_validate(told)
        except ValidationError:
            self.dead_letters.append(told)
            return Verdict(verdict="rejected", reason="not understood; kept as a dead letter")
        repository = self.repositories[event.repository]
        if event.generation != repository.generation:
            return Verdict(verdict="rejected", repository=event.repository, reason="list again")
        push_id = event.push_id if isinstance(event, OversizedPush) else event.push.id
        if event.since <= repository.cursor < push_id:
            repository.cursor = push_id
            changesets = [] if isinstance(event, OversizedPush) else event.push.changesets
            repository.last_changeset = changesets[-1].node if changesets else None
        verdict = "duplicate" if push_id in repository.stored else "accepted"
        repository.stored.setdefault(push_id, event)
        return Verdict.model_validate({"verdict": verdict, "repository": event.repository})


def reliable(result: PollResult) -> str | None:
    """The ETag, a change time in whole seconds, when it was three seconds old: a younger one may hide a push."""
    if result.etag is None or result.date is None:
        return None
    changed = int(result.etag.removeprefix("W/").strip('"'))
    return result.etag if result.date.timestamp() - changed >= 3 else None


def problem(status: int, detail: str, **headers: str) -> Answer:
    body = json.dumps({"title": "A problem", "status": status, "detail": detail}).encode()
    return Answer(status, body, {"Content-Type": "application/problem+json", **headers})


def short(url: str, **options: Any) -> ListenerSettings:
    """Settings with the patience of a test."""
    moment = timedelta(milliseconds=20)
    short: dict[str, Any] = {
        "service_url": url,
        "webhook_secrets": [SecretStr(SECRET), SecretStr(OTHER_SECRET)],
        "first_retry": moment,
        "max_retry": moment,
        "refused_retry": moment,
        "lease_wait": 0.2,
        "lease_look": moment,
        "linger": timedelta(milliseconds=2),
        "drain": timedelta(seconds=3),
    }
    return ListenerSettings(**{**short, **options})
