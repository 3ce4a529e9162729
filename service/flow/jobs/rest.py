"""Build the entry of a job for a bulk of Treeherder's REST submission, from a report and the facts of its task."""

import json
from typing import Any

import structlog

from service.clients.treeherder import FoundPush
from service.flow.jobs.run import ended_at, error_summaries, job_guid, log_of, state_of, task_link
from service.flow.tasks.facts import LENGTHS, TaskFacts, cut
from service.store.models import JobReport, Stage

log = structlog.get_logger()


def job_info(guid: str, links: list[dict[str, str]]) -> dict[str, str]:
    """Return links as the artifact that Treeherder shows beside a job."""
    details = [{"content_type": "link", **link} for link in links]
    return {"type": "json", "name": "Job Info", "job_guid": guid, "blob": json.dumps({"job_details": details})}


def rest_entry(
    report: JobReport,
    facts: TaskFacts,
    root: str,
    log_name: str,
    push: FoundPush,
    links: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Return an entry of a bulk; `links` are shown beside the link to the task.

    A job has links only once its run has ended, and then all of them: a Treeherder before 2016-05 keeps the first
    artifact of each name, and no Treeherder changes a completed job.
    """
    state, result = state_of(report, facts.job_kind)
    run = report.run
    guid = job_guid(report.task_id, report.run_id)
    job = {
        "job_guid": guid,
        "name": facts.name,
        "desc": facts.description,
        "job_symbol": facts.symbol,
        "group_name": facts.group_name,
        "group_symbol": facts.group_symbol,
        "product_name": facts.product,
        "state": state,
        "result": result,
        "reason": facts.reason,
        "who": facts.owner,
        "submit_timestamp": facts.created,
        "machine": cut(run.get("worker") or "unknown", LENGTHS["machine"], report.task_id, "machine"),
        "build_system_type": "taskcluster",
        "build_platform": facts.build,
        "machine_platform": facts.machine,
        "option_collection": dict.fromkeys(facts.options, True),
        "tier": facts.tier,
        "log_references": [],
        "artifacts": [],
        # the job's buttons use these, in a Treeherder since 2017-02
        "taskcluster_task_id": report.task_id,
        "taskcluster_retry_id": report.run_id,
    }
    if report.stage >= Stage.RESOLVED:
        job["artifacts"] = [job_info(guid, [task_link(report, root), *(links or [])])]
    if "started" in run:
        job["start_timestamp"] = run["started"]
    if ended := ended_at(report):
        job["end_timestamp"] = ended
    logs = [(log_name, url)] if (url := log_of(report, root)) else []
    logs += [("errorsummary_json", url) for url in error_summaries(report, links or [])]
    job["log_references"] = [{"url": url, "name": name, "parse_status": "pending"} for name, url in logs]
    entry = {"project": report.project, "revision": push.revision, "superseded": [], "job": job}
    if revision_hash := push.revision_hash or report.revision_hash:
        entry["revision_hash"] = revision_hash  # without it, a Treeherder before 2016-03 drops the job
    return entry
