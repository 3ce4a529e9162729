"""Client of Taskcluster's queue, through the official client."""

import json
import logging
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp
import structlog
from taskcluster import exceptions
from taskcluster.aio import Auth as AuthClient
from taskcluster.aio import Queue as Client

from service import metrics
from service.clients import hawk
from service.contract import tracing
from service.contract.configuration import proxy_for
from service.errors import PermanentUpstreamError, Unavailable, UpstreamError, wait_asked_for
from service.settings import TaskclusterSettings

log = structlog.get_logger()

for _name in ("taskcluster", "mohawk"):  # at DEBUG they log the Authorization header
    logging.getLogger(_name).setLevel(logging.WARNING)

hawk.skip_payload_dumps()
hawk.use_database_time()

Definition = dict[str, Any]
Status = dict[str, Any]

_T = TypeVar("_T")

PAGE = 1_000
"""Largest number of tasks in one answer of the queue."""

MAX_ANSWER = 128 * 1024 * 1024
"""Largest accepted answer, in bytes: a page of a thousand tasks with definitions of 128 KiB each."""

MAX_MEMBERS = 2_000_000
"""Largest number of members of objects and lists in one answer: two thousand for each task of a page.

They are counted by { [ and , before the answer is parsed, because a parsed `{}` takes 70 bytes."""

_STRUCTURE = b"{[,"

MAX_ERROR_TEXT = 30_000
"""Characters of an error message that are kept: a task can have 10,000 dependencies, and a message can name each."""


@dataclass
class Page:
    """A page of a list of tasks, each as (status, definition). `token` requests the next page; None: it is the last."""

    tasks: list[tuple[Status, Definition]]
    token: str | None


class Queue(Protocol):
    """Calls that we send to the queue. `scopes` restricts our credentials to these (`authorizedScopes`)."""

    async def create_task(self, task_id: str, definition: Definition, scopes: list[str]) -> Status:
        """Create a task. The call is idempotent for the same definition."""

    async def task(self, task_id: str) -> Definition | None:
        """Return the task's definition, or None if there is no such task."""

    async def status(self, task_id: str) -> Status | None:
        """Return the task's status, or None if there is no such task."""

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, Definition]:
        """Return the definitions of the tasks that exist, with one call per thousand."""

    async def statuses(self, task_ids: Sequence[str]) -> dict[str, Status]:
        """Return the statuses of the tasks that exist, with one call per thousand."""

    async def dependents(self, task_id: str, token: str | None = None, limit: int = PAGE) -> Page:
        """Return a page of at most `limit` tasks that depend on this one, in any group."""

    async def group_sealed(self, group_id: str) -> bool:
        """Return True if the group accepts no further tasks. An unknown group accepts them."""

    def group(self, group_id: str, limit: int = PAGE) -> AsyncIterator[list[tuple[Status, Definition]]]:
        """Yield all tasks of a group, in no particular order, in pages of at most `limit`: one page is in memory."""

    async def artifacts(self, task_id: str, run_id: int, most: int) -> list[dict[str, Any]]:
        """Return up to `most` artifacts of the run; none if the run does not exist any more."""

    async def expand_scopes(self, scopes: list[str]) -> list[str]:
        """Return the scopes, with those of the roles among them."""

    async def own_scopes(self, *, fresh: bool = False) -> list[str]:
        """Return our client's scopes, with those of its roles: at most `SCOPES_KEPT` seconds old, or `fresh`."""

    async def schedule_task(self, task_id: str, scope: str) -> Status:
        """Schedule an unscheduled task."""

    async def cancel_task(self, task_id: str, scope: str) -> Status:
        """Cancel a task."""


class TaskclusterQueue:
    """A client of the queue. It does not retry, because the work that calls it does.

    Only aiohttp sends a request again whose connection was lost before any answer.
    """

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._clients: OrderedDict[tuple[str, ...] | None, Client] = OrderedDict()
        self._own_scopes: tuple[float, list[str]] | None = None  # of our client, and when they were fetched

    async def create_task(self, task_id: str, definition: Definition, scopes: list[str]) -> Status:
        return await self._status(lambda queue: queue.createTask(task_id, definition), scopes)

    async def task(self, task_id: str) -> Definition | None:
        definition: Definition | None = await self._read(lambda: self._queue().task(task_id))
        return definition

    async def status(self, task_id: str) -> Status | None:
        answer = await self._read(lambda: self._queue().status(task_id))
        return _field(answer, "status", dict) if answer is not None else None

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, Definition]:
        entries = await self._fetch_all(task_ids, lambda **call: self._queue().tasks(**call), "tasks")
        return {_field(entry, "taskId", str): _field(entry, "task", dict) for entry in entries}

    async def statuses(self, task_ids: Sequence[str]) -> dict[str, Status]:
        entries = await self._fetch_all(task_ids, lambda **call: self._queue().statuses(**call), "statuses")
        return {_field(entry, "taskId", str): _field(entry, "status", dict) for entry in entries}

    async def dependents(self, task_id: str, token: str | None = None, limit: int = PAGE) -> Page:
        query = _page_query(token, limit)
        answer = await answer_of(lambda: self._queue().listDependentTasks(task_id, query=query))
        return Page(_tasks(answer), _next_token(answer, token))

    async def group_sealed(self, group_id: str) -> bool:
        answer = await self._read(lambda: self._queue().getTaskGroup(group_id))
        return bool(answer and answer.get("sealed"))

    async def group(self, group_id: str, limit: int = PAGE) -> AsyncIterator[list[tuple[Status, Definition]]]:
        token: str | None = None
        while True:
            query = _page_query(token, limit)
            answer = await answer_of(lambda: self._queue().listTaskGroup(group_id, query=query))  # noqa: B023 - awaited before it changes
            yield _tasks(answer)
            token = _next_token(answer, token)
            if token is None:
                return

    async def _fetch_all(self, task_ids: Sequence[str], call: Callable[..., Awaitable[Any]], key: str) -> list[Any]:
        entries: list[Any] = []
        for start in range(0, len(task_ids), PAGE):
            payload = {"taskIds": list(task_ids[start : start + PAGE])}
            token: str | None = None
            while True:
                answer = await answer_of(lambda: call(payload=payload, query=_page_query(token)))  # noqa: B023 - awaited before they change
                entries += _field(answer, key, list)
                token = _next_token(answer, token)
                if token is None:
                    break
        return entries

    async def artifacts(self, task_id: str, run_id: int, most: int) -> list[dict[str, Any]]:
        artifacts: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            query = _page_query(token)
            answer = await self._read(lambda: self._queue().listArtifacts(task_id, str(run_id), query=query))  # noqa: B023 - awaited before it changes
            artifacts += _field(answer, "artifacts", list) if answer else []
            token = _next_token(answer, token) if answer else None
            if token is None or len(artifacts) >= most:
                return artifacts[:most]

    async def expand_scopes(self, scopes: list[str]) -> list[str]:
        return await expand_scopes(self._settings, self._queue().session, scopes)

    async def own_scopes(self, *, fresh: bool = False) -> list[str]:
        if fresh or self._own_scopes is None or time.monotonic() - self._own_scopes[0] > SCOPES_KEPT:
            self._own_scopes = (time.monotonic(), await current_scopes(self._settings, self._queue().session))
        return self._own_scopes[1]

    async def schedule_task(self, task_id: str, scope: str) -> Status:
        return await self._status(lambda queue: queue.scheduleTask(task_id), [scope])

    async def cancel_task(self, task_id: str, scope: str) -> Status:
        return await self._status(lambda queue: queue.cancelTask(task_id), [scope])

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    def _queue(self, scopes: list[str] | None = None) -> Client:
        """Return the client for a set of scopes. All clients share one session."""
        key = None if scopes is None else tuple(scopes)
        if key in self._clients:
            self._clients.move_to_end(key)
            return self._clients[key]
        if self._session is None:
            self._session = session_of(self._settings.root, self._settings.timeout.total_seconds(), 100)
        options = options_of(self._settings)
        if options["credentials"] and scopes is not None:
            options["authorizedScopes"] = _drop_unprintable(scopes)
        self._clients[key] = Client(options, session=self._session)
        if len(self._clients) > 500:
            self._clients.popitem(last=False)
        return self._clients[key]

    async def _status(self, call: Callable[[Client], Awaitable[Any]], scopes: list[str]) -> Status:
        """Make a call with only these scopes. A ScopesRefusal names those that our client lacks."""
        try:
            return _field(await answer_of(lambda: call(self._queue(scopes))), "status", dict)
        except ScopesRefusal as refusal:
            if refusal.status != 401:
                raise
            raise await self._missing_scopes_error(scopes) from None

    async def _missing_scopes_error(self, scopes: list[str]) -> UpstreamError:
        client = f"the service's Taskcluster client ({self._settings.client_id})"
        try:
            own_scopes = await self.own_scopes()
        except UpstreamError:
            reason = f"{client} lacks one of the scopes {named(scopes)}; auth.currentScopes does not tell which one"
            return ScopesRefusal(reason, 401, [])
        held = ScopeSet(own_scopes)
        missing = [scope for scope in scopes if not held.satisfies(scope)]
        if not missing:  # the cached scopes are out of date, or the scope was granted just now
            self._own_scopes = None
            return Unavailable("taskcluster", f"{client} lacked one of the scopes {named(scopes)} a moment ago")
        return ScopesRefusal(f"{client} lacks {named(missing)}: grant that to the client", 401, missing)

    async def _read(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await answer_of(call)
        except PermanentUpstreamError as error:
            if error.status == 404:
                return None
            raise


class ScopesRefusal(PermanentUpstreamError):
    """A call was refused because scopes are missing; `missing` has those that are known.

    The message names no other scopes. Taskcluster's own message would list all that the service's client has.
    """

    def __init__(self, message: str, status: int, missing: list[str]) -> None:
        super().__init__("taskcluster", message, status)
        self.missing = missing


class NotSentError(Unavailable):
    """No connection could be made, so the request was certainly not sent."""


class TooLargeError(Unavailable):
    """An answer is too large to be read. A request for fewer items may succeed."""


class _UnreadableAnswerError(aiohttp.ClientError):
    """An answer is not read; the message says why."""


class _TooLargeAnswerError(_UnreadableAnswerError):
    """An answer exceeds a limit."""


SCOPES_KEPT = 30.0
"""Seconds for which our client's scopes are cached."""


def options_of(settings: TaskclusterSettings) -> dict[str, Any]:
    """Return the options for a client of any Taskcluster service, with the credentials of our settings."""
    # an empty dict: without it, the client takes credentials from its own environment variables
    options: dict[str, Any] = {"rootUrl": settings.root, "maxRetries": 0, "credentials": {}}
    if settings.client_id and settings.access_token:
        # a new dict each time: the client changes the one that it is given
        options["credentials"] = {
            "clientId": settings.client_id,
            "accessToken": settings.access_token.get_secret_value(),
        }
        if settings.certificate:
            options["credentials"]["certificate"] = settings.certificate.get_secret_value()
    return options


async def current_scopes(settings: TaskclusterSettings, session: aiohttp.ClientSession) -> list[str]:
    """Return our client's scopes, with those of its roles. Raises Unavailable and PermanentUpstreamError."""
    client = AuthClient(options_of(settings), session=session)
    scopes = (await answer_of(client.currentScopes)).get("scopes")
    if not isinstance(scopes, list):
        raise Unavailable(
            "taskcluster", "auth.currentScopes does not answer a list of scopes: check taskcluster.root_url"
        )
    return [str(scope) for scope in scopes]


async def expand_scopes(
    settings: TaskclusterSettings, session: aiohttp.ClientSession, scopes: Sequence[str]
) -> list[str]:
    """Return these scopes, with those of the roles among them. Raises Unavailable and PermanentUpstreamError."""
    client = AuthClient(options_of(settings), session=session)
    answer = await answer_of(lambda: client.expandScopes({"scopes": list(scopes)}))
    return [str(scope) for scope in _field(answer, "scopes", list)]


class _LimitedResponse(aiohttp.ClientResponse):
    """A response that is read up to a limit, and not at all if it is a redirect.

    Taskcluster's client gives us no response before it has read it whole, so the limit must be in `read`. It sets
    `ClientResponse._body`, where aiohttp (3.14.5) keeps what was read and which is not part of its documented
    interface. Without it, an answer of any size is read into memory. `tests/service/clients/test_taskcluster.py` fails
    when an upgrade removes it.
    """

    async def read(self) -> bytes:
        if self._body is None:
            try:
                self._body = await self._read_limited()
            except BaseException:
                self.close()
                raise
        return await super().read()

    async def _read_limited(self) -> bytes:
        if 300 <= self.status < 400:
            target = self.headers.get("location", "nowhere")
            raise _UnreadableAnswerError(
                f"a redirect to {target}, and redirects are not followed: set taskcluster.root_url"
            )
        body = bytearray()
        members = 0
        async for chunk in self.content.iter_any():
            body += chunk
            members += len(chunk) - len(chunk.translate(None, _STRUCTURE))
            if len(body) > MAX_ANSWER:
                raise _TooLargeAnswerError(f"more than {MAX_ANSWER:,} bytes, which is the limit")
            if members > MAX_MEMBERS:
                raise _TooLargeAnswerError(f"more than {MAX_MEMBERS:,} values, which is the limit")
        return bytes(body)


def session_of(root: str, seconds: float, connections: int) -> aiohttp.ClientSession:
    """Return a session for calls to `root`. The time limit of a call includes the wait for a free connection.

    The proxy is looked up here: aiohttp's `trust_env` ignores ALL_PROXY, and would add the password of a `.netrc` to a
    signed call, which aiohttp then refuses.
    """
    return aiohttp.ClientSession(
        proxy=proxy_for(root),
        timeout=aiohttp.ClientTimeout(total=seconds),
        connector=aiohttp.TCPConnector(limit=connections),
        response_class=_LimitedResponse,
        trace_configs=[metrics.metered_aiohttp("taskcluster"), *tracing.aiohttp_configs()],
    )


def _connect_problem(error: BaseException) -> str:
    """Return why no connection was had, with the address, such as `Connection refused (tc.example.com:443)`."""
    cause = getattr(error, "os_error", None)  # not that of a certificate
    if not isinstance(error, aiohttp.ClientConnectorError) or not isinstance(cause, OSError):
        return type(error).__name__
    if isinstance(cause, ssl.SSLError):
        reason = f"no TLS: {cause.reason or type(cause).__name__}"
    else:  # not the error's own text, in which Python repeats the address
        number = cause.errno or 0  # negative: of the name's look-up
        reason = os.strerror(number) if number > 0 else cause.strerror or type(cause).__name__
    return f"{reason} ({error.host}:{error.port})"


async def answer_of(call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """Return the answer to a `call` of the official client. Raises Unavailable and PermanentUpstreamError."""
    try:
        answer = await call()
    except exceptions.TaskclusterAuthFailure as error:
        text = _text(error)
        if "authorizedScopes" in text and "not satisfy" in text:
            reason = "the service's Taskcluster client lacks some of the scopes that this call may use"
            raise ScopesRefusal(reason, 401, []) from None
        # retried, because an operator can fix our credentials
        reason = "401, for a reason that lists scopes" if "scopes" in text else hawk.explain_refusal(text)
        raise Unavailable("taskcluster", f"Taskcluster refuses our credentials: {reason}", status=401) from None
    except exceptions.TaskclusterRestFailure as error:
        if error.status_code == 403:
            missing = missing_scopes(_text(error))
            raise ScopesRefusal(f"missing {named(missing) or 'scopes that it does not name'}", 403, missing) from None
        if error.status_code in {408, 429} or error.status_code < 400:
            raise _unavailable(error.__context__, error.status_code, f": {_text(error)}") from None
        raise PermanentUpstreamError("taskcluster", _text(error), error.status_code) from None
    except aiohttp.ClientResponseError as error:
        raise _unavailable(error, error.status) from None
    except (aiohttp.ClientError, exceptions.TaskclusterConnectionError, TimeoutError) as error:
        cause = getattr(error, "superExc", None) or error
        if isinstance(cause, _TooLargeAnswerError):
            raise TooLargeError("taskcluster", f"Taskcluster answers {cause}") from None
        if isinstance(cause, _UnreadableAnswerError):
            raise Unavailable("taskcluster", f"Taskcluster answers {cause}") from None
        if isinstance(cause, aiohttp.ClientHttpProxyError):
            raise Unavailable("taskcluster", f"the proxy before Taskcluster answers {cause.status}") from None
        kind = NotSentError if isinstance(cause, aiohttp.ClientConnectorError) else Unavailable
        raise kind("taskcluster", f"Taskcluster cannot be reached: {_connect_problem(cause)}") from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise Unavailable("taskcluster", f"Taskcluster's answer cannot be read: {type(error).__name__}") from None
    if not isinstance(answer, dict) or isinstance(answer.get("response"), aiohttp.ClientResponse):
        raise Unavailable("taskcluster", "Taskcluster's answer is not a JSON object")
    return answer


def _unavailable(error: BaseException | None, status: int, reason: str = "") -> Unavailable:
    """Return the error for a temporary failure. `error` is aiohttp's, which the client's errors have as context."""
    wait = wait_asked_for(error.headers or {}) if isinstance(error, aiohttp.ClientResponseError) else None
    return Unavailable("taskcluster", f"Taskcluster answers {status}{reason}", wait, status)


MAX_NAMED, MAX_SCOPE = 10, 200
"""Scopes that a message names, and characters of each: strangers write the scopes of their tasks."""


def named(scopes: Sequence[str]) -> str:
    """Return scopes for a message, shortened if they are many or long."""
    shown = [scope if len(scope) <= MAX_SCOPE else f"{scope[:MAX_SCOPE]}…" for scope in scopes[:MAX_NAMED]]
    more = [f"and {len(scopes) - MAX_NAMED} more"] if len(scopes) > MAX_NAMED else []
    return ", ".join([*shown, *more])


def missing_scopes(message: str) -> list[str]:
    """Return the scopes that the message of a 403 InsufficientScopes names as missing, the last of alternatives.

    Alternatives are the priorities that allow the task's, from the highest down to the task's own, which allows least.
    """
    _, _, rest = message.partition("missing the following scopes:")
    _, opening, rest = rest.partition("```")
    block, closing, _ = rest.partition("```")
    if not (opening and closing):
        return []
    try:
        return _flatten_scopes(json.loads(block))
    except (ValueError, RecursionError):
        return [block.strip()]


def _flatten_scopes(expression: Any) -> list[str]:
    if isinstance(expression, dict):
        if "AnyOf" in expression:
            return [scope for operand in expression["AnyOf"][-1:] for scope in _flatten_scopes(operand)]
        return [scope for operand in expression.get("AllOf", []) for scope in _flatten_scopes(operand)]
    return [str(expression)]


class ScopeSet:
    """Held scopes, in which one is found in the time that its length takes: strangers write both by the thousand."""

    def __init__(self, held: Iterable[str]) -> None:
        self._exact = set(held)
        self._prefixes = {scope[:-1] for scope in self._exact if scope.endswith("*")}

    def satisfies(self, scope: str) -> bool:
        """Return True if a held scope satisfies this one: it is equal, or ends in `*` and is a prefix of it."""
        return scope in self._exact or any(scope[:end] in self._prefixes for end in range(len(scope) + 1))


def satisfies(held: Iterable[str], scope: str) -> bool:
    """Return True if one of the held scopes satisfies `scope`. For many, make a `ScopeSet` once."""
    return ScopeSet(held).satisfies(scope)


def _field(answer: Any, key: str, kind: type[_T]) -> _T:
    """Return a field of the answer, or of an item of its list. Raises Unavailable unless it has that type."""
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise Unavailable("taskcluster", f"Taskcluster's answer has no {kind.__name__} {key!r}")
    return value


def validate_definition(definition: Definition) -> Definition:
    """Return `definition` if all fields that decide what becomes of a task have their type. Raises Unavailable."""
    for key in ("taskGroupId", "schedulerId", "workerType", "requires", "created", "deadline", "expires"):
        _field(definition, key, str)
    for key in ("dependencies", "routes"):
        if not all(type(value) is str for value in _field(definition, key, list)):
            raise Unavailable("taskcluster", f"Taskcluster's answer has {key} that are not strings")
    return definition


def validate_status(status: Status) -> Status:
    """Return `status` if all fields that decide what becomes of a task have their type. Raises Unavailable."""
    for key in ("taskId", "taskGroupId", "schedulerId", "state", "deadline", "expires"):
        _field(status, key, str)
    for run in _field(status, "runs", list):
        _field(run, "runId", int)
        _field(run, "state", str)
    return status


def _tasks(answer: dict[str, Any]) -> list[tuple[Status, Definition]]:
    return [(_field(entry, "status", dict), _field(entry, "task", dict)) for entry in _field(answer, "tasks", list)]


def _next_token(answer: dict[str, Any], token: str | None) -> str | None:
    """Return the continuation token of the next page, or None if this page is the last.

    Raises Unavailable if it is the token of this page: such a list would never end.
    """
    next_token = _field(answer, "continuationToken", str) if answer.get("continuationToken") else None
    if next_token is not None and next_token == token:
        raise Unavailable("taskcluster", "Taskcluster's answer names itself as its next page")
    return next_token


def _page_query(token: str | None, limit: int = PAGE) -> dict[str, str]:
    """Return the query for the page that `token` names, of at most `limit` tasks."""
    query = {"continuationToken": token} if token else {}
    return query | ({"limit": str(limit)} if limit < PAGE else {})


def _text(error: Exception) -> str:
    """Return Taskcluster's message, shortened, and without the details of the request that follow it."""
    text = str(error).split("\n---\n", 1)[0].strip()
    return text if len(text) <= MAX_ERROR_TEXT else f"{text[:MAX_ERROR_TEXT]}… ({len(text):,} characters)"


def _drop_unprintable(scopes: list[str]) -> list[str]:
    """Return the scopes without those that are not printable ASCII, any of which would make the call a 401."""
    printable = [scope for scope in scopes if scope.isascii() and scope.isprintable()]
    if len(printable) < len(scopes):
        log.warning("scope-left-out", scopes=sorted(set(scopes) - set(printable)), why="not printable ASCII")
    return printable
