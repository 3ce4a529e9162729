"""Reports and facts of tasks for tests of jobs, and the published schemas of jobs on Pulse."""

from typing import Any, Literal

import jsonschema
import yaml

from service.clients.treeherder import FoundPush
from service.clock import now
from service.flow.jobs.events import Target, TaskStatus, build_rows
from service.flow.tasks.facts import TaskFacts
from service.store.models import JobReport, Stage
from tests.published_schemas import published_folder, read_published
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
    known = {"state": "completed", "started": 1_700_000_010, "resolved": 1_700_000_020, "worker": "w1", **run}
    target: dict[str, Any] = {
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": TIP,
        "lane": "job tc-treeherder mc",
    }
    return JobReport(task_id=TASK, run_id=0, task_group_id=TASK, stage=stage, run=known, **target)


def facts_of(**section: Any) -> TaskFacts:
    extra = {"treeherder": {"symbol": "B", **section}}
    return TaskFacts(TASK, {**definition(extra=extra), "workerType": "linux"})


def recorded() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = read_published("pulse/task-events.json")
    return events


def status_of(*runs: dict[str, Any]) -> dict[str, Any]:
    """A task's status; runs that ended started before."""
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


SCHEMAS: tuple[Literal["2015", "2026"], ...] = ("2015", "2026")


def check_pulse(message: dict[str, Any], form: Literal["2015", "2026"] = "2015") -> None:
    """Hold a message against the published schema, or against its long-lived form before."""
    schema = yaml.safe_load((published_folder() / "treeherder/pulse-job.yml").read_text())
    if form == "2015":
        properties = schema["properties"]
        origin = properties["origin"]
        origin["properties"] = {**origin["properties"], "kind": {"enum": ["hg.mozilla.org"]}}
        origin["required"] = ["kind", "project", "revision"]
        properties["result"]["enum"].remove("retry")
        properties["display"]["properties"]["jobName"]["maxLength"] = 100
        properties["display"]["properties"]["groupName"]["maxLength"] = 100
    jsonschema.validate(message, schema)
