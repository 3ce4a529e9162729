"""Derive from a report what its job says of the run: id, state and result, log and links."""

import base64
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import structlog

from service.store.models import JobReport, Stage

log = structlog.get_logger()

LOG = "public/logs/live_backing.log"
"""Name of the artifact that is a run's log."""

MAX_URL = 255
"""Characters of the longest URL that Treeherder stores."""

_ERROR_SUMMARY = "_errorsummary.log"


def job_guid(task_id: str, run_id: int) -> str:
    """Return Treeherder's name of a run: the task's id as a hyphenated UUID, and the run."""
    return f"{uuid.UUID(bytes=base64.urlsafe_b64decode(task_id + '=='))}/{run_id}"


def state_of(report: JobReport, job_kind: str | None) -> tuple[str, str]:
    """Return Treeherder's state and result of a run, whose task may state a `jobKind`."""
    if report.stage <= Stage.PENDING:
        return "pending", "unknown"
    if report.stage == Stage.RUNNING:
        return "running", "unknown"
    return "completed", "retry" if report.stage == Stage.FOLLOWED else result_of(report, job_kind)


def result_of(report: JobReport, job_kind: str | None) -> str:
    """Return Treeherder's result of an ended run, without regard to whether another run followed."""
    if report.run["state"] == "completed":
        return "success"
    if report.run["state"] == "failed":
        return "testfailed" if job_kind in {None, "test"} else "busted"
    by_reason = {"canceled": "usercancel", "superseded": "superseded"}
    return by_reason.get(report.run.get("reason", ""), "exception")


def ended_at(report: JobReport) -> int | None:
    """Return when a run ended, in seconds since 1970; None if it has not."""
    run = report.run
    if report.stage < Stage.RESOLVED:
        return None
    # a run that another one followed has ended, even if the queue does not say when
    ended: int = (
        run.get("resolved") or run.get("started") or run.get("scheduled") or int(report.last_event_at.timestamp())
    )
    return ended


def run_url(root: str, task_id: str, run_id: int) -> str:
    """Return the address of a run in the queue's API."""
    return f"{root}/api/queue/v1/task/{task_id}/runs/{run_id}"


def log_of(report: JobReport, root: str) -> str | None:
    """Return the address of the log of a completed or failed run, None for any other.

    An exception, a cancelled run and a retried one usually have no log, and Treeherder shows a reference that
    leads to a 404 as "parse failed".
    """
    if report.stage != Stage.RESOLVED or report.run["state"] not in {"completed", "failed"}:
        return None
    url = f"{run_url(root, report.task_id, report.run_id)}/artifacts/{LOG}"
    if len(url) > MAX_URL:
        log.warning("log-left-out", task_id=report.task_id, url=url, why=f"longer than {MAX_URL} characters")
        return None
    return url


def task_link(report: JobReport, root: str) -> dict[str, str]:
    """Return a link to the run in Taskcluster's UI."""
    url = f"{root}/tasks/{report.task_id}/runs/{report.run_id}"
    return {"url": url, "value": report.task_id, "title": "Inspect Task"}


def artifact_links(report: JobReport, root: str, artifacts: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return links to the artifacts of a run, without directories and failed uploads."""
    counts: dict[str, int] = {}
    links = []
    for artifact in artifacts:
        path = artifact["name"]
        if path.endswith("/") or artifact.get("storageType") == "error":
            continue
        name = path.rsplit("/", 1)[-1]
        counts[name] = counts.get(name, 0) + 1
        url = f"{run_url(root, report.task_id, report.run_id)}/artifacts/{quote(path)}"
        links.append({"url": url, "value": _numbered(name, counts[name]), "title": "artifact uploaded"})
    return links


def _numbered(name: str, number: int) -> str:
    """Return a name that is unique by its number; the first keeps its name.

    `perfherder-data*.json` and `*_errorsummary.log` stay recognisable.
    """
    if number == 1:
        return name
    if name.endswith(_ERROR_SUMMARY):
        return f"{name.removesuffix(_ERROR_SUMMARY)}-{number}{_ERROR_SUMMARY}"
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number}.{ending}" if dot and stem else f"{name}-{number}"


def error_summaries(report: JobReport, links: Iterable[dict[str, str]]) -> list[str]:
    """Return the addresses of the error summaries among these links; Treeherder reads failure lines from them."""
    urls = []
    for link in links:
        if not link["value"].endswith(_ERROR_SUMMARY):
            continue
        if len(link["url"]) > MAX_URL:
            why = f"longer than {MAX_URL} characters"
            log.warning("log-left-out", task_id=report.task_id, url=link["url"], why=why)
            continue
        urls.append(link["url"])
    return urls
