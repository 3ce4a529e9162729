"""Job reports become Treeherder jobs, in bulk: a batch of one project for one Treeherder.

Before a job goes out, the definition of its task is fetched (many in one call, remembered), and its push must be there:
a 200 alone proves nothing, for some installations drop jobs of unknown pushes silently. What an ended run has uploaded
is asked for too, but not for long: a completed job goes out once, with its links or without. What is refused is split
until the bad job stands alone; the others go through.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import structlog
from sqlmodel import col, or_, select

from service import metrics
from service.clients.pulse import JOBS
from service.clients.taskcluster import TooLargeError
from service.clients.treeherder import FoundPush
from service.clock import now
from service.contract import retry
from service.engine.batches import Delivered, End, Outcome
from service.engine.leases import backoff, exhausted
from service.engine.registry import WORK, WorkTable
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.jobs.pulse import pulse_message
from service.flow.jobs.rest import rest_entry
from service.flow.jobs.run import artifact_links
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.services import Services
from service.store.models import JobReport, Push, PushStep, Repository, Stage, State, StepKind

log = structlog.get_logger()

MAX_LONE_FAILURES_IN_SEQUENCE = 4
"""What is answered 500 holds a bad job, or Treeherder is ill: so many single jobs, none taken between, tell that."""

MAX_LONE_FAILURES = 3
"""A job is bad that is answered 500 by itself so many times in a row, and Treeherder took others before each."""

HEALTHY_WINDOW = 60.0
"""Seconds since Treeherder last took jobs, after which nothing is known of how it is."""

NEGATIVE_CONFIRMATIONS = 3
"""Answers in a row that there is no such task until it is so and not of the moment."""

ARTIFACT_LISTS = 40
"""Lists of artifacts that are asked for at a time; the session has a hundred connections for all calls to the queue."""

MAX_LINKS = 2_000
"""Artifacts of one run that are linked: a task can upload any number, which all reports of a batch would wait for."""

PUSH_LOOKUP_PAUSE = 2.0
"""Seconds for which Treeherder is not asked again for a push that it did not know."""

NO_TASK = "Taskcluster has no such task (any more)"
"""The reason of a report that is skipped for it."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The `size` most recently used of what was found out."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: K, value: V) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


PushKey = tuple[str, str | None, str | None]
"""Project, revision, revision_hash: what the routes say of a push."""

StoredPush = tuple[str, str, str | None, State | None]
"""Project, revision_hash, revision, and the state of the resultset here, of a push of our own."""

Item = tuple[JobReport, Any]
Post = Callable[[list[Any]], Awaitable[None]]


@dataclass
class MissingPush:
    """Why a push is not there, and what that means for a job of it."""

    then: Callable[[JobReport, str], Outcome]
    reason: str

    def outcome(self, report: JobReport) -> Outcome:
        return self.then(report, self.reason)


def _skip(report: JobReport, reason: str) -> Outcome:
    return Outcome(report, End.SKIPPED, reason)


class TreeherderDeliverer:
    """Delivers to one Treeherder, and remembers what it found out."""

    def __init__(self, services: Services, environment: str) -> None:
        self._services = services
        self._prefix = environment
        self._environment = services.settings.environments[environment]
        self._settings = services.settings.reports
        self._root = services.settings.taskcluster.root
        self._facts: LruCache[str, TaskFacts | str] = LruCache(self._settings.definitions)
        self._known: LruCache[PushKey, FoundPush] = LruCache(5_000)
        self._unknown: LruCache[PushKey, float] = LruCache(5_000)
        self._lone_failures: LruCache[int, tuple[int, float]] = LruCache(
            5_000
        )  # how often answered 500 alone, and when last
        self._failures = 0
        self.accepted_at = float("-inf")
        self._lists = asyncio.Semaphore(ARTIFACT_LISTS)
        self._requests = asyncio.Semaphore(self._settings.at_a_time)
        self.sending = 0  # batches that are ready, and posted or about to be
        self._away_at = float("-inf")  # when Treeherder was last away, by time.monotonic()
        self._away_why, self._away_pause = "", timedelta()
        self._no_task: LruCache[str, int] = LruCache(5_000)  # how often Taskcluster had no such task

    async def deliver(self, reports: list[JobReport]) -> Delivered:
        """Tell Treeherder of these runs of one project."""
        done = Delivered([])
        rest = []
        for report in reports:
            # what is pending is told so once, whether it was only defined or is pending by now
            if report.delivered is not None and max(report.delivered, Stage.PENDING) >= max(
                report.stage, Stage.PENDING
            ):
                done.outcomes.append(Outcome(report, End.DONE))
            else:
                rest.append(report)
        ready = await self._prepare(rest, done)
        artifacts = await self._list_artifacts([report for report, _, _ in ready])
        items: list[Item] = []
        for report, facts, push in ready:
            links = artifact_links(report, self._root, artifacts.get(report.id or 0, []))
            try:
                items.append((report, self._build_job(report, facts, push, links)))
            except UnshowableTaskError as error:
                done.outcomes.append(Outcome(report, End.SKIPPED, str(error)))
        if items:
            # so that many bad ones together never keep a good one from being tried
            items.sort(key=lambda item: self._lone_failures.get(item[0].id or 0) is not None)
            self.sending += 1
            try:
                async with self._requests:
                    if self._away_at >= done.began:  # it went away while this batch was made ready
                        why, pause = self._away_why, self._away_pause
                        done.outcomes += [self.later(report, why, pause) for report, _ in items]
                    else:
                        await self._send(items[0][0].project, items, done)
            finally:
                self.sending -= 1
        return done

    # --- what is needed to know ----------------------------------------------------------------------------------

    async def _prepare(self, reports: list[JobReport], done: Delivered) -> list[tuple[JobReport, TaskFacts, FoundPush]]:
        """Those that can be sent, with the facts of their task and their push."""
        known = await self._find_facts(reports, done)
        pushes = await self._find_pushes([report for report, _ in known], done)
        return [(report, facts, pushes[_push_key(report)]) for report, facts in known if _push_key(report) in pushes]

    async def _find_facts(self, reports: list[JobReport], done: Delivered) -> list[tuple[JobReport, TaskFacts]]:
        missing = {report.task_id for report in reports if self._facts.get(report.task_id) is None}
        fetched: dict[str, TaskFacts | str] = {}
        if missing:
            try:
                fetched = await self._fetch_facts(sorted(missing))
            except (Unavailable, PermanentUpstreamError) as error:
                done.outcomes += [self.later(r, str(error)) for r in reports if r.task_id in missing]
                reports = [r for r in reports if r.task_id not in missing]
            else:
                for task_id, fact in fetched.items():
                    if fact == NO_TASK:  # it may only not be there yet
                        self._no_task.put(task_id, (self._no_task.get(task_id) or 0) + 1)
                    else:
                        self._facts.put(task_id, fact)
        known = []
        for report in reports:
            facts = fetched.get(report.task_id) or self._facts.get(report.task_id)
            if isinstance(facts, TaskFacts):
                known.append((report, facts))
            elif facts == NO_TASK and (self._no_task.get(report.task_id) or 0) < NEGATIVE_CONFIRMATIONS:
                done.outcomes.append(self.later(report, facts))
            else:
                done.outcomes.append(Outcome(report, End.SKIPPED, facts))
        return known

    async def _fetch_facts(self, task_ids: list[str]) -> dict[str, TaskFacts | str]:
        """Return the facts of tasks, or why one is not shown: a task that is too large hides no other's."""
        try:
            definitions = await self._services.queue.tasks(task_ids)
        except TooLargeError as error:
            if len(task_ids) == 1:
                return {task_ids[0]: f"its definition is too large: {error}"}
            half = len(task_ids) // 2
            return await self._fetch_facts(task_ids[:half]) | await self._fetch_facts(task_ids[half:])
        return {task_id: self._read_facts(task_id, definitions.get(task_id)) for task_id in task_ids}

    def _read_facts(self, task_id: str, definition: dict[str, Any] | None) -> TaskFacts | str:
        """The facts of a task, or why it is not shown."""
        if definition is None:
            return NO_TASK
        try:
            facts = TaskFacts(task_id, definition)
        except UnshowableTaskError as error:
            metrics.task_unusable(self._prefix)
            return str(error)
        except (KeyError, TypeError, ValueError) as error:
            return f"its definition is not one of the queue's: {type(error).__name__} {error}"
        known = self._environment.platforms
        platform = facts.machine["platform"]
        if known is not None and platform not in known:
            return f"its platform {platform} is none of the platforms configured for {self._prefix}"
        return facts

    async def _find_pushes(self, reports: list[JobReport], done: Delivered) -> dict[PushKey, FoundPush]:
        """The pushes that are there."""
        wanted = {_push_key(report) for report in reports}
        pushes = {key: push for key in wanted if (push := self._known.get(key))}
        missing = wanted - pushes.keys()
        lacking: dict[PushKey, MissingPush] = {}
        if missing:
            own = await self._read_stored_pushes(missing)
            for key in sorted(missing, key=str):
                found = await self._find_push(key, own, done)
                if isinstance(found, MissingPush):
                    lacking[key] = found
                else:
                    pushes[key] = found
                    self._known.put(key, found)
        done.outcomes += [lacking[key].outcome(report) for report in reports if (key := _push_key(report)) in lacking]
        return pushes

    async def _find_push(self, push: PushKey, own: list[StoredPush], done: Delivered) -> FoundPush | MissingPush:
        """The push, or why its jobs cannot be posted."""
        if done.pause is not None:
            return MissingPush(self.later, "Treeherder cannot be asked for its push now")
        try:
            return await self._decide_push(push, own, done)
        except (Unavailable, PermanentUpstreamError) as error:
            if error.status == 404:  # it has no such project, so none of its pushes
                return MissingPush(self._wait_for_push, str(error))
            if isinstance(error, Unavailable):
                done.pause = self._record_away(error)
            return MissingPush(self.later, str(error))

    async def _read_stored_pushes(self, pushes: Iterable[PushKey]) -> list[StoredPush]:
        """Our own pushes among these."""
        pushes = list(pushes)
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
                col(Repository.alias).in_({project for project, _, _ in pushes}),
                col(Repository.deleted_at).is_(None),
                or_(
                    col(Push.revision).in_({revision for _, revision, _ in pushes if revision}),
                    col(Push.revision_hash).in_({hash_ for _, _, hash_ in pushes if hash_}),
                ),
            )
        )
        async with self._services.database.reading() as session:
            return list(await session.exec(query))  # type: ignore[arg-type]  # of a join that may find no step

    async def _decide_push(self, push: PushKey, own: list[StoredPush], done: Delivered) -> FoundPush | MissingPush:
        project, revision, revision_hash = push
        ours = [
            (hash_, tip, state)
            for alias, hash_, tip, state in own
            if alias == project and (tip == revision if revision else hash_ == revision_hash)
        ]
        if revision and revision_hash and ours and all(hash_ != revision_hash for hash_, _, _ in ours):
            return MissingPush(_skip, f"its routes disagree: {revision} is the push {ours[0][0]}, not {revision_hash}")
        tip = (ours[0][1] if ours else None) or revision or revision_hash or ""
        known = FoundPush(tip, ours[0][0] if ours else revision_hash)
        states = {state for _, _, state in ours}
        if State.PENDING in states and State.DONE not in states:
            reason = f"push {tip} of {project} is not in Treeherder yet: we are about to create it"
            return MissingPush(self.later, reason)
        if self._environment.jobs == "pulse":  # whoever reads them knows best what to do with jobs that come early
            nameless = MissingPush(self._wait_for_push, f"no push of ours in {project} has the hash {revision_hash}")
            return known if ours or revision else nameless
        if State.DONE in states and self._environment.pushes == "rest":
            return known
        async with self._requests:
            if self._away_at >= done.began:
                done.pause = self._away_pause
                return MissingPush(self.later, self._away_why)
            return await self._ask_treeherder(push)

    async def _ask_treeherder(self, push: PushKey) -> FoundPush | MissingPush:
        project, revision, revision_hash = push
        unknown = MissingPush(self._wait_for_push, f"Treeherder has no push {revision or revision_hash} of {project}")
        asked_at = self._unknown.get(push)
        if asked_at is not None and time.monotonic() - asked_at < PUSH_LOOKUP_PAUSE:
            return unknown
        found = await self._services.treeherders[self._prefix].find_push(project, revision, revision_hash)
        if found is None:
            self._unknown.put(push, time.monotonic())
            return unknown
        return found

    async def _list_artifacts(self, reports: list[JobReport]) -> dict[int, list[dict[str, Any]]]:
        """Return what the ended ones of these runs have uploaded, by report, as far as Taskcluster lists it in time."""
        ended = [report for report in reports if report.stage >= Stage.RESOLVED and "started" in report.run]
        if not self._environment.artifact_links:
            return {}
        artifacts: dict[int, list[dict[str, Any]]] = {}

        async def ask(report: JobReport) -> None:
            async with self._lists:
                try:
                    found = await self._services.queue.artifacts(report.task_id, report.run_id, MAX_LINKS)
                    artifacts[report.id or 0] = found
                except (Unavailable, PermanentUpstreamError) as error:
                    why = str(error)
                    log.info("links-left-out", task_id=report.task_id, run_id=report.run_id, why=why)

        seconds = self._settings.links_wait.total_seconds()
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for report in ended:
                    group.create_task(ask(report))
        except TimeoutError:
            missing = len(ended) - len(artifacts)
            why = f"Taskcluster lists the artifacts of {missing} runs later than within {seconds:g} s"
            log.warning("links-left-out", environment=self._prefix, runs=missing, why=why)
        return artifacts

    # --- sending -------------------------------------------------------------------------------------------------

    def _build_job(
        self, report: JobReport, facts: TaskFacts, push: FoundPush, links: list[dict[str, str]]
    ) -> dict[str, Any]:
        environment, root = self._environment, self._root
        if environment.jobs == "rest":
            return rest_entry(report, facts, root, environment.log, push, links)
        return pulse_message(report, facts, root, environment.log, push, links, schema=environment.jobs_schema)

    async def _send(self, project: str, items: list[Item], done: Delivered) -> None:
        if self._environment.jobs == "rest":
            treeherder = self._services.treeherders[self._prefix]
            await self._post_in_halves(items, lambda each: treeherder.post_jobs(project, each), done)
        else:
            await self._publish(project, items, done)

    async def _publish(self, project: str, items: list[Item], done: Delivered) -> None:
        publisher = self._services.publisher
        assert publisher is not None, "the settings require pulse.url"
        key = f"{self._prefix}.{project}._"
        sent = await asyncio.gather(
            # jobs are published because somebody is to show them: one that nobody takes is not told
            *(publisher.publish(JOBS, key, message, mandatory=True) for _, message in items),
            return_exceptions=True,
        )
        for (report, _), error in zip(items, sent, strict=True):
            if error is None:
                done.outcomes.append(Outcome(report, End.DONE))
            elif isinstance(error, Unavailable):
                done.outcomes.append(self.later(report, str(error)))
            else:
                raise error

    async def _post_in_halves(self, items: list[Item], post: Post, done: Delivered) -> None:
        """Post `items` together; what is refused is halved until the bad one stands alone."""
        # depth first: so a good job goes out, or a bad one stands alone, after as many requests as there are halvings
        waiting = deque([items])
        alone: list[tuple[Item, str]] = []  # answered 500, each by itself
        in_a_row = 0  # of those, since Treeherder last took anything
        while waiting:
            chunk = waiting.popleft()
            done.requests += 1
            try:
                await post([each for _, each in chunk])
            except PermanentUpstreamError as refusal:
                if not _push_halves(chunk, waiting):
                    done.outcomes.append(Outcome(chunk[0][0], End.BURIED, str(refusal)))
            except Unavailable as error:
                if error.status == 500 and _push_halves(chunk, waiting):
                    continue
                in_a_row += 1
                if error.status != 500 or in_a_row == MAX_LONE_FAILURES_IN_SEQUENCE:
                    rest = [item for more in (chunk, *waiting) for item in more]
                    self._postpone_all(error, [*(item for item, _ in alone), *rest], done)
                    return
                alone.append((chunk[0], str(error)))
            else:
                in_a_row, self._failures, self.accepted_at = 0, 0, time.monotonic()
                done.outcomes += [Outcome(report, End.DONE) for report, _ in chunk]
        done.outcomes += [self._record_lone_failure(report, reason) for (report, _), reason in alone]

    def _record_lone_failure(self, report: JobReport, reason: str) -> Outcome:
        """Of a job that was answered 500 by itself: it is bad when that happens again and again while Treeherder takes
        others. Where no others come, it is given up like everything else."""
        at = time.monotonic()
        times, before = self._lone_failures.get(report.id or 0) or (0, at - HEALTHY_WINDOW)
        if self.accepted_at > before:
            times += 1
        self._lone_failures.put(report.id or 0, (times, at))
        return Outcome(report, End.BURIED, reason) if times >= MAX_LONE_FAILURES else self.later(report, reason)

    def _postpone_all(self, error: Unavailable, items: list[Item], done: Delivered) -> None:
        """Treeherder cannot take anything now, or nothing of this project (404)."""
        if error.status == 404:
            done.outcomes += [self.later(report, str(error)) for report, _ in items]
            return
        done.pause = self._record_away(error)
        done.outcomes += [self.later(report, str(error), done.pause) for report, _ in items]

    def _record_away(self, error: Unavailable) -> timedelta:
        """How long to leave a Treeherder alone that is away, or has had enough."""
        self._failures += 1
        pause = timedelta(
            seconds=retry.backoff(self._failures, 1.0, self._settings.max_pause.total_seconds(), spread=0)
        )
        pause = min(max(pause, error.retry_after or timedelta()), self._services.settings.work.longest_wait)
        self._away_at, self._away_why, self._away_pause = time.monotonic(), str(error), pause
        return pause

    def later(self, report: JobReport, reason: str, wait: timedelta | None = None) -> Outcome:
        """Try again after `wait`, by default with backoff; bury it once it was tried for `work.give_up`."""
        work = self._services.settings.work
        if exhausted(work, report, report.since, work.give_up):
            return Outcome(report, End.BURIED, f"given up after {report.attempts} attempts: {reason}")
        pause = min(backoff(work, report.attempts), self._settings.max_pause) if wait is None else wait
        return Outcome(report, End.LATER, reason, min(pause, work.longest_wait))

    def _wait_for_push(self, report: JobReport, reason: str) -> Outcome:
        """Wait until Treeherder has answered for `push_wait` that it has no such push: what it could not answer in an
        outage counts for nothing."""
        since = report.no_push_since or now()
        if exhausted(self._services.settings.work, report, since, self._settings.push_wait):
            return Outcome(report, End.BURIED, f"given up after {self._settings.push_wait}: {reason}")
        outcome = self.later(report, reason)
        outcome.no_push_since = since
        return outcome


WORK.add_table(
    WorkTable(JobReport, "GET /api/v1/reports?state=pending says why", deliverer=TreeherderDeliverer),
)


def _push_halves(chunk: list[Item], waiting: deque[list[Item]]) -> bool:
    """Put both halves of what was not taken next, unless it stands alone."""
    if len(chunk) == 1:
        return False
    middle = len(chunk) // 2
    waiting.extendleft([chunk[middle:], chunk[:middle]])
    return True


def _push_key(report: JobReport) -> PushKey:
    return report.project, report.revision, report.revision_hash
