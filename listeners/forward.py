"""Send a listener's requests to the service: signed, and repeated until they are answered.

ForwardError                the service does not have the request
  UnansweredError             it gave no good answer in time
  RequestRejectedError        it will never accept it: a bug, a wrong address, or different versions
    RequestTooLargeError        it will not accept it in one piece: send less at a time
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError
from standardwebhooks import Webhook

from listeners import metrics
from listeners.clock import boottime
from listeners.retry import retry_after, wait_or_stop
from listeners.settings import ListenerSettings
from service.contract import tracing
from service.contract.retry import backoff
from service.contract.validation import beginning_of, problems_of

log = structlog.get_logger()

ResponseModel = TypeVar("ResponseModel", bound=BaseModel)

_KEEPALIVE_EXPIRY = 4.0
"""Seconds; uvicorn closes connections that were idle for 5, and a request sent just then would be lost."""

_RETRYABLE_STATUSES = {408, 425, 429}
_SIGNATURE_STATUSES = {401, 403}

_LOGGED_PATHS = {f"/api/v1/events/{kind}" for kind in ("pushes", "job-actions", "tasks")}
"""Requests that can be followed in both logs, where the service logs the same `batch`, and in traces."""


class ForwardError(Exception):
    """The service does not have the request; the message says why, for people."""


class UnansweredError(ForwardError):
    """The service gave no good answer in time."""


class RequestRejectedError(ForwardError):
    """The service rejects this request, and would reject it again."""


class RequestTooLargeError(RequestRejectedError):
    """The service, or a proxy before it, accepts no request of this size."""


def encode_json(value: Any) -> bytes:
    """Return `value` as JSON in ASCII: lone surrogates, which UTF-8 cannot hold, travel as escapes."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def signed_headers(webhook: Webhook, message_id: str, path: str, body: bytes) -> dict[str, str]:
    """Return the headers of a POST that the service accepts from listeners; `message_id` is its webhook-id."""
    now = datetime.now(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": webhook.sign(message_id, now, body.decode()),
        "webhook-route-signature": webhook.sign(message_id, now, f"POST {path}"),
    }


class Forwarder:
    """A client of the service over keep-alive connections, for any number of threads.

    The first of `webhook_secrets` signs (Standard Webhooks): the body, and separately method and path. So a request is
    valid for one route only, and can be refused before its body is read. An outage is logged when it begins and when it
    ends, not with each attempt.
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
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_KEEPALIVE_EXPIRY),
            headers={"User-Agent": "tc-treeherder", "Content-Type": "application/json"},
        )
        tracing.instrument_httpx(self._client)
        self._outage_lock = threading.Lock()
        self._outage: str | None = None
        self._outage_began_at = 0.0
        self._last_success_at = 0.0

    def close(self) -> None:
        """Close the connections to the service."""
        self._client.close()

    def post(
        self,
        path: str,
        body: bytes | Callable[[], bytes],
        model: type[ResponseModel],
        *,
        until: float | None = None,
    ) -> ResponseModel:
        """Post `body` until the service accepts it, and return the answer as `model`.

        `body` is JSON of `encode_json`, or a function that returns it for each attempt. Each attempt has the same
        webhook-id and a new signature, because a signature is valid for some minutes only. No attempt begins after
        `until`, a time of `clock.boottime`. Raises ListenerStopped, UnansweredError, RequestRejectedError,
        RequestTooLargeError.
        """
        message_id = f"msg_{uuid.uuid4().hex}"
        attempt = 0
        while True:
            attempt += 1
            attempted_at = time.monotonic()
            content = body if isinstance(body, bytes) else body()
            try:
                response = self._send(path, message_id, content)
            except httpx.RequestError as error:
                outage, problem = "service-away", f"{type(error).__name__}: {error}".rstrip(": ")
                pause = self._backoff(attempt)
            else:
                if response.is_success:
                    self._record_success()
                    metrics.request_ended(path, "accepted")
                    if path in _LOGGED_PATHS:
                        log.info("batch-taken", batch=message_id, path=path, bytes=len(content), attempts=attempt)
                    return _parse_response(model, response)
                try:
                    outage, problem, pause = self._classify_failure(response, len(content), attempt)
                except RequestRejectedError:
                    metrics.request_ended(path, "rejected")
                    raise
            metrics.request_ended(path, outage)
            self._record_failure(outage, problem, attempted_at)
            wait_or_stop(self._stop, 0)
            if until is not None and boottime() + pause > until:
                raise UnansweredError(f"the service at {self._service} did not accept the request in time: {problem}")
            wait_or_stop(self._stop, pause)

    def _send(self, path: str, message_id: str, body: bytes) -> httpx.Response:
        headers = signed_headers(self._webhook, message_id, path, body)
        with nullcontext() if path in _LOGGED_PATHS else tracing.quiet():
            return self._client.post(self._service + path, content=body, headers=headers)

    def _classify_failure(self, response: httpx.Response, size: int, attempt: int) -> tuple[str, str, float]:
        """Return kind of outage, problem, and seconds to wait, after an answer that is no success.

        Raises RequestRejectedError, RequestTooLargeError if a retry would not help.
        """
        status = response.status_code
        problem = f"{status}: {_problem_detail(response)}"
        if status in _SIGNATURE_STATUSES:
            return "signature-refused", problem, self._refused_retry
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise RequestTooLargeError(f"the service accepts no request of {size:,} bytes ({problem})")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _RETRYABLE_STATUSES:
            return "service-away", problem, max(self._backoff(attempt), retry_after(response.headers))
        if response.has_redirect_location:
            location = response.headers["location"]
            raise RequestRejectedError(
                f"{response.url} redirects to {location}, and redirects are not followed: set "
                "TC_TREEHERDER_SERVICE_URL to the address of the service"
            )
        raise RequestRejectedError(f"the service at {response.url} answers {problem}")

    def _backoff(self, attempt: int) -> float:
        return backoff(attempt, self._first_retry, self._max_retry)

    def _record_failure(self, outage: str, problem: str, attempted_at: float) -> None:
        with self._outage_lock:
            if self._outage == outage or attempted_at < self._last_success_at:  # another thread has succeeded since
                return
            self._outage_began_at = self._outage_began_at or time.monotonic()
            self._outage = outage
        if outage == "signature-refused":
            log.error(
                outage,
                service=self._service,
                problem=problem,
                remedy="Set TC_TREEHERDER_WEBHOOK_SECRETS so that its first secret is one of the service's. Check that "
                "both clocks agree within five minutes.",
                again_in=self._refused_retry,
            )
        else:
            log.warning(outage, service=self._service, problem=problem, remedy="The request is repeated by itself.")

    def _record_success(self) -> None:
        self._last_success_at = time.monotonic()
        if self._outage is None:
            return
        with self._outage_lock:
            if self._outage is None:
                return
            seconds = round(time.monotonic() - self._outage_began_at, 1)
            self._outage, self._outage_began_at = None, 0.0
        log.info("service-back", service=self._service, after=seconds)


def _parse_response(model: type[ResponseModel], response: httpx.Response) -> ResponseModel:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise RequestRejectedError(
            f"{response.url} answers {response.status_code}, but not as tc-treeherder does: {problems_of(error)}. "
            f"The answer begins with {beginning_of(response.content)}. Check TC_TREEHERDER_SERVICE_URL, and that the "
            "listener and the service have the same version"
        ) from None


def _problem_detail(response: httpx.Response) -> str:
    """Return the `detail` of a problem+json, or the beginning of any other body."""
    try:
        problem = response.json()
        return str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return beginning_of(response.content)
