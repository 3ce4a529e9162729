"""What the polls of a repository mean: news of them, and whether it was reset. `shift` says who polls it, and when."""

from datetime import datetime, timedelta

import structlog
from sqlmodel import Session, select

from service.clock import now
from service.contract.events import PollNews
from service.contract.retry import backoff
from service.flow.pushes.push import suspect_reset
from service.settings import PollSettings
from service.store.models import Push, Repository

log = structlog.get_logger()

BUSY = timedelta(hours=1)
"""A repository that was pushed to within this time comes first."""

BUSY_TURNS = 3
"""...by so many intervals; an idle one that has waited longer goes before it, so that none starves."""


def take_news(session: Session, settings: PollSettings, repository: Repository, news: PollNews, at: datetime) -> None:
    """Write down what a poll found. The caller holds the row's lock and has compared the shift.

    A repository that fails or looks reset is given back: `shift` leases it anew when it is due. So whoever polls it
    then asks the service's word, and what is counted is counted once, however often a listener repeats its news.
    """
    if news.good_ago is not None:
        _good(repository, at - timedelta(seconds=news.good_ago))
    repository.last_polled_at = at
    if news.outcome == "failed":
        _failed(settings, repository, news, at)
        return
    repository.last_full_poll_at = at
    if news.outcome == "listed":
        _good(repository, at)
        repository.etag, repository.etag_cursor = news.etag, news.cursor
        if news.at_cursor and news.since == repository.last_push_id and repository.last_changeset is None:
            repository.last_changeset = news.at_cursor
        return
    repository.etag = None  # or a 304 would pass for a good poll
    if _looks_reset(session, repository, news):
        if _certain(settings, repository, at):
            _believe_reset(repository)
            return
    else:
        _good(repository, at)
        if news.at_cursor and news.moved and news.since == repository.last_push_id:
            repository.last_changeset = news.at_cursor  # what a strip left of the push at the cursor
    _free(settings, repository, at + settings.interval)


def _good(repository: Repository, at: datetime) -> None:
    repository.poll_error, repository.poll_failures = None, 0
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    repository.last_polled_at = repository.last_good_poll_at = at


def _failed(settings: PollSettings, repository: Repository, news: PollNews, at: datetime) -> None:
    repository.poll_failures += 1
    repository.poll_error = news.error or "the listener gave no reason"
    first, longest = 2 * settings.interval.total_seconds(), settings.max_backoff.total_seconds()
    wait = backoff(repository.poll_failures, first, longest, spread=0.2)
    _free(settings, repository, at + timedelta(seconds=wait))
    log.warning("poll-failed", repository=repository.alias, error=repository.poll_error, again_in=round(wait, 1))


def _free(settings: PollSettings, repository: Repository, due_at: datetime) -> None:
    busy = repository.last_push_at is not None and now() - repository.last_push_at < BUSY
    repository.holder = None
    repository.due_at, repository.turn = due_at, turn_of(settings, due_at, busy=busy)


def turn_of(settings: PollSettings, due_at: datetime, *, busy: bool) -> datetime:
    """Return what repositories are put in order by: when it is due, earlier for a busy one."""
    return due_at - settings.interval * BUSY_TURNS if busy else due_at


def _looks_reset(session: Session, repository: Repository, news: PollNews) -> bool:
    """Return True if this answer can only come from a repository that was made anew. A strip does not look so:

    `lastpushid` stays, and what is left of the push at the cursor was in it before.
    """
    if news.lastpushid is not None and news.lastpushid < news.cursor:
        suspect_reset(repository, f"lastpushid is {news.lastpushid}, below the cursor {news.cursor}")
        return True
    if news.moved and news.at_cursor and repository.last_changeset:
        stored = session.exec(
            select(Push.nodes).where(
                Push.repository_id == repository.id,
                Push.generation == repository.generation,
                Push.push_id == news.since,
            )
        )
        nodes = stored.first()  # None: the push where monitoring began, of which we know the tip alone
        if nodes is not None and news.at_cursor not in nodes:
            suspect_reset(repository, f"push {news.since} was {nodes[-1:]}, is now {news.at_cursor}")
            return True
    return False


def _certain(settings: PollSettings, repository: Repository, at: datetime) -> bool:
    """Return True if several polls saw a reset over a while: one mirror that lags is contradicted by the others."""
    since = repository.reset_suspected_at or at
    return repository.reset_suspicions >= settings.reset_polls and at - since >= settings.reset_after


def _believe_reset(repository: Repository) -> None:
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

    The caller holds the row's lock and has compared shift or cursor, so it happens once.
    """
    repository.generation += 1
    repository.last_push_id, repository.last_changeset = last_push_id, None
    repository.record_before = record_before
    repository.etag = None
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    end_shift(repository)


def end_shift(repository: Repository) -> None:
    """End the shift in which a listener polls the repository: what it knows of it is out of date.

    Nothing that it lists from now on is stored, and it hears of that with its next renewal. The caller holds the row's
    lock.
    """
    repository.shift += 1
    repository.holder = None
    repository.due_at = repository.turn = now()
