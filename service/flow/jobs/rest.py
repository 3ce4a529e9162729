"""A run of a task as Treeherder's job: what the task says about itself, and what the queue says about the run.

Pure: definitions and runs in, jobs out. The forms are those of Treeherder's REST submission and of `pulse-job.yml`.
"""

import base64
import json
import unicodedata
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from service.clients.treeherder import FoundPush
from service.flow.tasks.definition import date
from service.sanitize import problems_of
from service.store.models import JobReport, Stage

log = structlog.get_logger()

LOG = "public/logs/live_backing.log"
MAX_URL = 255
"""Treeherder stores no longer one."""

_LENGTHS = {
    "name": 100,
    "symbol": 25,
    "group_name": 100,
    "group_symbol": 25,
    "product": 100,
    "reason": 125,
    "owner": 50,
    "platform": 100,
    "os": 25,
    "architecture": 25,
    "machine": 100,
}
"""Characters that Treeherder stores of each."""

_ERROR_SUMMARY = "_errorsummary.log"


class UnusableError(Exception):
    """The task cannot be shown; the message says why, and what would make it showable."""


# --- what a task says about itself -----------------------------------------------------------------------------------


def _numeric(value: Any) -> Any:
    """The older form has numbers for symbols."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value) if type(value) in {int, float} else value


Symbol = Annotated[str, BeforeValidator(_numeric)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class Machine(_Section):
    platform: str | None = None
    os: str | None = None
    architecture: str | None = None


class TreeherderSection(_Section):
    """`task.extra.treeherder`: task-treeherder-config.yml, and the older form of it that is still found."""

    symbol: Symbol
    groupSymbol: Symbol = "?"  # noqa: N815 - its names
    groupName: str = "unknown"  # noqa: N815 - likewise
    productName: str = "unknown"  # noqa: N815 - likewise
    reason: str = "scheduled"
    tier: int = Field(1, ge=1, le=3)
    jobKind: Literal["build", "test", "other"] | None = None  # noqa: N815 - likewise
    labels: list[Annotated[str, StringConstraints(min_length=1)]] = []
    collection: dict[str, Any] = {}
    machine: Machine = Machine()
    build: Machine = Machine()

    @model_validator(mode="after")
    def _one_collection(self) -> "TreeherderSection":
        true = [name for name, value in self.collection.items() if value is True]
        if len(true) > 1:
            raise ValueError(f"collection has {len(true)} true keys ({', '.join(sorted(true))}): it may have one")
        return self

    @property
    def options(self) -> list[str]:
        """The labels; in the older form the one collection; else opt."""
        return self.labels or [name for name, value in self.collection.items() if value is True] or ["opt"]


class Facts:
    """What is needed of a task's definition, cut to what Treeherder stores."""

    __slots__ = (
        "build",
        "created",
        "description",
        "group_name",
        "group_symbol",
        "job_kind",
        "machine",
        "name",
        "options",
        "owner",
        "product",
        "reason",
        "symbol",
        "tier",
    )

    def __init__(self, task_id: str, definition: dict[str, Any]) -> None:
        """Raises UnusableError when there is no usable treeherder section."""
        section = _section(definition)
        metadata = definition["metadata"]

        def fit(field: str, value: str, instead: str = "unknown") -> str:
            return cut(value, _LENGTHS[field], task_id, field) or instead

        def platform(first: Machine, second: Machine) -> dict[str, str]:
            named = (
                first.platform
                or second.platform
                or str(definition.get("workerType") or definition["taskQueueId"].split("/")[-1])
            )
            return {
                "platform": fit("platform", named),
                "os_name": fit("os", first.os or second.os or "-"),
                "architecture": fit("architecture", first.architecture or second.architecture or "-"),
            }

        self.name = fit("name", metadata["name"])
        self.description: str = metadata["description"]
        self.owner = fit("owner", metadata["owner"])
        self.created = int(date(definition["created"]).timestamp())
        self.symbol = fit("symbol", section.symbol, "")
        self.group_symbol = fit("group_symbol", section.groupSymbol, "?")
        self.group_name = fit("group_name", section.groupName)
        self.product = fit("product", section.productName)
        self.reason = fit("reason", section.reason, "scheduled")
        self.tier = section.tier
        self.job_kind = section.jobKind
        self.options = section.options
        self.machine = platform(section.machine, section.build)
        self.build = platform(section.build, section.machine)


def _section(definition: dict[str, Any]) -> TreeherderSection:
    extra = definition.get("extra")
    section = extra.get("treeherder") if isinstance(extra, dict) else None
    if not isinstance(section, dict):
        raise UnusableError("its definition has no extra.treeherder, which says how it is shown")
    try:
        return TreeherderSection.model_validate(section)
    except ValidationError as error:
        raise UnusableError(f"its extra.treeherder is not usable: {problems_of(error)}") from None


def cut(text: str, length: int, task_id: str, field: str) -> str:
    """`text` cut to so many characters, never between a letter and what combines with it; a cut is logged."""
    if len(text) <= length:
        return text
    end = length
    while end and (unicodedata.combining(text[end]) or text[end] in "\u200d\ufe0e\ufe0f" or text[end - 1] == "\u200d"):
        end -= 1
    log.info("field-cut", task_id=task_id, field=field, characters=len(text), kept=end)
    return text[:end]


# --- what becomes of a run -------------------------------------------------------------------------------------------


def job_guid(task_id: str, run_id: int) -> str:
    """Treeherder's name of a run: the task's id as a hyphenated UUID, and the run."""
    return f"{uuid.UUID(bytes=base64.urlsafe_b64decode(task_id + '=='))}/{run_id}"


def state_of(report: JobReport, job_kind: str | None) -> tuple[str, str]:
    """Return Treeherder's state and result of a run of a task that states this `jobKind`, or none."""
    if report.stage <= Stage.PENDING:
        return "pending", "unknown"
    if report.stage == Stage.RUNNING:
        return "running", "unknown"
    return "completed", "retry" if report.stage == Stage.FOLLOWED else result_of(report, job_kind)


def result_of(report: JobReport, job_kind: str | None) -> str:
    """Return Treeherder's result of a run that has ended, whether another run followed it or not."""
    if report.run["state"] == "completed":
        return "success"
    if report.run["state"] == "failed":
        return "testfailed" if job_kind in {None, "test"} else "busted"
    by_reason = {"canceled": "usercancel", "superseded": "superseded"}
    return by_reason.get(report.run.get("reason", ""), "exception")


def ended_at(report: JobReport) -> int | None:
    """When a run ended, in seconds since 1970; None while it has not."""
    run = report.run
    if report.stage < Stage.RESOLVED:
        return None
    # a run that another followed has ended, even where the queue does not say when
    found: int = run.get("resolved") or run.get("started") or run.get("scheduled") or int(report.heard_at.timestamp())
    return found


def run_url(root: str, task_id: str, run_id: int) -> str:
    """The queue's resource of a run."""
    return f"{root}/api/queue/v1/task/{task_id}/runs/{run_id}"


def log_of(report: JobReport, root: str) -> str | None:
    """Return where the log of a completed or failed run is; None for any other.

    An exception, a cancelled run and one that was retried have no log as a rule, and Treeherder shows a reference that
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
    """A link to the run in Taskcluster's UI."""
    url = f"{root}/tasks/{report.task_id}/runs/{report.run_id}"
    return {"url": url, "value": report.task_id, "title": "Inspect Task"}


def artifact_links(report: JobReport, root: str, artifacts: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return links to what a run has uploaded. Directories and what failed to upload are left out."""
    seen: dict[str, int] = {}
    links = []
    for artifact in artifacts:
        path = artifact["name"]
        if path.endswith("/") or artifact.get("storageType") == "error":
            continue
        name = path.rsplit("/", 1)[-1]
        seen[name] = seen.get(name, 0) + 1
        url = f"{run_url(root, report.task_id, report.run_id)}/artifacts/{quote(path)}"
        links.append({"url": url, "value": _numbered(name, seen[name]), "title": "artifact uploaded"})
    return links


def _numbered(name: str, number: int) -> str:
    """The first keeps its name. `perfherder-data*.json` and `*_errorsummary.log` stay recognisable."""
    if number == 1:
        return name
    if name.endswith(_ERROR_SUMMARY):
        return f"{name.removesuffix(_ERROR_SUMMARY)}-{number}{_ERROR_SUMMARY}"
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number}.{ending}" if dot and stem else f"{name}-{number}"


def error_summaries(report: JobReport, links: Iterable[dict[str, str]]) -> list[str]:
    """Return the addresses of the error summaries among these links, of which Treeherder reads failure lines."""
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


# --- Treeherder's REST submission ------------------------------------------------------------------------------------


def job_info(guid: str, links: list[dict[str, str]]) -> dict[str, str]:
    """Links as the artifact that Treeherder shows beside a job."""
    details = [{"content_type": "link", **link} for link in links]
    return {"type": "json", "name": "Job Info", "job_guid": guid, "blob": json.dumps({"job_details": details})}


def rest_entry(
    report: JobReport,
    facts: Facts,
    root: str,
    log_name: str,
    push: FoundPush,
    links: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Return an entry of a bulk. `links` are shown beside the one to the task.

    A Treeherder before 2016-05 keeps the first artifact of each name, and none takes anything of a job that it knows as
    completed: so a job has links once its run has ended, and all of them.
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
        "machine": cut(run.get("worker") or "unknown", _LENGTHS["machine"], report.task_id, "machine"),
        "build_system_type": "taskcluster",
        "build_platform": facts.build,
        "machine_platform": facts.machine,
        "option_collection": dict.fromkeys(facts.options, True),
        "tier": facts.tier,
        "log_references": [],
        "artifacts": [],
        # what the job's buttons go by, in a Treeherder since 2017-02
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


# --- pulse-job.yml ---------------------------------------------------------------------------------------------------

Plain = r"^[\w-]+$"


class _PulseJob(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Origin(_PulseJob):
    kind: Literal["hg.mozilla.org"] | None = None
    project: str = Field(pattern=Plain, min_length=1, max_length=50)
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class Display(_PulseJob):
    jobSymbol: str = Field(max_length=25)  # noqa: N815 - the schema's names
    groupSymbol: str = Field(min_length=1, max_length=25)  # noqa: N815 - likewise
    jobName: str = Field(min_length=1, max_length=140)  # noqa: N815 - likewise
    groupName: str = Field(min_length=1, max_length=255)  # noqa: N815 - likewise


class PulseMachine(_PulseJob):
    name: str = Field(pattern=Plain, min_length=1, max_length=50)
    platform: str = Field(pattern=Plain, min_length=1, max_length=100)
    os: str = Field(pattern=Plain, min_length=1, max_length=25)
    architecture: str = Field(pattern=Plain, min_length=1, max_length=25)


class Link(_PulseJob):
    url: str = Field(max_length=512)
    linkText: str = Field(min_length=1, max_length=125)  # noqa: N815 - likewise
    label: str = Field(min_length=1, max_length=70)


class JobInfo(_PulseJob):
    summary: str
    links: list[Link]


class Log(_PulseJob):
    url: str = Field(min_length=1, max_length=255)
    name: str = Field(min_length=1, max_length=50)


class PulseJob(_PulseJob):
    """A message for whoever reads jobs from an exchange of ours; the tests hold it against `pulse-job.yml`."""

    taskId: str = Field(pattern=r"^[A-Za-z0-9/+-]+$", max_length=50)  # noqa: N815 - likewise
    retryId: int = Field(ge=0)  # noqa: N815 - likewise
    isRetried: bool  # noqa: N815 - likewise
    buildSystem: Literal["taskcluster"] = "taskcluster"  # noqa: N815 - likewise
    origin: Origin
    display: Display
    state: Literal["pending", "running", "completed"]
    result: Literal["success", "fail", "exception", "retry", "canceled", "superseded", "unknown"]
    jobKind: Literal["build", "test", "other"]  # noqa: N815 - likewise
    tier: int = Field(ge=1, le=3)
    coalesced: list[str] = []
    timeScheduled: str | None = None  # noqa: N815 - likewise
    timeStarted: str | None = None  # noqa: N815 - likewise
    timeCompleted: str | None = None  # noqa: N815 - likewise
    labels: list[Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=Plain)]]
    owner: str = Field(min_length=1, max_length=50)
    reason: str = Field(min_length=1, max_length=125)
    productName: str = Field(min_length=1, max_length=125)  # noqa: N815 - likewise
    buildMachine: PulseMachine  # noqa: N815 - likewise
    runMachine: PulseMachine  # noqa: N815 - likewise
    jobInfo: JobInfo | None = None  # noqa: N815 - likewise
    logs: list[Log] = []
    version: Literal[1] = 1


_RESULTS = {"testfailed": "fail", "busted": "fail", "usercancel": "canceled"}


def pulse_message(
    report: JobReport,
    facts: Facts,
    root: str,
    log_name: str,
    push: FoundPush,
    links: list[dict[str, str]] | None = None,
    *,
    schema: Literal["2015", "2026"] = "2015",
) -> dict[str, Any]:
    """Return the message for a report, as that version of `pulse-job.yml` has it.

    Raises UnusableError for what the format has no room for.
    """
    state, result = state_of(report, facts.job_kind)
    if schema == "2015" and result == "retry":  # which it does not know: readers make it of `isRetried`
        result = result_of(report, facts.job_kind)
    origin = {"project": report.project, "revision": push.revision}
    run = report.run
    url = log_of(report, root)

    def machine(platform: dict[str, str]) -> dict[str, str]:
        name = _plain(run.get("worker") or "unknown")[:50]
        words = {key: _plain(value) for key, value in platform.items()}
        return {
            "name": name,
            "platform": words["platform"],
            "os": words["os_name"],
            "architecture": words["architecture"],
        }

    def linked(link: dict[str, str]) -> dict[str, str]:
        return {"url": link["url"], "linkText": link["value"][-125:], "label": link["title"]}

    # readers make log references of links to error summaries by themselves
    all_links = [task_link(report, root), *(links or [])]
    job_info = {
        "summary": facts.description,
        "links": [linked(link) for link in all_links if len(link["url"]) <= 512],
    }
    try:
        message = PulseJob.model_validate(
            {
                "taskId": job_guid(report.task_id, report.run_id),
                "retryId": report.run_id,
                "isRetried": report.stage == Stage.FOLLOWED,
                "origin": {"kind": "hg.mozilla.org", **origin} if schema == "2015" else origin,
                "display": {
                    "jobSymbol": facts.symbol,
                    "groupSymbol": facts.group_symbol,
                    "jobName": facts.name,
                    "groupName": facts.group_name,
                },
                "state": state,
                "result": _RESULTS.get(result, result),
                # who reads it takes a failure of any other kind for `busted`
                "jobKind": facts.job_kind or "test",
                "tier": facts.tier,
                "timeScheduled": _iso(facts.created),
                "timeStarted": _iso(run.get("started")),
                "timeCompleted": _iso(ended_at(report)),
                "labels": [_plain(option)[:50] for option in facts.options],
                "owner": facts.owner,
                "reason": facts.reason,
                "productName": facts.product,
                "buildMachine": machine(facts.build),
                "runMachine": machine(facts.machine),
                "jobInfo": job_info if report.stage >= Stage.RESOLVED else None,
                "logs": [{"url": url, "name": log_name}] if url else [],
            }
        )
    except ValidationError as error:
        raise UnusableError(f"it does not fit into a job message: {problems_of(error)}") from None
    return message.model_dump(exclude_none=True)


def _plain(text: str) -> str:
    """`text` with what the schema does not take replaced."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in text)


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.000Z}"
