"""What listeners and service say to each other. Both sides import this module, and nothing else of each other.

Every request is signed (Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`), and so are its
method and path (`webhook-route-signature`, over the same id and timestamp).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
RowId = Annotated[int, Field(ge=1, le=2**31 - 1)]
ShiftNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
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


class ListedPush(Event):
    """Where a push was listed: what an event says beside the push itself."""

    repository: Alias
    repository_id: RowId
    shift: ShiftNumber = Field(description="the repository's; what was listed in an older shift is not stored")
    generation: int = Field(ge=0, strict=True)
    since: PushId = Field(description="the cursor that the push was listed from")
    lastpushid: PushId


class PushEvent(ListedPush):
    """A push that the pushlog lists."""

    push: PushlogEntry


class OversizedPush(ListedPush):
    """A push too large to send: what is left of it, so that a person can look, and the cursor can go on."""

    oversized: Literal[True]
    push_id: PushId
    reason: str


class Verdict(BaseModel):
    """What became of one event."""

    verdict: Literal["accepted", "duplicate", "rejected"]
    reason: str | None = None
    repository: str | None = None
    cursor: int | None = Field(None, description="the repository's cursor after the commit")
    shift: int | None = Field(None, description="the repository's present one")


class Verdicts(BaseModel):
    """One verdict for each event, in their order."""

    verdicts: list[Verdict]


class PollNews(Event):
    """What a poll of a leased repository found that the service does not know, beside pushes."""

    repository_id: RowId
    shift: ShiftNumber
    outcome: Literal["listed", "suspicious", "failed"] = Field(
        description="suspicious: this may be another repository than the one that the cursor belongs to. A repository "
        "that fails or is suspicious is given back with this"
    )
    error: str | None = Field(None, max_length=2_000, description="what was wrong, when it failed")
    since: PushId = Field(0, description="the cursor that it was listed from")
    cursor: PushId = Field(0, description="the cursor when all that was listed had been taken in")
    lastpushid: PushId | None = Field(None, description="what the pushlog said; None when it failed")
    at_cursor: Node | None = Field(None, description="the tip that is listed at `since` now")
    moved: bool = Field(False, description="last_changeset is not among the changesets at `since`")
    etag: str | None = Field(None, max_length=500, description="one that stands for `cursor` and can be relied on")
    good_ago: Seconds | None = Field(None, description="seconds since a good poll in this shift that came before")


PolledRepository = Annotated[
    tuple[RowId, ShiftNumber, Seconds, Seconds],
    Field(description="row id, shift, seconds since its last good poll began, seconds that its slowest answer took"),
]
HeldRepository = Annotated[tuple[RowId, ShiftNumber], Field(description="row id, shift")]

MAX_HELD = 10_000
"""Repositories that a listener has at a time."""


class ShiftRequest(Event):
    """A listener renews its shift: what it has polled since it did so last, and what it found."""

    listener: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$", description="a UUID drawn when the listener started")]
    answer: int = Field(0, ge=0, le=2**31 - 1, description="the number of the last answer that it has; 0: none")
    polled: list[PolledRepository] = Field(
        [],
        max_length=MAX_HELD,
        description="repositories that were polled well since the last renewal",
    )
    under_way: list[HeldRepository] = Field(
        [], max_length=MAX_HELD, description="repositories that were asked since then, and have not answered yet"
    )
    news: list[Any] = Field([], max_length=MAX_EVENTS, description="PollNews each")
    polls: int = Field(0, ge=0, le=1_000_000, description="polls that ended since the last renewal")
    requests: int = Field(0, ge=0, le=1_000_000, description="requests that they took")
    slowest: Seconds = Field(0, description="seconds of the slowest answer among them")
    ends: bool = Field(False, description="the listener ends: all that it has is given back")


class Lease(BaseModel):
    """A repository to poll, and where its cursor stands."""

    repository: str
    id: int
    shift: int
    url: str
    host: str
    generation: int
    cursor: int
    last_changeset: str | None
    etag: str | None = Field(description="for If-None-Match, until `full_in` has passed")
    full_in: float = Field(description="seconds until it is to be asked without an ETag")
    first_in: float = Field(description="seconds until the first poll is due")
    interval: float = Field(description="seconds between two polls")
    suspected: bool = Field(description="it may have been reset: it is to be asked over a new connection")


class HostRate(BaseModel):
    """What a listener may ask of a host, of all its repositories together."""

    rate: float = Field(description="requests a second")
    at_a_time: int = Field(description="requests at a time")


class Shift(BaseModel):
    """The answer to a renewal. All of it holds until `seconds` after the renewal was sent."""

    answer: int = Field(description="its number, which the next renewal names")
    seconds: float
    renew: float = Field(description="seconds until the next renewal")
    full_every: float = Field(description="seconds after which a repository is to be asked without an ETag")
    hosts: dict[str, HostRate]
    renewed: list[int] = Field(description="row ids; others that were named in the renewal are the listener's no more")
    leases: list[Lease]
    problems: list[str] = Field([], description="news that could not be understood")


class AnnouncedPushes(Event):
    """Pushes were announced in these repositories: they are polled at once, beside their shifts."""

    urls: list[str] = Field(max_length=100)


class AnnouncedLeases(BaseModel):
    """Repositories that may be asked once, now; the request is paid from the host's reserve."""

    leases: list[Lease]
    wait: float | None = Field(
        None, description="seconds until the reserve allows to poll another one of them; None: nothing waits for it"
    )


class QueueReport(Event):
    """A listener reads a queue: sent when it is connected, and every minute."""

    queue: str = Field(max_length=255)
    events: Literal["job-actions", "tasks", "pushes"]
    found: Literal["there", "new", "deleted"] = Field(
        description="new: it was not there and was declared; deleted: likewise, and this listener had read from it"
    )


class QueueState(BaseModel):
    deleted: bool = Field(description="it was read before: what was sent meanwhile is lost")
    messages_lost_since: str | None = Field(None, description="when it was last known to be there, if it was deleted")


class PulseMessage(Event):
    """A message as Pulse delivered it; the body is not looked at before the service has it."""

    exchange: str = Field(max_length=255)
    routing_key: str = Field(max_length=255)
    cc: list[str] = Field([], max_length=1_000, description="the CC header: further routing keys")
    body: str = Field(description="the body: text, or base64 where `encoding` says so")
    encoding: Literal["utf-8", "base64"] = "utf-8"


class JobActionMessage(PulseMessage):
    """A button pressed in Treeherder, as Pulse delivered it."""

    delivery: DeliveryKey
    channel: str = Field(pattern=r"^[0-9a-f-]{36}$", description="the UUID of the AMQP channel that delivered it")
    redelivered: bool
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
