"""What listeners and service say to each other. Both sides import this module, and nothing else of each other.

Every request is signed (Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`), and so are its
method and path (`webhook-route-signature`, over the same id and timestamp).
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

MAX_EVENTS = 1_000
"""Events in one request."""

MAX_BYTES = 32 * 1024 * 1024
"""Size of one request's body."""

MAX_CHANGESETS_IN_FULL = 200
"""Treeherder keeps the last 200 commits of a push; no more are sent in full."""

MAX_FILES = 1_000
"""File names that are sent of one changeset; `files_count` has the true number."""

Node = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a changeset id, 40 lower-case hex digits")]
PushId = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
DeliveryKey = Annotated[
    str, Field(pattern=r"^[0-9a-f-]{36}$", description="a UUID drawn at receipt, the same in every re-POST")
]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$", description="1 to 50 of A-Z a-z 0-9 _ -")]


class Event(BaseModel):
    # hide_input: a reason goes into logs and answers, the payload has its own place in the dead letter
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Changeset(Event):
    """A changeset: the last 200 of a push in full, the others with `node` and `branch`, the first with `parents`."""

    node: Node
    branch: str = Field("default", max_length=1_000)
    author: str | None = None
    desc: str | None = None
    parents: list[Node] | None = None
    files: list[str] | None = Field(None, max_length=MAX_FILES)
    files_count: int | None = Field(None, ge=0, le=2**31 - 1)


class PushlogEntry(Event):
    """One entry of json-pushes, changesets in DAG order, tip last."""

    id: PushId
    user: str
    date: float = Field(ge=0, lt=32_503_680_000, description="seconds since 1970")
    changesets: list[Changeset]


class PushEvent(Event):
    """A push that the pushlog lists."""

    repository: Alias
    generation: int = Field(ge=0, strict=True)
    since: PushId = Field(description="the cursor that the push was listed from")
    lastpushid: PushId
    push: PushlogEntry


class OversizedPush(Event):
    """A push too large to send: what is left of it, so that a person can look, and the cursor can go on."""

    repository: Alias
    generation: int = Field(ge=0, strict=True)
    since: PushId
    lastpushid: PushId
    oversized: Literal[True]
    push_id: PushId
    reason: str


class Verdict(BaseModel):
    """What became of one event."""

    verdict: Literal["accepted", "duplicate", "rejected"]
    reason: str | None = None
    repository: str | None = None
    cursor: int | None = Field(None, description="the repository's cursor after the commit")
    generation: int | None = None


class Verdicts(BaseModel):
    """One verdict for each event, in their order."""

    verdicts: list[Verdict]


class PollResult(Event):
    """How the poll of a leased repository went."""

    repository: Alias
    lease: int = Field(description="the number that came with the lease; a late result of an older one is ignored")
    outcome: Literal["listed", "unchanged", "failed"]
    error: str | None = Field(None, max_length=2_000, description="what was wrong, when it failed")
    requests: int = Field(1, ge=0, le=10_000, description="requests made, for the host's budget")
    seconds: float = Field(0, ge=0, le=86_400, description="how long the pushlog took")
    lastpushid: PushId | None = Field(None, description="what the pushlog said; None when unchanged or failed")
    at_cursor: Node | None = Field(None, description="the tip that is listed at the cursor now")
    moved: bool = Field(False, description="last_changeset is not among the changesets at the cursor")
    etag: str | None = Field(None, max_length=500)
    date: AwareDatetime | None = Field(None, description="the answer's Date header")
    more: bool = Field(False, description="the backlog was not finished within the lease")


class LeaseRequest(Event):
    results: list[Any] = Field([], max_length=MAX_EVENTS, description="PollResult each")
    max: int = Field(1, ge=0, le=100, description="repositories wanted")
    wait: float = Field(5, ge=0, le=5, description="seconds to wait when nothing is due")
    urls: list[str] = Field(
        [],
        max_length=100,
        description="repositories that a push was announced of: due at once, and only they are leased",
    )


class LeasedRepository(BaseModel):
    """A repository to ask now, and where its cursor stands."""

    repository: str
    lease: int
    url: str
    host: str
    generation: int
    cursor: int
    last_changeset: str | None
    etag: str | None = Field(description="for If-None-Match; None: ask without")
    seconds: float = Field(description="how long the lease lasts")


class Leases(BaseModel):
    leases: list[LeasedRepository]
    problems: list[str] = Field([], description="results that could not be understood")


class QueueReport(Event):
    """A listener reads a queue: sent when it is connected, and every minute."""

    queue: str = Field(max_length=255)
    events: Literal["job-actions", "tasks", "pushes"]
    found: Literal["there", "new", "deleted"] = Field(
        description="new: it was not there and was declared; deleted: likewise, and this listener had read from it"
    )


class QueueState(BaseModel):
    deleted: bool = Field(description="it was read before: what was sent meanwhile is lost")
    deaf_from: str | None = Field(None, description="when it was last known to be there, if it was deleted")


class PulseMessage(Event):
    """A message as Pulse delivered it; the body is not looked at before the service has it."""

    delivery: DeliveryKey
    channel: str = Field(pattern=r"^[0-9a-f-]{36}$", description="the UUID of the AMQP channel that delivered it")
    redelivered: bool
    exchange: str = Field(max_length=255)
    routing_key: str = Field(max_length=255)
    cc: list[str] = Field([], max_length=1_000, description="the CC header: further routing keys")
    body: str = Field(description="the body: text, or base64 where `encoding` says so")
    encoding: Literal["utf-8", "base64"] = "utf-8"


class JobActionMessage(PulseMessage):
    """A button pressed in Treeherder, as Pulse delivered it."""

    stamp: float = Field(
        ge=0,
        lt=32_503_680_000,
        description="seconds since 1970, by the listener's clock, when it had read the message and had not yet asked "
        "the broker whether the channel is still open",
    )


class Acknowledged(Event):
    """What the broker has confirmed since the last batch."""

    acknowledged: list[DeliveryKey] = Field(
        [], max_length=MAX_EVENTS, description="deliveries whose acknowledgement the broker has: it brings none again"
    )
