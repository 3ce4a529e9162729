import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from listeners import forward
from listeners.clock import boottime
from listeners.forward import Forwarder, RequestRejectedError, RequestTooLargeError, UnansweredError, encode_json
from listeners.retry import ListenerStopped
from sandbox.stack import free_port
from service.contract.events import AnnouncedLeases, Verdicts
from tests.listeners.fakes import OTHER_SECRET, SECRET, Answer, Request, problem, quick_settings, serving

PATH = "/api/v1/polls/announced"
GOOD = Answer(200, b'{"leases": []}')


@contextmanager
def forwarding(url: str, stop: threading.Event | None = None, **options: Any) -> Iterator[Forwarder]:
    forwarder = Forwarder(quick_settings(url, **options), stop or threading.Event(), connections=2)
    try:
        yield forwarder
    finally:
        forwarder.close()


class ScriptedService:
    """A service that gives one answer after another, and repeats the last."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.times: list[float] = []

    def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        self.times.append(time.monotonic())
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_requests_are_signed_with_the_first_secret() -> None:
    service = ScriptedService(GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        assert forwarder.post(PATH, encode_json({"max": 3}), AnnouncedLeases) == AnnouncedLeases(leases=[])
    (request,) = service.requests
    assert (request.method, request.path, request.body) == ("POST", PATH, b'{"max":3}')
    assert request.headers["content-type"] == "application/json"
    Webhook(SECRET).verify(request.body, request.headers)
    route = {**request.headers, "webhook-signature": request.headers["webhook-route-signature"]}
    Webhook(SECRET).verify(f"POST {PATH}", route, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER_SECRET).verify(request.body, request.headers)


def test_lone_surrogates_travel_as_escapes() -> None:
    service = ScriptedService(GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        forwarder.post(PATH, encode_json({"file": "latin-\udce9\0é"}), AnnouncedLeases)
    assert service.requests[0].body == rb'{"file":"latin-\udce9\u0000\u00e9"}'
    Webhook(SECRET).verify(service.requests[0].body, service.requests[0].headers)


def test_each_attempt_has_the_same_id_and_a_new_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        seconds = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # the real one gives its own class
            cls.seconds += 60
            return datetime(2026, 1, 1, tzinfo=tz) + timedelta(seconds=cls.seconds)

    monkeypatch.setattr(forward, "datetime", Clock)
    service = ScriptedService(problem(500, "a bug"), Answer(502, b"<html>"), GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        forwarder.post(PATH, encode_json({"max": 1}), AnnouncedLeases)
    first, second, third = service.requests
    assert first.body == second.body == third.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    stamps = [int(request.headers["webhook-timestamp"]) for request in service.requests]
    assert stamps == [stamps[0], stamps[0] + 60, stamps[0] + 120]
    for request, stamp in zip(service.requests, stamps, strict=True):
        signed = Webhook(SECRET).sign(
            request.headers["webhook-id"], datetime.fromtimestamp(stamp, UTC), request.body.decode()
        )
        assert request.headers["webhook-signature"] == signed


def test_two_requests_have_different_ids() -> None:
    service = ScriptedService(GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        forwarder.post(PATH, b"{}", AnnouncedLeases)
        forwarder.post(PATH, b"{}", AnnouncedLeases)
    first, second = service.requests
    assert first.headers["webhook-id"] != second.headers["webhook-id"]


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends() -> None:
    port = free_port()
    with capture_logs() as logs, forwarding(f"http://127.0.0.1:{port}") as forwarder:
        threads = [threading.Thread(target=forwarder.post, args=(PATH, b"{}", AnnouncedLeases)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        service = ScriptedService(GOOD)
        with serving(service, port):
            for thread in threads:
                thread.join()
    assert len(service.requests) == 3
    assert [line["event"] for line in logs] == ["service-away", "service-back"]
    assert "ConnectError" in logs[0]["problem"]
    assert logs[1]["after"] >= 0.1


def test_a_failure_older_than_a_success_is_no_new_outage() -> None:
    slow = threading.Event()

    def answer(request: Request) -> Answer:
        if request.body == b'"slow"' and not slow.is_set():
            slow.wait()
            return problem(503, "starting")
        return GOOD

    with capture_logs() as logs, serving(answer) as url, forwarding(url) as forwarder:
        thread = threading.Thread(target=forwarder.post, args=(PATH, b'"slow"', AnnouncedLeases))
        thread.start()
        forwarder.post(PATH, b'"quick"', AnnouncedLeases)
        slow.set()
        thread.join()
    assert logs == []


def test_a_dropped_connection_is_an_outage() -> None:
    service = ScriptedService(Answer(hang_up=True), GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        forwarder.post(PATH, b"{}", AnnouncedLeases)
    assert len(service.requests) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_secret_is_logged_once_and_retried_slowly(status: int) -> None:
    service = ScriptedService(
        problem(status, "made with another secret"), problem(status, "made with another secret"), GOOD
    )
    with (
        capture_logs() as logs,
        serving(service) as url,
        forwarding(url, refused_retry=timedelta(seconds=0.1)) as forwarder,
    ):
        forwarder.post(PATH, b"{}", AnnouncedLeases)
    assert [line["event"] for line in logs] == ["signature-refused", "service-back"]
    assert logs[0]["problem"] == f"{status}: made with another secret"
    assert "TC_TREEHERDER_WEBHOOK_SECRETS" in logs[0]["remedy"]
    assert service.times[2] - service.times[0] >= 0.2


@pytest.mark.parametrize(("status", "value"), [(429, "1"), (503, "date")])
def test_retry_after_is_respected(status: int, value: str) -> None:
    if value == "date":
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # whole seconds: 1 to 2 s
    service = ScriptedService(problem(status, "busy", **{"Retry-After": value}), GOOD)
    with serving(service) as url, forwarding(url) as forwarder:
        forwarder.post(PATH, b"{}", AnnouncedLeases)
    assert 0.9 <= service.times[1] - service.times[0] < 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (problem(422, "max: too much"), "422: max: too much"),
        (Answer(404, b"<h1>Not here</h1>"), '404: "<h1>Not here</h1>"'),
        (
            Answer(302, b"", {"Location": "http://elsewhere/"}),
            "redirects to http://elsewhere/, and redirects are not followed: set TC_TREEHERDER_SERV",
        ),
        (Answer(200, b"<html>log in"), "Check TC_TREEHERDER_SERVICE_URL"),
        (Answer(200, b'{"leases": 1}'), "leases is a number, and must be a list"),
    ],
)
def test_errors_that_no_retry_can_fix_are_raised(answer: Answer, expected: str) -> None:
    service = ScriptedService(answer)
    with serving(service) as url, forwarding(url) as forwarder, pytest.raises(RequestRejectedError) as raised:
        forwarder.post(PATH, b"{}", AnnouncedLeases)
    assert expected in str(raised.value)
    assert len(service.requests) == 1


def test_a_request_that_is_too_large_has_its_own_error() -> None:
    with (
        serving(ScriptedService(problem(413, "at most 5"))) as url,
        forwarding(url) as forwarder,
        pytest.raises(RequestTooLargeError, match="no request of 7 bytes"),
    ):
        forwarder.post(PATH, b'"large"', AnnouncedLeases)


def test_no_attempt_begins_after_the_deadline() -> None:
    with serving(ScriptedService(problem(500, "a bug"))) as url, forwarding(url) as forwarder:
        began = time.monotonic()
        with pytest.raises(UnansweredError, match="did not accept the request in time: 500: a bug"):
            forwarder.post(PATH, b"{}", AnnouncedLeases, until=boottime() + 0.2)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("before", [True, False])
def test_a_stop_ends_the_retries_but_allows_one_attempt(before: bool) -> None:
    stop = threading.Event()
    service = ScriptedService(problem(500, "a bug"))
    with serving(service) as url, forwarding(url, stop, max_retry=timedelta(hours=1), first_retry=3600) as forwarder:
        timer: Callable[[], None] = stop.set
        if before:
            timer()
        else:
            threading.Timer(0.1, timer).start()
        began = time.monotonic()
        with pytest.raises(ListenerStopped):
            forwarder.post(PATH, b"{}", AnnouncedLeases)
        assert time.monotonic() - began < 10
        assert len(service.requests) == 1
        service.answers = [GOOD]
        forwarder.post(PATH, b"{}", AnnouncedLeases)


def test_a_batch_is_logged_with_its_webhook_id() -> None:
    service = ScriptedService(Answer(500, b"{}"), Answer(202, b'{"verdicts": []}'))
    with capture_logs() as logs, serving(service) as url, forwarding(url) as forwarder:
        forwarder.post("/api/v1/events/pushes", encode_json({"events": []}), Verdicts)
    (taken,) = [line for line in logs if line["event"] == "batch-taken"]
    assert {taken["batch"]} == {request.headers["webhook-id"] for request in service.requests}
    assert (taken["path"], taken["attempts"]) == ("/api/v1/events/pushes", 2)
