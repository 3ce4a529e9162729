"""The way from a listener into the service: signed, repeated until it is answered.

ForwardError      what was sent is not with the service
  Unanswered        ...because no good answer came within the time given
  Rejected          ...and never will be: a bug, a wrong address, or service and listener of different versions
    TooLarge          ...in one piece: send less at a time
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError
from standardwebhooks import Webhook

from listeners.clock import steady
from listeners.retry import backoff, retry_after, wait_or_stop
from listeners.settings import ListenerSettings

log = structlog.get_logger()

Answer = TypeVar("Answer", bound=BaseModel)

_KEEP_ALIVE = 4.0
"""Seconds; uvicorn closes connections that were idle for 5, and a request sent just then would be lost."""

_AGAIN = {408, 425, 429}
_SIGNATURE_REFUSED = {401, 403}


class ForwardError(Exception):
    """What was sent is not with the service; the message says why in plain words."""


class Unanswered(ForwardError):
    """No good answer came within the time given."""


class Rejected(ForwardError):
    """The service refuses this request, and will refuse it again."""


class TooLarge(Rejected):
    """The service, or a proxy before it, takes no request of this size."""


def encode(value: Any) -> bytes:
    """JSON in ASCII: lone surrogates, which no UTF-8 can hold, travel as escapes."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def signed_headers(webhook: Webhook, message: str, path: str, body: bytes) -> dict[str, str]:
    """Return the headers of a POST that the service takes from listeners; `message` is its webhook-id."""
    at = datetime.now(UTC)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": webhook.sign(message, at, body.decode()),
        "webhook-route-signature": webhook.sign(message, at, f"POST {path}"),
    }


_FOLLOWED = {f"/api/v1/events/{kind}" for kind in ("pushes", "job-actions", "tasks")}
"""What is sent here is followed in both logs: the service tells the same `batch` in its own."""


class Forwarder:
    """Posts to the service over keep-alive connections; any thread may use it.

    The first of `webhook_secrets` signs (Standard Webhooks): the body, and apart from it method and path, so that a
    request is good for one route only, and can be refused before its body is read. Of an outage, and of its end, one
    line is logged.
    """

    def __init__(self, settings: ListenerSettings, stop: threading.Event, connections: int, tls: Any = True) -> None:
        self._service = settings.service
        self._webhook = Webhook(settings.webhook_secrets[0].get_secret_value())
        self._stop = stop
        self._first_retry = settings.first_retry.total_seconds()
        self._max_retry = settings.max_retry.total_seconds()
        self._refused_retry = settings.refused_retry.total_seconds()
        self._client = httpx.Client(
            verify=tls,
            timeout=settings.service_timeout.total_seconds(),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_KEEP_ALIVE),
            headers={"User-Agent": "tc-treeherder", "Content-Type": "application/json"},
        )
        self._trouble_lock = threading.Lock()
        self._trouble: str | None = None
        self._trouble_since = 0.0
        self._well_at = 0.0

    def close(self) -> None:
        self._client.close()

    def post(
        self, path: str, body: bytes | Callable[[], bytes], answer: type[Answer], *, until: float | None = None
    ) -> Answer:
        """Post `body` (JSON, of `encode`; or what makes it, for each attempt) until the service takes it.

        Returns what it answered. Each attempt carries the same webhook-id and is signed anew, for a signature is good
        for some minutes only. `until` is a time of `clock.steady`, after which no attempt begins. Raises
        ListenerStopped, Unanswered, Rejected, TooLarge.
        """
        message = f"msg_{uuid.uuid4().hex}"
        attempt = 0
        while True:
            attempt += 1
            began = time.monotonic()
            content = body if isinstance(body, bytes) else body()
            try:
                response = self._attempt(path, message, content)
            except httpx.RequestError as error:
                kind, problem = "service-away", f"{type(error).__name__}: {error}".rstrip(": ")
                pause = self._backoff(attempt)
            else:
                if response.is_success:
                    self._well()
                    if path in _FOLLOWED:
                        log.info("batch-taken", batch=message, path=path, bytes=len(content), attempts=attempt)
                    return _understood(answer, response)
                kind, problem, pause = self._judge(response, len(content), attempt)
            self._troubled(kind, problem, began)
            wait_or_stop(self._stop, 0)
            if until is not None and steady() + pause > until:
                raise Unanswered(f"the service at {self._service} did not take it in time: {problem}")
            wait_or_stop(self._stop, pause)

    def _attempt(self, path: str, message: str, body: bytes) -> httpx.Response:
        headers = signed_headers(self._webhook, message, path, body)
        return self._client.post(self._service + path, content=body, headers=headers)

    def _judge(self, response: httpx.Response, size: int, attempt: int) -> tuple[str, str, float]:
        """What an answer that is no success means: kind, problem, and seconds to wait. Raises Rejected, TooLarge."""
        status = response.status_code
        problem = f"{status}: {_detail(response)}"
        if status in _SIGNATURE_REFUSED:
            return "signature-refused", problem, self._refused_retry
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise TooLarge(f"the service takes no request of {size:,} bytes ({problem})")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _AGAIN:
            return "service-away", problem, max(self._backoff(attempt), retry_after(response.headers))
        if response.has_redirect_location:
            where = response.headers["location"]
            raise Rejected(f"{response.url} redirects to {where}: set TC_TREEHERDER_SERVICE_URL to where it lives")
        raise Rejected(f"the service at {response.url} answers {problem}")

    def _backoff(self, attempt: int) -> float:
        return backoff(attempt, self._first_retry, self._max_retry)

    def _troubled(self, kind: str, problem: str, began: float) -> None:
        with self._trouble_lock:
            if self._trouble == kind or began < self._well_at:  # another thread's attempt was answered since
                return
            self._trouble_since = self._trouble_since or time.monotonic()
            self._trouble = kind
        if kind == "signature-refused":
            log.error(
                kind,
                service=self._service,
                problem=problem,
                remedy="TC_TREEHERDER_WEBHOOK_SECRETS must begin with a secret that the service has among its own, "
                "and both clocks must agree within five minutes",
                again_in=self._refused_retry,
            )
        else:
            log.warning(kind, service=self._service, problem=problem, remedy="it is asked again until it answers")

    def _well(self) -> None:
        self._well_at = time.monotonic()
        if self._trouble is None:
            return
        with self._trouble_lock:
            if self._trouble is None:
                return
            seconds = round(time.monotonic() - self._trouble_since, 1)
            self._trouble, self._trouble_since = None, 0.0
        log.info("service-back", service=self._service, after=seconds)


def _understood(answer: type[Answer], response: httpx.Response) -> Answer:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Rejected(
            f"{response.url} answers {response.status_code}, but not as tc-treeherder would: {where}: {first['msg']}; "
            f"it begins {response.content[:80]!r}. Check TC_TREEHERDER_SERVICE_URL and that the versions agree"
        ) from None


def _detail(response: httpx.Response) -> str:
    """What a problem+json says, or the beginning of anything else."""
    try:
        told = response.json()
        return str(told["detail"])
    except (ValueError, KeyError, TypeError):
        return repr(response.content[:200])
