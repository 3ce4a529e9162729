"""Taskcluster's queue, through the official client."""

import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp
import mohawk.base
import mohawk.util
import structlog
from taskcluster import exceptions
from taskcluster.aio import Auth as AuthClient
from taskcluster.aio import Queue as Client

from service import metrics
from service.clients import hawk
from service.contract.configuration import proxy_for
from service.errors import PermanentUpstreamError, Unavailable, UpstreamError, wait_asked_for
from service.settings import TaskclusterSettings

log = structlog.get_logger()

for _name in ("taskcluster", "mohawk"):  # at DEBUG they log the Authorization header
    logging.getLogger(_name).setLevel(logging.WARNING)


class _Unprinted:
    """In place of pprint in mohawk, which lays out every payload for a DEBUG message that nobody hears: a quarter of
    the CPU of a createTask."""

    @staticmethod
    def pformat(value: object) -> str:
        return f"<{type(value).__name__}>"


mohawk.util.pprint = mohawk.base.pprint = _Unprinted
hawk.use_database_time()

Definition = dict[str, Any]
Status = dict[str, Any]

_T = TypeVar("_T")

PAGE = 1_000
"""Tasks that the queue gives in one answer."""

MAX_ANSWER = 128 * 1024 * 1024
"""Bytes of one answer: a page of a thousand tasks with definitions of 128 KiB each."""

MAX_MEMBERS = 2_000_000
"""Members of objects and lists in one answer, counted by { [ and , before it is parsed: each `{}` takes 70 bytes then.
Of a page of a thousand tasks, each may have two thousand."""

_STRUCTURE = b"{[,"


MAX_WORDS = 30_000
"""Characters of why something is refused: a task can have 10,000 dependencies, and each can be named."""


@dataclass
class Page:
    """Some of a list of tasks, each as (status, definition); `token` asks for those that follow."""

    tasks: list[tuple[Status, Definition]]
    token: str | None


class Queue(Protocol):
    """The calls that we make. `scopes` cuts our credentials down to just these (`authorizedScopes`)."""

    async def create_task(self, task_id: str, definition: Definition, scopes: list[str]) -> Status: ...
    async def task(self, task_id: str) -> Definition | None:
        """The definition, None when there is no such task."""

    async def status(self, task_id: str) -> Status | None:
        """The status, None when there is no such task."""

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, Definition]:
        """The definitions of those that exist, in one call for each thousand."""

    async def statuses(self, task_ids: Sequence[str]) -> dict[str, Status]:
        """The statuses of those that exist, in one call for each thousand."""

    async def dependents(self, task_id: str, token: str | None = None, limit: int = PAGE) -> Page:
        """A page of at most `limit` of the tasks that depend on this one, in any group."""

    async def group_sealed(self, group_id: str) -> bool:
        """Whether the group takes no further tasks. One that is not known takes any."""

    def group(self, group_id: str) -> AsyncIterator[list[tuple[Status, Definition]]]:
        """All tasks of a group, in no particular order, page by page: only one is held at a time."""

    async def artifacts(self, task_id: str, run_id: int, most: int) -> list[dict[str, Any]]:
        """What the run has uploaded, of more than `most` so many; nothing when it is gone."""

    async def expand_scopes(self, scopes: list[str]) -> list[str]:
        """The scopes with what their roles bring."""

    async def schedule_task(self, task_id: str, scope: str) -> Status: ...
    async def cancel_task(self, task_id: str, scope: str) -> Status: ...


class TaskclusterQueue:
    """The real one. It retries nothing: the work that calls it does, so that nothing is tried in two places.

    Only aiohttp, underneath, sends a request once more whose connection went away before any answer.
    """

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._clients: OrderedDict[tuple[str, ...] | None, Client] = OrderedDict()
        self._held: tuple[float, list[str]] | None = None

    async def create_task(self, task_id: str, definition: Definition, scopes: list[str]) -> Status:
        return await self._status(lambda queue: queue.createTask(task_id, definition), scopes)

    async def task(self, task_id: str) -> Definition | None:
        definition: Definition | None = await self._read(lambda: self._queue().task(task_id))
        return definition

    async def status(self, task_id: str) -> Status | None:
        answer = await self._read(lambda: self._queue().status(task_id))
        return _part(answer, "status", dict) if answer is not None else None

    async def tasks(self, task_ids: Sequence[str]) -> dict[str, Definition]:
        found = await self._many(task_ids, lambda **call: self._queue().tasks(**call), "tasks")
        return {_part(each, "taskId", str): _part(each, "task", dict) for each in found}

    async def statuses(self, task_ids: Sequence[str]) -> dict[str, Status]:
        found = await self._many(task_ids, lambda **call: self._queue().statuses(**call), "statuses")
        return {_part(each, "taskId", str): _part(each, "status", dict) for each in found}

    async def dependents(self, task_id: str, token: str | None = None, limit: int = PAGE) -> Page:
        query = _after(token) | ({"limit": str(limit)} if limit < PAGE else {})
        answer = await answer_of(lambda: self._queue().listDependentTasks(task_id, query=query))
        return Page(_tasks(answer), _following(answer, token))

    async def group_sealed(self, group_id: str) -> bool:
        answer = await self._read(lambda: self._queue().getTaskGroup(group_id))
        return bool(answer and answer.get("sealed"))

    async def group(self, group_id: str) -> AsyncIterator[list[tuple[Status, Definition]]]:
        token: str | None = None
        while True:
            answer = await answer_of(lambda: self._queue().listTaskGroup(group_id, query=_after(token)))  # noqa: B023 - awaited before the token changes
            yield _tasks(answer)
            token = _following(answer, token)
            if token is None:
                return

    async def _many(self, task_ids: Sequence[str], call: Callable[..., Awaitable[Any]], key: str) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(task_ids), PAGE):
            asked = {"taskIds": list(task_ids[start : start + PAGE])}
            token: str | None = None
            while True:
                answer = await answer_of(lambda: call(payload=asked, query=_after(token)))  # noqa: B023 - awaited before they change
                found += _part(answer, key, list)
                token = _following(answer, token)
                if token is None:
                    break
        return found

    async def artifacts(self, task_id: str, run_id: int, most: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            query = _after(token)
            answer = await self._read(lambda: self._queue().listArtifacts(task_id, str(run_id), query=query))  # noqa: B023 - awaited before it changes
            found += _part(answer, "artifacts", list) if answer else []
            token = _following(answer, token) if answer else None
            if token is None or len(found) >= most:
                return found[:most]

    async def expand_scopes(self, scopes: list[str]) -> list[str]:
        return await expand_scopes(self._settings, self._queue().session, scopes)

    async def schedule_task(self, task_id: str, scope: str) -> Status:
        return await self._status(lambda queue: queue.scheduleTask(task_id), [scope])

    async def cancel_task(self, task_id: str, scope: str) -> Status:
        return await self._status(lambda queue: queue.cancelTask(task_id), [scope])

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    def _queue(self, scopes: list[str] | None = None) -> Client:
        """One client a set of scopes, all on one session."""
        key = None if scopes is None else tuple(scopes)
        if key in self._clients:
            self._clients.move_to_end(key)
            return self._clients[key]
        if self._session is None:
            self._session = session_of(self._settings.root, self._settings.timeout.total_seconds(), 100)
        options = options_of(self._settings)
        if options["credentials"] and scopes is not None:
            options["authorizedScopes"] = _sendable(scopes)
        self._clients[key] = Client(options, session=self._session)
        if len(self._clients) > 500:
            self._clients.popitem(last=False)
        return self._clients[key]

    async def _status(self, call: Callable[[Client], Awaitable[Any]], scopes: list[str]) -> Status:
        """Make a call with these scopes alone; a ScopesRefusal names those of them that our client lacks."""
        try:
            return _part(await answer_of(lambda: call(self._queue(scopes))), "status", dict)
        except ScopesRefusal as refusal:
            if refusal.status != 401:
                raise
            raise await self._lacking(scopes) from None

    async def _lacking(self, scopes: list[str]) -> UpstreamError:
        whose = f"the service's Taskcluster client ({self._settings.client_id})"
        try:
            held = await self._current_scopes()
        except UpstreamError:
            why = f"{whose} lacks one of the scopes {named(scopes)}; which one, auth.currentScopes does not tell it"
            return ScopesRefusal(why, 401, [])
        lacking = [scope for scope in scopes if not satisfies(held, scope)]
        if not lacking:  # what we remember is old, or it was granted just now
            self._held = None
            return Unavailable("taskcluster", f"{whose} lacked one of the scopes {named(scopes)} a moment ago")
        return ScopesRefusal(f"{whose} lacks {named(lacking)}: grant that to the client", 401, lacking)

    async def _current_scopes(self) -> list[str]:
        """Return what our client may do, roles expanded; asked at most once in `SCOPES_KEPT` seconds."""
        if self._held is None or time.monotonic() - self._held[0] > SCOPES_KEPT:
            self._held = (time.monotonic(), await current_scopes(self._settings, self._queue().session))
        return self._held[1]

    async def _read(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await answer_of(call)
        except PermanentUpstreamError as refusal:
            if refusal.status == 404:
                return None
            raise


class ScopesRefusal(PermanentUpstreamError):
    """A call that scopes are missing for; `missing` are these, as far as they are known.

    The message names no others: what Taskcluster says lists all that the service's client has.
    """

    def __init__(self, message: str, status: int, missing: list[str]) -> None:
        super().__init__("taskcluster", message, status)
        self.missing = missing


class TooLargeError(Unavailable):
    """An answer that is not read because of its size; less may be asked for at a time."""


class _UnreadableAnswerError(aiohttp.ClientError):
    """An answer that is not read; the message says why."""


class _TooLargeAnswerError(_UnreadableAnswerError):
    """An answer with more than may be read."""


SCOPES_KEPT = 30.0
"""Seconds that the scopes of our client are remembered."""


def options_of(settings: TaskclusterSettings) -> dict[str, Any]:
    """Return the options of a client of any of Taskcluster's services, with the service's credentials."""
    # an empty dict: without any the client takes credentials from environment variables of its own
    options: dict[str, Any] = {"rootUrl": settings.root, "maxRetries": 0, "credentials": {}}
    if settings.client_id and settings.access_token:
        # a new dict each: the client changes the one it is given
        options["credentials"] = {
            "clientId": settings.client_id,
            "accessToken": settings.access_token.get_secret_value(),
        }
        if settings.certificate:
            options["credentials"]["certificate"] = settings.certificate.get_secret_value()
    return options


async def current_scopes(settings: TaskclusterSettings, session: aiohttp.ClientSession) -> list[str]:
    """Return the scopes of the service's client, with what its roles bring. Raises Unavailable and Refusal."""
    client = AuthClient(options_of(settings), session=session)
    scopes = (await answer_of(client.currentScopes)).get("scopes")
    if not isinstance(scopes, list):
        raise Unavailable("taskcluster", "auth.currentScopes answers no list of scopes: is that Taskcluster?")
    return [str(scope) for scope in scopes]


async def expand_scopes(
    settings: TaskclusterSettings, session: aiohttp.ClientSession, scopes: Sequence[str]
) -> list[str]:
    """Return these scopes with what their roles bring. Raises Unavailable and Refusal."""
    client = AuthClient(options_of(settings), session=session)
    answer = await answer_of(lambda: client.expandScopes({"scopes": list(scopes)}))
    return [str(scope) for scope in _part(answer, "scopes", list)]


class _Answer(aiohttp.ClientResponse):
    """An answer that is read up to a limit, and not at all when it is a redirect, whatever its body says."""

    async def read(self) -> bytes:
        if self._body is None:
            try:
                self._body = await self._limited()
            except BaseException:
                self.close()
                raise
        return await super().read()

    async def _limited(self) -> bytes:
        if 300 <= self.status < 400:
            where = self.headers.get("location", "nowhere")
            raise _UnreadableAnswerError(
                f"a redirect to {where}, and redirects are not followed: set taskcluster.root_url"
            )
        body = bytearray()
        members = 0
        async for chunk in self.content.iter_any():
            body += chunk
            members += len(chunk) - len(chunk.translate(None, _STRUCTURE))
            if len(body) > MAX_ANSWER:
                raise _TooLargeAnswerError(f"more than {MAX_ANSWER:,} bytes, and so much is not read")
            if members > MAX_MEMBERS:
                raise _TooLargeAnswerError(f"more than {MAX_MEMBERS:,} values, and so many are not read")
        return bytes(body)


def session_of(root: str, seconds: float, connections: int) -> aiohttp.ClientSession:
    """Return a session for calls to `root`, each of at most `seconds`, the wait for one of the connections included.

    The proxy is looked up here: aiohttp's `trust_env` knows no ALL_PROXY, and would add to a signed call the password
    that a `.netrc` has for its host, which aiohttp then refuses.
    """
    return aiohttp.ClientSession(
        proxy=proxy_for(root),
        timeout=aiohttp.ClientTimeout(total=seconds),
        connector=aiohttp.TCPConnector(limit=connections),
        response_class=_Answer,
        trace_configs=[metrics.metered_aiohttp("taskcluster")],
    )


async def answer_of(call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """What the official client's `call` is answered. Raises Unavailable and Refusal."""
    try:
        answer = await call()
    except exceptions.TaskclusterAuthFailure as error:
        text = _text(error)
        if "authorizedScopes" in text and "not satisfy" in text:
            why = "the service's Taskcluster client lacks some of the scopes that this call may use"
            raise ScopesRefusal(why, 401, []) from None
        # our credentials, not the caller's doing: an operator can mend it, and then the work goes on
        why = "401, for a reason that lists scopes" if "scopes" in text else text
        raise Unavailable("taskcluster", f"Taskcluster refuses our credentials: {why}", status=401) from None
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
        raise Unavailable("taskcluster", f"Taskcluster cannot be reached: {type(cause).__name__}") from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise Unavailable("taskcluster", f"Taskcluster's answer cannot be read: {type(error).__name__}") from None
    if not isinstance(answer, dict) or isinstance(answer.get("response"), aiohttp.ClientResponse):
        raise Unavailable("taskcluster", "Taskcluster answered something that is no JSON object")
    return answer


def _unavailable(answer: BaseException | None, status: int, why: str = "") -> Unavailable:
    """Return what an answer means that aiohttp raised; the client's own errors have it as their context."""
    wait = wait_asked_for(answer.headers or {}) if isinstance(answer, aiohttp.ClientResponseError) else None
    return Unavailable("taskcluster", f"Taskcluster answers {status}{why}", wait, status)


MAX_NAMED, MAX_SCOPE = 10, 200
"""Scopes that a message names, and characters of one: strangers write the scopes of their tasks."""


def named(scopes: Sequence[str]) -> str:
    """Return some scopes for a message, shortened if they are many or long."""
    shown = [scope if len(scope) <= MAX_SCOPE else f"{scope[:MAX_SCOPE]}…" for scope in scopes[:MAX_NAMED]]
    more = [f"and {len(scopes) - MAX_NAMED} more"] if len(scopes) > MAX_NAMED else []
    return ", ".join([*shown, *more])


def missing_scopes(message: str) -> list[str]:
    """Return the scopes that the message of a 403 InsufficientScopes says are missing; of alternatives the last.

    These are the priorities that allow the task's, from the highest down to the task's own, which allows the least.
    """
    _, _, rest = message.partition("missing the following scopes:")
    _, opening, rest = rest.partition("```")
    block, closing, _ = rest.partition("```")
    if not (opening and closing):
        return []
    try:
        return _flat(json.loads(block))
    except (ValueError, RecursionError):
        return [block.strip()]


def _flat(expression: Any) -> list[str]:
    if isinstance(expression, dict):
        if "AnyOf" in expression:
            return [scope for each in expression["AnyOf"][-1:] for scope in _flat(each)]
        return [scope for each in expression.get("AllOf", []) for scope in _flat(each)]
    return [str(expression)]


def satisfies(held: Iterable[str], scope: str) -> bool:
    """Return True if one of the held scopes satisfies `scope`: it is that, or ends in `*` where `scope` goes on."""
    return any(scope == each or (each.endswith("*") and scope.startswith(each[:-1])) for each in held)


def _part(answer: Any, key: str, kind: type[_T]) -> _T:
    """What the answer, or an item of its list, has there. Raises Unavailable when that is something else."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, kind):
        raise Unavailable("taskcluster", f"Taskcluster's answer has no {kind.__name__} {key!r}")
    return found


def validate_definition(definition: Definition) -> Definition:
    """`definition`, of which everything can be relied on that decides what becomes of a task. Raises Unavailable."""
    for key in ("taskGroupId", "schedulerId", "workerType", "requires", "created", "deadline", "expires"):
        _part(definition, key, str)
    for key in ("dependencies", "routes"):
        if not all(type(each) is str for each in _part(definition, key, list)):
            raise Unavailable("taskcluster", f"Taskcluster's answer has {key} that are no texts")
    return definition


def validate_status(status: Status) -> Status:
    """`status`, likewise."""
    for key in ("taskId", "taskGroupId", "schedulerId", "state", "deadline", "expires"):
        _part(status, key, str)
    for run in _part(status, "runs", list):
        _part(run, "runId", int)
        _part(run, "state", str)
    return status


def _tasks(answer: dict[str, Any]) -> list[tuple[Status, Definition]]:
    return [(_part(each, "status", dict), _part(each, "task", dict)) for each in _part(answer, "tasks", list)]


def _following(answer: dict[str, Any], token: str | None) -> str | None:
    """What asks for the page behind this answer, None when it was the last. Raises Unavailable when that is this one
    again: such a list would never end."""
    following = _part(answer, "continuationToken", str) if answer.get("continuationToken") else None
    if following is not None and following == token:
        raise Unavailable("taskcluster", "Taskcluster's answer says that it is followed by itself")
    return following


def _after(token: str | None) -> dict[str, str]:
    """The query for the page behind `token`."""
    return {"continuationToken": token} if token else {}


def _text(error: Exception) -> str:
    """The service's own words, without the request's particulars that follow them, and no more than anybody reads."""
    text = str(error).split("\n---\n", 1)[0].strip()
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}… ({len(text):,} characters)"


def _sendable(scopes: list[str]) -> list[str]:
    """A scope that is not printable ASCII would make every call 401: it is left out."""
    good = [scope for scope in scopes if scope.isascii() and scope.isprintable()]
    if len(good) < len(scopes):
        log.warning("scope-left-out", scopes=sorted(set(scopes) - set(good)), why="not printable ASCII")
    return good
