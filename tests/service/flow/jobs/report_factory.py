"""Reports and facts of tasks for tests of jobs, and our schema of jobs on Pulse."""

import functools
from typing import Any, Literal

import jsonschema
import yaml
from jsonschema.validators import validator_for

from service.clients.treeherder import FoundPush
from service.clock import now
from service.flow.jobs.events import Target, TaskStatus, build_rows
from service.flow.tasks.facts import TaskFacts
from service.store.models import JobReport, Stage
from tests.published_schemas import has_published_schemas, published_folder, read_published
from tests.service.flow.report_harness import definition

TASK = "A35mWTRuQmyj88yMnIF0fA"


ROOT = "https://taskcluster.net"


TIP = "a1" * 20


PUSH = FoundPush(TIP, None)


def reports_of(payload: dict[str, Any], project: str = "mc", revision: str | None = TIP) -> list[JobReport]:
    status = TaskStatus.model_validate(payload["status"])
    rows = build_rows(status, [Target("tc-treeherder", project, revision)])
    return [JobReport(**row._asdict(), last_event_at=now()) for row in rows]


def report(stage: Stage = Stage.RESOLVED, **run: Any) -> JobReport:
    values = {"state": "completed", "started": 1_700_000_010, "resolved": 1_700_000_020, "worker": "w1", **run}
    target: dict[str, Any] = {
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": TIP,
        "lane": "job tc-treeherder mc",
    }
    return JobReport(task_id=TASK, run_id=0, task_group_id=TASK, stage=stage, run=values, **target)


def facts_of(**section: Any) -> TaskFacts:
    extra = {"treeherder": {"symbol": "B", **section}}
    return TaskFacts(TASK, {**definition(extra=extra), "workerType": "linux"})


def recorded() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = read_published("pulse/task-events.json")
    return events


def status_of(*runs: dict[str, Any]) -> dict[str, Any]:
    """Return a task's status; ended runs were started before."""
    times = {"scheduled": "2026-11-29T00:00:00.000Z", "started": "2026-11-29T00:01:00.000Z"}
    numbered = [{"runId": number, "reasonCreated": "scheduled", **times, **run} for number, run in enumerate(runs)]
    last = numbered[-1]["state"]
    return {
        "taskId": TASK,
        "taskGroupId": TASK,
        "deadline": "2026-11-30T00:00:00.000Z",
        "state": last,
        "runs": numbered,
    }


def _text(longest: int, pattern: str = "", shortest: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": shortest, "maxLength": longest, "pattern": pattern}


def _object(optional: dict[str, Any], **required: Any) -> dict[str, Any]:
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def pulse_job_schema(form: Literal["2015", "2026"]) -> dict[str, Any]:
    """Return our schema of the messages that Treeherder reads from Pulse; the form of 2015 was stricter."""
    old = form == "2015"
    plain, date = r"^[\w-]+$", {"type": "string", "format": "date-time"}
    results = ["success", "fail", "exception", "canceled", "superseded", "unknown", *([] if old else ["retry"])]
    origin = {"project": _text(50, plain), "revision": _text(40, "^[0-9a-f]+$", 40)}
    display = {
        "jobName": _text(100 if old else 140),
        "jobSymbol": _text(25, shortest=0),
        "groupSymbol": _text(25),
    }
    machine = _object(
        {"name": _text(50, plain)}, platform=_text(100, plain), os=_text(25, plain), architecture=_text(25, plain)
    )
    link = _object({}, url=_text(512, shortest=0), linkText=_text(125), label=_text(70))
    return _object(
        {
            "retryId": {"type": "integer", "minimum": 0},
            "isRetried": {"type": "boolean"},
            "result": {"enum": results},
            "tier": {"type": "integer", "minimum": 1, "maximum": 3},
            "coalesced": {"type": "array", "items": _text(50, r"^[\w/+-]+$")},
            **dict.fromkeys(("timeScheduled", "timeStarted", "timeCompleted"), date),
            "labels": {"type": "array", "items": _text(50, plain)},
            "owner": _text(50),
            "reason": _text(125),
            "productName": _text(125),
            "buildMachine": machine,
            "runMachine": machine,
            "jobInfo": _object({"summary": {"type": "string"}, "links": {"type": "array", "items": link}}),
            "logs": {"type": "array", "items": _object({}, url=_text(255), name=_text(50))},
        },
        taskId=_text(50, "^[A-Za-z0-9/+-]+$"),
        origin=_object({}, kind={"enum": ["hg.mozilla.org"]}, **origin) if old else _object({}, **origin),
        buildSystem=_text(25, plain),
        display=_object({"groupName": _text(100 if old else 255)}, **display),
        state={"enum": ["unscheduled", "pending", "running", "completed"]},
        jobKind={"enum": ["build", "test", "other"]},
        version={"enum": [1]},
    )


SCHEMAS: tuple[Literal["2015", "2026"], ...] = ("2015", "2026")


@functools.cache
def validators(form: Literal["2015", "2026"]) -> list[jsonschema.protocols.Validator]:
    """Return a validator of our schema and, where it is available, one of the published schema in that form."""
    schemas = [pulse_job_schema(form)]
    if has_published_schemas():
        schemas.append(published_pulse_job(form))
    return [validator_for(schema, jsonschema.Draft7Validator)(schema) for schema in schemas]


def published_pulse_job(form: Literal["2015", "2026"]) -> dict[str, Any]:
    """Return the published schema, or its long-lived form before."""
    schema: dict[str, Any] = yaml.safe_load((published_folder() / "treeherder/pulse-job.yml").read_text())
    if form == "2015":
        properties = schema["properties"]
        origin = properties["origin"]
        origin["properties"] = {**origin["properties"], "kind": {"enum": ["hg.mozilla.org"]}}
        origin["required"] = ["kind", "project", "revision"]
        properties["result"]["enum"].remove("retry")
        properties["display"]["properties"]["jobName"]["maxLength"] = 100
        properties["display"]["properties"]["groupName"]["maxLength"] = 100
    return schema


def check_pulse(message: dict[str, Any], form: Literal["2015", "2026"] = "2015") -> None:
    """Raise unless the message is valid in that form."""
    for validator in validators(form):
        validator.validate(message)
