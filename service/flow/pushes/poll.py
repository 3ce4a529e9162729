"""Record the polls of a repository, and detect that it was reset. `shift` decides who polls it, and when."""

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

BUSY_FOR = timedelta(hours=1)
"""A repository is busy for this time after a push."""

BUSY_TURNS = 3
"""Intervals by which a busy repository comes before idle ones; one that has waited longer is not overtaken."""


def record_poll(session: Session, settings: PollSettings, repository: Repository, news: PollNews, at: datetime) -> None:
    """Record the news of a poll. The caller holds the row's lock and has compared the shift.

    A repository that fails or looks reset is released, and `shift` leases it anew when it is due. So each failure is
    counted once, however often a listener repeats its news.
    """
    if news.good_ago is not None:
        _record_good_poll(repository, at - timedelta(seconds=news.good_ago))
    repository.last_polled_at = at
    if news.outcome == "failed":
        _record_failed_poll(settings, repository, news, at)
        return
    repository.last_full_poll_at = at
    if news.outcome == "listed":
        _record_good_poll(repository, at)
        repository.etag, repository.etag_cursor = news.etag, news.cursor
        if news.at_cursor and news.since == repository.last_push_id and repository.last_changeset is None:
            repository.last_changeset = news.at_cursor
        return
    repository.etag = None  # otherwise a 304 would count as a good poll
    if _looks_reset(session, repository, news):
        if _is_reset_certain(settings, repository, at):
            _confirm_reset(repository)
            return
    else:
        _record_good_poll(repository, at)
        if news.at_cursor and news.moved and news.since == repository.last_push_id:
            repository.last_changeset = news.at_cursor  # the rest of the push at the cursor after a strip
    _release(settings, repository, at + settings.interval)


def _record_good_poll(repository: Repository, at: datetime) -> None:
    repository.poll_error, repository.poll_failures = None, 0
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    repository.last_polled_at = repository.last_good_poll_at = at


def _record_failed_poll(settings: PollSettings, repository: Repository, news: PollNews, at: datetime) -> None:
    repository.poll_failures += 1
    repository.poll_error = news.error or "the listener gave no reason"
    first, longest = 2 * settings.interval.total_seconds(), settings.max_backoff.total_seconds()
    wait = backoff(repository.poll_failures, first, longest, spread=0.2)
    _release(settings, repository, at + timedelta(seconds=wait))
    log.warning("poll-failed", repository=repository.alias, error=repository.poll_error, again_in=round(wait, 1))


def _release(settings: PollSettings, repository: Repository, due_at: datetime) -> None:
    busy = repository.last_push_at is not None and now() - repository.last_push_at < BUSY_FOR
    repository.holder = None
    repository.due_at, repository.turn = due_at, order_key(settings, due_at, busy=busy)


def order_key(settings: PollSettings, due_at: datetime, *, busy: bool) -> datetime:
    """Return the time by which repositories are sorted: when one is due, earlier for a busy one."""
    return due_at - settings.interval * BUSY_TURNS if busy else due_at


def _looks_reset(session: Session, repository: Repository, news: PollNews) -> bool:
    """Return True if this answer can only come from a repository that was reset.

    A strip looks different: `lastpushid` stays, and the rest of the push at the cursor belonged to it before.
    """
    if news.lastpushid is not None and news.lastpushid < news.cursor:
        suspect_reset(repository, f"lastpushid is {news.lastpushid}, below the cursor {news.cursor}")
        return True
    if news.moved and news.at_cursor and repository.last_changeset:
        query = session.exec(
            select(Push.nodes).where(
                Push.repository_id == repository.id,
                Push.generation == repository.generation,
                Push.push_id == news.since,
            )
        )
        nodes = query.first()  # None: the push where monitoring began, of which only the tip is known
        if nodes is not None and news.at_cursor not in nodes:
            suspect_reset(repository, f"push {news.since} was {nodes[-1:]}, is now {news.at_cursor}")
            return True
    return False


def _is_reset_certain(settings: PollSettings, repository: Repository, at: datetime) -> bool:
    """Return True if enough polls over enough time saw a reset: a single mirror that lags is contradicted by others."""
    since = repository.reset_suspected_at or at
    return repository.reset_suspicions >= settings.reset_polls and at - since >= settings.reset_after


def _confirm_reset(repository: Repository) -> None:
    log.warning(
        "repository-reset",
        repository=repository.alias,
        old_cursor=repository.last_push_id,
        new_generation=repository.generation + 1,
        pushes_only_recorded_before=str(repository.last_good_poll_at),
    )
    # without any good poll, none of the old pushes was to be processed
    reset(repository, last_push_id=0, record_before=repository.last_good_poll_at or repository.created_at)


def reset(repository: Repository, last_push_id: int, record_before: datetime | None) -> None:
    """Begin a new generation, in which push ids and the ids of their tasks start anew.

    The caller holds the row's lock and has compared shift or cursor, so that this happens once.
    """
    repository.generation += 1
    repository.last_push_id, repository.last_changeset = last_push_id, None
    repository.record_before = record_before
    repository.etag = None
    repository.reset_suspicions, repository.reset_suspected_at = 0, None
    end_shift(repository)


def end_shift(repository: Repository) -> None:
    """End the shift in which a listener polls the repository, because what it knows is out of date.

    Pushes that it lists from now on are not stored; its next renewal tells it so. The caller holds the row's lock.
    """
    repository.shift += 1
    repository.holder = None
    repository.due_at = repository.turn = now()
