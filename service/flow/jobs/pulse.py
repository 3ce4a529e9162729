"""Build the message that announces a job on Pulse, as Treeherder's `pulse-job.yml` has it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from service.clients.treeherder import FoundPush
from service.contract.events import NODE
from service.contract.validation import named_pattern, problems_of
from service.flow.jobs.run import ended_at, job_guid, log_of, result_of, state_of, task_link
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.store.models import JobReport, Stage

PLAIN = named_pattern(r"^[\w-]+$", "word (letters, digits, _ and -)")
_GUID = named_pattern(r"^[A-Za-z0-9/+-]+$", "job_guid (characters of A-Z a-z 0-9 / + -)")


class _PulseJob(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class Origin(_PulseJob):
    """The push of a job."""

    kind: Literal["hg.mozilla.org"] | None = None
    project: str = Field(pattern=PLAIN, min_length=1, max_length=50)
    revision: str = Field(pattern=NODE)


class Display(_PulseJob):
    """Names and symbols of a job and its group."""

    job_symbol: str = Field(max_length=25)
    group_symbol: str = Field(min_length=1, max_length=25)
    job_name: str = Field(min_length=1, max_length=140)
    group_name: str = Field(min_length=1, max_length=255)


class PulseMachine(_PulseJob):
    """A machine and its platform."""

    name: str = Field(pattern=PLAIN, min_length=1, max_length=50)
    platform: str = Field(pattern=PLAIN, min_length=1, max_length=100)
    os: str = Field(pattern=PLAIN, min_length=1, max_length=25)
    architecture: str = Field(pattern=PLAIN, min_length=1, max_length=25)


class Link(_PulseJob):
    """A link that is shown beside a job."""

    url: str = Field(max_length=512)
    link_text: str = Field(min_length=1, max_length=125)
    label: str = Field(min_length=1, max_length=70)


class JobInfo(_PulseJob):
    """A description and links that are shown beside a job."""

    summary: str
    links: list[Link]


class Log(_PulseJob):
    """A log that Treeherder parses."""

    url: str = Field(min_length=1, max_length=255)
    name: str = Field(min_length=1, max_length=50)


class PulseJob(_PulseJob):
    """A message that announces a job on an exchange of this service; the tests compare it with `pulse-job.yml`."""

    task_id: str = Field(pattern=_GUID, max_length=50)
    retry_id: int = Field(ge=0)
    is_retried: bool
    build_system: Literal["taskcluster"] = "taskcluster"
    origin: Origin
    display: Display
    state: Literal["pending", "running", "completed"]
    result: Literal["success", "fail", "exception", "retry", "canceled", "superseded", "unknown"]
    job_kind: Literal["build", "test", "other"]
    tier: int = Field(ge=1, le=3)
    coalesced: list[str] = []
    time_scheduled: str | None = None
    time_started: str | None = None
    time_completed: str | None = None
    labels: list[Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=PLAIN)]]
    owner: str = Field(min_length=1, max_length=50)
    reason: str = Field(min_length=1, max_length=125)
    product_name: str = Field(min_length=1, max_length=125)
    build_machine: PulseMachine
    run_machine: PulseMachine
    job_info: JobInfo | None = None
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
    """Return the message for a report in this version of `pulse-job.yml`.

    Raises UnshowableTaskError if a value does not fit into the format.
    """
    state, result = state_of(report, facts.job_kind)
    if schema == "2015" and result == "retry":  # this version has no such result; readers derive it from `isRetried`
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

    # readers derive log references from links to error summaries
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
                # readers show a failure of any other kind as `busted`
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
        raise UnshowableTaskError(f"it does not fit into a job message on Pulse: {problems_of(error)}") from None
    return message.model_dump(exclude_none=True, by_alias=True)


def _plain(text: str) -> str:
    """Return `text` with "-" in place of each character that the schema does not take."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in text)


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.000Z}"
