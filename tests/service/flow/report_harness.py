"""Harness of job reports: the reporter with real sockets to a queue and two Treeherders of the sandbox."""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select

from sandbox import taskcluster, treeherder
from sandbox.taskcluster.tasks import Message, Task
from sandbox.treeherder.store import Repository as Project
from sandbox.treeherder.store import Store, revision_hash
from service.clock import now
from service.contract.events import Verdict
from service.engine.reporter import Reporter
from service.flow.jobs import events
from service.flow.jobs.events import TaskEvent
from service.flow.tasks.definition import format_date
from service.flow.tasks.ids import slugid
from service.services import Services, open_services
from service.settings import Settings
from service.store.database import Database
from service.store.models import DeadLetter, JobReport
from tests.service.harness import ROOT, node, serving

PREFIX, STAGE = "tc-treeherder", "tc-treeherder-stage"
PROJECTS = ("mc", "try", "autoland")
CREDENTIALS = {"client_id": "tc", "secret": "hawk-secret"}
BOUND_EXCHANGES = {f"task-{event}" for event in ("defined", "pending", "running", "completed", "failed", "exception")}
"""Exchanges that the listener binds."""
WORKER = {"workerGroup": "wg", "workerId": "w1"}


def revision(project: str = "mc") -> str:
    """Return the tip of the only push of a project."""
    return node(f"tip of {project}")


def resultset(project: str = "mc", tip: str | None = None) -> dict[str, Any]:
    """Return a resultset of one changeset."""
    revisions = [
        {
            "revision": tip or revision(project),
            "author": "Dev <dev@example.com>",
            "comment": "Bug 1 - a change",
            "files": ["a.txt"],
            "branch": "default",
            "repository": project,
        }
    ]
    return {
        "revision": tip or revision(project),
        "revision_hash": revision_hash(revisions),
        "push_timestamp": 1_700_000_000,
        "author": "dev@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": revisions,
    }


def route(prefix: str = PREFIX, project: str = "mc") -> str:
    return f"{prefix}.v2.{project}.{revision(project)}.7"


def definition(**changes: Any) -> dict[str, Any]:
    """Return a definition for `createTask`; it is shown on both Treeherders unless `routes` say otherwise."""
    at = changes.pop("at", datetime.now(UTC))
    return {
        "taskQueueId": "prov/linux",
        "created": format_date(at),
        "deadline": format_date(at + timedelta(days=1)),
        "payload": {},
        "routes": [route(PREFIX), route(STAGE)],
        "metadata": {"name": "build", "description": "Builds", "owner": "dev@example.com", "source": "https://x.y"},
        "extra": {"treeherder": {"symbol": "B", "machine": {"platform": "linux64"}}},
        **changes,
    }


def pulse(message: Message) -> TaskEvent:
    """Return a message of the sandbox's queue as a listener forwards it."""
    return TaskEvent(
        exchange=message.exchange,
        routing_key=message.routing_key,
        cc=list(message.cc),
        body=json.dumps(message.payload),
    )


def expected_jobs(task: Task) -> dict[int, tuple[str, str]]:
    """Return the jobs that a task's runs imply, by the table of issue and documentation, which is repeated here."""
    runs = task.runs
    if not runs:
        return {0: ("pending", "unknown")}
    jobs = {}
    for run in runs:
        state, reason = run["state"], run.get("reasonResolved")
        if run is not runs[-1]:
            jobs[run["runId"]] = ("completed", "retry")
        elif state in {"pending", "running"}:
            jobs[run["runId"]] = (state, "unknown")
        elif state == "completed":
            jobs[run["runId"]] = ("completed", "success")
        elif state == "failed":
            jobs[run["runId"]] = ("completed", "testfailed")
        elif reason == "canceled":
            jobs[run["runId"]] = ("completed", "usercancel")
        elif reason == "superseded":
            jobs[run["runId"]] = ("completed", "superseded")
        else:
            jobs[run["runId"]] = ("completed", "exception")
    return jobs


@dataclass
class ReportHarness:
    """`tc` and `th` are the stand-ins themselves; `messages` all that the queue has published."""

    services: Services
    tc: taskcluster.Taskcluster
    th: dict[str, treeherder.State]
    messages: list[Message] = field(default_factory=list)
    _serial: int = 0

    @property
    def database(self) -> Database:
        return self.services.database

    # --- the queue -----------------------------------------------------------------------------------------------

    def create(self, **changes: Any) -> str:
        """Create a task and return its id."""
        self._serial += 1
        task_id = slugid(b"report-harness", str(self._serial))
        self.tc.queue.create_task(task_id, definition(**changes))
        return task_id

    def claim(self, task_id: str) -> int:
        """Claim the pending run and return its number."""
        run_id = len(self.tc.queue.tasks[task_id].runs) - 1
        self.tc.queue.claim_task(task_id, run_id, WORKER)
        return run_id

    def end(self, task_id: str, result: str) -> None:
        """Claim the pending run and end it: completed, failed or a reason of an exception."""
        run_id = self.claim(task_id)
        if result == "completed":
            self.tc.queue.report_completed(task_id, run_id)
        elif result == "failed":
            self.tc.queue.report_failed(task_id, run_id)
        else:
            self.tc.queue.report_exception(task_id, run_id, {"reason": result})

    def expected_jobs(self) -> dict[str, tuple[str, str]]:
        """Return the jobs that the state of the queue implies, by run."""
        return {
            f"{task_id}/{run_id}": job
            for task_id, task in self.tc.queue.tasks.items()
            for run_id, job in expected_jobs(task).items()
        }

    # --- the service ---------------------------------------------------------------------------------------------

    async def take(self, messages: Iterable[Message]) -> list[Verdict]:
        """Store messages as one batch."""
        judged = [events.judge_event(self.services.settings, pulse(message)) for message in messages]
        async with self.database.writing() as session:
            await events.upsert(session, [row for _, rows in judged for row in rows], now())
        return [verdict for verdict, _ in judged]

    async def take_all(self) -> None:
        """Store the messages that the queue has published since the last time."""
        messages, self.messages[:] = list(self.messages), []
        await self.take(messages)

    async def report(self, seconds: float = 20, *, until_due: int = 0) -> None:
        """Run a reporter until no more than so many reports are unfinished."""
        reporter = Reporter(self.services)
        running = asyncio.create_task(reporter.run())
        try:
            async with asyncio.timeout(seconds):
                while await self.unfinished() > until_due:  # noqa: ASYNC110 - the database tells nobody
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"unfinished: {[r for r in await self.reports() if r.due_at]}") from None
        finally:
            reporter.stop()
            await running

    async def deliver_all(self) -> None:
        """Store published messages, and deliver all reports."""
        await self.take_all()
        await self.report()

    async def unfinished(self) -> int:
        async with self.database.reading() as session:
            count = await session.exec(
                select(func.count()).select_from(JobReport).where(col(JobReport.due_at).is_not(None))
            )
            return count.one()

    async def reports(self) -> list[JobReport]:
        async with self.database.reading() as session:
            query = select(JobReport).order_by(col(JobReport.task_id), col(JobReport.run_id))
            return list(await session.exec(query))

    async def dead_letters(self) -> list[DeadLetter]:
        async with self.database.reading() as session:
            return list(await session.exec(select(DeadLetter).order_by(col(DeadLetter.id))))

    # --- Treeherder ----------------------------------------------------------------------------------------------

    def jobs(self, prefix: str = PREFIX) -> dict[str, tuple[str, str]]:
        """State and result of each job there, by task and run."""
        return {
            f"{_slug(guid)}/{guid.split('/')[1]}": (job.body["state"], job.body["result"])
            for (_, guid), job in self.th[prefix].store.jobs.items()
        }

    def job(self, task_id: str, run_id: int = 0, prefix: str = PREFIX) -> dict[str, Any]:
        """Return the job that was posted for a run."""
        for (_, guid), job in self.th[prefix].store.jobs.items():
            if (_slug(guid), guid.split("/")[1]) == (task_id, str(run_id)):
                return job.body
        raise AssertionError(f"no job of run {run_id} of {task_id}")

    def links(self, task_id: str, run_id: int = 0, prefix: str = PREFIX) -> list[tuple[str, str]]:
        """Return (url, text) of the links that are shown beside a job."""
        for (_, guid), job in self.th[prefix].store.jobs.items():
            if (_slug(guid), guid.split("/")[1]) == (task_id, str(run_id)) and "Job Info" in job.artifacts:
                details = json.loads(job.artifacts["Job Info"]["blob"])["job_details"]
                return [(detail["url"], detail["value"]) for detail in details]
        return []

    def posts(self, prefix: str = PREFIX) -> int:
        """Return the number of requests with jobs that were answered 200."""
        return self.th[prefix].counters["POST jobs 200"]


def _slug(guid: str) -> str:
    import base64

    return base64.urlsafe_b64encode(uuid.UUID(guid.split("/", maxsplit=1)[0]).bytes).decode().rstrip("=")


def shuffled(messages: Iterable[Message], seed: int) -> list[Message]:
    mixed = list(messages)
    random.Random(seed).shuffle(mixed)
    return mixed


FAST = {"gather": 0, "turn": 0.2, "max_pause": 0.2}
"""Durations of `reports` that tests shorten."""


@asynccontextmanager
async def open_report_harness(
    database_url: str, reports: dict[str, Any] | None = None, environment: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[ReportHarness]:
    """Open a harness; `environment` are further settings of both environments."""
    async with AsyncExitStack() as stack:
        tc = taskcluster.Taskcluster([ROOT], claim_wait=0)
        tc_url = await stack.enter_async_context(serving(taskcluster.create_app(tc)))
        states, environments = {}, {}
        for prefix in (PREFIX, STAGE):
            states[prefix] = state = treeherder.State(
                Store([Project(name) for name in PROJECTS]), {CREDENTIALS["client_id"]: CREDENTIALS["secret"]}
            )
            for project in PROJECTS:
                state.store.store_resultsets(project, [resultset(project)])
            url = await stack.enter_async_context(serving(treeherder.create_app(state)))
            environments[prefix] = {"url": url, "jobs_per_minute": 0, **CREDENTIALS, **(environment or {})}
        values: dict[str, Any] = {
            "database_url": database_url,
            "taskcluster": {
                "root_url": tc_url,
                "client_id": ROOT.client_id,
                "access_token": ROOT.access_token,
                "timeout": 5,
            },
            "environments": environments,
            "work": {"first_retry": 0.02, "max_retry": 0.2, "idle": 0.01},
            "reports": {**FAST, **(reports or {})},
            **settings,
        }
        database = Database(database_url)
        stack.push_async_callback(database.close)
        services = await stack.enter_async_context(open_services(Settings(**values), database))
        harness = ReportHarness(services, tc, states)

        def hear(message: Message) -> None:
            if message.exchange.rsplit("/", 1)[-1] in BOUND_EXCHANGES:
                harness.messages.append(message)

        tc.queue.listeners.append(hear)
        yield harness
