"""Schemas of the requests and answers between listeners and service.

Every request is signed (Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`), and so are its
method and path (`webhook-route-signature`, over the same id and timestamp).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.contract.validation import named_pattern

MAX_EVENTS = 1_000
"""Largest number of events in one request."""

MAX_BYTES = 32 * 1024 * 1024
"""Largest body of one request, in bytes."""

MAX_CHANGESETS_IN_FULL = 200
"""Changesets of a push that are sent in full, from its end: Treeherder keeps the last 200."""

MAX_FILES = 1_000
"""File names that are sent with one changeset. `files_count` has their true number."""

NODE = named_pattern(r"^[0-9a-f]{40}$", "changeset id (40 lower-case hex digits)")
_UUID = named_pattern(r"^[0-9a-f-]{36}$", "UUID (36 of 0-9 a-f -)")
NAME = named_pattern(r"^[A-Za-z0-9_-]{1,50}$", "name (1 to 50 of A-Z a-z 0-9 _ -)")

Node = Annotated[str, Field(pattern=NODE, description="a changeset id, 40 lower-case hex digits")]
PushId = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
DeliveryKey = Annotated[str, Field(pattern=_UUID, description="a UUID drawn at receipt, the same in every re-POST")]
RowId = Annotated[int, Field(ge=1, le=2**31 - 1)]
ShiftNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Alias = Annotated[str, Field(pattern=NAME, description="1 to 50 of A-Z a-z 0-9 _ -")]

MAX_INDEXED = 1_000
"""Largest size of a text from outside that the database indexes, in bytes of UTF-8.

PostgreSQL refuses a row of an index that has more than 2,704 bytes, and one index holds two such texts.
"""


def check_indexed(text: str) -> str:
    """Return the text if the database can index it. Raises ValueError."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_INDEXED:
        raise ValueError(f"it has {size:,} bytes, and at most {MAX_INDEXED:,} are taken")
    return text


Indexed = Annotated[str, AfterValidator(check_indexed)]


class Event(BaseModel):
    """Base class of what listeners send."""

    # hide_input: the reason goes into logs and answers; the dead letter has the payload in a field of its own
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Changeset(Event):
    """A changeset of a push.

    The last `MAX_CHANGESETS_IN_FULL` of a push are sent in full, the others with `node` and `branch`, and the first
    with `parents`.
    """

    node: Node
    branch: str = Field("default", max_length=1_000)
    author: str | None = None
    desc: str | None = None
    parents: list[Node] | None = None
    files: list[str] | None = Field(None, max_length=MAX_FILES)
    files_count: int | None = Field(None, ge=0, le=2**31 - 1)


class PushlogEntry(Event):
    """An entry of json-pushes, with its changesets in DAG order, tip last."""

    id: PushId
    user: Indexed
    date: float = Field(ge=0, lt=32_503_680_000, description="seconds since 1970")
    changesets: list[Changeset]


class ListedPush(Event):
    """Base class of an event about one push: the repository, and the listing that had the push."""

    repository: Alias
    repository_id: RowId
    shift: ShiftNumber = Field(description="the repository's shift; an event of an older shift is not stored")
    generation: int = Field(ge=0, strict=True)
    since: PushId = Field(description="the cursor that the listing began at")
    lastpushid: PushId


class PushEvent(ListedPush):
    """A push that the pushlog lists."""

    push: PushlogEntry


class OversizedPush(ListedPush):
    """A push that is too large to send. It becomes a dead letter, and the cursor moves on."""

    oversized: Literal[True]
    push_id: PushId
    reason: str


class Verdict(BaseModel):
    """A verdict on one event."""

    verdict: Literal["accepted", "duplicate", "rejected"]
    reason: str | None = None
    repository: str | None = None
    cursor: int | None = Field(None, description="the repository's cursor after the commit")
    shift: int | None = Field(None, description="the repository's current shift")


class Verdicts(BaseModel):
    """Verdicts on a batch: one for each event, in the events' order."""

    verdicts: list[Verdict]


class PollNews(Event):
    """A result of polling a leased repository that the service does not know yet, apart from pushes."""

    repository_id: RowId
    shift: ShiftNumber
    outcome: Literal["listed", "suspicious", "failed"] = Field(
        description="suspicious: this may be another repository than the one that the cursor belongs to. This returns "
        "the lease of a repository that fails or is suspicious"
    )
    error: str | None = Field(None, max_length=2_000, description="the error of a poll that failed")
    since: PushId = Field(0, description="the cursor that the listing began at")
    cursor: PushId = Field(0, description="the cursor after all listed pushes were stored")
    lastpushid: PushId | None = Field(None, description="the pushlog's lastpushid; null if the poll failed")
    at_cursor: Node | None = Field(None, description="the tip that is now listed at `since`")
    moved: bool = Field(False, description="last_changeset is not among the changesets at `since`")
    etag: str | None = Field(None, max_length=500, description="a reliable ETag of the pushlog at `cursor`")
    good_ago: Seconds | None = Field(None, description="seconds since the previous good poll in this shift")


PolledRepository = Annotated[
    tuple[RowId, ShiftNumber, Seconds, Seconds],
    Field(description="row id, shift, seconds since its last good poll began, seconds that its slowest answer took"),
]
HeldRepository = Annotated[tuple[RowId, ShiftNumber], Field(description="row id, shift")]

MAX_HELD = 10_000
"""Largest number of repositories that one listener holds."""


class ShiftRequest(Event):
    """A renewal of a listener's shift, with its polls since the last renewal."""

    listener: Annotated[str, Field(pattern=_UUID, description="a UUID drawn when the listener started")]
    answer: int = Field(0, ge=0, le=2**31 - 1, description="the number of the last answer received; 0: none")
    polled: list[PolledRepository] = Field(
        [],
        max_length=MAX_HELD,
        description="repositories that were polled without an error since the last renewal",
    )
    under_way: list[HeldRepository] = Field(
        [], max_length=MAX_HELD, description="repositories whose poll has begun since then, and is not answered yet"
    )
    news: list[Any] = Field([], max_length=MAX_EVENTS, description="a list of PollNews")
    polls: int = Field(0, ge=0, le=1_000_000, description="polls that ended since the last renewal")
    requests: int = Field(0, ge=0, le=1_000_000, description="requests that these polls took")
    slowest: Seconds = Field(0, description="seconds of the slowest answer among them")
    ends: bool = Field(False, description="the listener ends, and returns all its leases")


class Lease(BaseModel):
    """A repository to poll, and its cursor."""

    repository: str
    id: int
    shift: int
    url: str
    host: str
    generation: int
    cursor: int
    last_changeset: str | None
    etag: str | None = Field(description="the ETag for If-None-Match, until `full_in` has passed")
    full_in: float = Field(description="seconds until the next poll without an ETag is due")
    first_in: float = Field(description="seconds until the first poll is due")
    interval: float = Field(description="seconds between two polls")
    suspected: bool = Field(description="the repository may have been reset; poll it over a new connection")


class HostRate(BaseModel):
    """Limits of a listener's requests to one host, for all its repositories together."""

    rate: float = Field(description="requests a second")
    at_a_time: int = Field(description="requests at a time")


class Shift(BaseModel):
    """An answer to a renewal. It is valid until `seconds` after the renewal was sent."""

    answer: int = Field(description="the answer's number, which the next renewal repeats")
    seconds: float
    renew: float = Field(description="seconds until the next renewal")
    full_every: float = Field(description="seconds between two polls of a repository without an ETag")
    hosts: dict[str, HostRate]
    renewed: list[int] = Field(
        description="row ids of the leases that were renewed; the listener has lost all others that the renewal named"
    )
    leases: list[Lease]
    problems: list[str] = Field([], description="errors of news that are invalid")


class AnnouncedPushes(Event):
    """Repositories with announced pushes, which are polled at once, beside their shifts."""

    urls: list[str] = Field(max_length=100)


class AnnouncedLeases(BaseModel):
    """Repositories that may be polled once, now. The request counts against the host's reserve."""

    leases: list[Lease]
    wait: float | None = Field(
        None, description="seconds until the reserve allows to poll another one of them; null: none is waiting"
    )


class QueueReport(Event):
    """A report that a listener reads a queue. It is sent after connecting, and every minute."""

    queue: str = Field(max_length=255)
    events: Literal["job-actions", "tasks", "pushes"]
    found: Literal["there", "new", "deleted"] = Field(
        description="there: the queue exists; new: it did not exist, and was declared; deleted: it did not exist, was "
        "declared, and this listener had read from it before"
    )


class QueueState(BaseModel):
    """An answer to a queue report."""

    deleted: bool = Field(description="the queue was read before, so messages sent in between are lost")
    messages_lost_since: str | None = Field(
        None, description="if it was deleted, the time when it was last known to exist"
    )


class PulseMessage(Event):
    """A message as Pulse delivered it. The listener does not look at the body."""

    exchange: str = Field(max_length=255)
    routing_key: str = Field(max_length=255)
    cc: list[str] = Field([], max_length=1_000, description="the CC header, which has further routing keys")
    body: str = Field(description="the body, encoded as `encoding` says")
    encoding: Literal["utf-8", "base64"] = "utf-8"


class JobActionMessage(PulseMessage):
    """A message of a button that was pressed in Treeherder, as Pulse delivered it."""

    delivery: DeliveryKey
    channel: str = Field(pattern=_UUID, description="the UUID of the AMQP channel that delivered it")
    redelivered: bool
    stamp: float = Field(
        ge=0,
        lt=32_503_680_000,
        description="seconds since 1970, by the listener's clock, after reading the message and before asking the "
        "broker whether the channel is still open",
    )


class Acknowledged(Event):
    """Base class of a batch that also names deliveries whose acknowledgement has reached the broker."""

    acknowledged: list[DeliveryKey] = Field(
        [],
        max_length=MAX_EVENTS,
        description="deliveries whose acknowledgement the broker has received, so that it will not redeliver them",
    )
