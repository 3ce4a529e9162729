"""Build the message that announces a job on Pulse, as Treeherder's `pulse-job.yml` has it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.clients.treeherder import FoundPush
from service.flow.jobs.run import ended_at, job_guid, log_of, result_of, state_of, task_link
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.sanitize import problems_of
from service.store.models import JobReport, Stage

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
    facts: TaskFacts,
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
        raise UnshowableTaskError(f"it does not fit into a job message: {problems_of(error)}") from None
    return message.model_dump(exclude_none=True)


def _plain(text: str) -> str:
    """`text` with what the schema does not take replaced."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in text)


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.000Z}"
