"""Notices of ended work: a message on Pulse, or a job in Treeherder that shows a failure.

Each is sent at least once: a message may be sent twice, and Treeherder does not change a job that is completed.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlmodel import col, select

from service.clients.pulse import ACTIONS, RETRIGGERS
from service.clients.treeherder import DECISION_PLACE, failed_job
from service.clock import now
from service.engine.budget import blocked_for, jobs_budget, refilled
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.tasks.definition import format_date
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.flow.tasks.ids import derive
from service.flow.tasks.subject import PushSubject, Subject
from service.services import Services
from service.settings import Environment
from service.store.models import Action, Notice, NoticeKind, Push, PushStep, Repository, State

LONGEST_TURN = 10.0
"""Seconds that a job waits for its turn in the budget of requests; if it would take longer, it is tried later."""


FAILED_TASK = frozenset({"failed", "exception"})
"""States of an action task that are shown as a failure of its action."""


async def run(services: Services, lease: Lease[Notice]) -> None:
    """Send the notice, or skip it if the settings or the work have changed since."""
    notice = lease.item
    try:
        if notice.kind == NoticeKind.PULSE:
            if services.publisher is None:
                await lease.finish(State.SKIPPED, "publishing is off by the present settings (pulse.url)")
                return
            await services.publisher.publish(notice.target, notice.key, notice.body)  # it need not reach a queue
        else:
            skipped = await _post_job(services, notice)
            if skipped is not None:
                await lease.finish(State.SKIPPED, skipped)
                return
    except PermanentUpstreamError as refusal:
        await lease.bury(str(refusal))
        return
    await lease.finish(State.DONE)


def retrigger_notice(action: Action, old_id: str, new_id: str, group_id: str) -> Notice:
    """Return the announcement of a retrigger that was carried out."""
    body = {"requester": action.requester, "taskGroupId": group_id, "taskId": old_id, "newTaskId": new_id}
    return _announcement(action, RETRIGGERS, old_id, body)


def action_notice(action: Action, task_id: str) -> Notice:
    """Return the announcement of an in-tree action whose task was created."""
    body = {
        "requester": action.requester,
        "action": action.kind,
        "project": action.project,
        "taskGroupId": action.decision_task,
        "taskId": action.task_id,
        "pushId": action.push_id,
        "actionTaskId": task_id,
    }
    return _announcement(action, ACTIONS, task_id, body)


def _announcement(action: Action, exchange: str, key: str, body: dict[str, Any]) -> Notice:
    return Notice(
        kind=NoticeKind.PULSE,
        lane="pulse",
        share=action.share,
        action_id=action.id or 0,
        target=exchange,
        key=key,
        body=body,
    )


# --- the job that shows a failure --------------------------------------------------------------------------------


def failure_jobs(services: Services, action: Action, subject: Subject) -> list[dict[str, Any]]:
    """Return the job that shows a failure of this action, without the reason, for each Treeherder of the task's routes.

    Treeherders that do not take jobs over REST are left out.
    """
    jobs: dict[str, dict[str, Any]] = {}
    for prefix, route in subject.routes:
        environment = services.settings.environments.get(prefix)
        if environment is None or environment.jobs != "rest":
            continue
        entry = {
            "project": route.project,
            "revision": route.revision,
            "revision_hash": route.revision_hash,
            "job": _failure_job(services.secret, action, subject),
        }
        if prefix not in jobs or route.revision is not None:  # a version 2 route needs no lookup of the push
            jobs[prefix] = {"environment": prefix, "project": route.project, "entry": entry}
    return list(jobs.values())


def push_failure_jobs(services: Services, action: Action, subject: PushSubject) -> list[dict[str, Any]]:
    """Return the job that shows a failure of an action on a push, for each Treeherder that shows the repository."""
    repository, push = subject.repository, subject.push
    digest = derive(services.secret, "failure job", action.key)
    entry = {
        "project": repository.alias,
        "revision": push.revision,
        "revision_hash": push.revision_hash,
        "job": failed_job(digest, action.kind, action.requester, DECISION_PLACE),
    }
    return [
        {"environment": prefix, "project": repository.alias, "entry": entry}
        for prefix, environment in services.settings.environments.items()
        if environment.jobs == "rest" and (repository.environments is None or prefix in repository.environments)
    ]


def _failure_job(secret: bytes, action: Action, subject: Subject) -> dict[str, Any]:
    """Return a completed job beside the one of the task: the same platform, options, group and symbol."""
    digest = derive(secret, "failure job", action.key)
    return failed_job(digest, f"{action.kind}: {subject.name}"[:100], action.requester, _place_beside(subject))


def _place_beside(subject: Subject) -> dict[str, Any]:
    """Return the fields that place the job of the task; a task that is not shown is placed by its worker type."""
    definition = subject.definition
    try:
        facts = TaskFacts(subject.status["taskId"], definition)
    except (UnshowableTaskError, KeyError, TypeError, ValueError):
        section = {"symbol": "?", "machine": {"platform": definition["workerType"]}}
        metadata = {"name": subject.name, "description": "", "owner": "unknown"}
        bare = {**definition, "metadata": metadata, "extra": {"treeherder": section}, "created": format_date(now())}
        facts = TaskFacts(subject.status["taskId"], bare)
    return {
        "job_symbol": facts.symbol,
        "group_name": facts.group_name,
        "group_symbol": facts.group_symbol,
        "product_name": facts.product,
        "build_platform": facts.build,
        "machine_platform": facts.machine,
        "option_collection": dict.fromkeys(facts.options, True),
        "tier": facts.tier,
    }


async def _post_job(services: Services, notice: Notice) -> str | None:
    """Post the job with the reason, or return why it is no longer to be posted."""
    environment = services.settings.environments.get(notice.target)
    if environment is None or environment.jobs != "rest":
        return f"environment {notice.target} takes no jobs over REST by the present settings"
    failure = await _load_failure(services, notice)
    if failure is None:
        return "the work was retried"
    treeherder = services.treeherders[notice.target]
    entry = notice.body
    revision = entry["revision"] or await _find_tip(services, notice)
    # an old Treeherder answers 200 to jobs of a push that it does not know, and drops them
    push = await treeherder.find_push(notice.key, revision, entry["revision_hash"])
    if push is None:
        name = revision or entry["revision_hash"]
        raise Unavailable("treeherder", f"{notice.target} does not have the push {name} of {notice.key}")
    details = [{"content_type": "text", "title": title, "value": value} for title, value in failure.details.items()]
    job = {
        **entry["job"],
        "reason": f"{failure.what} failed: {failure.reason}"[:125],
        "desc": failure.reason,
        "submit_timestamp": failure.began,
        "start_timestamp": failure.began,
        "end_timestamp": failure.ended,
        "artifacts": [{"type": "json", "name": "Job Info", "blob": json.dumps({"job_details": details})}],
    }
    posted = {"project": entry["project"], "revision": push.revision, "superseded": [], "job": job}
    if push.revision_hash:  # without it, a Treeherder before 2016-03 drops the job
        posted["revision_hash"] = push.revision_hash
    await _take_turn(services, environment)
    await treeherder.post_jobs(notice.key, [posted])
    return None


@dataclass
class _Failure:
    """The failure as its job shows it; times in epoch seconds."""

    what: str
    reason: str
    began: int
    ended: int
    details: dict[str, str]


async def _load_failure(services: Services, notice: Notice) -> _Failure | None:
    """Return the failure that the notice is about, None if the work is not failed any more."""
    async with services.database.reading() as session:
        if notice.action_id is not None:
            action = await session.get_one(Action, notice.action_id)
            work: Action | PushStep = action
            subject = {"push": str(action.push_id)} if action.task_id is None else {"task": action.task_id}
            what, began, details = action.kind, action.received_at, subject
        else:
            step = await session.get_one(PushStep, notice.step_id)
            work = step
            push = await session.get_one(Push, step.push_id)
            what, began, details = "task graph", push.noticed_at, {"push": str(push.push_id)}
    reason = work.error or "no reason is known"
    if isinstance(work, Action) and work.state == State.DONE and work.action_task_state in FAILED_TASK:
        reason = f"its action task {work.action_task} has ended as {work.action_task_state}"
    elif work.state not in {State.FAILED, State.REJECTED}:
        return None
    ended = int((work.done_at or now()).timestamp())
    return _Failure(what, reason, int(began.timestamp()), ended, {f"{what} failed": reason, **details})


async def _take_turn(services: Services, environment: Environment) -> None:
    """Take one request of the credential's budget for jobs, and wait until it may be made. Raises Unavailable."""
    name, rate = jobs_budget(environment, services.settings.reports.links_wait)
    async with services.database.writing() as session:
        at = now()
        bucket = await refilled(session, name, at, rate)
        if blocked := blocked_for(bucket, at, services.settings.work.longest_wait):
            raise Unavailable("treeherder", f"{environment.url} is left alone for now", blocked)
        pause = max(0.0, (1 - bucket.tokens) / rate)
        if pause > LONGEST_TURN:
            reason = f"no request with jobs is left for {environment.url} in the next {LONGEST_TURN:g} s"
            raise Unavailable("treeherder", reason, timedelta(seconds=pause))
        bucket.tokens -= 1  # before the wait, so that others see it
    await asyncio.sleep(pause)


async def _find_tip(services: Services, notice: Notice) -> str | None:
    """Return the tip of the stored push with the revision hash of a version 1 route."""
    query = (
        select(Push.revision)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(Push.revision_hash == notice.body["revision_hash"], Repository.alias == notice.key)
        .order_by(col(Push.id).desc())
    )
    async with services.database.reading() as session:
        return (await session.exec(query)).first()


WORK.add_table(WorkTable(Notice, "the log says why a notice is not sent"))
WORK.add_kind(Notice, "notice", run)
