"""Which repository is asked next, and what its answer means.

The service leases due repositories to listeners: each is polled once an interval however many listeners run, a host's
request budget holds for all of them together, and a listener that dies keeps nothing.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, bindparam, func, literal, text
from sqlmodel import col, or_, select

from events import LeasedRepository, PollResult
from service import budget
from service.database import Session, Utc, now
from service.flow.push import suspect_reset
from service.models import MONITORED, Push, Repository
from service.settings import PollSettings

log = structlog.get_logger()

BUSY = timedelta(hours=1)
"""A repository that was pushed to within this time comes first."""

BUSY_TURNS = 3
"""...by so many intervals; an idle one that has waited longer goes before it, so that none starves."""

TAG_AGE = timedelta(seconds=3)
"""An ETag is the change time in whole seconds; a younger one can hide a second push in that same second for ever."""

MAX_TAG = 15
"""Digits of a time in seconds, and some to spare: a longer number is none, and may not even fit a float."""


async def report(session: Session, settings: PollSettings, results: list[PollResult]) -> Mapping[str, int]:
    """Write down how leased polls went.

    Returns what they took of each host's budget beside their leases: for `lease`, which alone locks budgets, so that
    no two replicas wait for each other's in a circle.
    """
    if not results:
        return {}
    aliases = {result.repository for result in results}
    repositories = await session.exec(
        select(Repository)
        .where(col(Repository.alias).in_(aliases), col(Repository.deleted_at).is_(None))
        .order_by(col(Repository.id))
        .with_for_update()
    )
    by_alias = {repository.alias: repository for repository in repositories}
    extra: Counter[str] = Counter()
    for result in results:
        repository = by_alias.get(result.repository)
        if repository is None or repository.lease != result.lease:
            continue  # deleted, or leased to somebody else since
        extra[repository.host] += max(result.requests - 1, 0)  # the first was taken with the lease
        await _report(session, settings, repository, result)
    return extra


async def _report(session: Session, settings: PollSettings, repository: Repository, result: PollResult) -> None:
    at = now()
    repository.leased_until = None
    repository.last_polled_at = at
    if result.outcome == "failed":
        repository.poll_failures += 1
        repository.poll_error = result.error or "the listener gave no reason"
        wait = min(settings.interval * 2 ** min(repository.poll_failures, 20), settings.max_backoff)
        _due(settings, repository, at + wait * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
        log.warning(
            "poll-failed", repository=repository.alias, error=repository.poll_error, again_in=wait.total_seconds()
        )
        return

    if repository.poll_error:
        log.info("poll-recovered", repository=repository.alias, failures=repository.poll_failures)
    repository.poll_error, repository.poll_failures = None, 0
    if result.more:
        _due(settings, repository, at)
    elif result.seconds > settings.interval.total_seconds():
        _due(settings, repository, at + timedelta(seconds=result.seconds))  # a slow one backs off by itself
    if result.outcome == "listed":
        repository.last_full_poll_at = at
        if await _looks_reset(session, repository, result):
            repository.etag = None  # or a 304 would pass for a good poll
            await _reset_when_certain(settings, repository, at)
            return
        repository.etag = _reliable(result)
        if result.at_cursor and (repository.last_changeset is None or result.moved):
            repository.last_changeset = result.at_cursor  # what a strip left of the push at the cursor
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    repository.last_good_poll_at = at


def _reliable(result: PollResult) -> str | None:
    """The ETag, if it can be relied on: hgweb's is `W/"<change time, epoch seconds>"`."""
    digits = (result.etag or "").removeprefix("W/").strip('"')
    if not digits.isascii() or not digits.isdigit() or len(digits) > MAX_TAG or result.date is None:
        return None
    age = result.date.timestamp() - int(digits)
    return result.etag if age >= TAG_AGE.total_seconds() else None


async def _looks_reset(session: Session, repository: Repository, result: PollResult) -> bool:
    """Whether this answer can only come from a repository that was made anew. A strip does not look so:

    `lastpushid` stays, and what is left of the push at the cursor was in it before.
    """
    if result.lastpushid is not None and result.lastpushid < repository.last_push_id:
        suspect_reset(repository, f"lastpushid is {result.lastpushid}, below the cursor {repository.last_push_id}")
        return True
    if result.moved and result.at_cursor and repository.last_changeset:
        stored = await session.exec(
            select(Push.nodes).where(
                Push.repository_id == repository.id,
                Push.generation == repository.generation,
                Push.push_id == repository.last_push_id,
            )
        )
        nodes = stored.first()  # None: the push where monitoring began, of which we know the tip alone
        if nodes is not None and result.at_cursor not in nodes:
            why = f"push {repository.last_push_id} was {repository.last_changeset}, is now {result.at_cursor}"
            suspect_reset(repository, why)
            return True
    return False


async def _reset_when_certain(settings: PollSettings, repository: Repository, at: datetime) -> None:
    """Believe a reset that several polls saw over a while: one mirror that lags is contradicted by the others."""
    since = repository.reset_suspected_at or at
    if repository.reset_suspicions < settings.reset_polls or at - since < settings.reset_after:
        return
    log.warning(
        "repository-reset",
        repository=repository.alias,
        old_cursor=repository.last_push_id,
        new_generation=repository.generation + 1,
        pushes_only_recorded_before=str(repository.last_good_poll_at),
    )
    # without any good poll none of the old pushes was ever ours to process
    reset(repository, last_push_id=0, record_before=repository.last_good_poll_at or repository.created_at)


def reset(repository: Repository, last_push_id: int, record_before: datetime | None) -> None:
    """Begin a new generation: push ids start anew, and so do the ids of their tasks.

    The caller holds the row's lock and has compared generation and cursor, so it happens once.
    """
    repository.generation += 1
    repository.last_push_id, repository.last_changeset = last_push_id, None
    repository.record_before = record_before
    repository.etag = None
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    repository.leased_until = None
    repository.lease += 1  # whoever polls it now polls the old one
    repository.due_at = repository.turn = now()


def _due(settings: PollSettings, repository: Repository, at: datetime) -> None:
    busy = repository.last_push_at is not None and now() - repository.last_push_at < BUSY
    repository.due_at = at
    repository.turn = at - settings.interval * BUSY_TURNS if busy else at


_AT = bindparam("at", type_=Utc)

_OF_HOST = Repository.host == bindparam("host")
_UNDER_WAY = col(Repository.leased_until) > _AT
_DUE = and_(
    text(MONITORED),
    col(Repository.turn) <= _AT,  # never later than due_at: it is what the index is in the order of
    col(Repository.due_at) <= _AT,
    or_(col(Repository.leased_until).is_(None), col(Repository.leased_until) <= _AT),
)

# asked all the time, so they are made once: that takes as long as to execute them
_ANY_DUE = select(Repository.id).where(_DUE, col(Repository.host).in_(bindparam("hosts", expanding=True))).limit(1)
_COUNTS = select(
    select(func.count()).select_from(Repository).where(text(MONITORED), _OF_HOST, _UNDER_WAY).scalar_subquery(),
    select(func.count())
    .select_from(select(literal(1)).select_from(Repository).where(_OF_HOST, _DUE).limit(bindparam("most")).subquery())
    .scalar_subquery(),
)
_TURNS = (
    select(Repository)
    .where(_OF_HOST, _DUE)
    .order_by(col(Repository.turn), col(Repository.id))
    .with_for_update(skip_locked=True)
)


async def any_due(session: Session, hosts: list[str]) -> bool:
    """Whether it is worth to take locks; it reads only. A host that is no longer allowed has nothing due."""
    due = await session.exec(_ANY_DUE, params={"at": now(), "hosts": hosts})
    return due.first() is not None


async def announced(session: Session, urls: list[str]) -> None:
    """Let the repositories at these urls be due: one that somebody polls just now, as soon as that is over."""
    at = now()
    repositories = await session.exec(
        select(Repository)
        .where(
            col(Repository.url).in_(urls),
            col(Repository.due_at) > at,
            col(Repository.enabled).is_(True),
            col(Repository.deleted_at).is_(None),
        )
        .order_by(col(Repository.id))
        .with_for_update()
    )
    for repository in repositories:
        repository.due_at = repository.turn = at


async def lease(
    session: Session,
    settings: PollSettings,
    hosts: list[str],
    limit: int,
    urls: Collection[str] = (),
    spent: Mapping[str, int] | None = None,
) -> tuple[list[LeasedRepository], float]:
    """Lease up to `limit` due repositories, as far as the budgets of their hosts go; with `urls`, of those only.

    What was `spent` of each host's budget is taken off first. Also says in how many seconds it is worth to ask again,
    if there were none for want of budget.
    """
    leased: list[LeasedRepository] = []
    pauses: list[float] = []
    for host in sorted(hosts):  # sorted: two replicas lock the budgets in one order
        if requests := (spent or {}).get(host, 0):
            bucket = await budget.refilled(session, f"hg {host}", now(), settings.max_requests_per_host)
            bucket.tokens -= requests
        if len(leased) < limit:
            more, pause = await _lease(session, settings, host, limit - len(leased), urls)
            leased += more
            pauses.append(pause)
    return leased, min(pauses, default=0)


async def _lease(
    session: Session, settings: PollSettings, host: str, limit: int, urls: Collection[str]
) -> tuple[list[LeasedRepository], float]:
    at = now()
    bucket = await budget.refilled(session, f"hg {host}", at, settings.max_requests_per_host)
    values = {"at": at, "host": host}
    under_way, waiting = (await session.exec(_COUNTS, params={**values, "most": limit})).one()
    room = min(limit, waiting, settings.at_a_time - under_way, int(budget.burst(settings.max_requests_per_host)))
    if room <= 0:
        return [], 0
    if bucket.tokens < room:
        # too little for all of them: rather wait and give them out together, for each lease costs a round trip
        return [], (room - bucket.tokens) / settings.max_requests_per_host
    turns = _TURNS.where(col(Repository.url).in_(urls)) if urls else _TURNS
    repositories = (await session.exec(turns.limit(room), params=values)).all()
    bucket.tokens -= len(repositories)
    return [_leased(settings, repository, at) for repository in repositories], 0


def _leased(settings: PollSettings, repository: Repository, at: datetime) -> LeasedRepository:
    repository.lease += 1
    repository.leased_until = at + settings.lease
    _due(settings, repository, at + settings.interval * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, no secret
    listed = repository.last_full_poll_at
    fresh = listed is not None and at - listed < settings.full_every
    return LeasedRepository(
        repository=repository.alias,
        lease=repository.lease,
        url=repository.url,
        host=repository.host,
        generation=repository.generation,
        cursor=repository.last_push_id,
        last_changeset=repository.last_changeset,
        etag=repository.etag if fresh else None,
        seconds=settings.lease.total_seconds(),
    )
