"""Look up the pushes of reports: a job is only posted after its push exists in Treeherder.

A 200 alone proves nothing, because some installations drop jobs of unknown pushes silently. `_decide` has the rules.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlmodel import col, or_, select

from service.clients.treeherder import FoundPush
from service.engine.batches import Delivered, End, Outcome
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.jobs.lru import LruCache
from service.flow.jobs.retries import Retries
from service.services import Services
from service.store.models import JobReport, Push, PushStep, Repository, State, StepKind

PUSH_LOOKUP_PAUSE = 2.0
"""Seconds until Treeherder is asked again for a push that it did not have."""

PushKey = tuple[str, str | None, str | None]
"""Project, revision and revision_hash of a push, as routes name it."""

StoredPush = tuple[str, str, str | None, State | None]
"""Project, revision_hash and revision of a push that this service stored, and the state of its resultset step."""


@dataclass
class MissingPush:
    """The reason why jobs of a push cannot be posted, and the function that makes the outcome of a report from it."""

    decide: Callable[[JobReport, str], Outcome]
    reason: str

    def outcome(self, report: JobReport) -> Outcome:
        """Return the outcome of a report of the push."""
        return self.decide(report, self.reason)


class PushLookup:
    """The pushes of one Treeherder; those that were found are remembered."""

    def __init__(self, services: Services, environment: str, retries: Retries, requests: asyncio.Semaphore) -> None:
        self._services, self._prefix, self._retries, self._requests = services, environment, retries, requests
        self._environment = services.settings.environments[environment]
        self._found: LruCache[PushKey, FoundPush] = LruCache(5_000)
        self._not_found_at: LruCache[PushKey, float] = LruCache(5_000)  # by time.monotonic()

    async def find(self, reports: list[JobReport], done: Delivered) -> dict[PushKey, FoundPush]:
        """Return the pushes of reports that exist; the outcomes of reports of any other are added to `done`."""
        wanted = {push_key(report) for report in reports}
        pushes = {key: push for key in wanted if (push := self._found.get(key))}
        unknown = wanted - pushes.keys()
        missing: dict[PushKey, MissingPush] = {}
        if unknown:
            stored = await self._read_stored(unknown)
            for key in sorted(unknown, key=str):
                push_or_reason = await self._look_up(key, stored, done)
                if isinstance(push_or_reason, MissingPush):
                    missing[key] = push_or_reason
                else:
                    pushes[key] = push_or_reason
                    self._found.put(key, push_or_reason)
        done.outcomes += [missing[key].outcome(report) for report in reports if (key := push_key(report)) in missing]
        return pushes

    async def _look_up(self, key: PushKey, stored: list[StoredPush], done: Delivered) -> FoundPush | MissingPush:
        """Return the push, or why its jobs cannot be posted; a Treeherder that is away sets `done.pause`."""
        if done.pause is not None:
            return MissingPush(self._retries.later, "Treeherder cannot be asked for its push now")
        try:
            return await self._decide(key, stored, done)
        except (Unavailable, PermanentUpstreamError) as error:
            if error.status == 404:  # it has no such project, so none of its pushes
                return MissingPush(self._retries.wait_for_push, str(error))
            if isinstance(error, Unavailable):
                done.pause = self._retries.record_away(error)
            return MissingPush(self._retries.later, str(error))

    async def _read_stored(self, keys: Iterable[PushKey]) -> list[StoredPush]:
        """Return those of the pushes that this service stored."""
        keys = list(keys)
        step = (
            (col(PushStep.push_id) == Push.id)
            & (col(PushStep.kind) == StepKind.RESULTSET)
            & (col(PushStep.environment) == self._prefix)
        )
        query = (
            select(Repository.alias, Push.revision_hash, Push.revision, PushStep.state)
            .join(Push, col(Push.repository_id) == Repository.id)
            .outerjoin(PushStep, step)
            .where(
                col(Repository.alias).in_({project for project, _, _ in keys}),
                col(Repository.deleted_at).is_(None),
                or_(
                    col(Push.revision).in_({revision for _, revision, _ in keys if revision}),
                    col(Push.revision_hash).in_({hash_ for _, _, hash_ in keys if hash_}),
                ),
            )
        )
        async with self._services.database.reading() as session:
            return list(await session.exec(query))  # type: ignore[arg-type]  # of a join that may find no step

    async def _decide(self, key: PushKey, stored: list[StoredPush], done: Delivered) -> FoundPush | MissingPush:
        """Return the push, or why its jobs cannot be posted. Raises what a client raises.

        Jobs are skipped if their routes name two pushes, and wait while this service is about to create the resultset.
        Treeherder is only asked if it takes jobs over REST and this service has not created the resultset there.
        """
        project, revision, revision_hash = key
        pushes = [
            (hash_, tip, state)
            for alias, hash_, tip, state in stored
            if alias == project and (tip == revision if revision else hash_ == revision_hash)
        ]
        if revision and revision_hash and pushes and all(hash_ != revision_hash for hash_, _, _ in pushes):
            reason = f"its routes disagree: {revision} is the push {pushes[0][0]}, not {revision_hash}"
            return MissingPush(_skip, reason)
        tip = (pushes[0][1] if pushes else None) or revision or revision_hash or ""
        push = FoundPush(tip, pushes[0][0] if pushes else revision_hash)
        states = {state for _, _, state in pushes}
        if State.PENDING in states and State.DONE not in states:
            reason = f"push {tip} of {project} is not in Treeherder yet: this service is about to create it"
            return MissingPush(self._retries.later, reason)
        if self._environment.jobs == "pulse":  # the readers of the exchange decide about jobs that come early
            reason = f"this service has no push in {project} with the hash {revision_hash}"
            return push if pushes or revision else MissingPush(self._retries.wait_for_push, reason)
        if State.DONE in states and self._environment.pushes == "rest":
            return push
        async with self._requests:
            if self._retries.went_away_since(done.began):
                done.pause = self._retries.away_pause
                return MissingPush(self._retries.later, self._retries.away_reason)
            return await self._ask_treeherder(key)

    async def _ask_treeherder(self, key: PushKey) -> FoundPush | MissingPush:
        project, revision, revision_hash = key
        reason = f"Treeherder has no push {revision or revision_hash} of {project}"
        missing = MissingPush(self._retries.wait_for_push, reason)
        asked_at = self._not_found_at.get(key)
        if asked_at is not None and time.monotonic() - asked_at < PUSH_LOOKUP_PAUSE:
            return missing
        push = await self._services.treeherders[self._prefix].find_push(project, revision, revision_hash)
        if push is None:
            self._not_found_at.put(key, time.monotonic())
            return missing
        return push


def push_key(report: JobReport) -> PushKey:
    """Return the key of the push that a report belongs to."""
    return report.project, report.revision, report.revision_hash


def _skip(report: JobReport, reason: str) -> Outcome:
    return Outcome(report, End.SKIPPED, reason)
